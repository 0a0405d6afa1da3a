"""From start to last word: allotment, input, listeners; then drain, output, return, termination message.

Order at the start: listeners first (the kubelet's probe is told what is waited for), then the allotment, then the input
file, then ready. At the end, after the agent has exited: refuse, let calls in flight settle, read the output, post,
return, and write the cumulative totals where the kubelet picks them up: the second witness besides the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from almoner_core import environment as names
from almoner_runner.meter.app import BODY_BYTES_MAX, App
from almoner_runner.meter.books import Books, BooksClosedError
from almoner_runner.meter.config import Config, ConfigError, parse
from almoner_runner.meter.files import OutputError, read_input, read_output, write_error, write_input, write_last_word
from almoner_runner.meter.forward import Forwarder
from almoner_runner.meter.health import Health
from almoner_runner.meter.holds import IN_FLIGHT_MAX, Holds
from almoner_runner.meter.ids import uuid7
from almoner_runner.meter.ledger import BODY_BYTES_MAX as LEDGER_BODY_BYTES_MAX
from almoner_runner.meter.ledger import LedgerClient, LedgerError, LedgerUnreachableError, Secret
from almoner_runner.meter.progress import Progress
from almoner_runner.meter.spool import Spool, SpoolError

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 30
# Kept of the grace period for the last exchanges with the ledger.
LAST_EXCHANGES_SECONDS: Final = 8.0
OUTPUT_SECONDS: Final = 4.0
# An idle connection is closed before a server with the usual five seconds closes it under a call.
KEEPALIVE_SECONDS: Final = 3.0
HEADER_BYTES_MAX: Final = 32 * 1024
EXIT_CLOSED: Final = 69  # EX_UNAVAILABLE: the ledger does not let this meter have its allotment

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are, by the environment."""

    config: Config
    address: tuple[str, int]
    health_address: tuple[str, int]
    spool_dir: Path
    token_file: Path | None
    providers_dir: Path
    input_file: Path
    output_file: Path
    termination_log: Path

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment. Raises ConfigError, which names the variable."""
        text = env.get(names.ENV_METER_CONFIG)
        if not text:
            raise ConfigError(f"{names.ENV_METER_CONFIG} is needed: the configuration as JSON")
        token = env.get(names.ENV_LEDGER_TOKEN_FILE)
        host, _, port = env.get(names.ENV_METER_ADDRESS, names.METER_ADDRESS).rpartition(":")
        health_port = env.get(names.ENV_HEALTH_PORT, str(names.HEALTH_PORT))
        return cls(
            config=parse(text),
            address=(host, _port(port, names.ENV_METER_ADDRESS)),
            health_address=(env.get(names.ENV_POD_IP, "127.0.0.1"), _port(health_port, names.ENV_HEALTH_PORT)),
            spool_dir=Path(env.get(names.ENV_SPOOL_DIR, names.SPOOL_DIR)),
            token_file=Path(token) if token else None,
            providers_dir=Path(env.get(names.ENV_PROVIDERS_DIR, names.PROVIDERS_DIR)),
            input_file=Path(env.get(names.ENV_INPUT_FILE, names.INPUT_FILE)),
            output_file=Path(env.get(names.ENV_OUTPUT_FILE, names.OUTPUT_FILE)),
            termination_log=Path(env.get(names.ENV_TERMINATION_LOG, names.TERMINATION_LOG)),
        )


def first_need_of(config: Config) -> dict[str, int] | None:
    """What admission had granted for the first call; None where the operator does not say."""
    given = config.extra.get(names.EXTRA_FIRST_NEED)
    if not isinstance(given, dict):
        return None
    return {str(name): amount for name, amount in given.items() if isinstance(amount, int) and amount > 0}


def _port(text: str, name: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"{name}: {text[:16]!r} is not a port from 1 to 65535")
    return int(text)


def run(settings: Settings) -> int:
    """Run the meter until SIGTERM; gives the exit code."""
    try:
        import uvloop  # noqa: PLC0415 - absent on some platforms

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(Meter(settings).run())


class Meter:
    """One meter's life."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.config = settings.config
        self._stop = asyncio.Event()
        self._grace = self.config.extra.get(names.EXTRA_GRACE_SECONDS, GRACE_SECONDS)
        if not isinstance(self._grace, int) or self._grace < 1:
            self._grace = GRACE_SECONDS

    async def run(self) -> int:
        """Live; gives the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        spool = Spool(self.settings.spool_dir, self.config.allotment)
        try:
            recovered = spool.open()
        except SpoolError as error:
            return self._fail(str(error))
        async with _session() as ledger_session, _session() as provider_session:
            client = LedgerClient(
                self.config.ledger_url, self.config.allotment, Secret(self.settings.token_file), ledger_session
            )
            books = Books(client, spool, first_need_of(self.config))
            holds = Holds(books)
            progress = Progress(client)
            app = App(self.config, holds, Forwarder(provider_session, holds), progress, self.settings.providers_dir)
            token = self.config.extra.get(names.EXTRA_PRESTOP_TOKEN)
            health = Health(app, lambda: self._prestop(holds), token if isinstance(token, str) else None)
            try:
                async with _serving(health.handle, self.settings.health_address):
                    return await self._live(app, health, books, progress, books.activate(recovered))
            except OSError as error:
                return self._fail(f"cannot listen on {self.settings.health_address}: {error.strerror}")
            finally:
                spool.close()

    async def _live(
        self, app: App, health: Health, books: Books, progress: Progress, activation: Awaitable[None]
    ) -> int:
        background: list[asyncio.Task[Any]] = []
        try:
            async with _serving(app.handle, self.settings.address):
                health.waiting_for = "the allotment: the ledger has not handed it over"
                starting = asyncio.ensure_future(self._start(app, activation))
                stopping = asyncio.create_task(self._stop.wait())
                await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    starting.cancel()
                    return self._last_word(books, final=False, lacking=books.lacking)
                starting.result()
                background = [asyncio.create_task(books.run()), asyncio.create_task(progress.run())]
                health.ready = True
                # What was made at the start stays: the collector need not look at it again and again.
                gc.collect()
                gc.freeze()
                logger.info("ready: allotment %s, limited: %s", books.spool.allotment, books.allotment.limited)
                await asyncio.wait((stopping, *background), return_when=asyncio.FIRST_COMPLETED)
                for task in background:
                    if task.done():
                        logger.error("a background task of the meter failed: ending", exc_info=task.exception())
                await self._drain(app.holds)
        except BooksClosedError as error:
            return self._fail(str(error))
        except (OSError, ValueError) as error:
            return self._fail(f"the meter cannot start: {error}")
        # The agent has exited and its calls are settled or were cut off just now, with their server.
        await _cancel(background)
        return await self._finish(app, books, progress)

    async def _start(self, app: App, activation: Awaitable[None]) -> None:
        source = self.config.input_file
        app.input = read_input(self.config.input, Path(source) if source else None)
        await activation
        write_input(self.settings.input_file, app.input)

    def _prestop(self, holds: Holds) -> None:
        """From now new calls are refused when what is left of the grace period is what draining needs."""
        now = asyncio.get_running_loop().time()
        until = now + max(0.0, self._grace - LAST_EXCHANGES_SECONDS - OUTPUT_SECONDS)
        if holds.draining_from is None:
            holds.draining_from = until

    async def _drain(self, holds: Holds) -> None:
        """Refuse new calls and let those in flight settle, as long as the last exchanges still fit."""
        loop = asyncio.get_running_loop()
        holds.draining_from = loop.time()
        deadline = loop.time() + max(1.0, min(self._grace, GRACE_SECONDS) - LAST_EXCHANGES_SECONDS - OUTPUT_SECONDS)
        while holds.in_flight and (left := deadline - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await holds.books.next_settlement().wait()

    async def _finish(self, app: App, books: Books, progress: Progress) -> int:
        if app.holds.in_flight:
            logger.warning("%d calls were cut off and are estimated", app.holds.in_flight)
        await progress.flush()
        if books.stopped is None:
            await self._put_output(books.client)
        final = await books.close(LAST_EXCHANGES_SECONDS)
        return self._last_word(books, final=final)

    async def _put_output(self, client: LedgerClient) -> None:
        try:
            output = read_output(self.settings.output_file)
        except (OutputError, OSError) as error:
            logger.error("%s; it is not sent", error)  # noqa: TRY400 - the message says it all
            return
        if output is None:
            return
        content, truncated = output.content, output.truncated
        # Control characters grow sixfold in JSON.
        while len(json.dumps(content, ensure_ascii=False).encode()) > LEDGER_BODY_BYTES_MAX - 1024:
            content, truncated = content[: len(content) // 2], True
        body = {"operation_id": uuid7(), "content": content, "truncated": truncated}
        try:
            async with asyncio.timeout(OUTPUT_SECONDS):
                while True:
                    try:
                        await client.exchange("PUT", "output", body)
                        return
                    except LedgerUnreachableError as error:
                        logger.warning("output: %s; trying again", error)
                    await asyncio.sleep(0.2)
        except (TimeoutError, LedgerError) as error:
            logger.error("the output was not sent: %s", error or "no time left")  # noqa: TRY400 - likewise

    def _last_word(self, books: Books, *, final: bool, lacking: str | None = None) -> int:
        spool = books.spool
        word = {
            "allotment": self.config.allotment,
            "attempt": self.config.attempt,
            "last_sequence": spool.sequence,
            "posted": spool.posted,
            "final": final,
            "rejected": books.rejected,
            "totals": spool.totals.as_dict(),
            **({"error": f"the meter did not start: {lacking}"[:1024]} if lacking is not None else {}),
        }
        try:
            write_last_word(self.settings.termination_log, json.dumps(word, separators=(",", ":")).encode())
        except OSError as error:
            logger.warning("the termination message cannot be written: %s", error.strerror)
        return 0

    def _fail(self, message: str) -> int:
        logger.error("%s", message)
        with contextlib.suppress(OSError):
            write_error(self.settings.termination_log, message)
        return EXIT_CLOSED


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT_MAX, keepalive_timeout=KEEPALIVE_SECONDS, ttl_dns_cache=30)
    # No cookies, no proxies of the environment: what leaves the pod is what the configuration says.
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, auto_decompress=True
    )


@contextlib.asynccontextmanager
async def _serving(handler: Handler, address: tuple[str, int]) -> Any:
    """Serve on an address; what is under way at the end is cancelled."""

    def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=BODY_BYTES_MAX)

    server = web.Server(handler, request_factory=make_request, access_log=None, keepalive_timeout=75.0)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, *address, shutdown_timeout=0.5)
    await site.start()
    try:
        yield
    finally:
        await runner.cleanup()


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
