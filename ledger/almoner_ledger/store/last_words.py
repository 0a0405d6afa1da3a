"""A meter's last word: what the ledger never received of an attempt, as the pod's termination message has it.

Role: the operator hands the word over when it closes an allotment. What its totals say beyond the records here is
posted as one entry of kind `last_word`, in the place of the charge for all that the attempt could still have spent.
It uses what the attempt had been granted; above that it is posted whatever the room, as a correction is. Until a record
comes late: then the word gives way to it, by as much as that record says, and wholly once every record is here. So the
sum of records and word is the meter's own sum at every moment.

What is not taken: a word that contradicts the records (less than they sum to, or another sum where all are here), one
with calls of unknown cost under a money limit (unknown is not zero: the charge stands for them), a second one, and one
about a charge that a person has settled.
"""

from __future__ import annotations

import json
from typing import Final

from almoner_core.wire import AllotmentState, Dimension, LastWord
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.store import charging
from almoner_ledger.store.books import LARGEST_SUM, Books
from almoner_ledger.store.entries import WAS_UNKNOWN
from almoner_ledger.store.granting import release
from almoner_ledger.store.state import Allotment, Usage, Word, usage_amounts

KIND: Final = "last_word"
ATTEMPT_TOTAL_MAX: Final = 10**18
_TOKENS: Final = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")


def take(books: Books, allotment: Allotment, said: LastWord, reason: str) -> dict[Dimension, int] | None:
    """End an attempt as its meter's last word says. Gives what was entered; None: the word is not used."""
    missing = None if _is_settled(books, allotment) else _missing(allotment, said)
    if missing is None:
        return None
    if allotment.state is AllotmentState.CLOSED:
        charging.uncharge(books, allotment, None, "word")
    elif allotment.state is not AllotmentState.ACTIVE:
        return None
    allotment.final_sequence = said.last_sequence
    allotment.final_settled = {d: amount for d, amount in _said_amounts(said).items() if d in allotment.dimensions()}
    allotment.word = Word(min(allotment.exchanged_ms, books.now_ms))
    amounts = usage_amounts(missing)
    _charge(books, allotment, amounts)
    _enter_missing(books, allotment, said, missing)
    if allotment.open:
        release(books, allotment, None)
        charging.end(books, allotment, AllotmentState.CLOSED, reason)
    books.touch(allotment)
    return {dimension: amount for dimension, amount in amounts.items() if amount}


def give_way(books: Books, allotment: Allotment, usage: Usage, cause: str) -> None:
    """Take back what a late record (`usage`, its id is `cause`) says itself: held again, for the record to use."""
    word = allotment.word
    assert word is not None
    less = _common(word.usage, usage)
    if not any(less.to_row().values()):
        return
    charging.reverse_charges(allotment, usage_amounts(less), keep=True)
    _enter(books, allotment, f"word/{cause}", _negative(less), corrects=_id(allotment))


def take_back(books: Books, allotment: Allotment) -> None:
    """Take back all that is left of the word: every record is here."""
    word = allotment.word
    assert word is not None
    charging.reverse_charges(allotment, None, keep=False)
    if word.usage.unpriced:
        known = Usage(unpriced=-1)
        _enter(books, allotment, "word/priced", known, corrects=_id(allotment, "word/unpriced"), digest=WAS_UNKNOWN)
    if any(getattr(word.usage, name) for name in USAGE_COLUMNS):
        _enter(books, allotment, "word/complete", _negative(word.usage), corrects=_id(allotment))


def settled_by_person(books: Books, allotment: Allotment) -> bool:
    """Whether a person has said what the attempt spent."""
    return charging.settlement_id(allotment.id) in books.entries


def is_complete(allotment: Allotment) -> bool:
    """Whether the meter has given its final return, and every record is here."""
    final = allotment.final_sequence
    return final is not None and allotment.sequences.contiguous >= final


def _is_settled(books: Books, allotment: Allotment) -> bool:
    return (
        allotment.word is not None
        or (allotment.state is AllotmentState.CLOSED and is_complete(allotment))
        or settled_by_person(books, allotment)
    )


def _said_amounts(said: LastWord) -> dict[Dimension, int]:
    return usage_amounts(Usage(**said.totals.model_dump()))


