"""The compute allotment beside an attempt's own: what its machine time is held in.

Role: opened and ended with the attempt's own allotment, on the same accounts, counting money alone. Where the operator
said what the pod costs, this knows for how long it is paid, and holds more when no operator comes in time. Boundary:
what is accrued on it is accruing.py's. It is no holder of its accounts: what it holds is what the operator asks for,
never a share of what is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from almoner_core.compute import hold_nanos, paid_ms
from almoner_core.environment import PAID_ALWAYS_SECONDS
from almoner_core.identity import compute_allotment_id
from almoner_core.usage import ResourceType, UsageRecord
from almoner_core.wire import (
    AllotmentState,
    Amounts,
    Dimension,
    Error,
    ErrorCode,
    MachineTerms,
    OpenAllotment,
    PaidSpan,
    Purpose,
)
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store import charging, recall
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command, Verb
from almoner_ledger.store.granting import apply_grant, decide_or_refuse, limited_dimensions, release, rooms
from almoner_ledger.store.state import Allotment

ACCRUED = "accrued"
_WITH_SIBLING = frozenset({Verb.BIND, Verb.VOID, Verb.CLOSE, Verb.ACTIVATE})


@dataclass(frozen=True, slots=True)
class Asked:
    """What an attempt's own allotment and its machine time ask for together."""

    need: Amounts
    want: Amounts


def siblings_to_load(commands: Iterable[Command]) -> set[str]:
    """The ids of the compute allotments that go with what the commands are about."""
    return {compute_allotment_id(c.allotment) for c in commands if c.allotment and c.verb in _WITH_SIBLING}


def sibling(books: Books, allotment: Allotment) -> Allotment | None:
    """The compute allotment beside a run's; None where there is none."""
    return books.allotments.get(compute_allotment_id(allotment.id)) if allotment.purpose is Purpose.RUN else None


def check_open(books: Books, body: OpenAllotment) -> None:
    """Refuse an opening whose machine time is not money, or was held before."""
    check_money(body.compute, "compute")
    if body.compute and compute_allotment_id(body.allotment) in books.allotments:
        raise LedgerError(ErrorCode.WRONG_STATE, "compute: its allotment was opened already", field="compute")


def check_money(amounts: Amounts, field: str) -> None:
    """Refuse to hold anything but money for machine time."""
    for dimension in amounts:
        if dimension is not Dimension.USD:
            raise invalid(f"{field}.{dimension.value}", "machine time is held in usd alone")


def asked(body: OpenAllotment) -> Asked:
    """What has to fit: the run's need and its machine time, together."""
    usd = body.compute.get(Dimension.USD, 0)
    if not usd:
        return Asked(body.need, body.want)

    def more(amounts: Amounts) -> Amounts:
        return {**amounts, Dimension.USD: amounts.get(Dimension.USD, 0) + usd}

    return Asked(more(body.need), more(body.want))


def superseded_siblings(books: Books, superseded: Sequence[Allotment]) -> list[Allotment]:
    """The open compute allotments of attempts that are about to be superseded."""
    found = (sibling(books, each) for each in superseded)
    return [each for each in found if each is not None and each.open]


def open_beside(books: Books, allotment: Allotment, body: OpenAllotment, granted: Amounts) -> Amounts:
    """Open the compute allotment of an attempt with its part of what was granted; gives the run's own part."""
    if not body.compute:
        return granted
    usd = body.compute.get(Dimension.USD, 0)
    own = dict(granted)
    part = min(usd, own.pop(Dimension.USD, 0))
    if Dimension.USD in granted and (Dimension.USD in body.need or Dimension.USD in body.want):
        own[Dimension.USD] = granted[Dimension.USD] - part
    beside = Allotment(
        id=compute_allotment_id(allotment.id),
        execution=allotment.execution,
        pod=allotment.pod,
        state=AllotmentState.OFFERED,
        tracked={
            account: tuple(each for each in dimensions if each is Dimension.USD)
            for account, dimensions in allotment.tracked.items()
        },
        opened_ms=books.now_ms,
        exchanged_ms=books.now_ms,
        purpose=Purpose.COMPUTE,
        machine=body.machine,
        new=True,
    )
    books.allotments[beside.id] = beside
    apply_grant(books, beside, {Dimension.USD: part} if Dimension.USD in granted else {})
    beside.limited = limited_dimensions(books, beside)
    return own


