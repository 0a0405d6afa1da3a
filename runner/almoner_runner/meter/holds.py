"""From a bounded call to its hold, and from its end to its record.

A call that fits what is held waits for nobody; for one that does not, `room` finds room. Every try has a record, which
is written to the spool before it goes out, and settled exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from almoner_core.allotment import Hold
from almoner_core.pricing import LONG_CACHE_ASKED, LONG_CACHE_WRITES, TokenCounts
from almoner_runner.meter.books import Books
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.ids import uuid7
from almoner_runner.meter.ledger import LedgerError, LedgerUnreachableError
from almoner_runner.meter.pacing import too_large
from almoner_runner.meter.refusals import RefusedError, amount, kind
from almoner_runner.meter.refused import RefusedCalls
from almoner_runner.meter.room import (
    DECENT_OUTPUT_TOKENS,
    WAIT_SECONDS,
    Room,
    insufficient,
    unreachable_ledger,
    wait,
    wait_for_ledger,
)
from almoner_runner.meter.spool import SpoolError
from almoner_runner.meter.tools import ToolCall

IN_FLIGHT_MAX: Final = 256
RETRY_WORTH_SECONDS: Final = 60
RATE_PARTS: Final = 8
"""Into so many parts a rate's tokens are divided, where the meter chooses how much output a call may have."""
ERROR_CHARS_MAX: Final = 256


@dataclass(slots=True)
class Try:
    """One try under way: its hold, and its record as it is written if nothing more is heard of it."""

    hold: Hold
    record: dict[str, Any]
    call: Call | None
    began: float  # monotonic seconds


