"""Leases as the ledger keeps them, on both databases: who may still be spending, and what ends an attempt unheard."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.compute import hold_nanos
from almoner_core.environment import (
    CALL_PAST_LEASE_SECONDS,
    LEASE_MARGIN_SECONDS,
    LEASE_SECONDS,
    PAID_ALWAYS_SECONDS,
    SILENCE_SECONDS,
)
from almoner_core.identity import compute_allotment_id
from almoner_core.wire import AllotmentState, ErrorCode
from almoner_ledger import schema
from almoner_ledger.batching import Batcher
from almoner_ledger.errors import LedgerError
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.signals import SignalWatch, Sweeper
from almoner_ledger.store import Command, Verb, command, queries
from almoner_ledger.store.commands import Expire
from tests.support.books import DOLLAR, USD, Books, Clock, code, new_id, record, refused
from tests.support.polling import until_async


def exchanged_ms(books: Books, allotment: str) -> int:
    table = schema.allotments
    return int(
        books.store.read(
            lambda c: c.execute(sa.select(table.c.exchanged_ms).where(table.c.id == allotment)).scalar_one()
        )
    )


def unaccounted(books: Books) -> list[tuple[str, int]]:
    """Entries without a record: id and cost."""
    table = schema.records
    query = sa.select(table.c.id, table.c.cost_nanos).where(table.c.kind == "unaccounted").order_by(table.c.posted_ms)
    return [(row.id, row.cost_nanos) for row in books.store.read(lambda c: c.execute(query).all())]


class Hand:
    """A monotonic clock that tests turn, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def sweep(books: Books, *steps: Callable[[], None], hand: Hand | None = None) -> list[list[str]]:
    """Look once, and again after each step; gives what each look ended."""
    batcher = Batcher(books.store)
    batcher.start()
    sweeper = Sweeper(books.store, batcher, monotonic=hand or Hand())
    try:
        ended = [await sweeper.sweep()]
        for step in steps:
            step()
            ended.append(await sweeper.sweep())
        return ended
    finally:
        await batcher.close()


def let_it_expire(books: Books, clock: Clock) -> list[str]:
    """Silence for as long as it takes, by both clocks."""
    hand = Hand()

    def wait() -> None:
        hand.now += LEASE_SECONDS

    clock.now += SILENCE_SECONDS
    return asyncio.run(sweep(books, wait, hand=hand))[-1]


def test_the_ledger_is_patient_for_lease_longest_call_and_margin() -> None:
    assert SILENCE_SECONDS == LEASE_SECONDS + CALL_PAST_LEASE_SECONDS + LEASE_MARGIN_SECONDS
    assert LeasePolicy() == LeasePolicy(LEASE_SECONDS, SILENCE_SECONDS)
    with pytest.raises(ValueError, match="longest call"):
        LeasePolicy(60, 59)


# --- closing ----------------------------------------------------------------------------------------------------------


