"""How many requests may be under way and how fast they may start, the most important first.

Role: kopf has no client-side rate limit, and an operator that drowns its API server admits nothing. Everything our own
client sends passes here: at most so many at once, a token bucket for the pace, and waiters served by rank, so that an
admission does not wait behind a thousand refreshed queue positions.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum


class Rank(IntEnum):
    """What goes first."""

    LEASE = 0
    """Leadership."""
    END = 1
    """The end of a run: what is done is told before more is begun."""
    ADMIT = 2
    """Steps of an admission."""
    STATUS = 3
    """What a person sees change."""
    BACKGROUND = 4
    """Queue positions, events, cleaning up."""


class TokenBucket:
    """Pace: `rate` per second, `burst` at once. Not thread-safe; for one event loop."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take a token and give the seconds to wait before using it: 0 where there was one."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate) if self._at else self.burst
        self._at = now
        self._tokens -= 1
        return 0.0 if self._tokens >= 0 else -self._tokens / self.rate

    def try_take(self, now: float) -> bool:
        """Take a token only where there is one."""
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate) if self._at else self.burst
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Limiter:
    """Slots for requests, handed out by rank, then in the order asked."""

    def __init__(self, *, concurrent_max: int, rate: float, burst: float) -> None:
        self._free = concurrent_max
        self._bucket = TokenBucket(rate, burst)
        self._order = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self, rank: Rank) -> AsyncIterator[None]:
        """Hold one slot for the duration of the block."""
        loop = asyncio.get_running_loop()
        if self._free > 0 and not self._waiting:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            heapq.heappush(self._waiting, (int(rank), next(self._order), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release()
                raise
        try:
            wait = self._bucket.take(loop.time()) if rank is not Rank.LEASE else 0.0
            if wait:
                await asyncio.sleep(wait)
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
