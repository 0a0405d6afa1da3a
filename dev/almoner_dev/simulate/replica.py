"""A replica of the ledger inside the simulation: the real service on the real database, killed at any statement.

Role: hands requests to the service's own application, without sockets; lets transactions fail, end with an unknown
outcome, or end with the whole replica. A killed replica answers nobody; what was not committed is rolled back, as
the database does for a client that is gone. Boundary: faults come from `faults`; who restarts it is the world.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final, Protocol, TypeVar
from unittest import mock

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy
from sqlalchemy import event, exc
from sqlalchemy.engine import Connection, Engine
from yarl import URL

from almoner_dev.simulate.clockwork import Clock
from almoner_dev.simulate.faults import Faults
from almoner_dev.simulate.pausing import Process
from almoner_ledger import database as ledger_database
from almoner_ledger.auth import Authenticator, Caller
from almoner_ledger.service import Service
from almoner_ledger.store import Database, Store

T = TypeVar("T")

PATIENCE_S: Final = 2.0
DISK_FULL: Final = "53100"
"""PostgreSQL's SQLSTATE."""


class KilledError(BaseException):
    """The replica dies here. Nothing of its own code may catch this."""


class GoneError(ConnectionError):
    """Nobody answers at that address, or no longer."""


class Server(Protocol):
    """The database server, as far as it can be broken."""

    def strike(self) -> None:
        """Called before each statement: may kill the server."""

    @property
    def away(self) -> bool:
        """Whether the database cannot be reached now."""

    @property
    def full(self) -> bool:
        """Whether there is no room on the database's disk: reads work, writes fail."""


class _RetryTime:
    """Stands for the module `time` in the database's retries: they wait for nothing, and run out all the same."""

    def __init__(self) -> None:
        self._slept = 0.0

    def monotonic(self) -> float:
        return self._slept

    def sleep(self, seconds: float) -> None:
        self._slept += seconds


def without_waiting() -> Any:
    """Have the retries of transactions wait in a time of their own. A context manager."""
    return mock.patch.object(ledger_database, "time", _RetryTime())


class FaultyDatabase(Database):
    """The ledger's database, whose transactions fail where the seed says."""

    def __init__(self, engine: Engine, faults: Faults, server: Server) -> None:
        # All replicas share one engine: what it has compiled is kept, and one transaction runs at a time anyway.
        self.engine = engine
        self.patience_seconds = PATIENCE_S
        self.retries = 0
        self.health = ledger_database.WriteHealth()
        self.is_postgresql = engine.dialect.name == "postgresql"
        self._faults = faults
        self._server = server
        self._writing = False
        event.listen(engine, "before_cursor_execute", self._statement)

    def close(self) -> None:
        """Close its connections, and leave the engine to the others."""
        event.remove(self.engine, "before_cursor_execute", self._statement)
        self.engine.dispose()

    def _once(self, work: Callable[[Connection], T], *, read_only: bool, by_index: bool = False) -> T:
        if self._server.away:
            raise _lost("the database is away")
        self._writing = not read_only
        try:
            result = super()._once(work, read_only=read_only, by_index=by_index)
        finally:
            self._writing = False
        if not read_only:
            if self._faults.strikes("commit_unknown"):
                raise _lost("the answer to COMMIT did not come")
            if self._faults.strikes("killed_in_transaction"):
                raise KilledError
        return result

    def _statement(self, *_: Any) -> None:
        if not self._writing:
            return  # Another replica's, or one that only reads.
        self._server.strike()
        if self._server.full and self._faults.strikes("statement_finds_no_room"):
            raise _full(self.is_postgresql)
        if self._faults.strikes("statement_fails"):
            raise _lost("the statement failed")
        if self._faults.strikes("killed_in_transaction"):
            raise KilledError


def _lost(message: str) -> exc.OperationalError:
    return exc.OperationalError("simulated", None, ConnectionError(message))


def _full(is_postgresql: bool) -> exc.OperationalError:
    """Give what the driver raises where the disk is full: by the code alone the ledger knows that it may pass."""
    cause = OSError("no space left on device")
    if is_postgresql:
        cause.pgcode = DISK_FULL  # type: ignore[attr-defined]
    else:
        cause.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[attr-defined]
    return exc.OperationalError("simulated", None, cause)


