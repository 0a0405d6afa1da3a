"""The end of an attempt by its meter's final return: checked, and done once every record is there."""

from __future__ import annotations

from collections.abc import Mapping

from almoner_core.wire import AllotmentState, Dimension
from almoner_ledger.errors import invalid
from almoner_ledger.store import charging, last_words
from almoner_ledger.store.books import LARGEST_SUM, Books
from almoner_ledger.store.granting import release
from almoner_ledger.store.state import Allotment


def check_settled(allotment: Allotment, last_sequence: int, settled: Mapping[Dimension, int]) -> None:
    """Refuse a final return whose totals differ from its own records, if those are all here."""
    if allotment.sequences.highest > last_sequence:
        raise invalid("last_sequence", f"record {allotment.sequences.highest} was posted already")
    posted = allotment.settled()
    complete = allotment.sequences.contiguous >= last_sequence
    for dimension, amount in settled.items():
        if amount < posted[dimension] or (complete and amount != posted[dimension]):
            raise invalid(
                f"settled.{dimension.value}", f"the records sum to {posted[dimension]}, the return says {amount}"
            )


def finish(books: Books, allotment: Allotment) -> None:
    """After a final return: release what no record will settle, and close once every record is there."""
    if allotment.final_sequence is None:
        return
    if allotment.sequences.contiguous >= allotment.final_sequence:
        if allotment.word is not None:
            last_words.take_back(books, allotment)
        elif allotment.usage.unpriced and Dimension.USD in allotment.limited:
            # What was charged for calls of unknown cost stays so, until somebody says what they cost.
            charging.uncharge(
                books, allotment, {d: LARGEST_SUM for d in Dimension if d is not Dimension.USD}, keep=False
            )
        else:
            charging.uncharge(books, allotment, None)
        if allotment.open:
            _release_or_charge_unpriced(books, allotment)
            charging.end(books, allotment, AllotmentState.CLOSED, "returned")
        return
    if allotment.open:
        stated, posted, held = allotment.final_settled or {}, allotment.settled(), allotment.held()
        spare = {
            dimension: max(0, held.get(dimension, 0) - (stated[dimension] - posted[dimension]))
            for dimension in stated
            if not (dimension is Dimension.USD and allotment.usage.unpriced)
        }
        release(books, allotment, spare)


def _release_or_charge_unpriced(books: Books, allotment: Allotment) -> None:
    if allotment.usage.unpriced and Dimension.USD in allotment.limited:
        # A call of unknown cost under a money limit is not free: what was held for it is charged.
        others = allotment.held()
        others.pop(Dimension.USD, None)
        release(books, allotment, others)
        charging.charge_off(books, allotment)
    release(books, allotment, None)
