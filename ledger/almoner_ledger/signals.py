"""Signals to meters, and the end of attempts that gave none: what a replica does about leases besides commands.

Role: `SignalWatch` holds the long polls of all waiting meters and looks at them together: one query a round, and one
statement that renews the leases that are due, committed before any of them is told. A meter that asks for how long its
machine time is paid is told that too, and keeps it paid: where the operator is late, more is held. `Sweeper` gives up
active attempts that fell silent, whether or not an operator lives.

The database's clock may jump ahead. So silence is judged by two clocks: by the database's the meter must have been
silent for LeasePolicy.silence_seconds, and by this process's own nothing may have come from it for a further lease. A
living meter is heard of in that time. Boundary: HTTP is the service's, amounts are the store's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from almoner_core.identity import compute_allotment_id
from almoner_core.wire import AllotmentState, ErrorCode, ItemAnswer, Signals
from almoner_ledger import metrics
from almoner_ledger.batching import Batcher
from almoner_ledger.database import DatabaseUnavailableError
from almoner_ledger.errors import LedgerError
from almoner_ledger.leasing import ALONG_DIVISOR
from almoner_ledger.store import Store, Verb, command, queries, recall
from almoner_ledger.store.commands import Cover, Expire
from almoner_ledger.store.queries import Paid
from almoner_ledger.store.recall import Attention

log = logging.getLogger(__name__)

ROUND_SECONDS: Final = 0.5
GATHER_SECONDS: Final = 0.02
"""Meters that ask within so long are looked at together."""
SWEEP_SECONDS_MAX: Final = 30.0
COVER_SECONDS: Final = 1.0
"""No more machine time is asked for an allotment than once in so long."""
_OPEN: Final = (AllotmentState.OFFERED, AllotmentState.ACTIVE)


_NOBODY: Final = Attention("", None, 0, 0)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A meter that asked. Times are this process's monotonic seconds."""

    allotment: str
    pod_uid: str
    asked: float
    deadline: float
    answer: asyncio.Future[Signals]
    paid: bool
    """Whether it wants to know for how long its machine time is paid."""
    looked: bool = False


