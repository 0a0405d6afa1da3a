"""Grants on the books: the rooms of an allotment's accounts, and what is granted or released there."""

from __future__ import annotations

from collections.abc import Mapping

from almoner_core.wire import Dimension, ErrorCode
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.grants import RefusedError, Room, decide
from almoner_ledger.store.accounts import execution_limits, seconds_left, smallest
from almoner_ledger.store.books import LARGEST_SUM, Books
from almoner_ledger.store.state import Account, AccountKind, Allotment, Window, WindowKey

Tracked = Mapping[str, tuple[Dimension, ...]]


def accounts_in(books: Books, tracked: Tracked) -> tuple[Account, list[Account]]:
    """The execution's own account and the others among those that an allotment falls under."""
    accounts = [books.accounts[account] for account in tracked]
    own = next(each for each in accounts if each.kind is AccountKind.EXECUTION)
    return own, [each for each in accounts if each is not own]


def current_windows(books: Books, tracked: Tracked) -> list[tuple[Account, Window, int | None]]:
    """The current window of each account and dimension, with the limit that a grant has to keep; None: no limit.

    An execution's account keeps the quotas' caps for one execution too, as they are now.
    """
    own, quotas = accounts_in(books, tracked)
    caps = execution_limits(own, quotas)
    found: list[tuple[Account, Window, int | None]] = []
    for account_id, dimensions in tracked.items():
        account = books.accounts[account_id]
        for dimension in dimensions:
            window = books.current_window(account, dimension)
            limit = caps.get(dimension) if account is own else window.limit
            found.append((account, window, limit if window.enforced else None))
    return found


def rooms(
    books: Books, tracked: Tracked, allotment: Allotment | None, freed: Mapping[WindowKey, int], joining: int
) -> list[Room]:
    """What a grant sees. `freed` is about to be released there; `joining` holders are about to be added."""
    found = []
    for account, window, limit in current_windows(books, tracked):
        hold = allotment.holds.get(window.key) if allotment is not None else None
        found.append(
            Room(
                account=account.label,
                dimension=window.dimension,
                limit=limit,
                spent=window.spent,
                reserved=window.reserved - freed.get(window.key, 0),
                own=hold.remainder if hold is not None else 0,
                holders=account.holders + joining,
                ends_in_seconds=seconds_left(window, books.now),
            )
        )
    return found


def decide_or_refuse(
    found: list[Room], need: Mapping[Dimension, int], want: Mapping[Dimension, int]
) -> dict[Dimension, int]:
    """Decide a grant. Raises LedgerError `insufficient` with the refusal, or `invalid` past what a balance can hold."""
    try:
        granted = decide(found, need, want)
    except RefusedError as refused:
        refusal = refused.refusal
        left = max(0, refusal.limit - refusal.spent - refusal.reserved)
        raise LedgerError(
            ErrorCode.INSUFFICIENT,
            f"{refusal.account}: {refusal.needed} {refusal.dimension.value} needed, {left} of {refusal.limit} left",
            field=refusal.dimension.value,
            refusal=refusal,
        ) from refused
    for room in found:
        if room.spent + room.reserved + granted.get(room.dimension, 0) > LARGEST_SUM:
            raise invalid(f"need.{room.dimension.value}", f"{room.account} cannot count that far")
    return granted


def apply_grant(books: Books, allotment: Allotment, granted: Mapping[Dimension, int]) -> None:
    """Hold what was granted on every account. Call it only with what `decide_or_refuse` gave."""
    for account, window, limit in current_windows(books, allotment.tracked):
        if account.kind is AccountKind.EXECUTION:
            window.set_limit(limit, enforced=True)
        amount = granted.get(window.dimension, 0)
        if amount or not allotment.holds_of(window.dimension, account.id):
            books.hold(allotment, window).reserve(amount)
    books.touch(allotment)


def release(books: Books, allotment: Allotment, amounts: Mapping[Dimension, int] | None) -> None:
    """Give back `amounts` on every account, from the oldest windows first; None: all that remains."""
    for account in allotment.tracked:
        for dimension in allotment.tracked[account]:
            left = None if amounts is None else amounts.get(dimension, 0)
            for hold in allotment.holds_of(dimension, account):
                amount = hold.remainder if left is None else min(left, hold.remainder)
                if amount:
                    hold.release(amount)
                if left is not None:
                    left -= amount
    books.touch(allotment)


def limited_dimensions(books: Books, allotment: Allotment) -> tuple[Dimension, ...]:
    """The dimensions in which some account can refuse now."""
    limiting = {window.dimension for _, window, limit in current_windows(books, allotment.tracked) if limit is not None}
    return tuple(dimension for dimension in Dimension if dimension in limiting)


def remaining(books: Books, allotment: Allotment) -> dict[Dimension, int]:
    """What the tightest account still has to grant, by limited dimension."""
    return smallest(
        {room.dimension: room.available}
        for room in rooms(books, allotment.tracked, allotment, {}, 0)
        if room.available is not None
    )


def window_ends_in(books: Books, allotment: Allotment) -> int | None:
    """Seconds to the end of the earliest window that can refuse; None where none ends."""
    left = [
        seconds_left(window, books.now)
        for _, window, limit in current_windows(books, allotment.tracked)
        if limit is not None and window.ends_at is not None
    ]
    return min((seconds for seconds in left if seconds is not None), default=None)