def _missing(allotment: Allotment, said: LastWord) -> Usage | None:
    """What the word says beyond the records that are here; None: it is not to be used."""
    totals, here = Usage(**said.totals.model_dump()), allotment.reported()
    sequences = allotment.sequences
    final = allotment.final_sequence
    if sequences.highest > said.last_sequence or (final is not None and final != said.last_sequence):
        return None
    if (totals.unpriced or here.unpriced) and Dimension.USD in allotment.limited:
        return None
    differences = {d: amount - usage_amounts(here)[d] for d, amount in usage_amounts(totals).items()}
    complete = sequences.contiguous >= said.last_sequence
    if any(each < 0 or (complete and each) for each in differences.values()):
        return None
    if max(usage_amounts(totals).values()) > ATTEMPT_TOTAL_MAX or _too_large(allotment, differences):
        return None
    missing = Usage(unpriced=int(totals.unpriced > here.unpriced))
    for name in ("cost_nanos", "requests", "tool_calls", *_TOKENS):
        setattr(missing, name, getattr(totals, name) - getattr(here, name))
    if any(getattr(missing, name) < 0 for name in _TOKENS):
        # A meter that lost its spool knows only the sum of what it had reported: so the kinds are not known.
        for name in _TOKENS:
            setattr(missing, name, 0)
        missing.input_tokens = differences[Dimension.TOKENS]
    return missing


def _too_large(allotment: Allotment, amounts: dict[Dimension, int]) -> bool:
    return any(
        hold.window.spent + hold.window.reserved + amounts[hold.window.dimension] > LARGEST_SUM
        for hold in allotment.holds.values()
    )


def _charge(books: Books, allotment: Allotment, amounts: dict[Dimension, int]) -> None:
    """Use amounts on every account without a record: from what is held first, in the window of the last exchange."""
    second = allotment.exchanged_ms // 1000
    for account, dimensions in allotment.tracked.items():
        for dimension in dimensions:
            left = amounts[dimension]
            holds = allotment.holds_of(dimension, account)
            holds.sort(key=lambda hold: not charging.covers(hold, second))
            for hold in holds:
                amount = min(left, hold.remainder)
                if amount:
                    hold.use(amount)
                    hold.charged += amount
                    left -= amount
            if left:
                if not holds:
                    holds = [books.hold(allotment, books.current_window(books.accounts[account], dimension))]
                holds[0].correct_up(left)
                holds[0].charged += left


def _enter_missing(books: Books, allotment: Allotment, said: LastWord, missing: Usage) -> None:
    """Enter what is missing: one entry, and one more where the cost of some of its calls is unknown."""
    known = Usage(**{**missing.to_row(), "unpriced": 0})
    about = {
        "last_sequence": said.last_sequence,
        "records_missing": said.last_sequence - allotment.sequences.count,
        "unpriced": said.totals.unpriced,
    }
    if any(known.to_row().values()):
        _enter(books, allotment, "word", known, about=about)
    if missing.unpriced:
        _enter(books, allotment, "word/unpriced", Usage(unpriced=1))


def _common(word: Usage, record: Usage) -> Usage:
    """What a record says of what the word still says."""
    less = Usage()
    for name in ("cost_nanos", "requests", "tool_calls", *_TOKENS):
        setattr(less, name, min(getattr(word, name), getattr(record, name)))
    # Where the kinds of tokens were not known, all of them stand as input.
    over = record.output_tokens - less.output_tokens
    less.input_tokens += min(over, word.input_tokens - less.input_tokens)
    return less


def _negative(usage: Usage) -> Usage:
    return Usage(**{name: -value for name, value in usage.to_row().items() if name != "unpriced"})


def _id(allotment: Allotment, step: str = "word") -> str:
    return charging.entry_id(allotment.id, step)


def _enter(
    books: Books,
    allotment: Allotment,
    step: str,
    usage: Usage,
    *,
    corrects: str | None = None,
    digest: str = "",
    about: dict[str, int] | None = None,
) -> None:
    """Write one entry of the word, and add it to what the word stands for and to everything that sums entries."""
    word = allotment.word
    assert word is not None
    row = charging.entry(
        books,
        allotment,
        {
            "id": _id(allotment, step),
            "kind": KIND,
            "corrects": corrects,
            "digest": digest,
            "started_ms": word.at_ms,
            "resource_type": KIND,
            "cost_nanos": None if usage.unpriced > 0 else usage.cost_nanos,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            **{name: getattr(usage, name) for name in ("requests", "tool_calls", *_TOKENS)},
            "metadata": json.dumps(about or {}, separators=(",", ":")),
        },
    )
    books.new_records.append(row)
    word.usage.add(usage)
    books.add_usage(allotment, charging.rollup_key(allotment, row), usage)
