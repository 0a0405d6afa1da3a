"""Many spenders on one budget: what the `ledger` benchmark says of overspending, and of money that lies idle.

Role: simulated meters, each a process of its own as it is in its pod. Each holds before a call, settles after it, asks
for more only when the next call's bound does not fit what it holds, and posts what it settled in small batches. Every
change of what lies idle (granted, neither used nor held for a call under way) is noted with its instant, so that the
sum over all processes can be known at the moment when the budget first refused anyone.

The processes are forked from a server that has imported everything: hundreds start within seconds and share its memory.

Boundary: a meter reduced to its arithmetic; the real one is measured by the `meter` benchmark.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, Final

from almoner_dev.bench_ledger_client import (
    Caller,
    Maker,
    Meter,
    RefusedError,
    activate,
    extend,
    give_back,
    post_records,
)
from almoner_dev.bench_ledger_load import Task
from almoner_dev.bench_report import run_async

CALL_BOUND_NANOS: Final = 1_000_000
CALL_SECONDS: Final = 0.02
RECORDS_PER_POST: Final = 10
WANT_CALLS: Final = 8
READY_SECONDS: Final = 120.0
"""How long all processes together may take to be ready."""
BEGIN_SECONDS: Final = 0.5
"""Between the moment when all are ready and the instant at which all begin."""
LAST_WORD_SECONDS: Final = 60.0
"""What a process may take to settle and return after the time to spend is over."""


@dataclass(slots=True)
class Spent:
    """What the spender of one process did."""

    pid: int = 0
    late_seconds: float = 0.0
    """How long after the instant that was agreed on it began."""
    calls: int = 0
    settled_nanos: int = 0
    refusals: int = 0
    first_refusal: float | None = None
    """When the budget first refused, by the monotonic clock."""
    refusals_with_seconds: int = 0
    """Refusals that say in how many seconds to come back: when the budget's window ends."""
    refusals_that_may_free_up: int = 0
    """Refusals that say that others may return something before that."""
    refusals_that_say_when: int = 0
    """Refusals that say one or the other."""
    frozen: int = 0
    idle_changes: list[tuple[float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def spend(tasks: Sequence[Task]) -> list[Spent]:
    """Run a spender process for each task, all from one instant on, until the budget has refused each of them.

    `begin` and `end` of the tasks are set here. Raises RuntimeError where a process dies or does not end in time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with _processes(context, tasks) as pipes:
        ready_by = time.monotonic() + READY_SECONDS
        for pipe in pipes:
            _receive(pipe, ready_by, "to be ready")
        begin = time.monotonic() + BEGIN_SECONDS
        for pipe in pipes:
            pipe.send(begin)
        ended_by = begin + max(task.seconds for task in tasks) + LAST_WORD_SECONDS
        return [_receive(pipe, ended_by, "to have spent") for pipe in pipes]


def idle_at(changes: list[tuple[float, int]], instant: float) -> int:
    """Sum what lay idle at an instant."""
    return sum(change for when, change in changes if when <= instant)


@contextmanager
def _processes(context: multiprocessing.context.ForkServerContext, tasks: Sequence[Task]) -> Iterator[list[Connection]]:
    started, pipes = [], []
    try:
        for task in tasks:
            ours, theirs = context.Pipe()
            pipes.append(ours)
            process = context.Process(target=_process, args=(theirs, task), daemon=True)
            process.start()
            started.append(process)
            theirs.close()
        yield pipes
        for process in started:
            process.join(LAST_WORD_SECONDS)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.kill()
            process.join()


def _receive(pipe: Connection, deadline: float, what: str) -> Any:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        raise RuntimeError(f"a spender took too long {what}")
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"a spender died before it was {what.removeprefix('to be ')}") from None


def _process(pipe: Connection, task: Task) -> None:
    pipe.send(os.getpid())
    pipe.send(run_async(_spend(replace(task, begin=pipe.recv()))))


async def _spend(task: Task) -> Spent:
    spent, maker = Spent(pid=os.getpid()), Maker(task.seed)
    ((allotment, meter),) = task.allotments
    async with Caller(task.target.url, connections=1) as caller:
        spender = _Spender(caller, maker, spent, allotment, meter)
        await asyncio.sleep(max(0.0, task.begin - time.monotonic()))
        spent.late_seconds = time.monotonic() - task.begin
        await spender.run(task.end)
    return spent


class _Spender:
    def __init__(self, caller: Caller, maker: Maker, spent: Spent, allotment: str, meter: Meter) -> None:
        self.caller, self.maker, self.spent = caller, maker, spent
        self.allotment, self.meter = allotment, meter
        self.idle = 0
        self.sequence = 0
        self.settled = self.tokens = 0
        self.unposted: list[dict[str, Any]] = []

    def _idle(self, change: int) -> None:
        self.idle += change
        self.spent.idle_changes.append((time.monotonic(), change))

    async def run(self, end: float) -> None:
        try:
            answer = await activate(self.caller, self.allotment, self.meter, self.maker)
            self._idle(int(answer["held"].get("usd", 0)))
            while time.monotonic() < end and await self._hold():
                await self._call()
            await self._post()
            self._idle(-self.idle)
            await give_back(
                self.caller,
                self.allotment,
                self.meter,
                self.maker,
                last_sequence=self.sequence,
                settled=self.settled,
                tokens=self.tokens,
                requests=self.sequence,
            )
        except RefusedError as error:
            self.spent.errors.append(str(error))

    async def _hold(self) -> bool:
        """Have the next call's bound, or learn that the budget has no room."""
        missing = CALL_BOUND_NANOS - self.idle
        if missing > 0:
            try:
                granted = await extend(
                    self.caller,
                    self.allotment,
                    self.meter,
                    self.maker,
                    need=missing,
                    want=missing + (WANT_CALLS - 1) * CALL_BOUND_NANOS,
                )
            except RefusedError as error:
                if error.code != "insufficient":
                    raise
                self.spent.refusals += 1
                self.spent.refusals_with_seconds += int(error.retry_after_seconds is not None)
                self.spent.refusals_that_may_free_up += int(error.may_free_up)
                self.spent.refusals_that_say_when += int(error.retry_after_seconds is not None or error.may_free_up)
                if self.spent.first_refusal is None:
                    self.spent.first_refusal = time.monotonic()
                return False
            self._idle(granted)
        self._idle(-CALL_BOUND_NANOS)
        return True

    async def _call(self) -> None:
        await asyncio.sleep(CALL_SECONDS * self.maker.random.uniform(0.5, 1.5))
        cost = self.maker.random.randint(CALL_BOUND_NANOS // 3, CALL_BOUND_NANOS)
        self.sequence += 1
        record = self.maker.record(self.sequence, cost)
        self.unposted.append(record)
        self.settled += cost
        self.tokens += record["tokens"]["input"] + record["tokens"]["output"]
        self.spent.calls += 1
        self.spent.settled_nanos += cost
        self._idle(CALL_BOUND_NANOS - cost)
        if len(self.unposted) >= RECORDS_PER_POST:
            await self._post()

    async def _post(self) -> None:
        if not self.unposted:
            return
        records, self.unposted = self.unposted, []
        answer = await post_records(self.caller, self.allotment, self.meter, self.maker, records)
        self.spent.frozen += int(answer.get("frozen", False))
