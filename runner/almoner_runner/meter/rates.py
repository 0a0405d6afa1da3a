"""What a meter knows of rates: which calls they count, what was debited, what is left of a slice, what to refund.

Role: state and arithmetic of one allotment's rates, for one event loop. The ledger keeps the token buckets; before a
call that a rate counts, its bound is debited there, in the exchange that asks for money (`Books.cover`). The answer may
hold a slice: debited ahead for calls like it, good for a moment, used here without asking, and never refunded. What an
ordinary debit did not use goes back with the posted records. Boundary: no exchange, no waiting; where no rate is in
force nobody calls anything here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

REFUNDED_PROVIDERS_MAX: Final = 16
"""Of wire.PostRecords.refunds; what does not go with one exchange goes with the next."""


class Slice:
    """What was debited ahead for calls to one provider. `until` is monotonic seconds."""

    __slots__ = ("left", "until")

    def __init__(self, left: dict[str, int], until: float) -> None:
        self.left = left
        self.until = until


class Debit:
    """What one call's bound took of its rates, or of a slice (`leased`)."""

    __slots__ = ("amounts", "leased", "provider")

    def __init__(self, provider: str, amounts: dict[str, int], leased: Slice | None = None) -> None:
        self.provider = provider
        self.amounts = amounts
        self.leased = leased


class Rates:
    """The rates of one allotment. `in_force` is what the hot path asks."""

    def __init__(self) -> None:
        self.in_force = False
        self.version = 0  # counts changes
        self.told: list[dict[str, Any]] = []
        self.refunds: dict[str, dict[str, int]] = {}
        self.in_flight = 0  # calls whose debits may yet be refunded
        self._capacities: dict[str, dict[str, int]] = {}
        self._slices: dict[str, Slice] = {}

    def learn(self, told: list[dict[str, Any]] | None) -> None:
        """Take in the rates that the ledger says are in force (wire.RateInForce); None: as before."""
        if told is None or told == self.told:
            return
        self.told = told
        self.in_force = bool(told)
        self.version += 1
        self._capacities.clear()
        self._slices.clear()

    def capacities(self, provider: str) -> dict[str, int]:
        """Give the dimensions that are counted of calls to a provider (empty: none), and the most of one call."""
        found = self._capacities.get(provider)
        if found is None:
            found = self._capacities[provider] = {}
            for rate in self.told:
                if rate["provider"] in ("", provider):
                    dimension, capacity = rate["dimension"], rate["capacity"]
                    found[dimension] = min(capacity, found.get(dimension, capacity))
        return found

    def shrunk(self, provider: str, dimension: str, capacity: int) -> None:
        """Note that a bucket is smaller than was told; the next word of the ledger about all rates says more."""
        found = self.capacities(provider)
        found[dimension] = min(capacity, found.get(dimension, capacity))

    def counts(self, *dimensions: str) -> bool:
        """Whether any rate counts one of the dimensions."""
        return any(rate["dimension"] in dimensions for rate in self.told)

    def counted(self, provider: str, bound: Mapping[str, int]) -> dict[str, int]:
        """Give what has to be debited before a call; empty where no rate counts it."""
        return {d: amount for d in self.capacities(provider) if (amount := bound.get(d, 0)) > 0}

    def too_large(self, provider: str, bound: Mapping[str, int]) -> tuple[str, int] | None:
        """Give the dimension in which a call is larger than a full bucket, and the bucket's capacity."""
        for dimension, capacity in self.capacities(provider).items():
            if bound.get(dimension, 0) > capacity:
                return dimension, capacity
        return None

    # --- before a call ------------------------------------------------------------------------------------------------

    def take(self, provider: str, asked: dict[str, int], now: float) -> Debit | None:
        """Take a call's bound of the slice for its provider; None where that is over or used up."""
        leased = self._slices.get(provider)
        if leased is None:
            return None
        if now >= leased.until:
            del self._slices[provider]
            return None
        left = leased.left
        if any(amount > left.get(dimension, 0) for dimension, amount in asked.items()):
            return None
        for dimension, amount in asked.items():
            left[dimension] -= amount
        return Debit(provider, asked, leased)

    def debited(self, provider: str, asked: dict[str, int], answer: Mapping[str, Any], sent: float) -> Debit:
        """Take in what the ledger debited (wire.Extended); more than was asked is a slice, from when it was asked."""
        ahead = {d: answer["debited"].get(d, 0) - amount for d, amount in asked.items()}
        if answer.get("slice_ms") and all(amount > 0 for amount in ahead.values()):
            self._slices[provider] = Slice(ahead, sent + answer["slice_ms"] / 1000)
        self.in_flight += 1
        return Debit(provider, asked)

    # --- after a call -------------------------------------------------------------------------------------------------

    def settle(self, debit: Debit, used: Mapping[str, int], now: float) -> None:
        """Give back what a call did not use: to its slice while that lasts, else to the ledger with the records."""
        if debit.leased is None:
            self.in_flight -= 1
        for dimension, amount in debit.amounts.items():
            unused = amount - used.get(dimension, 0)
            if unused <= 0:
                continue
            if debit.leased is not None:
                if now < debit.leased.until:
                    debit.leased.left[dimension] += unused
                continue
            refund = self.refunds.setdefault(debit.provider, {})
            refund[dimension] = refund.get(dimension, 0) + unused

    def due(self) -> dict[str, dict[str, int]]:
        """Give the refunds that go with the next records, which are no longer kept here."""
        names = list(self.refunds)[:REFUNDED_PROVIDERS_MAX]
        return {name: self.refunds.pop(name) for name in names}

    def keep(self, refunds: Mapping[str, Mapping[str, int]]) -> None:
        """Take back refunds that the ledger did not take."""
        for provider, amounts in refunds.items():
            kept = self.refunds.setdefault(provider, {})
            for dimension, amount in amounts.items():
                kept[dimension] = kept.get(dimension, 0) + amount
