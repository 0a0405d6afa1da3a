"""The arithmetic of rates: token buckets, as the ledger debits them before a call and refunds them after it.

Role: PURE and light (integers of the standard library; no clock, no I/O). A bucket refills with `amount` every
`per_seconds`, up to `capacity`. Its level is scaled by 1000 * per_seconds, so that a millisecond refills exactly
`amount` and nothing is ever rounded away. Whoever debits before every call what the call can use at most, and refunds
what it did not use, has over any interval of T seconds

    debits - refunds <= capacity + amount * T / per_seconds

Boundary: knows neither accounts nor databases; `almoner_ledger.store.rates` keeps the rows. The algorithm is the
generic cell rate algorithm's older sibling, the token bucket (RFC 2697 describes the same meter for packets).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LEVEL_MOST: Final = 2**62
"""No scaled level, debt or counter goes beyond it, so that a BIGINT holds them."""
SLICE_MS: Final = 1000
SLICE_CAPACITY_CALLS: Final = 100
SLICE_CALLS: Final = 8


def scale(per_seconds: int) -> int:
    """Give how many units of a level are one unit of the amount."""
    return 1000 * per_seconds


def representable(capacity: int, per_seconds: int) -> bool:
    """Whether a bucket of that size can be kept in 64 bits."""
    return capacity * scale(per_seconds) <= LEVEL_MOST


@dataclass(slots=True)
class Bucket:
    """One token bucket. `level` is scaled; below zero where more was used than debited. `refilled_ms` is Unix time.

    `debited` and `refunded` only grow, in the amount's own unit; `refunded` never passes `debited`.
    """

    amount: int
    per_seconds: int
    capacity: int
    level: int
    refilled_ms: int
    debited: int = 0
    refunded: int = 0

    @classmethod
    def full(cls, amount: int, per_seconds: int, capacity: int, now_ms: int) -> Bucket:
        """Make a bucket that may be emptied at once."""
        return cls(amount, per_seconds, capacity, capacity * scale(per_seconds), now_ms)

    @property
    def top(self) -> int:
        """The level of a full bucket."""
        return self.capacity * scale(self.per_seconds)

    @property
    def missing(self) -> int:
        """What a full bucket has more than this one, in the amount's unit, rounded up. Above `capacity` in debt."""
        return -((self.level - self.top) // scale(self.per_seconds))

    def refill(self, now_ms: int) -> None:
        """Add what time brought. A clock that goes back brings nothing, one that jumps ahead at most fills it."""
        if now_ms <= self.refilled_ms:
            return
        self.level = min(self.top, self.level + self.amount * (now_ms - self.refilled_ms))
        self.refilled_ms = now_ms

    def holds(self, amount: int) -> bool:
        """Whether an amount may be debited now (after `refill`)."""
        return amount * scale(self.per_seconds) <= self.level

    def debit(self, amount: int) -> None:
        """Take an amount out. Raises ValueError where it is not there."""
        if amount < 0 or not self.holds(amount):
            raise ValueError(f"cannot debit {amount}: {self.level // scale(self.per_seconds)} is there")
        self.force(amount)

    def force(self, amount: int) -> None:
        """Take out what was used already, into debt if need be: what was used cannot be refused any more."""
        self.level = max(-LEVEL_MOST, self.level - amount * scale(self.per_seconds))
        self.debited = min(LEVEL_MOST, self.debited + amount)

    def refund(self, amount: int) -> int:
        """Put back what was debited and not used: never more than was debited, and no fuller than full.

        Gives what counts as refunded.
        """
        amount = max(0, min(amount, self.debited - self.refunded))
        self.level = min(self.top, self.level + amount * scale(self.per_seconds))
        self.refunded += amount
        return amount

    def wait_ms(self, amount: int) -> int | None:
        """Give in how many milliseconds an amount will be there, rounded up; None: never, it is above capacity."""
        if amount > self.capacity:
            return None
        lacking = amount * scale(self.per_seconds) - self.level
        return max(0, -(-lacking // self.amount))

    def full_in_ms(self) -> int:
        """Give in how many milliseconds it is full, if nobody takes anything."""
        return -(-(self.top - self.level) // self.amount)

    def change(self, amount: int, capacity: int) -> None:
        """Put another rate in force (after `refill`): what is missing stays missing, so a change refills nothing."""
        missing = self.top - self.level
        self.amount, self.capacity = amount, capacity
        self.level = max(-LEVEL_MOST, self.top - missing)

    def forgive(self) -> None:
        """Drop the debt: a rate that was only watched does not begin to bind with what was used before."""
        self.level = max(0, self.level)

    def slice_calls(self, call: int, holders: int) -> int:
        """Give how many further calls like `call` (debited already) may be leased at once to one of `holders`.

        Only where a full bucket has SLICE_CAPACITY_CALLS of them for every holder, and only of its upper half: what
        lies unused in a slice is lost, and nobody may be refused for it.
        """
        holders = max(1, holders)
        if call <= 0 or self.capacity < SLICE_CAPACITY_CALLS * call * holders:
            return 0
        spare = (self.level - self.top // 2) // scale(self.per_seconds)
        return max(0, min(SLICE_CALLS - 1, spare // (call * holders)))


def slice_calls(buckets: Iterable[tuple[Bucket, int]], holders: int) -> int:
    """Give how many further calls every bucket leases, given what one call takes of each; 0 where none counts it."""
    return min((bucket.slice_calls(call, holders) for bucket, call in buckets), default=0)
