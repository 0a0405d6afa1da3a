"""The operator's side of the ledger: asynchronous, batched, every mutation with an operation id of its own.

Role: what is asked of the ledger within a moment travels in one request (while one batch is under way the next
gathers), so that a hundred admissions a second are a handful of exchanges. A retry carries the same operation id and
gets the same answer. The service account token is read again from its file, because it is replaced before it expires.

Boundary: wire.py's messages in and out. Decides nothing: refusals are raised as LedgerError, a higher epoch elsewhere
as LeadershipLostError, silence as LedgerUnavailableError.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, Self, TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError

from almoner_core import wire
from almoner_operator import metrics
from almoner_operator.credentials import CredentialsError, TokenFile
from almoner_operator.errors import LeadershipLostError, LedgerError, LedgerUnavailableError
from almoner_operator.ledger_trust import LedgerTrust

REQUEST_SECONDS: Final = 15.0
TRIES_MAX: Final = 5
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 2.0
BATCH_ITEMS: Final = 200
BATCHES_MAX: Final = 2
ANSWER_BYTES_MAX: Final = 32 * 1024 * 1024
PAGE: Final = 500

Item = TypeVar("Item", bound=BaseModel)
Answer = TypeVar("Answer", bound=BaseModel)
Message = TypeVar("Message", bound=BaseModel)


class LedgerClient:
    """A client of one ledger service. Use as a context manager; take an epoch before anything else."""

    def __init__(self, url: str, *, token_file: Path | None, trust: LedgerTrust | None = None) -> None:
        self._url = url.rstrip("/")
        self._trust = trust or LedgerTrust()
        self._token = TokenFile(token_file) if token_file else None
        self._session: aiohttp.ClientSession | None = None
        self._random = random.Random()  # noqa: S311 - jitter
        self.epoch = 0
        self._clock: tuple[int, float] | None = None
        """What the ledger's clock was, and when that was heard (monotonic)."""
        self._open: _Batcher[wire.OpenAllotment, wire.OpenAnswer] = _Batcher(self._send_open)
        self._bind: _Batcher[wire.BindAllotment, wire.ItemAnswer] = _Batcher(self._send_bind)
        self._void: _Batcher[wire.CloseAllotment, wire.ItemAnswer] = _Batcher(self._send_void)
        self._close: _Batcher[wire.CloseAllotment, wire.ItemAnswer] = _Batcher(self._send_close)
        self._accrue: _Batcher[wire.AccrueAllotment, wire.ItemAnswer] = _Batcher(self._send_accrue)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS), headers={"User-Agent": "almoner-operator"}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    # -- leadership and limits -----------------------------------------------------------------------

    async def take_epoch(self, *, operation_id: str, holder: str) -> int:
        """Begin to lead: every lower epoch is refused from now on."""
        answer = await self._post("/v1/epochs", wire.TakeEpoch(operation_id=operation_id, holder=holder), wire.Epoch)
        self.epoch = answer.epoch
        return self.epoch

    async def update_accounts(
        self, accounts: Sequence[wire.AccountLimits], *, operation_id: str
    ) -> wire.AccountsAnswer:
        """Hand over limits that changed; at most wire.BATCH_ITEMS_MAX at once. The answer names those refused."""
        body = wire.UpdateAccounts(epoch=self.epoch, operation_id=operation_id, accounts=list(accounts))
        return await self._post("/v1/accounts:update", body, wire.AccountsAnswer)

    async def observe(self, objects: Sequence[wire.ObservedObject], *, operation_id: str) -> wire.Observed:
        """Tell of objects of the configuration that changed, at most wire.OBSERVED_MAX at once."""
        body = wire.ObserveObjects(epoch=self.epoch, operation_id=operation_id, objects=list(objects))
        return await self._post("/v1/configuration:observe", body, wire.Observed)

    async def known_configuration(self) -> AsyncIterator[wire.KnownObject]:
        """Give every object of the configuration that the ledger believes to be there."""
        after: str | None = None
        while True:
            query = {"limit": str(PAGE), **({"after": after} if after else {})}
            page = await self._get("/v1/configuration", query, wire.KnownObjects)
            for each in page.objects:
                yield each
            after = page.next
            if after is None:
                return

    # -- allotments ----------------------------------------------------------------------------------

    async def open(self, item: wire.OpenAllotment) -> wire.Amounts:
        """Open an allotment and give what was granted. Raises LedgerError, with the refusal where there was no room."""
        answer = await self._open.ask(item)
        self._note_clock(answer.now_unix_ms)
        if answer.error is not None:
            raise _named(answer.error)
        return answer.granted or {}

    async def bind(self, item: wire.BindAllotment) -> str:
        """Bind an allotment to the pod that was created for it; gives the allotment's state."""
        return _state(await self._bind.ask(item))

    async def void(self, item: wire.CloseAllotment) -> str:
        """Void an allotment that was only offered; gives its state."""
        return _state(await self._void.ask(item))

    async def close(self, item: wire.CloseAllotment) -> wire.ItemAnswer:
        """Close an allotment whose pod is gone. What did not come back is charged off, or as its last word says."""
        answer = await self._close.ask(item)
        _state(answer)
        return answer

    async def accrue(self, item: wire.AccrueAllotment) -> wire.ItemAnswer:
        """Charge machine time and hold for what comes; the answer has the error where there was no room for that.

        Raises LedgerError where nothing was charged.
        """
        answer = await self._accrue.ask(item)
        self._note_clock(answer.now_unix_ms)
        if answer.error is not None and answer.state is None:
            raise _named(answer.error)
        return answer

    async def open_allotments(self) -> AsyncIterator[wire.AllotmentView]:
        """Give every open allotment, for reconciling with pods."""
        after: str | None = None
        while True:
            query = {"state": "open", "limit": str(PAGE), **({"after": after} if after else {})}
            page = await self._get("/v1/allotments", query, wire.AllotmentPage)
            self._note_clock(page.now_unix_ms)
            for view in page.allotments:
                yield view
            after = page.next
            if after is None:
                return

    def now_ms(self) -> int | None:
        """Give the ledger's own clock, rather too early than too late; None while it has not told."""
        if self._clock is None:
            return None
        told, heard = self._clock
        return told + int((time.monotonic() - heard) * 1000)

    def _note_clock(self, now_ms: int | None) -> None:
        if now_ms:
            self._clock = (now_ms, time.monotonic())

    async def changes(self, after: int, *, wait_seconds: int, limit: int = PAGE) -> wire.Changes:
        """Give what changed after the cursor, waiting up to `wait_seconds` for the first change. One try."""
        query = {"after": str(after), "timeout_seconds": str(wait_seconds), "limit": str(limit)}
        return await self._get("/v1/changes", query, wire.Changes, tries=1, seconds=wait_seconds + REQUEST_SECONDS)

    # -- batches -------------------------------------------------------------------------------------

    async def _send_open(self, items: Sequence[wire.OpenAllotment]) -> Sequence[wire.OpenAnswer]:
        body = wire.OpenBatch(epoch=self.epoch, items=list(items))
        return (await self._post("/v1/allotments:open", body, wire.OpenAnswers)).answers

    async def _send_bind(self, items: Sequence[wire.BindAllotment]) -> Sequence[wire.ItemAnswer]:
        body = wire.BindBatch(epoch=self.epoch, items=list(items))
        return (await self._post("/v1/allotments:bind", body, wire.BatchAnswer)).answers

    async def _send_void(self, items: Sequence[wire.CloseAllotment]) -> Sequence[wire.ItemAnswer]:
        body = wire.CloseBatch(epoch=self.epoch, items=list(items))
        return (await self._post("/v1/allotments:void", body, wire.BatchAnswer)).answers

    async def _send_close(self, items: Sequence[wire.CloseAllotment]) -> Sequence[wire.ItemAnswer]:
        body = wire.CloseBatch(epoch=self.epoch, items=list(items))
        return (await self._post("/v1/allotments:close", body, wire.BatchAnswer)).answers

    async def _send_accrue(self, items: Sequence[wire.AccrueAllotment]) -> Sequence[wire.ItemAnswer]:
        body = wire.AccrueBatch(epoch=self.epoch, items=list(items))
        return (await self._post("/v1/allotments:accrue", body, wire.BatchAnswer)).answers

    # -- the wire ------------------------------------------------------------------------------------

    async def _post(self, path: str, body: BaseModel, answer: type[Message]) -> Message:
        return await self._retried("POST", path, answer, data=body.model_dump_json(exclude_none=True).encode())

    async def _get(
        self,
        path: str,
        query: dict[str, str],
        answer: type[Message],
        *,
        tries: int = TRIES_MAX,
        seconds: float = REQUEST_SECONDS,
    ) -> Message:
        return await self._retried("GET", path, answer, query=query, tries=tries, seconds=seconds)

    async def _retried(
        self,
        method: str,
        path: str,
        answer: type[Message],
        *,
        data: bytes | None = None,
        query: dict[str, str] | None = None,
        tries: int = TRIES_MAX,
        seconds: float = REQUEST_SECONDS,
    ) -> Message:
        problem: LedgerError | None = None
        for attempt in range(tries):
            if attempt:
                longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** (attempt - 1))
                await asyncio.sleep(longest * (0.5 + self._random.random() / 2))
            try:
                with metrics.LEDGER_SECONDS.labels(path.rpartition("/")[2]).time():
                    return await self._once(method, path, answer, data=data, query=query, seconds=seconds)
            except LedgerError as error:
                metrics.LEDGER_ERRORS.labels(error.code).inc()
                if error.code == wire.ErrorCode.STALE_EPOCH:
                    raise LeadershipLostError("the ledger knows a newer leader") from error
                if error.code not in (wire.ErrorCode.UNAVAILABLE, wire.ErrorCode.UNAUTHENTICATED):
                    raise
                problem = error
            except (aiohttp.ClientError, TimeoutError, OSError, CredentialsError) as error:
                metrics.LEDGER_ERRORS.labels("unreachable").inc()
                problem = LedgerError(wire.ErrorCode.UNAVAILABLE, f"{type(error).__name__}: {error}"[:300])
        assert problem is not None
        raise LedgerUnavailableError(problem.code, problem.message)

    async def _once(
        self,
        method: str,
        path: str,
        answer: type[Message],
        *,
        data: bytes | None,
        query: dict[str, str] | None,
        seconds: float,
    ) -> Message:
        assert self._session is not None, "use the client as a context manager"
        headers = {"Content-Type": "application/json"} if data is not None else {}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.read()}"
        async with self._session.request(
            method,
            self._url + path,
            data=data,
            params=query,
            headers=headers,
            ssl=self._trust.context(),
            timeout=aiohttp.ClientTimeout(total=seconds),
        ) as response:
            content = await response.content.read(ANSWER_BYTES_MAX + 1)
            while len(content) <= ANSWER_BYTES_MAX:
                more = await response.content.read(ANSWER_BYTES_MAX)
                if not more:
                    break
                content += more
            if response.status >= 300:
                raise _answered(response.status, content)
            try:
                return answer.model_validate_json(content)
            except ValidationError as error:
                raise LedgerError(
                    wire.ErrorCode.UNAVAILABLE,
                    f"{path}: an answer that is no {answer.__name__}: {error.errors()[:1]}",
                ) from error