def test_an_active_attempt_is_closed_early_only_by_who_saw_its_containers_end(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    clock.now += 30
    books.post(allotment, [record(1, 300)])
    clock.now += SILENCE_SECONDS - 1
    answer = refused(books.end(allotment, terminated=False))
    assert answer.code is ErrorCode.LEASED
    assert answer.retry_after_seconds == 1
    assert "1 s" in answer.message
    assert books.state().reserved == 700, "a refusal changes nothing"
    clock.now += 1
    assert books.end(allotment, terminated=False).state == "closed"
    assert [cost for _, cost in unaccounted(books)] == [700]


def test_a_terminated_one_is_closed_at_once_and_an_offered_one_always(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    assert books.end(books.active(need={USD: 10})).state == "closed"
    offered = books.open(need={USD: 10}).allotment
    assert books.end(offered, terminated=False).state == "void"


def test_a_returned_attempt_can_be_closed_without_waiting(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    assert books.give_back(allotment, 0, {}, final=True).state is AllotmentState.CLOSED
    assert books.end(allotment, terminated=False).state == "closed"
    assert unaccounted(books) == []


def test_a_retry_of_a_close_as_terminated_gets_through(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    operation = new_id()
    assert code(books.end(allotment, operation_id=operation, terminated=False)) is ErrorCode.LEASED
    # A refusal is not stored: the same id may carry what is known by now.
    assert books.end(allotment, operation_id=operation).state == "closed"


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_no_attempt_is_opened_while_a_lower_one_is_active(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    first = books.active(uid=uid, need={USD: 10})
    answer = refused(books.open(uid=uid, attempt=2, need={USD: 10}))
    assert answer.code is ErrorCode.LEASED
    assert "attempt 1" in answer.message
    assert answer.retry_after_seconds == SILENCE_SECONDS
    books.end(first)
    assert books.open(uid=uid, attempt=2, need={USD: 10}).granted == {USD: 10}


STEPS = ("bind", "activate", "extend", "second", "end", "expire")


def test_at_no_moment_two_attempts_can_spend(tmp_path: Path) -> None:
    """In every order of what operator, meter and sweeper say: a superseded or ended attempt holds and gets nothing."""
    clock = Clock()
    books = Books(f"sqlite:///{tmp_path}/ledger.db", clock)
    books.limits(limits={USD: DOLLAR})
    for order in itertools.permutations(STEPS, 4):
        _play(books, clock, order)
    assert books.violations() == []
    books.close()


def _play(books: Books, clock: Clock, order: tuple[str, ...]) -> None:
    uid = new_id()
    first = books.open(uid=uid, attempt=1, need={USD: 10}).allotment
    second: str | None = None
    over = False  # whether the first one ended, or was superseded
    for step in order:
        if step == "bind":
            books.bind(first)
        elif step == "activate":
            assert not (isinstance(books.activate(first), wire.Activated) and over), order
        elif step == "extend":
            assert not (isinstance(books.extend(first, {USD: 5}), wire.Extended) and over), order
        elif step == "end":
            books.end(first)
            over = True
        elif step == "expire":
            clock.now += SILENCE_SECONDS
            state = books.run(Verb.EXPIRE, Expire(), allotment=first).state
            assert state != "active", order
            over = over or state == "closed"
        else:
            answer = books.open(uid=uid, attempt=2, need={USD: 10})
            if isinstance(answer, wire.OpenAnswer):
                second, over = answer.allotment, True
            else:
                assert code(answer) is ErrorCode.LEASED, order
    if second is not None:
        books.bind(second, "second-pod")
        assert isinstance(books.activate(second, "second-pod"), wire.Activated), order
        for late in (books.bind(first), books.activate(first), books.extend(first, {USD: 1})):
            assert code(late) is ErrorCode.WRONG_STATE, order
        assert list(books.store.read(lambda c: c.execute(_active(uid)).scalars().all())) == [second], order


def _active(uid: str) -> sa.Select[Any]:
    table = schema.allotments
    return sa.select(table.c.id).where(table.c.execution_uid == uid, table.c.state == "active")


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_silence_ends_an_attempt_with_one_unaccounted_entry_and_no_operator(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    books.post(allotment, [record(1, 300)])
    assert let_it_expire(books, clock) == [allotment]
    assert let_it_expire(books, clock) == [], "once"
    assert [cost for _, cost in unaccounted(books)] == [700]
    assert (books.state().spent, books.state().reserved) == (1000, 0)
    totals = books.totals(uid)
    assert totals.states == {1: AllotmentState.CLOSED}
    assert totals.totals.unaccounted_nanos == 700
    reason = sa.select(schema.allotments.c.close_reason).where(schema.allotments.c.id == allotment)
    assert books.store.read(lambda c: c.execute(reason).scalar_one()) == "expired"
    # The operator that comes back finds it closed.
    assert books.end(allotment, terminated=False).state == "closed"


def test_an_expired_attempt_is_settled_within_its_charge_and_starts_no_call(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 2000})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    let_it_expire(books, clock)
    # Others take what is left; nothing of what the silent one may have spent is given away.
    books.active(need={USD: 1000})
    assert code(books.open(need={USD: 1})) is ErrorCode.INSUFFICIENT
    for late in (books.activate(allotment), books.extend(allotment, {USD: 1})):
        assert code(late) is ErrorCode.WRONG_STATE
    posted = books.post(allotment, [record(1, 400)])
    assert (posted.last_sequence, posted.held, posted.frozen) == (1, {USD: 0}, True)
    assert books.state().spent == 1000, "it settles out of the charge"
    assert books.state().excess == 0
    returned = books.give_back(allotment, 1, {USD: 400}, final=True)
    assert returned.state is AllotmentState.CLOSED
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos) == (400, 0)
    assert (books.state().spent, books.state().reserved) == (400, 1000)


def test_an_offered_allotment_does_not_expire(books: Books, clock: Clock) -> None:
    """No meter speaks for it: it is the operator's, who voids what it finds to belong to nothing."""
    books.limits(limits={USD: DOLLAR})
    allotment = books.open(need={USD: 1000}).allotment
    assert let_it_expire(books, clock) == []
    assert books.end(allotment, Verb.VOID).state == "void"
    assert unaccounted(books) == []


def test_a_clock_that_jumps_ahead_ends_no_meter_that_is_heard_of(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    hand = Hand()

    def jump() -> None:
        clock.now += 10 * SILENCE_SECONDS
        hand.now += 1

    def heard() -> None:
        hand.now += LEASE_SECONDS / 2
        assert books.store.renew([allotment]) == {allotment}

    def wait() -> None:
        hand.now += LEASE_SECONDS

    assert asyncio.run(sweep(books, jump, heard, wait, jump, heard, wait, hand=hand)) == [[]] * 7
    assert books.extend(allotment, {USD: 1}).held == {USD: 1001}


def test_a_clock_that_jumps_ahead_of_a_silent_meter_overspends_nothing(books: Books, clock: Clock) -> None:
    """The worst case: it was cut off for a lease, and lives. Its charge covers all that it can still report."""
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 600})
    hand = Hand()

    def jump() -> None:
        clock.now += SILENCE_SECONDS

    def wait() -> None:
        hand.now += LEASE_SECONDS

    assert asyncio.run(sweep(books, jump, wait, hand=hand)) == [[], [], [allotment]]
    other = books.active(need={USD: 400})
    # Its calls in flight end, to the last nano-dollar that it held.
    books.post(allotment, [record(1, 600)])
    books.post(other, [record(1, 400)])
    state = books.state()
    assert (state.spent, state.reserved, state.excess) == (1000, 0, 0)
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.WRONG_STATE


def test_a_clock_that_goes_back_keeps_leases_and_gives_nothing_up(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    clock.now -= 3600
    assert asyncio.run(sweep(books))[0] == []
    assert code(books.end(allotment, terminated=False)) is ErrorCode.LEASED
    assert books.extend(allotment, {USD: 1}).held == {USD: 11}
    assert exchanged_ms(books, allotment) == clock()


def test_after_the_clock_went_back_silence_counts_from_then(books: Books, clock: Clock) -> None:
    """Else a vanished attempt would hold its money until the clock is where it was."""
    books.limits(limits={USD: DOLLAR})
    vanished = books.active(need={USD: 10})
    hand = Hand()
    clock.now -= 24 * 3600

    def almost() -> None:
        clock.now += SILENCE_SECONDS - 1
        hand.now += SILENCE_SECONDS - 1

    def wait() -> None:
        clock.now += LEASE_SECONDS
        hand.now += LEASE_SECONDS

    assert asyncio.run(sweep(books, almost, wait, wait, hand=hand)) == [[], [], [], [vanished]]
    assert [cost for _, cost in unaccounted(books)] == [10]


def test_heard_of_between_the_look_and_the_end_is_not_ended(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    clock.now += SILENCE_SECONDS
    books.post(allotment, [record(1, 1)])
    assert code(books.run(Verb.EXPIRE, Expire(), allotment=allotment)) is ErrorCode.LEASED
    assert books.extend(allotment, {USD: 1}).held == {USD: 10}


# --- signals ----------------------------------------------------------------------------------------------------------


@contextmanager
def statements(books: Books) -> Iterator[list[str]]:
    """Collects the SQL that runs meanwhile."""
    seen: list[str] = []

    def note(*arguments: object) -> None:
        seen.append(str(arguments[2]))

    sa.event.listen(books.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(books.database.engine, "before_cursor_execute", note)


async def listen(books: Books, allotments: list[str], seconds: float, pod_uid: str = "pod-uid") -> list[object]:
    watch = SignalWatch(books.store)
    watch.start()
    try:
        waits = (watch.wait(each, pod_uid, seconds) for each in allotments)
        return list(await asyncio.gather(*waits, return_exceptions=True))
    finally:
        await watch.close()


def test_a_signal_renews_the_lease_durably_once_a_third_of_it_is_over(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    began = clock()
    clock.now += LEASE_SECONDS // 3 - 1
    (signals,) = asyncio.run(listen(books, [allotment], 0))
    assert isinstance(signals, wire.Signals)
    assert not signals.cancel
    assert signals.lease_seconds == LEASE_SECONDS - (LEASE_SECONDS // 3 - 1), "what is left, as the ledger has it"
    assert exchanged_ms(books, allotment) == began
    clock.now += 1
    (signals,) = asyncio.run(listen(books, [allotment], 0))
    assert isinstance(signals, wire.Signals)
    assert signals.lease_seconds == LEASE_SECONDS
    assert exchanged_ms(books, allotment) == clock()


def test_a_signal_never_promises_more_than_the_ledger_keeps(books: Books, clock: Clock) -> None:
    """A replica whose database clock went back: the lease told is a whole one at most."""
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    clock.now -= 10
    (signals,) = asyncio.run(listen(books, [allotment], 0))
    assert isinstance(signals, wire.Signals)
    assert signals.lease_seconds == LEASE_SECONDS


def test_a_signal_tells_who_was_ended_to_stop_and_renews_nothing(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    books.end(allotment)
    before = exchanged_ms(books, allotment)
    clock.now += LEASE_SECONDS
    (signals,) = asyncio.run(listen(books, [allotment], 30))
    assert signals == wire.Signals(cancel=True)
    assert exchanged_ms(books, allotment) == before


def test_a_signal_is_for_the_bound_pod_alone_and_renews_for_no_other(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    before = exchanged_ms(books, allotment)
    clock.now += LEASE_SECONDS
    answers = asyncio.run(listen(books, [allotment, new_id()], 0, pod_uid="somebody-else"))
    assert [each.code for each in answers if isinstance(each, LedgerError)] == [
        ErrorCode.FORBIDDEN,
        ErrorCode.NOT_FOUND,
    ]
    assert exchanged_ms(books, allotment) == before


def many_active(books: Books, count: int) -> list[str]:
    """Open, bind and activate in three groups."""
    opens = [books.open_command(need={USD: 10}) for _ in range(count)]
    meters: list[str] = [each.body.allotment for each in opens]
    binds = [wire.BindAllotment(operation_id=new_id(), allotment=each, pod_uid="pod-uid") for each in meters]
    activate = [
        command(Verb.ACTIVATE, wire.Activate(operation_id=new_id()), allotment=each, pod_uid="pod-uid")
        for each in meters
    ]
    for group in (opens, [command(Verb.BIND, each, epoch=books.epoch) for each in binds], activate):
        assert not [each for each in books.run_all(group) if isinstance(each, LedgerError)]
    return meters


def test_200_meters_that_wait_are_one_query_a_round(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    meters = many_active(books, 200)
    rounds = 3

    async def wait() -> list[str]:
        watch = SignalWatch(books.store, round_seconds=0.05)
        watch.start()
        waits = [asyncio.create_task(watch.wait(each, "pod-uid", 3600)) for each in meters]
        with statements(books) as seen:

            async def said(words: str, times: int) -> bool:
                return sum(words in each for each in seen) >= times

            await until_async(lambda: said("allotments", rounds), 60, "some rounds")
            clock.now += LEASE_SECONDS  # now all leases are due at once
            await until_async(lambda: said("UPDATE allotments", 1), 60, "the renewal")
        await watch.close()
        await asyncio.gather(*waits)
        return seen

    seen = asyncio.run(wait())
    looks = [each for each in seen if "allotments" in each and "UPDATE" not in each]
    assert rounds <= len(looks) <= len(seen)
    # A clock's reading beside each look, BEGIN and COMMIT where the driver says them: nothing for each meter.
    assert len(seen) < 6 * (len(looks) + 1)
    assert sum("UPDATE allotments" in each for each in seen) == 1
    assert {exchanged_ms(books, each) for each in meters} == {clock()}


# --- machine time, while no operator comes ----------------------------------------------------------------------------

HOUR_NANOS = 3600 * DOLLAR
TERMS = wire.MachineTerms(per_hour=HOUR_NANOS, ahead_seconds=100, late_seconds=60)


def pays(books: Books, *, budget: int = 1000) -> str:
    """An attempt whose machine time costs a dollar a second, of which 100 s are held."""
    books.limits(limits={USD: budget * DOLLAR})
    compute = {USD: hold_nanos(HOUR_NANOS, 100_000)}
    return books.active(need={USD: 10}, compute=compute, machine=TERMS)


def charge(books: Books, allotment: str, seconds: int, *, sequence: int = 1, until_ms: int | None = None) -> Command:
    """Charge machine time as the operator does, and ask for more than there is room for."""
    machine = {"resource_type": "compute", "model": "cpu", "provider": "cluster", "requests": 0}
    used = record(sequence, seconds * DOLLAR, started_unix_ms=sequence * 1000, **machine)
    body = wire.AccrueAllotment(
        operation_id=new_id(),
        allotment=compute_allotment_id(allotment),
        records=[used] if seconds else [],
        hold={USD: 10**6 * DOLLAR},
        charged_unix_ms=until_ms,
    )
    return command(Verb.ACCRUE, body, epoch=books.epoch)


def mark(books: Books, allotment: str) -> int:
    """Until when machine time is charged, as the ledger has it, by its own clock."""
    (view,) = [
        each
        for each in books.store.read(lambda c: queries.open_allotments(c, books.store.now_ms(c), "", 100)).allotments
        if each.allotment == compute_allotment_id(allotment)
    ]
    assert view.paid_span is not None
    return view.paid_span.since_unix_ms


async def ask_paid(books: Books, allotment: str, pod_uid: str = "pod-uid") -> wire.Signals:
    """Ask as a meter does, until what it led to has been done; gives the last answer."""
    batcher = Batcher(books.store)
    watch = SignalWatch(books.store, batcher, round_seconds=0.01)
    batcher.start()
    watch.start()
    try:
        await watch.wait(allotment, pod_uid, 0, paid=True)
        await asyncio.gather(*watch._covering)
        return await watch.wait(allotment, pod_uid, 0, paid=True)
    finally:
        await watch.close()
        await batcher.close()


def test_a_meter_is_told_for_how_long_its_machine_time_is_paid_where_it_asks(books: Books, clock: Clock) -> None:
    allotment = pays(books)
    clock.now += 30
    (signals,) = asyncio.run(listen(books, [allotment], 0))
    assert isinstance(signals, wire.Signals)
    assert signals.paid_seconds is None
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == 70
    again = books.activate(allotment)
    assert again.paid_seconds == 70


def test_the_ledger_holds_more_machine_time_where_the_operator_is_late(books: Books, clock: Clock) -> None:
    allotment = pays(books)
    clock.now += 40
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == 100
    held = books.state().reserved
    assert held == pytest.approx((40 + 100) * DOLLAR, abs=100), "all that is not charged yet, too"
    clock.now += 30
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == 70
    assert books.state().reserved == held, "it is not late yet"


def test_a_clock_that_went_back_takes_nothing_of_what_is_held(books: Books, clock: Clock) -> None:
    """Found by the simulation: an operator that was refused found nothing held any more, and charged nothing more."""
    allotment = pays(books, budget=130)
    clock.now += 50
    books.run_all([charge(books, allotment, 50, until_ms=clock())])
    assert books.state().reserved == pytest.approx(50 * DOLLAR, abs=100)
    clock.jumped -= 7200
    told = asyncio.run(ask_paid(books, allotment))
    assert (told.paid_seconds, books.state().spent) == (50, 50 * DOLLAR)
    assert books.state().reserved == pytest.approx(50 * DOLLAR, abs=100)


def test_a_mark_of_a_clock_that_went_back_gives_way_once_the_operator_has_heard_it(books: Books, clock: Clock) -> None:
    """Else no meter would be told of more until the clock is where it was, and all pods would be ended."""
    allotment = pays(books)
    clock.now += 10
    books.run_all([charge(books, allotment, 10, until_ms=clock())])
    since, before = mark(books, allotment), clock()
    clock.jumped -= 7200
    clock.now += 10
    books.run_all([charge(books, allotment, 10, sequence=2, until_ms=before + 10_000)])
    assert mark(books, allotment) == since, "reckoned by the clock as it was: nothing is known"
    clock.now += 10
    books.run_all([charge(books, allotment, 10, sequence=3, until_ms=clock())])
    assert mark(books, allotment) == clock()
    books.run_all([charge(books, allotment, 0, sequence=4, until_ms=clock() - 3000)])
    assert mark(books, allotment) == clock(), "otherwise it only moves on"


def test_without_room_no_more_is_held_and_the_meter_learns_how_little_it_is(books: Books, clock: Clock) -> None:
    allotment = pays(books, budget=130)
    clock.now += 90
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == 10
    clock.now += 20
    told = asyncio.run(ask_paid(books, allotment)).paid_seconds
    assert told is not None
    assert told <= 0
    assert books.state().excess == 0


def test_no_more_is_held_for_a_stranger_or_for_one_who_was_ended(books: Books, clock: Clock) -> None:
    allotment = pays(books)
    clock.now += 90
    before = books.state().reserved
    with pytest.raises(LedgerError):
        asyncio.run(ask_paid(books, allotment, "another-pod"))
    assert books.state().reserved == before
    books.end(allotment)
    assert asyncio.run(ask_paid(books, allotment)).cancel
    assert books.state().reserved == 0


def test_one_that_waited_long_for_its_image_has_more_held_when_it_starts(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 1000 * DOLLAR})
    opened = books.open(need={}, compute={USD: hold_nanos(HOUR_NANOS, 100_000)}, machine=TERMS)
    books.bind(opened.allotment)
    clock.now += 500
    assert books.activate(opened.allotment).paid_seconds == 100


def test_without_a_limit_machine_time_is_always_paid(books: Books) -> None:
    books.limits(limits={})
    allotment = books.active(need={}, compute={USD: 5}, machine=TERMS)
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == PAID_ALWAYS_SECONDS


def test_where_a_quota_limits_no_longer_machine_time_is_paid_though_nothing_is_held(books: Books, clock: Clock) -> None:
    """Found by the simulation: the ledger held anew for a late operator, and took what needs no hold for unpaid."""
    allotment = pays(books)
    books.limits(limits={}, generation=2)
    clock.now += 60
    assert asyncio.run(ask_paid(books, allotment)).paid_seconds == PAID_ALWAYS_SECONDS
    charged = books.run_all([charge(books, allotment, 60)])[0]
    assert isinstance(charged, wire.ItemAnswer)
    assert (charged.error, charged.paid_seconds) == (None, PAID_ALWAYS_SECONDS)
