"""Which sequence numbers of an allotment's records have come: a contiguous prefix, and ranges ahead of it.

PURE. Records come out of order and twice; a gap shows a loss, and an allotment closes only once there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RANGES_MAX: Final = 1000


class TooManyGapsError(ValueError):
    """More than RANGES_MAX gaps: the sender numbers its records wrongly."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """1..`contiguous` have come, and the `ahead` ranges (inclusive, ascending, not adjacent)."""

    contiguous: int = 0
    ahead: tuple[tuple[int, int], ...] = ()

    @property
    def count(self) -> int:
        """How many have come."""
        return self.contiguous + sum(high - low + 1 for low, high in self.ahead)

    @property
    def highest(self) -> int:
        """The highest number that has come; 0 for none."""
        return self.ahead[-1][1] if self.ahead else self.contiguous

    def __contains__(self, number: int) -> bool:
        return 1 <= number <= self.contiguous or any(low <= number <= high for low, high in self.ahead)

    def add(self, number: int) -> Sequences:
        """Give the set with `number` in it. Raises TooManyGapsError past RANGES_MAX gaps."""
        if number in self:
            return self
        if number == self.contiguous + 1 and not self.ahead:
            return Sequences(number)
        ranges = sorted([*self.ahead, (number, number)])
        contiguous = self.contiguous
        merged: list[tuple[int, int]] = []
        for low, high in ranges:
            if low == contiguous + 1 and not merged:
                contiguous = high
            elif merged and low == merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], high)
            else:
                merged.append((low, high))
        if len(merged) > RANGES_MAX:
            raise TooManyGapsError(f"more than {RANGES_MAX} gaps in the sequence")
        return Sequences(contiguous, tuple(merged))
