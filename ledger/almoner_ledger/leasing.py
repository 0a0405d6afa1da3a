"""How long a meter may go on unheard, in numbers.

PURE. A meter that exchanged something at t starts no call after t + `lease_seconds`; a call that it began at the very
end of its lease has ended, with a margin, at t + `silence_seconds`. Only then is what it holds charged off, may another
attempt begin, and does a node that does not answer count as gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from almoner_core.environment import LEASE_SECONDS, SILENCE_SECONDS

# A lease is renewed once a third of it is over; what is a sixth over is renewed along with the others.
RENEW_DIVISOR: Final = 3
ALONG_DIVISOR: Final = 6


@dataclass(frozen=True, slots=True)
class LeasePolicy:
    """The ledger's terms. Raises ValueError where a meter would be given up before its lease is over."""

    lease_seconds: int = LEASE_SECONDS
    silence_seconds: int = SILENCE_SECONDS

    def __post_init__(self) -> None:
        if not 0 < self.lease_seconds <= self.silence_seconds:
            raise ValueError(
                f"silence: {self.silence_seconds} s is less than the lease of {self.lease_seconds} s: give at least "
                "the lease, the longest call and a margin"
            )

    def silence_left_ms(self, exchanged_ms: int, now_ms: int) -> int:
        """How long a meter that was last heard at `exchanged_ms` may still be spending; 0: it can spend no more."""
        return max(0, exchanged_ms + self.silence_seconds * 1000 - now_ms)

    def lease_left_ms(self, exchanged_ms: int, now_ms: int) -> int:
        """How long the lease lasts; never longer than a whole one, wherever a clock has jumped to."""
        return min(self.lease_seconds * 1000, max(0, exchanged_ms + self.lease_seconds * 1000 - now_ms))

    def is_due(self, exchanged_ms: int, now_ms: int, divisor: int = RENEW_DIVISOR) -> bool:
        """Whether so much of the lease is over that it is to be renewed; also where the clock went back."""
        return abs(now_ms - exchanged_ms) * divisor >= self.lease_seconds * 1000
