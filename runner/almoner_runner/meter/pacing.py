"""Calls that wait for a rate: in turn, for as long as waiting helps, woken by refunds.

Role: who is refused for a rate waits for the bucket, one caller at a time for each provider, so that a large call is
not overtaken by small ones for ever and the ledger is asked once, not once a waiter. Calls in flight refund when they
settle, which may be sooner than the bucket refills. Boundary: decides only about waiting; `Holds` asks the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from almoner_runner.meter.books import Books
from almoner_runner.meter.ledger import LedgerError, LedgerUnreachableError
from almoner_runner.meter.refusals import RefusedError, amount, kind

# Others may have refunded meanwhile: ask again after so long, however long the bucket would take by itself.
LOOK_S: Final = 1.0
LOOK_LEAST_S: Final = 0.005


class Line:
    """Who waits for the rates of calls to one provider; `refusal` is what the first was told last."""

    __slots__ = ("lock", "refusal")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.refusal: dict[str, Any] = {}


class Turn:
    """One caller's place in the line of a provider, until `deadline` (monotonic). `leave` it in the end."""

    def __init__(self, line: Line, deadline: float) -> None:
        self._line = line
        self._deadline = deadline
        self._mine = False

    async def join(self, books: Books) -> None:
        """Stand in line, where somebody waits already. Raises RefusedError where that takes too long."""
        if self._line.lock.locked():
            await self._take(books)

    async def _take(self, books: Books) -> None:
        try:
            with _aside(books):
                async with asyncio.timeout(max(0.0, self._deadline - books.now)):
                    await self._line.lock.acquire()
        except TimeoutError:
            raise limited(self._line.refusal) from None
        self._mine = True

    def leave(self) -> None:
        """Let the next one try."""
        if self._mine:
            self._mine = False
            self._line.lock.release()

    async def wait(self, books: Books, refusal: dict[str, Any], settlement: asyncio.Event) -> None:
        """After a refusal: return when it is worth asking again. Raises RefusedError where that is too far off."""
        if books.rates.refunds and books.spool.pending:
            # What calls gave back is still here: the bucket has more than it says.
            try:
                await books.post_pending()
            except (LedgerError, LedgerUnreachableError):
                pass
            else:
                return
        self._line.refusal = refusal
        left = self._deadline - books.now
        if not self._mine:
            others = self._line.lock.locked()
            await self._take(books)
            if others:
                return
        wait = refusal.get("retry_after_ms")
        helps = wait is not None and wait / 1000 <= left
        # Refunds of calls in flight, of this run, may come first.
        if left <= 0 or not (helps or books.rates.in_flight):
            raise limited(refusal)
        seconds = LOOK_S if wait is None else min(wait / 1000, LOOK_S)
        try:
            with _aside(books):
                async with asyncio.timeout(max(LOOK_LEAST_S, min(seconds, left))):
                    await settlement.wait()
        except TimeoutError:
            return


@contextlib.contextmanager
def _aside(books: Books) -> Iterator[None]:
    """Wait for a rate: what is held idle meanwhile may be returned, since no money would help."""
    books.waiting -= 1
    books.waiting_for_rates += 1
    try:
        yield
    finally:
        books.waiting_for_rates -= 1
        books.waiting += 1


class Pacing:
    """The lines of all providers."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def turn(self, provider: str, deadline: float) -> Turn:
        """Give a caller its place (provider empty: a tool's); it costs nothing where nobody waits."""
        return Turn(self._lines.setdefault(provider, Line()), deadline)


def limited(refusal: Mapping[str, Any]) -> RefusedError:
    """The refusal of a call that a rate has no room for, now or (`retry_after_ms` absent) ever."""
    dimension = str(refusal.get("dimension", "calls"))
    wait = refusal.get("retry_after_ms")
    what = (
        f"{refusal.get('account', 'a rate')} lets {refusal.get('limit')} {dimension.replace('_', ' ')} through at "
        f"once, refilled over {refusal.get('rate_seconds')} seconds; {refusal.get('spent')} are missing, this "
        f"call could use {refusal.get('needed')}"
    )
    if refusal and wait is None:
        return RefusedError(429, "request_exceeds_rate", f"the call is larger than its rate allows: {what}")
    seconds = max(1, -(-(wait or 0) // 1000))
    return RefusedError(
        429, "rate_limit_exceeded", f"rate limit: {what}; try again in {seconds} s", retry_after=seconds
    )


def too_large(dimension: str, capacity: int, asked: int) -> RefusedError:
    """The refusal of a call whose bound is above what its rate ever lets through, however little it may say."""
    return RefusedError(
        429,
        "request_exceeds_rate",
        f"one call may use at most {amount(dimension, capacity)} of {kind(dimension)} under the rate that counts it, "
        f"this one could use {amount(dimension, asked)}",
    )