class SignalWatch:
    """The long polls for signals of one replica. Use it from one event loop."""

    def __init__(self, store: Store, batcher: Batcher | None = None, *, round_seconds: float = ROUND_SECONDS) -> None:
        self._store = store
        self._batcher = batcher
        self._round_seconds = round_seconds
        # In the order in which they came.
        self._waiters: dict[_Waiter, None] = {}
        self._came = asyncio.Event()
        self._next_round = 0.0
        self._told: dict[str, int] = {}
        """The newest recall that each allotment was told of, in the database's milliseconds."""
        self._covered: dict[str, float] = {}
        """When more machine time was asked for last, by compute allotment, in this process's monotonic seconds."""
        self._covering: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start looking; the database is asked only while somebody waits."""
        self._task = asyncio.create_task(self._run(), name="ledger-signals")

    async def close(self) -> None:
        """Stop, and let all waiters go; nothing is said of their leases."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for task in self._covering:
            task.cancel()
        await asyncio.gather(*self._covering, return_exceptions=True)
        for waiter in self._waiters:
            if not waiter.answer.done():
                waiter.answer.set_result(Signals())

    async def wait(self, allotment: str, pod_uid: str, seconds: float, *, paid: bool = False) -> Signals:
        """Wait for a signal, at most `seconds`; the lease is renewed meanwhile, and machine time (`paid`) held.

        Raises LedgerError.
        """
        if self._task is None or self._task.done():
            return Signals()
        asked = time.monotonic()
        waiter = _Waiter(allotment, pod_uid, asked, asked + seconds, asyncio.get_running_loop().create_future(), paid)
        self._waiters[waiter] = None
        self._came.set()
        try:
            return await waiter.answer
        finally:
            self._waiters.pop(waiter, None)

    async def _run(self) -> None:
        while True:
            if not self._waiters:
                await self._came.wait()
            await asyncio.sleep(GATHER_SECONDS)
            self._came.clear()
            try:
                await self._round()
            except Exception:
                log.exception("a round of signals failed")
                # Told at once: they ask again, and whoever spoilt this round may not be among them then.
                for each in tuple(self._waiters):
                    _fail(each, ErrorCode.UNAVAILABLE, "the ledger could not look at the signals")
                await asyncio.sleep(self._round_seconds)
            due = min([self._next_round, *(each.deadline for each in self._waiters)])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._came.wait()

    async def _round(self) -> None:
        """Look at everybody once a round, and in between at those who came or whose time is over."""
        began = time.monotonic()
        waiters = [each for each in self._waiters if not each.answer.done()]
        if began >= self._next_round:
            self._next_round = began + self._round_seconds
        else:
            waiters = [each for each in waiters if not each.looked or each.deadline <= began]
        if not waiters:
            return
        speaking: dict[str, set[str]] = {}
        for each in waiters:
            speaking.setdefault(each.allotment, set()).add(each.pod_uid)
        paying = {compute_allotment_id(each.allotment) for each in waiters if each.paid}
        try:
            now_ms, found, machines = await asyncio.to_thread(self._look, speaking, paying)
        except DatabaseUnavailableError as error:
            for each in waiters:
                if not each.looked or each.deadline <= began:
                    _fail(each, ErrorCode.UNAVAILABLE, f"the database does not answer: {error}")
            return
        for each in waiters:
            each.looked = True
            machine = machines.get(compute_allotment_id(each.allotment)) if each.paid else None
            self._tell(each, found.get(each.allotment), machine, now_ms, began)
        speak = {
            compute_allotment_id(each.allotment)
            for each in waiters
            if each.paid and (now := found.get(each.allotment, _NOBODY)).pod_uid == each.pod_uid
            if now.state == AllotmentState.ACTIVE
        }
        self._cover({key: each for key, each in machines.items() if key in speak})
        # Afterwards, so that all polls of one allotment hear it (one may be of a connection that is lost); and not of
        # what only a stranger asked about.
        mine = {each.allotment for each in waiters if found.get(each.allotment, _NOBODY).pod_uid == each.pod_uid}
        self._told.update({key: found[key].recall_ms for key in mine if found[key].recall_ms})
        for allotment in [key for key, at in self._told.items() if at < now_ms - 2 * recall.FRESH_MS]:
            del self._told[allotment]

    def _look(
        self, speaking: dict[str, set[str]], paying: set[str]
    ) -> tuple[int, dict[str, Attention], dict[str, Paid]]:
        """Look at the allotments, and renew the leases that are due; gives the database's clock too."""
        store, policy = self._store, self._store.lease
        now_ms, found, machines = store.read(
            lambda c: (now := store.now_ms(c), recall.attention(c, speaking, now), queries.paid(c, paying, now))
        )
        active = {
            key: each
            for key, each in found.items()
            if each.state == AllotmentState.ACTIVE and each.pod_uid in speaking[key]
        }
        if any(policy.is_due(each.exchanged_ms, now_ms) for each in active.values()):
            due = [key for key, each in active.items() if policy.is_due(each.exchanged_ms, now_ms, ALONG_DIVISOR)]
            for key in store.renew(due):
                found[key] = found[key]._replace(exchanged_ms=now_ms)
        return now_ms, found, machines

    def _cover(self, machines: dict[str, Paid]) -> None:
        """Have more machine time held where the operator is late to, in the background: the next look tells of it."""
        if self._batcher is None:
            return
        now = time.monotonic()
        late = [
            key
            for key, each in machines.items()
            if each.late and now - self._covered.get(key, -COVER_SECONDS) >= COVER_SECONDS
        ]
        self._covered = {key: at for key, at in self._covered.items() if now - at < COVER_SECONDS}
        if late:
            self._covered.update(dict.fromkeys(late, now))
            task = asyncio.create_task(self._have_covered(self._batcher, late), name="ledger-cover")
            self._covering.add(task)
            task.add_done_callback(self._covering.discard)

    async def _have_covered(self, batcher: Batcher, late: list[str]) -> None:
        try:
            answers = await batcher.submit_all([command(Verb.COVER, Cover(), allotment=key) for key in late])
        except LedgerError as error:
            log.info("machine time is held later: %s", error)
            return
        for key, answer in zip(late, answers, strict=True):
            if isinstance(answer, LedgerError) or (isinstance(answer, ItemAnswer) and answer.error is not None):
                log.info("no more machine time is held for %s: %s", key, getattr(answer, "error", answer))

    def _tell(self, waiter: _Waiter, found: Attention | None, machine: Paid | None, now_ms: int, began: float) -> None:
        if waiter.answer.done():
            return
        if found is None:
            _fail(waiter, ErrorCode.NOT_FOUND, "allotment: no such allotment is known")
            return
        if found.pod_uid is None or found.pod_uid != waiter.pod_uid:
            _fail(waiter, ErrorCode.FORBIDDEN, "allotment: it belongs to another pod")
            return
        cancel = found.state not in _OPEN
        recalled = not cancel and found.recall_ms > self._told.get(waiter.allotment, 0)
        if not cancel and not recalled and waiter.deadline > time.monotonic():
            return
        lease: int | None = None
        if found.state == AllotmentState.ACTIVE:
            # Counted from when it asked: the clock was read after `began`, so this is never too much.
            left_ms = self._store.lease.lease_left_ms(found.exchanged_ms, now_ms)
            lease = int(left_ms / 1000 + max(0.0, began - waiter.asked))
        paid = machine.seconds if machine is not None else None
        if paid is not None:
            paid += int(max(0.0, began - waiter.asked))
        span = machine.span if machine is not None else None
        waiter.answer.set_result(
            Signals(cancel=cancel, recall=recalled, lease_seconds=lease, paid_seconds=paid, paid_span=span)
        )


