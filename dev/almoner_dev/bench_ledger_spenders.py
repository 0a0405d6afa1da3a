"""Many spenders on one budget: what the `ledger` benchmark says of overspending, and of money that lies idle.

Role: a process of simulated meters. Each holds before a call, settles after it, asks for more only when the next
call's bound does not fit what it holds, and posts what it settled in small batches. Every change of what lies idle
(granted, neither used nor held for a call under way) is noted with its instant, so that the sum over all processes can
be known at the moment when the budget first refused anyone.

Boundary: a meter reduced to its arithmetic; the real one is measured by the `meter` benchmark.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class Spent:
    """What the spenders of one process did."""

    calls: int = 0
    settled_nanos: int = 0
    refusals: int = 0
    first_refusal: float | None = None
    """When the budget first refused, by the monotonic clock."""
    refused_with_retry: int = 0
    """Refusals that say when to come back, or that others may return something."""
    frozen: int = 0
    idle_changes: list[tuple[float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def spend_load(task: Task) -> Spent:
    """Run the spenders of one process until the budget has refused each of them."""
    return run_async(_spend_load(task))


def idle_at(changes: list[tuple[float, int]], instant: float) -> int:
    """Sum what lay idle at an instant."""
    return sum(change for when, change in changes if when <= instant)


async def _spend_load(task: Task) -> Spent:
    spent, maker = Spent(), Maker(task.seed)
    async with Caller(task.target.url, connections=max(1, len(task.allotments))) as caller:
        spenders = [_Spender(caller, maker, spent, allotment, meter) for allotment, meter in task.allotments]
        await asyncio.sleep(max(0.0, task.begin - time.monotonic()))
        await asyncio.gather(*(spender.run(task.end) for spender in spenders))
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
                self.spent.refused_with_retry += int(error.may_help)
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
