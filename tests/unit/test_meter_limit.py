"""How long a call may take: as long as its run, and never long past the meter's lease."""

from __future__ import annotations

import asyncio

import pytest

from almoner_core.environment import CALL_PAST_LEASE_SECONDS, LEASE_MARGIN_SECONDS, LEASE_SECONDS, SILENCE_SECONDS
from almoner_runner.meter.limit import CUT_OFF, RUN_OVER, CallLimit, CallLimits

HOUR = 3600.0


async def never() -> None:
    await asyncio.Event().wait()


def test_a_silent_meter_has_ended_its_calls_before_the_ledger_gives_it_up() -> None:
    assert CallLimits().past_lease_seconds == CALL_PAST_LEASE_SECONDS
    assert LEASE_SECONDS + CallLimits().past_lease_seconds + LEASE_MARGIN_SECONDS <= SILENCE_SECONDS


async def test_a_call_ends_with_its_run() -> None:
    limit = CallLimit(CallLimits(seconds=0.05), lambda: float("inf"))
    with pytest.raises(TimeoutError):
        async with limit:
            await never()
    assert limit.why == RUN_OVER


async def test_a_meter_that_the_ledger_does_not_hear_ends_its_calls_so_long_after_its_lease() -> None:
    lease_until = asyncio.get_running_loop().time() + 0.05
    limit = CallLimit(CallLimits(HOUR, past_lease_seconds=0.05), lambda: lease_until)
    with pytest.raises(TimeoutError):
        async with limit:
            await never()
    assert limit.why == CUT_OFF
    assert asyncio.get_running_loop().time() >= lease_until + 0.05


async def test_a_lease_that_is_renewed_lets_long_calls_go_on() -> None:
    loop = asyncio.get_running_loop()
    looks = 0
    enough = asyncio.Event()

    def lease_until() -> float:
        nonlocal looks
        looks += 1
        if looks == 5:
            enough.set()
        return loop.time() + 0.01

    limit = CallLimit(CallLimits(HOUR, past_lease_seconds=0.0), lease_until)
    async with limit, asyncio.timeout(10):
        await enough.wait()
    assert limit.why is None


async def test_what_ends_in_time_or_by_itself_is_left_alone() -> None:
    async with CallLimit(CallLimits(HOUR), lambda: HOUR) as limit:
        pass
    assert limit.why is None
    with pytest.raises(ValueError, match="own"):
        async with CallLimit(CallLimits(HOUR), lambda: float("inf")) as limit:
            raise ValueError("own")
    assert limit.why is None