@dataclass(frozen=True)
class Site:
    """What all replicas share: the database, its clock, what goes wrong, who may speak."""

    engine: Engine
    clock: Clock
    faults: Faults
    server: Server
    tokens: Mapping[str, Caller]


class Replica:
    """One replica of the ledger. `start` it again after `kill`."""

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.up = False
        self._site = site
        # In their order: that of a set would not be the seed's.
        self._requests: dict[asyncio.Task[tuple[int, bytes]], None] = {}
        self._service: Service | None = None
        self._runner: web.AppRunner | None = None
        self._database: FaultyDatabase | None = None
        self._protocol = _protocol()
        self.process = Process()

    async def start(self) -> None:
        """Start the service over the database."""
        self.process = Process()
        with self.process.inside():
            await self._start()

    async def _start(self) -> None:
        self._database = FaultyDatabase(self._site.engine, self._site.faults, self._site.server)
        store = Store(self._database, clock=self._site.clock.database_ms)
        self._service = Service(store, Authenticator(access=None, static=self._site.tokens))
        self._runner = web.AppRunner(self._service.application(), access_log=None, handle_signals=False)
        await self._runner.setup()
        for task in self._background():
            task.add_done_callback(self._ended)
        self.up = True

    def _background(self) -> list[asyncio.Task[Any]]:
        """The tasks of the service's parts: writer, watches, sweeper."""
        parts = [getattr(part, "_task", None) for part in vars(self._service).values()]
        return [part for part in parts if isinstance(part, asyncio.Task)]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and isinstance(task.exception(), KilledError):
            self.kill()

    async def stop(self) -> None:
        """Stop in order."""
        if self.up and self._runner is not None and self._database is not None:
            self.up = False
            await self._runner.cleanup()
            self._database.close()

    def kill(self) -> None:
        """Die at once."""
        if not self.up:
            return
        self.up = False
        assert self._database is not None
        self.process.resume()
        for task in (*self._background(), *self._requests):
            task.cancel()
        self._requests.clear()
        self._database.close()

    async def handle(self, method: str, path: str, token: str, body: bytes) -> tuple[int, bytes]:
        """Serve one request. Raises GoneError where the replica is down, or dies over it."""
        if not self.up:
            raise GoneError(f"{self.name} is down")
        task = self.process.task(self._serve(method, path, token, body))
        self._requests[task] = None
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            # Who asked has gone; the command is decided all the same.
            task.add_done_callback(self._answered)
            raise
        self._answered(task)
        if task.cancelled():
            raise GoneError(f"{self.name} died")
        error = task.exception()
        if isinstance(error, KilledError):
            self.kill()
            raise GoneError(f"{self.name} died")
        return task.result()

    def _answered(self, task: asyncio.Task[tuple[int, bytes]]) -> None:
        self._requests.pop(task, None)

    async def _serve(self, method: str, path: str, token: str, body: bytes) -> tuple[int, bytes]:
        assert self._runner is not None
        assert self._runner.app is not None
        content = StreamReader(self._protocol, 2**24, loop=asyncio.get_running_loop())
        if body:
            content.feed_data(body)
        content.feed_eof()
        headers = {hdrs.AUTHORIZATION: f"Bearer {token}", hdrs.CONTENT_LENGTH: str(len(body))}
        message = RawRequestMessage(
            method=method,
            path=path,
            version=HttpVersion11,
            headers=CIMultiDictProxy(CIMultiDict(headers)),
            raw_headers=(),
            should_close=False,
            compression=None,
            upgrade=False,
            chunked=False,
            url=URL(path),
        )
        task = asyncio.current_task()
        assert task is not None
        request = web.Request(message, content, self._protocol, self._protocol.writer, task, asyncio.get_running_loop())
        response = await self._runner.app._handle(request)  # noqa: SLF001 - what the server behind a socket calls
        assert isinstance(response, web.Response)
        sent = response.body
        return response.status, sent if isinstance(sent, bytes) else b""


def _protocol() -> Any:
    """Give what a request asks of its connection: nothing that matters here."""
    return SimpleNamespace(
        transport=SimpleNamespace(get_extra_info=lambda _name: None, is_closing=lambda: False),
        writer=SimpleNamespace(),
        ssl_context=None,
        peername=None,
        sockname=None,
        _reading_paused=False,
        pause_reading=lambda *_, **__: None,
        resume_reading=lambda *_, **__: None,
    )
