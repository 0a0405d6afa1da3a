"""Waiting in tests: poll with a deadline, never sleep and hope."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_WAIT_S = 0.01
LONGEST_WAIT_S = 0.25


def until(
    predicate: Callable[[], T],
    seconds: float,
    what: str,
    *,
    retry_on: tuple[type[BaseException], ...] = (),
) -> T:
    """Calls the predicate until it returns something truthy, and returns that.

    Waits between the calls grow from 10 to 250 ms. Past `seconds` raises AssertionError, which names
    `what` was awaited and the last value seen. Exceptions end the waiting, except those in `retry_on`.
    """
    deadline = time.monotonic() + seconds
    wait = FIRST_WAIT_S
    while True:
        last: object
        try:
            value = predicate()
        except retry_on as error:
            last = error
        else:
            if value:
                return value
            last = value
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(f"waited {seconds:g} s for {what}; the last value was {last!r}")
        time.sleep(min(wait, left))
        wait = min(wait * 1.5, LONGEST_WAIT_S)


async def until_async(
    predicate: Callable[[], Awaitable[T]],
    seconds: float,
    what: str,
    *,
    retry_on: tuple[type[BaseException], ...] = (),
) -> T:
    """Like `until`, for a predicate to await."""
    deadline = time.monotonic() + seconds
    wait = FIRST_WAIT_S
    while True:
        last: object
        try:
            value = await predicate()
        except retry_on as error:
            last = error
        else:
            if value:
                return value
            last = value
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(f"waited {seconds:g} s for {what}; the last value was {last!r}")
        await asyncio.sleep(min(wait, left))
        wait = min(wait * 1.5, LONGEST_WAIT_S)