class Holds:
    """Gives calls their holds and settles them."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.in_flight = 0
        self.draining_from: float | None = None  # monotonic: from then no call is started
        self.refused: dict[str, int] = {}
        self.refused_calls = RefusedCalls()
        self.room = Room(books, self._gate, self._within_rates)

    # --- before the call ----------------------------------------------------------------------------------------------

    async def begin(self, call: Call) -> Try:
        """Hold a call's bound, and write its try to the spool. Raises RefusedError."""
        try:
            hold = await self._acquire(call)
        except RefusedError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
            raise
        return self._write(hold, call, _estimate(call))

    async def begin_tool(self, call: ToolCall) -> Try:
        """Hold one call of a tool, its price included. Raises RefusedError."""
        bound = call.bound()
        await self._gate()
        call.check(self.books.allotment.limited, self.books.max_per_request)
        hold = self.books.hold(bound, "")
        if hold is None:
            hold = await self._extended_tool(bound)
        tool = call.tool
        record = _record(tool.resource_type, tool.provider, "", tool.name) | call.record()
        return self._write(hold, None, record)

    async def _extended_tool(self, bound: dict[str, int]) -> Hold:
        books, room = self.books, self.room
        room.enter()
        deadline = books.now + WAIT_SECONDS
        turn = room.pacing.turn("", deadline)
        try:
            await turn.join(books)
            while True:
                settlement = books.next_settlement()
                hold, refusal, unreachable = await room.ask(bound, "")
                if hold is not None:
                    return hold
                left = deadline - books.now
                if refusal and refusal.get("rate_seconds"):
                    await turn.wait(books, refusal, settlement)
                elif unreachable:
                    await wait_for_ledger(settlement, left)
                elif room.may_settle(settlement) and left > 0:
                    await wait(settlement, left)
                else:
                    passing = room.may_settle(settlement) or bool(refusal and refusal.get("may_free_up"))
                    raise insufficient(bound, refusal, books.allotment.free_amounts(), passing=passing)
                await self._gate()
        finally:
            turn.leave()
            books.waiting -= 1

    def _write(self, hold: Hold, call: Call | None, record: dict[str, Any]) -> Try:
        try:
            self.books.spool.hold(record)
        except SpoolError as error:
            self.books.settle(hold, {})
            raise RefusedError(503, "spool_full", str(error), retry_after=5) from None
        self.in_flight += 1
        self.books.touch()
        return Try(hold, record, call, time.monotonic())

    async def _gate(self) -> None:
        """Refuse what must not start at all, and see to it that lease and window are fresh."""
        books = self.books
        if self.draining_from is not None and books.now >= self.draining_from:
            raise RefusedError(503, "draining", "the meter is ending and starts no further call")
        if not books.active:
            raise RefusedError(503, "not_started", "the meter has not loaded its allotment yet", retry_after=1)
        if books.cancelled:
            raise RefusedError(429, "cancelled", "this execution is being stopped: no further call is started")
        if books.stopped is not None:
            raise RefusedError(429, "allotment_closed", f"no further call is started: {books.stopped}")
        if books.machine.over:
            raise RefusedError(429, "machine_time_unpaid", f"no further call is started: {books.machine.message}")
        if books.allotment.frozen:
            raise RefusedError(429, "allotment_frozen", "a provider billed above a call's bound: no further call")
        if self.in_flight >= IN_FLIGHT_MAX:
            raise RefusedError(429, "too_many_calls", f"{IN_FLIGHT_MAX} calls are in flight already", retry_after=1)
        if books.spool.full:
            raise RefusedError(
                503, "spool_full", "the spool is full: the ledger must take records first", retry_after=5
            )
        now = books.now
        if now >= books.lease_until or now >= books.window_until:
            await self._freshen()

    async def _freshen(self) -> None:
        books = self.books
        try:
            if books.now >= books.lease_until:
                await books.ping()
            if books.now >= books.window_until:
                await books.roll_window()
        except (LedgerError, LedgerUnreachableError):
            raise unreachable_ledger() from None

    async def _acquire(self, call: Call) -> Hold:
        await self._gate()
        bound = call.bound()
        if not self._fits_one(call, bound) and await self.room.tightened(call):
            await self._gate()
            bound = call.bound()
        if self.books.max_per_request:
            bound = self._within_request_limit(call, bound)
        if self.books.rates.in_force:
            bound = self._within_rates(call, bound)
        # While others stand in line for what is left, nobody takes all that is free.
        hold = None if self.room.short else self.books.hold(bound, call.provider.name)
        return hold if hold is not None else await self.room.find(call, bound)

    def _fits_one(self, call: Call, bound: dict[str, int]) -> bool:
        """Say whether a call is within what one call may use, at its own output maximum."""
        books = self.books
        return all(bound.get(d, 0) <= most for d, most in books.max_per_request.items()) and not (
            books.rates.in_force and books.rates.too_large(call.provider.name, bound)
        )

    def _within_request_limit(self, call: Call, bound: dict[str, int]) -> dict[str, int]:
        for dimension, most in self.books.max_per_request.items():
            if bound.get(dimension, 0) <= most:
                continue
            output = call.output_max_within(dimension, most)
            if output < call.output_least:
                raise RefusedError(
                    429,
                    "insufficient_quota",
                    f"one call may use at most {amount(dimension, most)} of {kind(dimension)}, this one could use "
                    f"{amount(dimension, bound[dimension])}",
                )
            call.lower_output(output)
            bound = call.bound()
        return bound

    def _within_rates(self, call: Call, bound: dict[str, int]) -> dict[str, int]:
        """Lower the output to what a full bucket lets through; no waiting would help a larger call.

        An output maximum that the meter chose takes a part of the bucket alone, so that calls need not go in turn.
        """
        rates, provider = self.books.rates, call.provider.name
        if call.output_chosen and (most := rates.capacities(provider).get("tokens")) is not None:
            part = max(call.output_least, DECENT_OUTPUT_TOKENS, most // RATE_PARTS)
            if part < call.output_max:
                call.lower_output(part)
                bound = call.bound()
        while (excess := rates.too_large(provider, bound)) is not None:
            dimension, capacity = excess
            output = call.output_max_within(dimension, capacity)
            if not call.output_least <= output < call.output_max:
                raise too_large(dimension, capacity, bound[dimension])
            call.lower_output(output)
            bound = call.bound()
        return bound

    # --- after the call -----------------------------------------------------------------------------------------------

    def settle(
        self, tried: Try, outcome: str, tokens: TokenCounts | None, *, error: str | None = None, requests: int = 1
    ) -> None:
        """Settle a try to what was billed; `tokens` None: that is not known, so the hold is taken (`estimated`)."""
        record, call = tried.record, tried.call
        record["duration_ms"] = round((time.monotonic() - tried.began) * 1000)
        record["error"] = error[:ERROR_CHARS_MAX] if error else None
        if tokens is None:
            record["outcome"] = "estimated"
        else:
            record["outcome"] = outcome
            record["requests"] = requests
            _price(record, call, tokens, billed=outcome != "error")
            self._doubt(record, call)
        self._close(tried)

    def _doubt(self, record: dict[str, Any], call: Call | None) -> None:
        """Never call a cost exact that leaves out what no price card has a price for.

        Where money is limited the hold is taken, or what is known where that is more; else the cost is unknown.
        """
        if call is None or call.beyond is None or record["cost_nanos"] is None:
            return
        record["metadata"]["beyond_card"] = call.beyond
        if "usd" in self.books.allotment.limited:
            record["cost_nanos"] = max(record["cost_nanos"], call.bound()["usd"])
            record["outcome"] = "estimated"
            record["error"] = record["error"] or f"no price is known of: {call.beyond}"
        else:
            record["cost_nanos"] = None
            record["price_version"] = None

    def settle_partly(self, tried: Try, known: TokenCounts | None, error: str, output: int | None = None) -> None:
        """Settle a try whose output is not known: `known` is its input, and `output` the most that can have come.

        What is None is taken from the hold.
        """
        call, record = tried.call, tried.record
        assert call is not None
        bound = call.output_bound if output is None else min(output, call.output_bound)
        record["duration_ms"] = round((time.monotonic() - tried.began) * 1000)
        record["error"] = error[:ERROR_CHARS_MAX]
        record["outcome"] = "estimated"
        record["metadata"]["estimated"] = "output" if known is not None else "input and output"
        if known is not None:
            _price(record, call, replace(known, output=bound), billed=True)
        else:
            # Input of the dearest kind, as in the hold.
            each = -(-bound // call.choices) - call.output_extra
            record["tokens"] = _tokens(TokenCounts(input=call.input_bound, output=bound))
            record["cost_nanos"] = call.bound(each).get("usd")
        self._close(tried)

    def settle_tool(self, tried: Try) -> None:
        """Settle a call of a tool: what it costs was known before."""
        tried.record["outcome"] = "ok"
        tried.record["error"] = None
        self.refused_calls.succeed(tried.began)
        self._close(tried)

    def _close(self, tried: Try) -> None:
        self.in_flight -= 1
        self.books.spool.settle(tried.record)
        self.books.settle(tried.hold, _used(tried.record))
        self.books.settled()


def _used(record: Mapping[str, Any]) -> dict[str, int]:
    tokens = record["tokens"]
    return {
        "usd": record["cost_nanos"] or 0,
        "tokens": tokens["input"] + tokens["output"],
        "requests": record["requests"],
        "tool_calls": record["tool_calls"],
    }


def _record(resource_type: str, provider: str, model: str, operation: str) -> dict[str, Any]:
    return {
        "id": uuid7(),
        "resource_type": resource_type,
        "provider": provider,
        "model": model,
        "operation": operation,
        "tokens": _tokens(TokenCounts()),
        "requests": 1,
        "tool_calls": 0,
        "units": 0,
        "cost_nanos": None,
        "price_version": None,
        "started_unix_ms": time.time_ns() // 1_000_000,
        "duration_ms": 0,
        "outcome": "estimated",
        "error": "the meter restarted while the call was in flight",
        "metadata": {},
    }


def _estimate(call: Call) -> dict[str, Any]:
    """Give the record of a try of which nothing more is heard: the hold in full."""
    record = _record(call.resource_type, call.provider.name, call.model.name, call.operation)
    bound = call.bound()
    record["tokens"] = _tokens(TokenCounts(input=call.input_bound, output=call.output_bound))
    record["cost_nanos"] = bound.get("usd")
    record["price_version"] = None if call.price is None else call.price.version
    if call.long_cache:
        record["metadata"][LONG_CACHE_ASKED] = True
    if call.stream:
        record["metadata"]["stream"] = True
    if call.output_chosen:
        record["metadata"]["output_max_chosen"] = call.output_max
    if call.limited_from is not None:
        record["metadata"]["output_limited_from"] = call.limited_from
    return record


def _price(record: dict[str, Any], call: Call | None, tokens: TokenCounts, *, billed: bool) -> None:
    record["tokens"] = _tokens(tokens)
    if tokens.cache_write_long:
        record["metadata"][LONG_CACHE_WRITES] = tokens.cache_write_long
    if not billed and tokens.total == 0:
        record["cost_nanos"] = 0  # known: the provider refused it, or never got it
    elif call is not None:
        record["cost_nanos"] = call.cost(tokens)
        if call.batch:
            record["metadata"]["service_tier"] = call.served


def _tokens(tokens: TokenCounts) -> dict[str, int]:
    return {
        "input": tokens.input,
        "cached_input": tokens.cached_input,
        "cache_write": tokens.cache_write,
        "output": tokens.output,
        "reasoning": tokens.reasoning,
    }
