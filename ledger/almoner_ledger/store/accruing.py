"""Machine time as the operator accrues it: posted whatever room there is, then held anew for what comes.

Where the operator does not come in time, the ledger holds more by itself (`cover`), and the operator charges it later.
"""

from __future__ import annotations

from almoner_core.usage import ResourceType, UsageRecord
from almoner_core.wire import (
    AccrueAllotment,
    AllotmentState,
    Dimension,
    Error,
    ItemAnswer,
    Purpose,
)
from almoner_ledger.errors import invalid
from almoner_ledger.schema import COMPUTE_COLUMNS
from almoner_ledger.store import compute, records
from almoner_ledger.store.allotments import wrong_state
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command
from almoner_ledger.store.granting import apply_grant, limited_dimensions, rooms
from almoner_ledger.store.state import Allotment, amounts_of

USD = Dimension.USD


def accrue(books: Books, command: Command) -> ItemAnswer:
    """Post machine time, then hold what the message asks for in place of what is held.

    A refused hold is no refusal of the whole: the records are posted, the hold stays as it was, and the answer carries
    the error.
    """
    body: AccrueAllotment = command.body
    allotment = books.allotment(command)
    if allotment.purpose is not Purpose.COMPUTE:
        raise invalid("allotment", "machine time is accrued on the compute allotment of the attempt")
    if allotment.state is AllotmentState.VOID:
        raise wrong_state(allotment, "accrue machine time")
    compute.check_money(body.hold, "hold")
    _check_records(body.records)
    fresh = records.fresh(books, allotment, body.records)
    # From here on nothing refuses.
    allotment.exchanged_ms = books.now_ms
    allotment.limited = limited_dimensions(books, allotment)
    books.touch(allotment)
    if body.machine is not None:
        allotment.machine = body.machine
    if body.charged_unix_ms is not None:
        compute.note_charged(books, allotment, body.charged_unix_ms)
    if fresh and allotment.state is AllotmentState.OFFERED:
        allotment.state = AllotmentState.ACTIVE
        allotment.activated_ms = books.now_ms
    _cover(books, allotment, sum(amounts_of(record)[USD] for record, _, _ in fresh))
    for record, digest, metadata in fresh:
        records.enter(books, allotment, record, digest, metadata)
    error = None
    if body.final and allotment.open:
        compute.end(books, allotment, compute.ACCRUED)
    elif allotment.open:
        error = compute.hold_anew(books, allotment, body.hold.get(USD, 0))
    return _answer(books, allotment, error)


def cover(books: Books, command: Command) -> ItemAnswer:
    """Hold more machine time for a pod whose operator is late: its meter is heard of, so it runs."""
    allotment = books.allotment(command)
    return _answer(books, allotment, compute.cover_if_late(books, allotment))


def _answer(books: Books, allotment: Allotment, error: Error | None) -> ItemAnswer:
    return ItemAnswer(
        allotment=allotment.id,
        state=allotment.state.value,
        error=error,
        now_unix_ms=books.now_ms,
        paid_seconds=compute.paid_seconds(books, allotment) if allotment.open else None,
        paid_span=compute.paid_span(allotment) if allotment.open else None,
    )


def _check_records(given: list[UsageRecord]) -> None:
    for index, record in enumerate(given):
        place = f"records.{index}"
        if record.resource_type is not ResourceType.COMPUTE:
            raise invalid(f"{place}.resource_type", "write compute: nothing else is accrued")
        if record.model not in COMPUTE_COLUMNS:
            raise invalid(f"{place}.model", f"write one of {', '.join(COMPUTE_COLUMNS)}")
        if record.cost_nanos is None:
            raise invalid(f"{place}.cost_nanos", "write what it costs: machine time without a price costs 0")
        counted = [name for name, amount in amounts_of(record).items() if amount and name is not USD]
        if counted:
            raise invalid(place, f"machine time counts no {counted[0].value}")


def _cover(books: Books, allotment: Allotment, cost: int) -> None:
    """Hold what the records cost above what is held, as far as there is room: only what nothing covers is excess."""
    lack = cost - allotment.held().get(USD, cost)
    if lack <= 0:
        return
    found = rooms(books, allotment.tracked, allotment, {}, 0)
    left = [room.available for room in found if room.dimension is USD and room.available is not None]
    amount = min(lack, *left) if left else 0
    if amount > 0:
        apply_grant(books, allotment, {USD: amount})
