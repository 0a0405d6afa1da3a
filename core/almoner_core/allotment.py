"""The arithmetic of an allotment, as a meter spends it: hold before a call, settle after it, return what is left.

Pure and light (standard library alone): the meter does this on its hot path. Amounts are maps from a dimension (`usd`
in nano-dollars, `tokens`, `tool_calls`, `requests`) to an integer. Only limited dimensions are checked; a dimension
that is not limited is neither held nor refused, and its use is counted by the records alone.

What is always true, for every limited dimension, whatever the order of calls:

    0 <= in_flight <= held
    granted + corrections == held + settled + returned - excess

`held` backs the calls in flight and what is free; a provider that bills above a call's hold takes from what is free,
and what even that does not cover is `excess`, after which the allotment is frozen: no further call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

DIMENSIONS: Final = ("usd", "tokens", "tool_calls", "requests")
# A top-up asks for this many of the larger recent calls, so that a run of similar calls waits for nobody.
TOP_UP_CALLS: Final = 4


class Hold:
    """What one call in flight may use. It is settled exactly once. `debit` is what rates were debited, if any."""

    __slots__ = ("amounts", "debit", "open")

    def __init__(self, amounts: dict[str, int]) -> None:
        self.amounts = amounts
        self.open = True
        self.debit: Any = None


class Allotment:
    """What one attempt holds. Not thread-safe: one event loop owns it."""

    def __init__(self, limited: Iterable[str], held: Mapping[str, int]) -> None:
        self.limited: tuple[str, ...] = tuple(limited)
        for dimension in self.limited:
            if dimension not in DIMENSIONS:
                raise ValueError(f"unknown dimension {dimension!r}: expected one of {', '.join(DIMENSIONS)}")
        self.held = {d: _checked(d, held.get(d, 0)) for d in self.limited}
        self.granted = dict(self.held)
        self.in_flight = dict.fromkeys(self.limited, 0)
        self.settled = dict.fromkeys(self.limited, 0)
        self.returned = dict.fromkeys(self.limited, 0)
        self.corrections = dict.fromkeys(self.limited, 0)
        self.excess = dict.fromkeys(self.limited, 0)
        self.frozen = False
        self._largest = dict.fromkeys(self.limited, 0)

    def free(self, dimension: str) -> int:
        """Give what no call in flight holds. The dimension must be limited."""
        return self.held[dimension] - self.in_flight[dimension]

    def free_amounts(self) -> dict[str, int]:
        """Give what is free, in every limited dimension that has something."""
        return {d: left for d in self.limited if (left := self.free(d)) > 0}

    def hold(self, bound: Mapping[str, int]) -> Hold | None:
        """Hold a call's upper bound in every limited dimension, or nothing at all (None).

        A call that does not say its bound in a limited dimension uses none of it.
        """
        if self.frozen:
            return None
        amounts = {}
        for dimension in self.limited:
            amount = _checked(dimension, bound.get(dimension, 0))
            if amount > self.held[dimension] - self.in_flight[dimension]:
                return None
            amounts[dimension] = amount
        for dimension, amount in amounts.items():
            self.in_flight[dimension] += amount
            # Fades, so that one large call long ago does not keep the top-ups large.
            self._largest[dimension] = max(amount, self._largest[dimension] * 7 // 8)
        return Hold(amounts)

    def settle(self, hold: Hold, used: Mapping[str, int]) -> dict[str, int]:
        """Replace a hold by what was really used, and give the excess: what not even the free part covers."""
        if not hold.open:
            raise ValueError("this hold is settled already: a call is settled once")
        spent = {d: _checked(d, used.get(d, 0)) for d in self.limited}
        hold.open = False
        excess = {}
        for dimension, amount in spent.items():
            self.in_flight[dimension] -= hold.amounts[dimension]
            covered = min(amount, self.free(dimension))
            self.held[dimension] -= covered
            self.settled[dimension] += amount
            if amount > covered:
                excess[dimension] = amount - covered
                self.excess[dimension] += amount - covered
                self.frozen = True
        return excess

    def release(self, hold: Hold) -> None:
        """Give a hold back whole: the call was never made, or nothing was billed."""
        self.settle(hold, {})

    def grant(self, amounts: Mapping[str, int]) -> None:
        """Add what the ledger granted."""
        for dimension in self.limited:
            amount = _checked(dimension, amounts.get(dimension, 0))
            self.held[dimension] += amount
            self.granted[dimension] += amount

    def take_back(self, amounts: Mapping[str, int]) -> None:
        """Remove what goes back to the ledger. Raises ValueError where that is more than what is free."""
        for dimension in self.limited:
            amount = _checked(dimension, amounts.get(dimension, 0))
            if amount > self.free(dimension):
                raise ValueError(f"cannot return {amount} of {dimension}: only {self.free(dimension)} is free")
        for dimension in self.limited:
            self.held[dimension] -= amounts.get(dimension, 0)
            self.returned[dimension] += amounts.get(dimension, 0)

    def reconcile(self, ledger_held: Mapping[str, int], unposted: Mapping[str, int]) -> dict[str, int]:
        """Believe the ledger about what is held, and give by how much that differs from what was thought.

        unposted: settled here, not yet known there. To be called between exchanges, never during one. What calls in
        flight hold is never taken from them.
        """
        differences = {}
        for dimension in self.limited:
            told = ledger_held.get(dimension, 0) - unposted.get(dimension, 0)
            believed = max(told, self.in_flight[dimension])
            if believed != self.held[dimension]:
                differences[dimension] = believed - self.held[dimension]
                self.corrections[dimension] += differences[dimension]
                self.held[dimension] = believed
        return differences

    def deficit(self, bound: Mapping[str, int]) -> dict[str, int]:
        """Give what a call lacks, beyond what is free: the `need` of an extension. Empty where it fits."""
        return {d: lack for d in self.limited if (lack := bound.get(d, 0) - self.free(d)) > 0}

    def comfort(self, bound: Mapping[str, int]) -> dict[str, int]:
        """Give the `want` of an extension for a call: room for it and for a few like it."""
        wanted = {}
        for dimension in self.limited:
            call = bound.get(dimension, 0)
            lack = call + (TOP_UP_CALLS - 1) * max(call, self._largest[dimension]) - self.free(dimension)
            if lack > 0:
                wanted[dimension] = lack
        return wanted

    def top_up(self) -> dict[str, int]:
        """Give the `want` of an extension ahead of need; empty where the next large call would fit."""
        if all(self.free(d) >= self._largest[d] for d in self.limited):
            return {}
        return {d: lack for d in self.limited if (lack := TOP_UP_CALLS * self._largest[d] - self.free(d)) > 0}


def _checked(dimension: str, amount: int) -> int:
    if amount < 0:
        raise ValueError(f"an amount of {dimension} must not be negative, got {amount}")
    return amount