def _fail(waiter: _Waiter, code: ErrorCode, message: str) -> None:
    if not waiter.answer.done():
        waiter.answer.set_exception(LedgerError(code, message, field=None if code is ErrorCode.UNAVAILABLE else "id"))


class Sweeper:
    """Gives up silent attempts, now and then. `monotonic` replaces this process's clock (seconds) in tests."""

    def __init__(self, store: Store, batcher: Batcher, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._batcher = batcher
        self._monotonic = monotonic
        self._seen: dict[str, tuple[int, float]] = {}
        """When each silent allotment was last heard of (the database's clock), and since when that is known here."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start sweeping."""
        self._task = asyncio.create_task(self._run(), name="ledger-sweeper")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause = min(SWEEP_SECONDS_MAX, self._store.lease.lease_seconds / 2)
        while True:
            await asyncio.sleep(pause)
            try:
                await self.sweep()
            except (DatabaseUnavailableError, LedgerError) as error:
                log.info("silent attempts are looked for again later: %s", error)
            except Exception:
                log.exception("looking for silent attempts failed")

    async def sweep(self) -> list[str]:
        """Look once; gives the allotments that were given up. Raises DatabaseUnavailableError, LedgerError."""
        silent = await asyncio.to_thread(self._store.silent)
        now = self._monotonic()
        # Whoever was heard of since is not in there with the same moment: its wait begins anew.
        self._seen = {
            key: (at, self._seen[key][1] if self._seen.get(key, (None, 0.0))[0] == at else now)
            for key, at in silent.items()
        }
        wait = self._store.lease.lease_seconds
        due = [key for key, (_, since) in self._seen.items() if now - since >= wait]
        if not due:
            return []
        answers = await self._batcher.submit_all([command(Verb.EXPIRE, Expire(), allotment=key) for key in due])
        ended = [key for key, answer in zip(due, answers, strict=True) if not isinstance(answer, LedgerError)]
        for key in ended:
            self._seen.pop(key, None)
            metrics.EXPIRED.inc()
            log.warning("allotment %s is given up: nothing was heard of its meter", key)
        return ended
