"""Machine time as the operator accrues it: posted whatever room there is, then held anew for what comes."""

from __future__ import annotations

from almoner_core.usage import ResourceType, UsageRecord
from almoner_core.wire import (
    AccrueAllotment,
    AllotmentState,
    Dimension,
    Error,
    ErrorCode,
    ItemAnswer,
    Purpose,
)
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.schema import COMPUTE_COLUMNS
from almoner_ledger.store import compute, recall, records
from almoner_ledger.store.allotments import wrong_state
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command
from almoner_ledger.store.granting import apply_grant, decide_or_refuse, limited_dimensions, release, rooms
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
        error = _hold(books, allotment, body.hold.get(USD, 0))
    return ItemAnswer(allotment=allotment.id, state=allotment.state.value, error=error)


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


def _hold(books: Books, allotment: Allotment, amount: int) -> Error | None:
    """Hold `amount` in the current windows in place of all that is held; gives the error where an account refuses."""
    freed = {key: hold.remainder for key, hold in allotment.holds.items()}
    try:
        granted = decide_or_refuse(rooms(books, allotment.tracked, None, freed, 0), {USD: amount}, {})
    except LedgerError as error:
        recall.mark(books, allotment.tracked, error)
        if error.code is not ErrorCode.INSUFFICIENT:  # Beyond what a balance can count: as good as no room.
            return Error(code=ErrorCode.INSUFFICIENT, message=error.message[:1024], field=error.field)
        return error.to_wire()
    release(books, allotment, None)
    apply_grant(books, allotment, granted)
    return None
