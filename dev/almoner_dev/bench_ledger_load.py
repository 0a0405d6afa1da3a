"""The load processes of the `ledger` benchmark: what meters (and an operator) do to the service, as fast as it answers.

Role: four kinds of load, each a function of a `Task` that runs in a process of its own (a spawned one, so that the
generator shares nothing with the service but the machine) and returns plain numbers. All processes begin and end at
instants of the monotonic clock, which is the same for all processes of a machine.

Boundary: sends and counts. What is counted is what the service acknowledged within the measured time.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from almoner_dev.bench_ledger_client import (
    RECORD_COST_NANOS,
    Caller,
    Maker,
    Meter,
    RefusedError,
    Target,
    activate,
    extend,
    give_back,
    open_and_bind,
    post_records,
)
from almoner_dev.bench_report import run_async

BATCH_OPEN: Final = 20
EXTENDS_PER_ATTEMPT: Final = 3
CHUNK_NANOS: Final = 1_000_000
OUTSTANDING_MAX: Final = 2_000
"""Past this many requests under way a paced load is lost, and further ones are counted as failed."""
DRAIN_SECONDS: Final = 5.0
LIMIT_NANOS: Final = 10**15
"""The limit of each execution, so that its own account is an enforced one like the quotas'."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process has to do. Times are of the monotonic clock, in seconds."""

    target: Target
    seed: int
    begin: float
    seconds: float
    allotments: tuple[tuple[str, Meter], ...] = ()
    accounts: tuple[dict[str, str], ...] = ()
    connections: int = 8
    batch: int = 50
    rate: float = 0.0

    @property
    def end(self) -> float:
        """When the measured time ends."""
        return self.begin + self.seconds


@dataclass(slots=True)
class Tally:
    """What one process counted."""

    counts: dict[str, int] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    retries: int = 0
    acknowledged_nanos: int = 0

    def count(self, name: str, number: int = 1) -> None:
        """Count what was acknowledged."""
        self.counts[name] = self.counts.get(name, 0) + number

    def add(self, other: Tally) -> None:
        """Add what another process counted."""
        for name, number in other.counts.items():
            self.count(name, number)
        self.latencies_ms += other.latencies_ms
        self.retries += other.retries
        self.acknowledged_nanos += other.acknowledged_nanos


Load = Callable[[Task], Coroutine[Any, Any, Tally]]


def post_load(task: Task) -> Tally:
    """Post full batches of records without pause, one request at a time for each allotment."""
    return run_async(_post_load(task))


def lifecycle_load(task: Task) -> Tally:
    """Open, bind, activate, extend, return in part, return for good, over and over: the life of short attempts."""
    return run_async(_lifecycle_load(task))


def paced_load(task: Task) -> Tally:
    """Extend at a fixed pace whatever the answers do; latency counts from the moment a request was due."""
    return run_async(_paced_load(task))


async def _until(instant: float) -> None:
    await asyncio.sleep(max(0.0, instant - time.monotonic()))


async def _post_load(task: Task) -> Tally:
    tally, maker = Tally(), Maker(task.seed)
    async with Caller(task.target.url, connections=len(task.allotments)) as caller:

        async def one(allotment: str, meter: Meter) -> None:
            sequence, held = 0, 0
            await _until(task.begin)
            while time.monotonic() < task.end:
                cost = task.batch * RECORD_COST_NANOS
                if held < cost:
                    held += await extend(caller, allotment, meter, maker, need=cost, want=1000 * cost)
                records = [maker.record(sequence + number) for number in range(1, task.batch + 1)]
                sent = time.monotonic()
                await post_records(caller, allotment, meter, maker, records)
                done = time.monotonic()
                sequence += task.batch
                held -= cost
                tally.acknowledged_nanos += cost
                if done <= task.end:
                    tally.count("records", task.batch)
                    tally.latencies_ms.append((done - sent) * 1000)

        await asyncio.gather(*(one(allotment, meter) for allotment, meter in task.allotments))
        tally.retries = caller.retries
    return tally


async def _lifecycle_load(task: Task) -> Tally:
    async with Caller(task.target.url, connections=task.connections + 1) as caller:
        attempts = _Attempts(task, caller)
        await _until(task.begin)
        await asyncio.gather(attempts.operate(), *(attempts.run() for _ in range(task.connections)))
        attempts.tally.retries = caller.retries
    return attempts.tally


class _Attempts:
    """One operator that opens, and meters that use what it opened."""

    def __init__(self, task: Task, caller: Caller) -> None:
        self.task, self.caller = task, caller
        self.tally, self.maker = Tally(), Maker(task.seed)
        self.ready: asyncio.Queue[tuple[str, Meter] | None] = asyncio.Queue(BATCH_OPEN)

    def _done(self, name: str, number: int = 1) -> None:
        if time.monotonic() <= self.task.end:
            self.tally.count(name, number)

    async def operate(self) -> None:
        """Keep a few attempts ahead of the meters, in batches, as an operator that admits does."""
        task, maker = self.task, self.maker
        identities = itertools.cycle(task.target.meters)
        while time.monotonic() < task.end:
            meters = list(itertools.islice(identities, BATCH_OPEN))
            items = [
                maker.open(pod="bench", accounts=list(task.accounts), limit_nanos=LIMIT_NANOS, want_nanos=CHUNK_NANOS)
                for _ in meters
            ]
            opened = await open_and_bind(self.caller, task.target, items, meters, maker)
            self._done("open", len(opened))
            self._done("bind", len(opened))
            for pair in zip(opened, meters, strict=True):
                await self.ready.put(pair)
        for _ in range(task.connections):
            await self.ready.put(None)

    async def run(self) -> None:
        """Be one meter after the other."""
        while (pair := await self.ready.get()) is not None:
            if time.monotonic() < self.task.end:
                await self._attempt(*pair)

    async def _attempt(self, allotment: str, meter: Meter) -> None:
        caller, maker = self.caller, self.maker
        await activate(caller, allotment, meter, maker)
        self._done("activate")
        for _ in range(EXTENDS_PER_ATTEMPT):
            granted = await extend(caller, allotment, meter, maker, need=CHUNK_NANOS, want=CHUNK_NANOS)
            self._done("extend")
            await give_back(caller, allotment, meter, maker, amount=granted)
            self._done("return")
        await give_back(caller, allotment, meter, maker)
        self._done("return")


async def _paced_load(task: Task) -> Tally:
    tally, maker = Tally(), Maker(task.seed)
    under_way: set[asyncio.Task[None]] = set()
    async with Caller(task.target.url, connections=64) as caller:

        async def one(allotment: str, meter: Meter, due: float) -> None:
            try:
                await extend(caller, allotment, meter, maker, need=RECORD_COST_NANOS, want=RECORD_COST_NANOS)
            except RefusedError:
                tally.count("failed")
                return
            finished = time.monotonic()
            tally.latencies_ms.append((finished - due) * 1000)
            tally.count("granted")

        for number in range(int(task.rate * task.seconds)):
            due = task.begin + number / task.rate
            if due > time.monotonic():
                await _until(due)
            if len(under_way) >= OUTSTANDING_MAX:
                tally.count("failed")
                continue
            allotment, meter = task.allotments[number % len(task.allotments)]
            job = asyncio.create_task(one(allotment, meter, due))
            under_way.add(job)
            job.add_done_callback(under_way.discard)
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=DRAIN_SECONDS)
            tally.count("failed", len(late))
            for job in late:
                job.cancel()
        tally.retries = caller.retries
    return tally