def _answered(status: int, content: bytes) -> LedgerError:
    try:
        return _named(wire.ErrorAnswer.model_validate_json(content).error)
    except ValidationError:
        code = wire.ErrorCode.UNAVAILABLE if status >= 500 or status == 429 else wire.ErrorCode.INVALID
        return LedgerError(code, f"HTTP {status}: {content[:200].decode(errors='replace')}")


def _named(error: wire.Error) -> LedgerError:
    if error.code is wire.ErrorCode.UNAVAILABLE:
        return LedgerUnavailableError(error.code, error.message)
    return LedgerError(
        error.code,
        error.message,
        refusal=error.refusal,
        field=error.field,
        retry_after_seconds=error.retry_after_seconds,
    )


def _state(answer: wire.ItemAnswer) -> str:
    if answer.error is not None:
        raise _named(answer.error)
    return answer.state or ""


class _Batcher(Generic[Item, Answer]):
    """Gathers what is asked while earlier batches are under way, and sends it in one request, in the order asked."""

    def __init__(self, send: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]]) -> None:
        self._send = send
        self._pending: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def ask(self, item: Item) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending.append((item, future))
        self._start()
        return await future

    def _start(self) -> None:
        if self._pending and len(self._under_way) < BATCHES_MAX:
            task = asyncio.get_running_loop().create_task(self._run())
            self._under_way.add(task)

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.sleep(0)  # Whatever else is asked in this turn of the loop travels along.
            batch, self._pending = self._pending[:BATCH_ITEMS], self._pending[BATCH_ITEMS:]
            if batch:
                await self._carry(batch)
        finally:
            self._under_way.discard(task)
            self._start()

    async def _carry(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
            if len(answers) != len(batch):
                raise LedgerUnavailableError(
                    wire.ErrorCode.UNAVAILABLE, f"{len(answers)} answers to {len(batch)} questions"
                )
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(
                        error if isinstance(error, Exception) else LedgerUnavailableError("unavailable", "stopped")
                    )
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)


def ready_url(url: str) -> str:
    """Give the address that says whether the ledger serves."""
    return url.rstrip("/") + "/readyz"


async def wait_ready(url: str, *, seconds: float) -> bool:
    """Wait until the ledger serves; False where it did not in time. For start-up messages only."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        while loop.time() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError):
                async with session.get(ready_url(url)) as answer:
                    if answer.status == 200:
                        return True
            await asyncio.sleep(0.1)
    return False


def as_amounts(values: dict[wire.Dimension, int | None]) -> dict[Any, int]:
    """Give wire amounts without what is not limited."""
    return {dimension: value for dimension, value in values.items() if value is not None}
