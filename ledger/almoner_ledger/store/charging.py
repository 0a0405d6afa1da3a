"""Posting to accounts: settling records, charging off what vanished, and settling that charge later."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from almoner_core.wire import AllotmentState, Dimension, Purpose
from almoner_ledger.store.books import Books, RollupKey
from almoner_ledger.store.entries import CORRECTION, WAS_KNOWN
from almoner_ledger.store.state import Allotment, Hold, Usage
from almoner_ledger.windows import day_of, month_of

UNACCOUNTED = "unaccounted"
_NAMESPACE = uuid.UUID("1d0a5b0e-93a5-5a53-9d0c-0d1a3a1f7b55")


def settle(books: Books, allotment: Allotment, amounts: Mapping[Dimension, int], started: int) -> None:
    """Post amounts to every account that counts them, whatever room there is.

    A call settles in the window of its hold: the one that holds `started` (Unix seconds, within the allotment's life)
    first, then the oldest that has something left. What no hold covers is excess, and freezes the allotment.
    """
    books.moment = started
    for account, dimensions in allotment.tracked.items():
        for dimension in dimensions:
            left = amounts.get(dimension, 0)
            holds = allotment.holds_of(dimension, account)
            holds.sort(key=lambda hold: (hold.window.mirror is not None, not covers(hold, started)))
            for hold in holds:
                amount = min(left, hold.remainder)
                if amount:
                    hold.use(amount)
                    left -= amount
            if left:
                if not holds or holds[0].window.mirror is not None or not covers(holds[0], started):
                    holds = [books.hold(allotment, books.current_window(books.accounts[account], dimension))]
                exceeded = holds[0].use_unheld(left)
                # A meter that was never told of the limit could not hold for it.
                allotment.frozen = allotment.frozen or (exceeded and dimension in allotment.limited)
    books.moment = None


def covers(hold: Hold, second: int) -> bool:
    """Whether a moment (Unix seconds) lies in a hold's window."""
    window = hold.window
    return window.starts_at <= second and (window.ends_at is None or second < window.ends_at)


def charge_off(books: Books, allotment: Allotment) -> dict[Dimension, int]:
    """Charge what is granted and not settled as one `unaccounted` entry; nothing held, no entry. Gives how much."""
    amounts = dict.fromkeys(Dimension, 0)
    for dimension in Dimension:
        for account in allotment.accounts_of(dimension):
            charged = sum(hold.charge_off() for hold in allotment.holds_of(dimension, account) if hold.remainder)
            amounts[dimension] = max(amounts[dimension], charged)
    if any(amounts.values()):
        _enter(books, allotment, "charge", amounts, corrects=None)
    return {dimension: amount for dimension, amount in amounts.items() if amount}


def uncharge(
    books: Books,
    allotment: Allotment,
    wanted: Mapping[Dimension, int] | None,
    cause: str = "final",
    *,
    keep: bool = True,
) -> None:
    """Take back of a charge-off what a late record (`cause`) explains (`wanted`), or all that is left (None).

    `keep`: what is explained is held again, for the record to settle from. Where a person has settled the charge, it is
    that word which shrinks: the money of a record is counted once.
    """
    amounts = reverse_charges(allotment, wanted, keep=keep and wanted is not None)
    if any(amounts.values()):
        settled = amounts[Dimension.USD] > allotment.usage.unaccounted_nanos
        negative = {dimension: -amount for dimension, amount in amounts.items()}
        corrects = settlement_id(allotment.id) if settled else charge_id(allotment.id)
        kind = CORRECTION if settled else UNACCOUNTED
        _enter(books, allotment, f"settle/{cause}", negative, corrects=corrects, kind=kind)


def reverse_charges(
    allotment: Allotment, wanted: Mapping[Dimension, int] | None, *, keep: bool
) -> dict[Dimension, int]:
    """Take charges off the holds, the newest first: up to `wanted` on every account, or all (None). Gives how much."""
    amounts = dict.fromkeys(Dimension, 0)
    for account, dimensions in allotment.tracked.items():
        for dimension in dimensions:
            reversed_here = 0
            for hold in reversed(allotment.holds_of(dimension, account)):
                amount = hold.charged if wanted is None else min(wanted.get(dimension, 0) - reversed_here, hold.charged)
                if amount:
                    hold.reverse_charge(amount, keep=keep)
                    reversed_here += amount
            amounts[dimension] = max(amounts[dimension], reversed_here)
    return amounts


def take_back_unaccounted(books: Books, allotment: Allotment, nanos: int, when_ms: int) -> None:
    """Enter that a charge is accounted for, by a person; what stands in its place is the caller's to enter."""
    amounts = {**dict.fromkeys(Dimension, 0), Dimension.USD: -nanos}
    _enter(books, allotment, "settle/person", amounts, corrects=charge_id(allotment.id), when_ms=when_ms)


def charge_id(allotment_id: str) -> str:
    """The id of the entry that charges off what an attempt could still have spent."""
    return entry_id(allotment_id, "charge")


def settlement_id(allotment_id: str) -> str:
    """The id of the entry by which a person settles such a charge."""
    return entry_id(allotment_id, "settlement")


def entry_id(allotment_id: str, step: str) -> str:
    """The id of an entry without a record; each step in an attempt's life makes one at most."""
    return str(uuid.uuid5(_NAMESPACE, f"{allotment_id}/{step}"))


def _enter(
    books: Books,
    allotment: Allotment,
    step: str,
    amounts: Mapping[Dimension, int],
    *,
    corrects: str | None,
    kind: str = UNACCOUNTED,
    when_ms: int | None = None,
) -> None:
    """Write one entry without a record; negative amounts take back an earlier one."""
    nanos = amounts[Dimension.USD]
    row = entry(
        books,
        allotment,
        {
            "id": entry_id(allotment.id, step),
            "kind": kind,
            "corrects": corrects,
            "digest": WAS_KNOWN if kind == CORRECTION else "",
            "started_ms": books.now_ms if when_ms is None else when_ms,
            "resource_type": UNACCOUNTED,
            "cost_nanos": nanos,
            "total_tokens": amounts[Dimension.TOKENS],
            "requests": amounts[Dimension.REQUESTS],
            "tool_calls": amounts[Dimension.TOOL_CALLS],
        },
    )
    books.new_records.append(row)
    # Tokens, requests and calls of an attempt that vanished are not known: only the money shows in the totals.
    unaccounted = nanos if kind == UNACCOUNTED else 0
    allotment.corrected_nanos += nanos - unaccounted
    books.add_usage(allotment, rollup_key(allotment, row), Usage(cost_nanos=nanos, unaccounted_nanos=unaccounted))


def entry(books: Books, allotment: Allotment, values: dict[str, Any]) -> dict[str, Any]:
    """Give the row of an entry, every column filled."""
    return {
        "month": month_of(allotment.opened_ms),
        "corrects": None,
        "allotment_id": allotment.id,
        "sequence": None,
        "digest": "",
        "posted_ms": books.now_ms,
        "provider": "",
        "model": "",
        "operation": "",
        "input_tokens": 0,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "output_tokens": 0,
        "reasoning_tokens": 0,
        "units": 0,
        "price_version": None,
        "started_ms": books.now_ms,
        "duration_ms": 0,
        "outcome": "ok",
        "error": None,
        "metadata": "{}",
        **values,
    }


def effective_ms(allotment: Allotment, row: Mapping[str, Any]) -> int:
    """When an entry counts, in Unix milliseconds: at its start, within the allotment's life as the ledger knows it.

    The same as `store.history.EFFECTIVE_MS`, so that sums over entries and sums by day agree.
    """
    return min(max(int(row["started_ms"]), allotment.opened_ms), int(row["posted_ms"]))


def rollup_key(allotment: Allotment, row: Mapping[str, Any]) -> RollupKey:
    """The key of the sums that an entry (`row`, as `entry` gives it) goes into."""
    ref = allotment.execution
    return (
        day_of(effective_ms(allotment, row)),
        ref.namespace,
        ref.agent,
        ref.owner,
        row["provider"],
        row["model"],
        row["resource_type"],
        row["operation"],
        row["outcome"],
    )


def end(books: Books, allotment: Allotment, state: AllotmentState, reason: str) -> None:
    """Leave the accounts' holders; nothing is held any more."""
    allotment.state = state
    allotment.closed_ms = books.now_ms
    allotment.close_reason = reason
    allotment.debits = {}  # forgotten, unrefunded
    for account in allotment.tracked if allotment.purpose is Purpose.RUN else ():
        books.accounts[account].holders -= 1
        books.accounts[account].dirty = True
    books.touch(allotment)
