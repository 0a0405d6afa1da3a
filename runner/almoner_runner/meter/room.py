"""Room for a call that does not fit what is held: in the ledger's order, and in fair shares.

The order: more from the ledger; the provider's own count of the input where that is free, since a byte is not a token;
a share of what is left; waiting for calls in flight to settle; a lower output maximum; refusal. Calls for which a limit
has no room stand in a line. What is left is divided by the number of those, so that the first one to ask does not take
everything for an answer that may be short; but a share below DECENT_OUTPUT_TOKENS is not worth sending while calls in
flight may still leave more. Where the time is over and others hold the room, the refusal is a passing one.

Boundary: decides and waits; the arithmetic is `Books`', the lines of rates are `Pacing`'s, and what is known of a call
is its `Call`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from almoner_core.allotment import Hold
from almoner_core.refusals import BUDGET_IN_USE, INSUFFICIENT_QUOTA
from almoner_runner.meter.books import PASSING_CODES, Books
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.ledger import LedgerError, LedgerUnreachableError
from almoner_runner.meter.pacing import Pacing, Turn
from almoner_runner.meter.refusals import RefusedError, amount, kind

WAITING_MAX: Final = 256
WAIT_SECONDS: Final = 60.0
# How long to wait for what others hold and may return (they return what is idle after a second), and how often.
OTHERS_WAIT_S: Final = 0.6
OTHERS_TRIES: Final = 3
# How long between two questions to a ledger that does not answer.
LEDGER_WAIT_S: Final = 0.5
LOWER_TRIES: Final = 3
DECENT_OUTPUT_TOKENS: Final = 4096
"""An answer that seldom ends for want of room."""
POOR_OUTPUT_TOKENS: Final = 1024
"""Below that no call is sent while others may leave more room."""
IN_USE_RETRY_SECONDS: Final = 2

Bound = dict[str, int]
Refusal = dict[str, Any]


@dataclass(slots=True)
class _Waiter:
    """One call that looks for room."""

    call: Call
    bound: Bound
    asked: int  # its output maximum, before it took less for want of room
    deadline: float  # monotonic seconds
    turn: Turn
    others: int = OTHERS_TRIES
    in_line: bool = False


class Room:
    """Finds room for calls of one meter. `gate` refuses what must not start; `within` holds a call to its rates."""

    def __init__(
        self, books: Books, gate: Callable[[], Awaitable[None]], within: Callable[[Call, Bound], Bound]
    ) -> None:
        self.pacing = Pacing()
        self._books = books
        self._gate = gate
        self._within = within
        self._line = 0
        self._refusal: Refusal = {}  # what the last one of the line was told

    @property
    def short(self) -> bool:
        """Whether calls stand in line: then nobody takes all that is free."""
        return self._line > 0

    def enter(self) -> None:
        """Count one more that waits; the caller counts it off again. Raises RefusedError where too many do."""
        books = self._books
        if books.waiting + books.waiting_for_rates >= WAITING_MAX:
            raise RefusedError(429, "too_many_calls", f"{WAITING_MAX} calls wait for room already", retry_after=1)
        books.waiting += 1

    async def find(self, call: Call, bound: Bound) -> Hold:
        """Give a call its hold. Raises RefusedError."""
        books = self._books
        self.enter()
        deadline = books.now + WAIT_SECONDS
        turn = self.pacing.turn(call.provider.name, deadline)
        waiter = _Waiter(call, bound, call.output_max, deadline, turn)
        try:
            await turn.join(books)
            if self.short:
                self._stand(waiter, self._refusal)
            while (hold := await self._round(waiter)) is None:
                await self._gate()
            return hold
        finally:
            turn.leave()
            self._line -= waiter.in_line
            books.waiting -= 1

    async def tightened(self, call: Call) -> bool:
        """Have the provider count the input, once a call, where it does so for nothing; gives whether that helped."""
        count, call.count = call.count, None
        if count is None or (tokens := await count()) is None or tokens >= call.input_bound:
            return False
        call.input_bound = tokens
        return True

    def may_settle(self, settlement: asyncio.Event) -> bool:
        """Say whether a call in flight may leave room, or one did while the ledger was asked: its refusal is stale."""
        return settlement.is_set() or any(self._books.allotment.in_flight.values())

    # --- one round ----------------------------------------------------------------------------------------------------

    async def _round(self, waiter: _Waiter) -> Hold | None:
        """Ask once, and wait once where there was no room; None: go on. Raises RefusedError."""
        settlement = self._books.next_settlement()
        hold, refusal, unreachable = await self._ask(waiter)
        if hold is not None:
            return hold
        left = waiter.deadline - self._books.now
        if refusal is not None and refusal.get("rate_seconds"):
            await self._wait_for_rate(waiter, refusal, settlement)
            return None
        waiter.turn.leave()
        if unreachable:
            await wait_for_ledger(settlement, left)
            return None
        if refusal is not None:
            if await self.tightened(waiter.call):
                waiter.bound = waiter.call.bound()
                return None
            self._stand(waiter, refusal)
            if (hold := await self._share(waiter)) is not None:
                return hold
        if self.may_settle(settlement) and left > 0:
            await wait(settlement, left)
        elif refusal is not None and refusal.get("may_free_up") and waiter.others > 0:
            waiter.others -= 1
            await wait(settlement, OTHERS_WAIT_S)
        else:
            return await self._last(waiter, refusal, settlement, left)
        return None

    def _stand(self, waiter: _Waiter, refusal: Refusal) -> None:
        self._refusal = refusal
        if not waiter.in_line:
            waiter.in_line = True
            self._line += 1

    async def _ask(self, waiter: _Waiter) -> tuple[Hold | None, Refusal | None, bool]:
        """Ask for all of a call, or for its share where others stand in line too."""
        if waiter.in_line and self._line > 1:
            return await self._ask_lowered(waiter, self._portion(waiter))
        return await self.ask(waiter.bound, waiter.call.provider.name)

    async def _share(self, waiter: _Waiter) -> Hold | None:
        """Take a decent share of what the last refusal says is left, at once; None where there is none."""
        portion = self._portion(waiter)
        if self._line > 1 or portion >= waiter.asked:
            return None  # that was asked for just now
        hold, refusal, _ = await self._ask_lowered(waiter, portion)
        if refusal is not None:
            self._refusal = refusal
        return hold

    def _portion(self, waiter: _Waiter) -> int:
        """Give the output maximum to ask for: a fair share of what is left, and no less than is decent."""
        decent = min(waiter.asked, max(DECENT_OUTPUT_TOKENS, waiter.call.output_least))
        return min(waiter.asked, max(decent, self._output_within(waiter.call, self._refusal, self._line)))

    def _output_within(self, call: Call, refusal: Refusal, shares: int) -> int:
        """Give the output maximum that one of so many shares of what is left has room for; -1 where none does."""
        dimension, allotment = str(refusal.get("dimension")), self._books.allotment
        if dimension not in allotment.limited:
            return -1
        left = refusal.get("limit", 0) - refusal.get("spent", 0) - refusal.get("reserved", 0)
        return call.output_max_within(dimension, (allotment.free(dimension) + max(0, left)) // max(1, shares))

    async def _ask_lowered(self, waiter: _Waiter, output: int) -> tuple[Hold | None, Refusal | None, bool]:
        """Ask for a call with a lower output maximum, which stays where that was granted."""
        call = waiter.call
        if output >= waiter.asked:
            return await self.ask(waiter.bound, call.provider.name)
        call.lower_output(output)
        # No comfort now: exactly this call.
        hold, refusal, unreachable = await self.ask(call.bound(), call.provider.name, comfort=False)
        if hold is None:
            call.restore_output(waiter.asked)
        return hold, refusal, unreachable

    async def _last(
        self, waiter: _Waiter, refusal: Refusal | None, settlement: asyncio.Event, left: float
    ) -> Hold | None:
        """Take whatever room there is; else refuse, or go on where somebody has just taken it and may leave some."""
        call = waiter.call
        passing = self.may_settle(settlement) or bool(refusal and refusal.get("may_free_up"))
        least = max(call.output_least, min(waiter.asked, POOR_OUTPUT_TOKENS)) if passing else call.output_least
        for _ in range(LOWER_TRIES):
            output = -1 if refusal is None else self._output_within(call, refusal, 1)
            if not least <= output < waiter.asked:
                break
            hold, refusal, unreachable = await self._ask_lowered(waiter, output)
            if hold is not None:
                return hold
            if unreachable:
                raise unreachable_ledger()
        if self.may_settle(settlement) and left > 0:
            return None
        raise insufficient(waiter.bound, refusal, self._books.allotment.free_amounts(), passing=passing)

    async def _wait_for_rate(self, waiter: _Waiter, refusal: Refusal, settlement: asyncio.Event) -> None:
        """Wait until asking a rate again is worth it, or lower the output to what a smaller bucket lets through."""
        books, call = self._books, waiter.call
        if refusal.get("retry_after_ms") is None:
            # A full bucket is smaller than we were told.
            books.rates.shrunk(call.provider.name, str(refusal.get("dimension")), refusal.get("limit", 0))
        else:
            await waiter.turn.wait(books, refusal, settlement)
        await self._gate()
        waiter.bound = self._within(call, call.bound())
        waiter.asked = call.output_max

    # --- the ledger ---------------------------------------------------------------------------------------------------

    async def ask(
        self, bound: Bound, provider: str, *, comfort: bool = True
    ) -> tuple[Hold | None, Refusal | None, bool]:
        """Ask the ledger for what a call lacks; gives the hold, or the refusal, and whether the ledger is away.

        Raises RefusedError where it answers, and asking again is vain.
        """
        try:
            return await self._books.cover(bound, provider, comfort=comfort), None, False
        except LedgerError as error:
            hold = self._books.hold(bound, provider)
            if error.code == "insufficient":
                return hold, error.refusal or {}, False
            if hold is None and error.code not in PASSING_CODES:
                raise unreachable_ledger() from None
            return hold, None, True
        except LedgerUnreachableError:
            return self._books.hold(bound, provider), None, True


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for so many seconds at most."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def wait_for_ledger(settlement: asyncio.Event, left: float) -> None:
    """Wait a moment before the ledger is asked again: while it is started anew nobody's call fails.

    Raises RefusedError where nothing is left of the time.
    """
    if left <= 0:
        raise unreachable_ledger()
    await wait(settlement, min(left, LEDGER_WAIT_S))


def unreachable_ledger() -> RefusedError:
    """Give the refusal of a call that needs the ledger, which does not answer."""
    return RefusedError(
        503, "ledger_unreachable", "the call does not fit what is held, and the ledger does not answer", retry_after=2
    )


def insufficient(
    bound: Bound, refusal: Refusal | None, own: Mapping[str, int], *, passing: bool = False
) -> RefusedError:
    """Say that there is no room; `own` is what this run holds and does not use, which is left for it as well.

    passing: calls in flight, or other runs, hold room that they may not need: trying again may help.
    """
    if not refusal:
        return RefusedError(429, BUDGET_IN_USE, "no room for this call: others were quicker; try again", retry_after=1)
    dimension = str(refusal.get("dimension"))
    limit = int(refusal.get("limit", 0))
    left = max(0, limit - refusal.get("spent", 0) - refusal.get("reserved", 0)) + own.get(dimension, 0)
    message = (
        f"no room for this call in {refusal.get('account')}: of {kind(dimension)} it could use up to "
        f"{amount(dimension, bound.get(dimension, 0))}, and {amount(dimension, min(left, limit))} of "
        f"{amount(dimension, limit)} are left"
    )
    if passing:
        message += "; calls under way hold the rest and may leave some of it: try again"
        return RefusedError(429, BUDGET_IN_USE, message, retry_after=IN_USE_RETRY_SECONDS)
    return RefusedError(429, INSUFFICIENT_QUOTA, message, retry_after=refusal.get("retry_after_seconds"))
