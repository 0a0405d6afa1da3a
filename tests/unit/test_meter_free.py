"""Calls that cost nothing are paced for each provider."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from almoner_runner.meter.free import AT_ONCE_MAX, IN_FLIGHT_MAX, PER_SECOND, FreeCalls
from almoner_runner.meter.refusals import RefusedError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loop's time, as the test sets it."""
    now = [100.0]

    class Loop:
        def time(self) -> float:
            return now[0]

    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    return now


def passed(calls: FreeCalls, tries: int, provider: str = "p") -> int:
    """How many of so many calls, one after another, are let through."""
    count = 0
    for _ in range(tries):
        with contextlib.suppress(RefusedError), calls.one(provider):
            count += 1
    return count


def test_so_many_at_once_and_then_by_the_second(clock: list[float]) -> None:
    calls = FreeCalls()
    assert passed(calls, 1000) == AT_ONCE_MAX
    assert passed(calls, 1000, "another") == AT_ONCE_MAX, "each provider has its own"
    clock[0] += 10
    assert passed(calls, 1000) == 10 * PER_SECOND
    clock[0] += 100_000
    assert passed(calls, 1000) == AT_ONCE_MAX, "nothing is saved up beyond what passes at once"


def test_a_refusal_says_when_to_try_again_and_that_is_true(clock: list[float]) -> None:
    calls = FreeCalls()
    passed(calls, AT_ONCE_MAX)
    with (
        pytest.raises(RefusedError, match=r"'p' that cost nothing: at most 60 at once and 2 a second") as refused,
        calls.one("p"),
    ):
        pass
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after is not None
    clock[0] += refused.value.retry_after
    assert passed(calls, 1) == 1


async def test_so_many_are_under_way_and_a_failed_one_makes_room() -> None:
    calls = FreeCalls()
    go = asyncio.Event()

    async def one() -> None:
        with calls.one("p"):
            await go.wait()
            raise ConnectionError

    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(one()) for _ in range(IN_FLIGHT_MAX)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="8 are under way"), calls.one("p"):
        pass
    go.set()
    assert all(isinstance(error, ConnectionError) for error in await asyncio.gather(*tasks, return_exceptions=True))
    assert passed(calls, 1) == 1