def hold_anew(books: Books, allotment: Allotment, amount: int) -> Error | None:
    """Hold `amount` in the current windows in place of all that is held; gives the error where an account refuses."""
    freed = {key: hold.remainder for key, hold in allotment.holds.items()}
    try:
        granted = decide_or_refuse(rooms(books, allotment.tracked, None, freed, 0), {Dimension.USD: amount}, {})
    except LedgerError as error:
        recall.mark(books, allotment.tracked, error)
        if error.code is not ErrorCode.INSUFFICIENT:  # Beyond what a balance can count: as good as no room.
            return Error(code=ErrorCode.INSUFFICIENT, message=error.message[:1024], field=error.field)
        return error.to_wire()
    release(books, allotment, None)
    apply_grant(books, allotment, granted)
    # A quota may be enforced no longer: what nothing limits is not held, and is paid for all the same.
    allotment.limited = limited_dimensions(books, allotment)
    return None


def paid_seconds(books: Books, allotment: Allotment) -> int | None:
    """Give for how long from now machine time is held; None where nobody said what it costs."""
    held = allotment.held().get(Dimension.USD)
    return seconds_paid(allotment.machine, held, _since(allotment), books.now_ms)


def seconds_paid(machine: MachineTerms | None, held: int | None, since_ms: int, now_ms: int) -> int | None:
    """Give for how long what is held pays (None: nothing limits it), if all after `since_ms` is yet to be charged.

    Below zero where it paid until an earlier moment; never more than all of it, also where the clock went back.
    """
    if machine is None:
        return None
    if held is None:
        return PAID_ALWAYS_SECONDS
    paid = paid_ms(held, machine.per_hour)
    return min(since_ms + paid - now_ms, paid) // 1000


def span_paid(machine: MachineTerms | None, held: int | None, since_ms: int) -> PaidSpan | None:
    """Give what is held for as a span of the ledger's clock; None where nothing limits it."""
    if machine is None or held is None:
        return None
    return PaidSpan(since_unix_ms=since_ms, until_unix_ms=since_ms + paid_ms(held, machine.per_hour))


def paid_span(allotment: Allotment) -> PaidSpan | None:
    """Give the span of the ledger's clock that machine time is held for; None where nothing limits it."""
    return span_paid(allotment.machine, allotment.held().get(Dimension.USD), _since(allotment))


def _since(allotment: Allotment) -> int:
    return allotment.opened_ms if allotment.charged_ms is None else allotment.charged_ms


def note_charged(books: Books, allotment: Allotment, until_ms: int) -> None:
    """Note until when machine time is charged, as the operator reckons it by this clock as it heard it last.

    Where the clock went back since then, that moment is still to come, and tells nothing. Where it has heard it anew, a
    mark that is still to come is from before, and gives way; else a mark only moves on.
    """
    if until_ms <= books.now_ms:
        known = allotment.charged_ms
        allotment.charged_ms = until_ms if known is None or known > books.now_ms else max(until_ms, known)


def cover_if_late(books: Books, allotment: Allotment) -> Error | None:
    """Hold more machine time where the operator is late to; gives the error where an account refuses."""
    machine, left = allotment.machine, paid_seconds(books, allotment)
    if not allotment.open or machine is None or left is None or left > machine.late_seconds:
        return None
    # A clock that went back says nothing of what is not charged yet: what is held is never less for it.
    uncharged = max(0, books.now_ms - _since(allotment))
    error = hold_anew(books, allotment, hold_nanos(machine.per_hour, uncharged + machine.ahead_seconds * 1000))
    books.touch(allotment)
    return error


def bind_beside(books: Books, allotment: Allotment) -> None:
    """Bind the compute allotment to the run's pod."""
    beside = sibling(books, allotment)
    if beside is not None and beside.open:
        beside.pod_uid = allotment.pod_uid
        books.touch(beside)


def end_beside(books: Books, allotment: Allotment, reason: str) -> None:
    """End the compute allotment of an attempt that is over: what was never accrued of it goes back."""
    beside = sibling(books, allotment)
    if beside is not None:
        end_open(books, beside, reason)


def end_open(books: Books, beside: Allotment, reason: str) -> None:
    """End a compute allotment where that was not done yet."""
    if beside.open:
        end(books, beside, reason)


def end(books: Books, beside: Allotment, reason: str) -> None:
    """End a compute allotment: void where nothing was ever accrued on it, closed otherwise."""
    release(books, beside, None)
    unused = beside.state is AllotmentState.OFFERED
    charging.end(books, beside, AllotmentState.VOID if unused else AllotmentState.CLOSED, reason)


def refuse_meter(allotment: Allotment) -> None:
    """Only the operator speaks for machine time."""
    if allotment.purpose is Purpose.COMPUTE:
        raise LedgerError(
            ErrorCode.FORBIDDEN, "allotment: it holds machine time, which the operator accrues", field="allotment"
        )


def refuse_from_meters(records: Sequence[UsageRecord]) -> None:
    """A meter does not report machine time."""
    for index, record in enumerate(records):
        if record.resource_type is ResourceType.COMPUTE:
            raise invalid(f"records.{index}.resource_type", "machine time is the operator's to accrue, not a meter's")
