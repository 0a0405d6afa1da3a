"""A log that stays readable: what fails again and again is said so often a minute, and counted."""

from __future__ import annotations

import logging

from almoner_ledger.database import TELL_SECONDS, WriteHealth
from almoner_ledger.quiet import LINES, Quiet


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(clock: Time, times: int, seconds: float) -> list[str]:
    log, found = logging.getLogger("almoner_ledger.quiet_test"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(Quiet(clock))
    log.addHandler(handler)
    for number in range(times):
        log.warning("it failed: %d", number)
        clock.now += seconds
    log.removeHandler(handler)
    return found


def test_a_loop_that_fails_writes_few_lines_and_says_how_many_were_left_out() -> None:
    found = shown(Time(), 100_000, 0.0012)
    assert len(found) == 2 * LINES
    assert found[0] == "it failed: 0"
    assert "like it were left out before" in found[LINES]


def test_what_fails_now_and_then_is_all_written() -> None:
    assert len(shown(Time(), 50, 10.0)) == 50


def test_writes_that_fail_are_told_once_a_minute_and_their_end() -> None:
    clock = Time()
    health = WriteHealth(clock)
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("almoner_ledger.database")
    log.addHandler(handler)
    try:
        health.worked()
        assert health.is_fresh()
        for _ in range(1000):
            health.failed("disk full")
            clock.now += TELL_SECONDS / 250
        assert not health.is_fresh()
        health.worked()
        assert health.is_fresh()
    finally:
        log.removeHandler(handler)
    assert len(found) == 5
    assert "takes no writes" in found[0]
    assert "takes writes again" in found[-1]
