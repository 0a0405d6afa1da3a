"""How much is granted: the arithmetic of a grant over all accounts of an allotment, all or nothing.

PURE. `need` must fit on every enforced account in every dimension. `want` is granted as far as it stays within half a
percent of what is available divided among the holders, so that little of a budget lies idle when it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from almoner_core.wire import Dimension, Refusal

# A chunk is at most 1/200 (half a percent) of what is available, divided among the holders.
CHUNK_DIVISOR: Final = 200


@dataclass(frozen=True, slots=True)
class Room:
    """One account's current window in one dimension, as a grant sees it.

    `limit` None: not limited (or only watched), so it never refuses. `own` is what this allotment holds there already.
    """

    account: str
    dimension: Dimension
    limit: int | None
    spent: int
    reserved: int
    own: int = 0
    holders: int = 1
    ends_in_seconds: int | None = None

    @property
    def available(self) -> int | None:
        """What is left to grant; None where there is no limit. Never negative."""
        return None if self.limit is None else max(0, self.limit - self.spent - self.reserved)


class RefusedError(Exception):
    """A need did not fit; `refusal` says where, how much was left and when to try again."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.account)
        self.refusal = refusal


def size(need: int, want: int, available: int, holders: int) -> int:
    """Give the size of one grant, given that `need` <= `available`: at least `need`, at most max(need, want)."""
    return max(need, min(want, available // (CHUNK_DIVISOR * max(1, holders))))


def decide(rooms: Sequence[Room], need: Mapping[Dimension, int], want: Mapping[Dimension, int]) -> dict[Dimension, int]:
    """Decide what is granted in every dimension that an account limits; the others are absent from the answer.

    Raises RefusedError, naming the account that is furthest from having room, if any `need` does not fit.
    """
    granted: dict[Dimension, int] = {}
    for dimension in Dimension:
        if dimension not in need and dimension not in want:
            continue
        limited = [room for room in rooms if room.dimension is dimension and room.limit is not None]
        if not limited:
            continue
        tightest = min(limited, key=lambda room: room.available or 0)
        needed = need.get(dimension, 0)
        if needed > (tightest.available or 0):
            raise RefusedError(_refusal(tightest, needed))
        # Every account has its own number of holders: the smallest chunk of them all holds.
        granted[dimension] = min(
            size(needed, want.get(dimension, 0), room.available or 0, room.holders) for room in limited
        )
    return granted


def _refusal(room: Room, needed: int) -> Refusal:
    limit = room.limit or 0
    helps = needed <= limit
    return Refusal(
        account=room.account,
        dimension=room.dimension,
        limit=limit,
        spent=room.spent,
        reserved=room.reserved,
        needed=needed,
        retry_after_seconds=room.ends_in_seconds if helps else None,
        # What this allotment holds itself is not coming back from others.
        may_free_up=helps and room.reserved > room.own and room.spent + room.own + needed <= limit,
    )
