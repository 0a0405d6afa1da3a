"""Group commit: requests that arrive within a couple of milliseconds share a transaction.

Role: one writer thread takes commands from a bounded queue, a group at a time, and answers each after COMMIT. While a
transaction runs, the next group gathers by itself. Boundary: what is decided is the store's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from almoner_core.wire import ErrorCode
from almoner_ledger import metrics
from almoner_ledger.database import DatabaseUnavailableError
from almoner_ledger.errors import LedgerError
from almoner_ledger.store import Answer, Command, Store, queries

log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.002
GROUP_WEIGHT_MAX: Final = 500
QUEUE_MAX: Final = 20_000

Pending = tuple[Command, "asyncio.Future[Answer]"]


class Batcher:
    """Feeds a store with groups of commands. Use it from one event loop; `close` finishes what was taken."""

    def __init__(self, store: Store, *, queue_max: int = QUEUE_MAX) -> None:
        self._store = store
        self._queue: deque[Pending] = deque()
        self._queue_max = queue_max
        self._wake = asyncio.Event()
        self._closing = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ledger-writer")
        self._task: asyncio.Task[None] | None = None
        self.committed = asyncio.Event()
        """Set after each group; whoever waits for changes replaces it."""

    def start(self) -> None:
        """Start taking commands."""
        self._task = asyncio.create_task(self._run(), name="ledger-writer")

    async def close(self) -> None:
        """Refuse new commands, finish those that were taken, and stop."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._executor.shutdown()

    async def submit(self, command: Command) -> Answer:
        """Have one command decided; a refusal is raised as LedgerError."""
        (answer,) = await self.submit_all([command])
        if isinstance(answer, LedgerError):
            raise answer
        return answer

    async def submit_all(self, commands: Sequence[Command]) -> list[Answer]:
        """Have commands decided in their order, each on its own; refusals stand in the list as LedgerErrors.

        Raises LedgerError `unavailable` when the queue is full or the database away.
        """
        if self._closing or len(self._queue) + len(commands) > self._queue_max:
            why = "the ledger is shutting down" if self._closing else "too many requests are waiting"
            raise LedgerError(ErrorCode.UNAVAILABLE, f"{why}; retry with the same operation id")
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in commands]
        self._queue.extend(zip(commands, futures, strict=True))
        metrics.QUEUE.set(len(self._queue))
        self._wake.set()
        if len(futures) == 1:
            return [await futures[0]]
        return list(await asyncio.gather(*futures))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            if not self._queue:
                if self._closing:
                    return
                self._wake.clear()
                continue
            if len(self._queue) < GROUP_WEIGHT_MAX and not self._closing:
                await asyncio.sleep(GATHER_SECONDS)
            group = self._take()
            answers = await loop.run_in_executor(self._executor, self._execute, [command for command, _ in group])
            for (_, future), answer in zip(group, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
            self.committed.set()

    def _take(self) -> list[Pending]:
        group: list[Pending] = []
        weight = 0
        while self._queue and (not group or weight + self._queue[0][0].weight <= GROUP_WEIGHT_MAX):
            pending = self._queue.popleft()
            # Who has gone (a client that hung up) still gets its command decided: the answer is kept for its retry.
            group.append(pending)
            weight += pending[0].weight
        metrics.QUEUE.set(len(self._queue))
        return group

    def _execute(self, commands: list[Command]) -> Sequence[Answer]:
        metrics.GROUP_SIZE.observe(len(commands))
        with metrics.TRANSACTION_SECONDS.time():
            try:
                return self._store.execute(commands)
            except DatabaseUnavailableError as error:
                message = f"the database does not answer ({error}); retry with the same operation id"
                return [LedgerError(ErrorCode.UNAVAILABLE, message)] * len(commands)
            except Exception:
                log.exception("a group of %d commands failed", len(commands))
                if len(commands) > 1:
                    return [answer for each in commands for answer in self._execute([each])]
                message = "the ledger could not do this and logged why; retry with the same operation id"
                return [LedgerError(ErrorCode.UNAVAILABLE, message)]


class ChangeWatch:
    """Wakes long polls when something was committed, here or by a replica."""

    def __init__(self, store: Store, batcher: Batcher, *, poll_seconds: float = 0.25) -> None:
        self._store = store
        self._batcher = batcher
        self._poll_seconds = poll_seconds
        self._waiters = 0
        self._latest = 0
        self._changed = asyncio.Condition()
        self._needed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start watching; the database is asked only while somebody waits."""
        self._task = asyncio.create_task(self._run(), name="ledger-watch")

    async def close(self) -> None:
        """Stop watching and let all waiters go."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        async with self._changed:
            self._latest = -1
            self._changed.notify_all()

    async def wait(self, after: int, seconds: float) -> None:
        """Wait until a change number beyond `after` is committed, at most `seconds`."""
        self._waiters += 1
        self._needed.set()
        try:
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._changed.wait_for(lambda: self._latest > after or self._latest < 0)
        finally:
            self._waiters -= 1

    async def _run(self) -> None:
        while True:
            if not self._waiters:
                self._needed.clear()
                await self._needed.wait()
            try:
                latest = await asyncio.to_thread(self._store.read, queries.last_change)
            except DatabaseUnavailableError:
                latest = self._latest
            if latest != self._latest:
                async with self._changed:
                    self._latest = latest
                    self._changed.notify_all()
            self._batcher.committed.clear()
            with contextlib.suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it forgets a cancellation that comes together with the event.
                async with asyncio.timeout(self._poll_seconds):
                    await self._batcher.committed.wait()
