"""Calls that cost nothing (Anthropic's `count_tokens`): paced, so that no agent hammers a provider for free.

Role: a bucket for each provider, and so many under way. What is beyond is refused with 429 and when to try again, which
the SDKs heed; nothing waits here. Boundary: no ledger is asked and no record written. ModelProvider rates do not count
these calls: providers limit counting apart from generating.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from typing import Final

from almoner_runner.meter.refusals import RefusedError

AT_ONCE_MAX: Final = 60
PER_SECOND: Final = 2.0
IN_FLIGHT_MAX: Final = 8


class _Bucket:
    """What one provider's free calls have left."""

    __slots__ = ("in_flight", "left", "since")

    def __init__(self, now: float) -> None:
        self.left = float(AT_ONCE_MAX)
        self.since = now
        self.in_flight = 0


class FreeCalls:
    """Paces the free calls of one meter."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    @contextlib.contextmanager
    def one(self, provider: str) -> Iterator[None]:
        """Let one call through; the provider is one of the configuration's. Raises RefusedError."""
        now = asyncio.get_running_loop().time()
        bucket = self._buckets.setdefault(provider, _Bucket(now))
        bucket.left = min(float(AT_ONCE_MAX), bucket.left + (now - bucket.since) * PER_SECOND)
        bucket.since = now
        if bucket.in_flight >= IN_FLIGHT_MAX:
            raise _too_many(provider, f"{IN_FLIGHT_MAX} are under way already", 1)
        if bucket.left < 1.0:
            seconds = max(1, math.ceil((1.0 - bucket.left) / PER_SECOND))
            raise _too_many(provider, f"at most {AT_ONCE_MAX} at once and {PER_SECOND:g} a second", seconds)
        bucket.left -= 1.0
        bucket.in_flight += 1
        try:
            yield
        finally:
            bucket.in_flight -= 1


def _too_many(provider: str, what: str, seconds: int) -> RefusedError:
    return RefusedError(
        429,
        "rate_limit_exceeded",
        f"too many calls of provider {provider!r} that cost nothing: {what}; try again in {seconds} s",
        retry_after=seconds,
    )
