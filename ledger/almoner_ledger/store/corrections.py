"""Corrections: what an entry costs after all, and what a charged-off attempt really spent, as new entries.

Role: the deciders of CORRECT (a person's word, or another price version's) and SETTLE (a person's word about an
attempt that vanished). The difference goes to the accounts' windows that the entry was posted in, and to the totals of
the entry's attempt, agent and day. Posting never fails for want of room: what goes above a limit is excess, and is kept
apart from what providers billed above holds. A closed allotment stays closed; what an open one holds is not touched,
because its meter counts on it. Boundary: knows no prices.

Money is counted once. A settlement stands in for the records that never came: should they come late, they are kept,
and the settlement shrinks by what they cost; once the meter's last return is complete, none of it is left.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from almoner_core.wire import (
    AllotmentState,
    ChargeSettled,
    Corrected,
    CorrectedEntry,
    CorrectEntries,
    Dimension,
    ErrorCode,
    NewCost,
    SettleCharge,
)
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store import charging, last_words
from almoner_ledger.store.books import LARGEST_SUM, Books
from almoner_ledger.store.commands import Command, Verb
from almoner_ledger.store.entries import CORRECTION, WAS_KNOWN, WAS_UNKNOWN, StoredEntry, read
from almoner_ledger.store.state import Allotment, Hold, Usage

ATTEMPT_NANOS_MAX = 10**18
"""What the entries of one attempt sum to at most, corrections included: a billion dollars is a mistake."""
_NAMESPACE = uuid.UUID("9b3e5c56-5f0f-5b52-8f0c-6d2f0f6f9a11")


def load(books: Books, commands: Sequence[Command]) -> None:
    """Read the entries that the commands are about; the locks of their allotments are held already."""
    wanted = [each.record for c in commands if c.verb is Verb.CORRECT for each in c.body.corrections]
    # A last word does not outlive a person's.
    words = [c.allotment for c in commands if c.verb is Verb.CLOSE and c.body.last_word and c.allotment]
    closed = (books.allotments[each] for each in words if each in books.allotments)
    wanted += [
        charging.settlement_id(each.id)
        for each in closed
        if each.state is AllotmentState.CLOSED and not last_words.is_complete(each)
    ]
    for each in (c.allotment for c in commands if c.verb is Verb.SETTLE and c.allotment):
        wanted += [charging.charge_id(each), charging.settlement_id(each)]
    books.entries = read(books.connection, wanted)


def correct(books: Books, command: Command) -> Corrected:
    """Let entries cost what is said from now on: all of them, or none where one is refused by name."""
    body: CorrectEntries = command.body
    allotment = books.allotment(command)
    fresh = [_checked(books, allotment, body, index) for index in range(len(body.corrections))]
    _check_sums(books, allotment, [each.cost_nanos - (entry.cost or 0) for each, entry in fresh])
    answers = []
    for wanted, entry in fresh:
        before = entry.cost
        made = None if before == wanted.cost_nanos else _correct(books, allotment, entry, wanted, body)
        answers.append(CorrectedEntry(record=wanted.record, entry=made, before=before, after=wanted.cost_nanos))
    if any(answer.entry for answer in answers):
        _release_explained(books, allotment, command)
    return Corrected(corrected=answers)


def _checked(books: Books, allotment: Allotment, body: CorrectEntries, index: int) -> tuple[NewCost, StoredEntry]:
    wanted = body.corrections[index]
    place = f"corrections.{index}.record"
    entry = books.entries.get(wanted.record)
    if entry is None or entry.row["allotment_id"] != allotment.id:
        raise LedgerError(ErrorCode.NOT_FOUND, f"{place}: allotment {allotment.id} has no such entry", field=place)
    kind = entry.row["kind"]
    if wanted.record == charging.settlement_id(allotment.id):
        if _complete(allotment):
            raise invalid(place, "every record of the attempt has come, so nothing is left of it: correct those")
    elif kind == CORRECTION:
        raise invalid(place, f"it is a correction of {entry.row['corrects']}: correct that one")
    elif kind == last_words.KIND:
        raise invalid(
            place, "it stands in for records that have not come, as their meter summed them: nothing to correct"
        )
    elif kind != "usage":
        raise invalid(place, f"it is an {kind} charge: settle the allotment instead")
    if any(each.record == wanted.record for each in body.corrections[:index]):
        raise invalid(place, "the same entry is named twice")
    if wanted.revision is not None and wanted.revision != entry.corrections:
        raise LedgerError(
            ErrorCode.RECORD_CONFLICT,
            f"{place}: it was corrected {entry.corrections} times, not {wanted.revision}: somebody was quicker",
            field=place,
        )
    return wanted, entry


def _check_sums(books: Books, allotment: Allotment, differences: list[int]) -> None:
    most = sum(difference for difference in differences if difference > 0)
    if allotment.usage.cost_nanos + most > ATTEMPT_NANOS_MAX:
        raise invalid("cost_nanos", f"the attempt's cost would pass {ATTEMPT_NANOS_MAX}")
    for hold in allotment.holds.values():
        if hold.window.spent + hold.window.reserved + most > LARGEST_SUM:
            raise invalid("cost_nanos", f"{books.accounts[hold.window.account_id].label} cannot count that far")


def _correct(books: Books, allotment: Allotment, entry: StoredEntry, wanted: NewCost, body: CorrectEntries) -> str:
    """Post the difference and enter it; gives the new entry's id."""
    original, before = entry.row, entry.cost
    difference = wanted.cost_nanos - (before or 0)
    entry_id = str(uuid.uuid5(_NAMESPACE, f"{original['id']}/{entry.corrections + 1}"))
    if before is None and allotment.word is None:
        # What was held for a call of unknown cost was charged off when the attempt ended: this explains some of it.
        charging.uncharge(books, allotment, {Dimension.USD: difference}, entry_id, keep=False)
    when = charging.effective_ms(allotment, original)
    books.moment = when // 1000
    if original["id"] == charging.settlement_id(allotment.id):
        for account in allotment.accounts_of(Dimension.USD):
            _restate(books, allotment, account, Dimension.USD, wanted.cost_nanos)
    else:
        _post(books, allotment, difference, when // 1000)
    books.moment = None
    row = charging.entry(
        books,
        allotment,
        {
            **{name: original[name] for name in ("resource_type", "provider", "model", "operation", "outcome")},
            "id": entry_id,
            "kind": CORRECTION,
            "corrects": original["id"],
            "digest": WAS_UNKNOWN if before is None else WAS_KNOWN,
            "cost_nanos": difference,
            "total_tokens": 0,
            "requests": 0,
            "tool_calls": 0,
            "price_version": body.price_version,
            "started_ms": when,
            "metadata": _metadata(reason=body.reason, cost_nanos=wanted.cost_nanos),
        },
    )
    enter(books, allotment, row, Usage(cost_nanos=difference, unpriced=-1 if before is None else 0))
    entry.corrected_nanos += difference
    entry.corrections += 1
    return entry_id


def enter(books: Books, allotment: Allotment, row: dict[str, Any], usage: Usage) -> None:
    """Add the entry of a correction to everything that sums entries. No record of use is added."""
    books.new_records.append(row)
    allotment.corrected_nanos += row["cost_nanos"]
    books.add_usage(allotment, charging.rollup_key(allotment, row), usage, records=0)


def _metadata(**values: str | int) -> str:
    return json.dumps(values, separators=(",", ":"))


def _post(books: Books, allotment: Allotment, nanos: int, second: int) -> None:
    """Post a difference to every account that counts money, in the window that the entry was posted in."""
    for account in allotment.accounts_of(Dimension.USD):
        holds = allotment.holds_of(Dimension.USD, account)
        if not holds:
            if nanos <= 0:
                continue
            window = books.current_window(books.accounts[account], Dimension.USD)
            holds = [books.hold(allotment, window)]
        # The window that holds the moment, then the one before it, for what was granted before midnight.
        holds.sort(key=lambda hold: (not charging.covers(hold, second), -hold.window.starts_at))
        if nanos > 0:
            holds[0].correct_up(nanos)
            continue
        left = -nanos
        for hold in holds:
            left -= hold.correct_down(min(left, hold.used - hold.charged))


def _complete(allotment: Allotment) -> bool:
    """Whether the meter has said its last word, and every record is here."""
    final = allotment.final_sequence
    return final is not None and allotment.sequences.contiguous >= final


def _release_explained(books: Books, allotment: Allotment, command: Command) -> None:
    """Where every record is here and every cost is known, nothing is left to be charged off."""
    if _complete(allotment) and not allotment.open and not allotment.usage.unpriced:
        charging.uncharge(books, allotment, None, f"known/{command.operation_id}")


def settle(books: Books, command: Command) -> ChargeSettled:
    """Say what an attempt that vanished really spent: the charge becomes that, and the rest is given back."""
    body: SettleCharge = command.body
    allotment = books.allotment(command)
    charged = _charged(allotment)
    _check_settle(books, allotment, body, charged)
    wanted = _wanted(body)
    _check_sums(books, allotment, [max(0, body.cost_nanos - charged[Dimension.USD])])
    entry_id = charging.settlement_id(allotment.id)
    charge = books.entries.get(charging.charge_id(allotment.id))
    when = books.now_ms if charge is None else charging.effective_ms(allotment, charge.row)
    nanos = allotment.usage.unaccounted_nanos
    if nanos:
        charging.take_back_unaccounted(books, allotment, nanos, when)
    books.moment = when // 1000
    for dimension, amount in wanted.items():
        for account in allotment.accounts_of(dimension):
            _restate(books, allotment, account, dimension, amount)
    books.moment = None
    differences = {dimension: amount - charged[dimension] for dimension, amount in wanted.items()}
    row = charging.entry(
        books,
        allotment,
        {
            "id": entry_id,
            "kind": CORRECTION,
            "corrects": charging.charge_id(allotment.id),
            "digest": WAS_KNOWN,
            "resource_type": charging.UNACCOUNTED,
            "cost_nanos": body.cost_nanos,
            "total_tokens": differences.get(Dimension.TOKENS, 0),
            "requests": differences.get(Dimension.REQUESTS, 0),
            "tool_calls": differences.get(Dimension.TOOL_CALLS, 0),
            "started_ms": when,
            "metadata": _metadata(reason=body.reason, charged_nanos=nanos),
        },
    )
    enter(books, allotment, row, Usage(cost_nanos=body.cost_nanos))
    return ChargeSettled(allotment=allotment.id, entry=entry_id, charged_nanos=nanos, cost_nanos=body.cost_nanos)


def _check_settle(books: Books, allotment: Allotment, body: SettleCharge, charged: Mapping[Dimension, int]) -> None:
    settled = books.entries.get(charging.settlement_id(allotment.id))
    if settled is not None:
        raise LedgerError(
            ErrorCode.RECORD_CONFLICT,
            f"allotment: it was settled already, at {settled.row['cost_nanos']} nano-dollars: correct entry "
            f"{settled.row['id']} if that was wrong",
            field="allotment",
        )
    if allotment.word is not None:
        raise LedgerError(
            ErrorCode.WRONG_STATE,
            "allotment: its meter's last word says what it spent: nothing of it is unaccounted",
            field="allotment",
        )
    if allotment.state is not AllotmentState.CLOSED or not any(charged.values()):
        raise LedgerError(
            ErrorCode.WRONG_STATE,
            f"allotment: it is {allotment.state.value} and has no unaccounted charge",
            field="allotment",
        )
    if allotment.usage.unpriced:
        raise LedgerError(
            ErrorCode.WRONG_STATE,
            f"allotment: {allotment.usage.unpriced} of its records have no known cost, which the charge stands in for: "
            "rerate or correct those first",
            field="allotment",
        )
    del body


def _charged(allotment: Allotment) -> dict[Dimension, int]:
    """What is charged without a record, by dimension."""
    sums = dict.fromkeys(Dimension, 0)
    for dimension in Dimension:
        for account in allotment.accounts_of(dimension):
            here = sum(hold.charged for hold in allotment.holds_of(dimension, account))
            sums[dimension] = max(sums[dimension], here)
    return sums


def _wanted(body: SettleCharge) -> dict[Dimension, int]:
    """What is said to have been used. A dimension of which nothing is said stays charged: unknown is not zero."""
    said = {
        Dimension.USD: body.cost_nanos,
        Dimension.TOKENS: body.tokens,
        Dimension.TOOL_CALLS: body.tool_calls,
        Dimension.REQUESTS: body.requests,
    }
    return {dimension: amount for dimension, amount in said.items() if amount is not None}


def _restate(books: Books, allotment: Allotment, account: str, dimension: Dimension, amount: int) -> None:
    """Let the charge of one account be `amount`: more goes to its newest window, less comes off the newest first."""
    holds: list[Hold] = allotment.holds_of(dimension, account)
    difference = amount - sum(hold.charged for hold in holds)
    if difference > 0:
        hold = next((each for each in reversed(holds) if each.charged), holds[-1] if holds else None)
        if hold is None:
            hold = books.hold(allotment, books.current_window(books.accounts[account], dimension))
        hold.correct_up(difference)
        hold.charged += difference
        return
    for hold in reversed(holds):
        less = min(-difference, hold.charged)
        if less:
            hold.charged -= less
            difference += hold.correct_down(less)
