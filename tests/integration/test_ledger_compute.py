"""Machine time on both databases: opened beside a run, accrued by the operator alone, held ahead, given back."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.identity import compute_allotment_id
from almoner_core.usage import Outcome, ResourceType, UsageRecord
from almoner_core.wire import AllotmentState, ErrorCode, Purpose
from almoner_ledger import schema
from almoner_ledger.store import Verb, queries
from tests.support.books import DOLLAR, REQUESTS, TOKENS, USD, Books, Clock, code, new_id, record, refused

HOLD = {USD: 1000}


def machine(
    sequence: int, cost: int | None, *, units: int = 10, start: int | None = None, **changes: Any
) -> UsageRecord:
    """One record of machine time of ten seconds, after the one before unless it says its start (Unix seconds)."""
    values: dict[str, Any] = {
        "id": new_id(),
        "sequence": sequence,
        "resource_type": ResourceType.COMPUTE,
        "provider": "cluster",
        "model": "cpu",
        "operation": "run",
        "requests": 0,
        "units": units,
        "cost_nanos": cost,
        "price_version": "test",
        "started_unix_ms": (sequence * 10 - 10 if start is None else start) * 1000,
        "duration_ms": 10_000,
        "outcome": Outcome.OK,
    }
    return UsageRecord(**{**values, **changes})


def accrue(
    books: Books,
    allotment: str,
    records: list[UsageRecord],
    hold: int = 0,
    *,
    final: bool = False,
    operation_id: str | None = None,
) -> Any:
    body = wire.AccrueAllotment(
        operation_id=operation_id or new_id(),
        allotment=compute_allotment_id(allotment),
        records=records,
        hold={USD: hold},
        final=final,
    )
    return books.run(Verb.ACCRUE, body, epoch=books.epoch)


def beside(books: Books, allotment: str) -> Any:
    """The row of the compute allotment."""
    query = sa.select(schema.allotments).where(schema.allotments.c.id == compute_allotment_id(allotment))
    return books.store.read(lambda connection: connection.execute(query).one())


def opened(books: Books, limit: int = DOLLAR, **changes: Any) -> str:
    books.limits(limits={USD: limit})
    return books.active(**{"need": {USD: 100}, "compute": HOLD, **changes})


def listed(books: Books) -> dict[str, wire.AllotmentView]:
    page = books.store.read(lambda c: queries.open_allotments(c, books.store.now_ms(c), "", 100))
    return {view.allotment: view for view in page.allotments}


# --- opening ----------------------------------------------------------------------------------------------------------


def test_machine_time_is_held_beside_the_run_on_the_same_accounts(books: Books) -> None:
    books.limits(limits={USD: DOLLAR, TOKENS: 500})
    answer = books.open(need={USD: 100, TOKENS: 50}, want={USD: 100}, compute=HOLD, limits={USD: 5000})
    assert answer.granted == {USD: 100, TOKENS: 50}
    assert books.state().reserved == 1100
    assert books.state(dimension=TOKENS).reserved == 50
    row = beside(books, answer.allotment)
    assert (row.state, row.purpose, row.attempt) == ("offered", "compute", 1)
    views = listed(books)
    assert views[answer.allotment].purpose is Purpose.RUN
    assert views[answer.allotment].held == {USD: 100, TOKENS: 50}
    view = views[compute_allotment_id(answer.allotment)]
    assert (view.purpose, view.held, view.accrued_unix_ms) == (Purpose.COMPUTE, {USD: 1000}, None)
    assert not books.violations()


@pytest.mark.parametrize("limit", [1099, 999, 99])
def test_a_run_and_its_machine_time_are_held_all_or_nothing(books: Books, limit: int) -> None:
    books.limits(limits={USD: limit})
    refusal = refused(books.open(need={USD: 100}, compute=HOLD))
    assert refusal.code is ErrorCode.INSUFFICIENT
    assert refusal.refusal is not None
    assert refusal.refusal.needed == 1100
    assert books.state().reserved == 0
    assert not listed(books)
    books.limits(limits={USD: 1100}, generation=2)
    assert books.open(need={USD: 100}, compute=HOLD).granted == {USD: 100}
    assert not books.violations()


def test_the_executions_own_limit_counts_machine_time(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    assert code(books.open(need={USD: 100}, compute=HOLD, limits={USD: 1099})) is ErrorCode.INSUFFICIENT
    assert books.open(need={USD: 100}, compute=HOLD, limits={USD: 1100}).granted == {USD: 100}


def test_machine_time_makes_no_account_smaller_for_others_chunks(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    books.open(need={USD: 0}, compute=HOLD)
    with_machine = books.open(need={USD: 0}, want={USD: DOLLAR}, compute=HOLD).granted[USD]
    assert with_machine == pytest.approx(DOLLAR // (200 * 2), abs=5 * 1000)
    assert not books.violations()


def test_machine_time_is_money_alone(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    answer = refused(books.open(need={USD: 1}, compute={REQUESTS: 5}))
    assert (answer.code, answer.field) == (ErrorCode.INVALID, "compute.requests")


def test_without_a_money_limit_machine_time_is_counted_and_nothing_held(books: Books) -> None:
    books.limits(limits={TOKENS: 100})
    uid = new_id()
    allotment = books.active(need={TOKENS: 10}, compute=HOLD, uid=uid)
    assert accrue(books, allotment, [machine(1, 70)], 1000).error is None
    assert accrue(books, allotment, [machine(2, 70)], final=True).state == "closed"
    assert books.totals(uid).totals.cost_nanos == 140
    assert not books.violations()


# --- accruing ---------------------------------------------------------------------------------------------------------


def test_machine_time_is_posted_and_held_anew(books: Books) -> None:
    uid = new_id()
    allotment = opened(books, uid=uid)
    answer = accrue(
        books,
        allotment,
        [
            machine(1, 300, units=40, start=0),
            machine(2, 200, units=960, model="memory", start=0),
            machine(3, 100, units=10_000, model="gpu", start=0),
        ],
        1000,
    )
    assert (answer.state, answer.error) == ("active", None)
    assert (books.state().spent, books.state().reserved) == (600, 1100)
    totals = books.totals(uid)
    assert totals.attempts[1] == totals.totals
    assert totals.totals.cost_nanos == 600
    machine_time = (
        totals.totals.cpu_milli_seconds,
        totals.totals.memory_mebibyte_seconds,
        totals.totals.gpu_milli_seconds,
    )
    assert machine_time == (40, 960, 10_000)
    assert totals.totals.requests == 0
    view = listed(books)[compute_allotment_id(allotment)]
    assert (view.last_sequence, view.accrued_unix_ms, view.held) == (3, 10_000, {USD: 1000})
    by_type = {row.key[0]: row.totals for row in books.usage("resource_type").rows}
    assert by_type["compute"].cost_nanos == 600
    assert not books.violations()


def test_the_totals_of_an_attempt_are_the_runs_and_the_machines(books: Books) -> None:
    uid = new_id()
    allotment = opened(books, uid=uid)
    books.post(allotment, [record(1, 60)])
    accrue(books, allotment, [machine(1, 300)], final=True)
    books.give_back(allotment, 1, {USD: 60}, final=True)
    totals = books.totals(uid)
    assert totals.totals.cost_nanos == totals.attempts[1].cost_nanos == 360
    assert totals.states == {1: AllotmentState.CLOSED}
    assert totals.compute_states == {1: AllotmentState.CLOSED}
    (agent,) = books.changes().agents
    assert agent.totals.cost_nanos == 360
    assert books.state().reserved == 0
    assert not books.violations()


def test_the_same_machine_time_is_charged_once(books: Books) -> None:
    allotment = opened(books)
    operation, posted = new_id(), machine(1, 300)
    first = accrue(books, allotment, [posted], 1000, operation_id=operation)
    assert accrue(books, allotment, [posted], 1000, operation_id=operation) == first
    assert accrue(books, allotment, [posted], 1000).error is None
    assert code(accrue(books, allotment, [posted.model_copy(update={"cost_nanos": 301})])) is ErrorCode.RECORD_CONFLICT
    assert code(accrue(books, allotment, [machine(1, 5)])) is ErrorCode.RECORD_CONFLICT
    assert books.state().spent == 300
    assert not books.violations()


def test_a_refused_hold_says_so_and_keeps_what_is_held(books: Books) -> None:
    allotment = opened(books, limit=1500)
    answer = accrue(books, allotment, [machine(1, 500)], 1000)
    assert answer.state == "active"
    assert answer.error is not None
    assert answer.error.code is ErrorCode.INSUFFICIENT
    assert answer.error.refusal is not None
    assert answer.error.refusal.account == "team/quota"
    assert (books.state().spent, books.state().reserved) == (500, 600)
    # What is left of the hold pays for the pod's end.
    assert accrue(books, allotment, [machine(2, 500)], final=True).state == "closed"
    assert (books.state().spent, books.state().excess) == (1000, 0)
    assert books.state().reserved == 100
    assert not books.violations()


def test_what_was_not_held_is_taken_from_what_is_left_before_it_is_excess(books: Books) -> None:
    allotment = opened(books, limit=2000)
    # The ledger was away: much more came together than was held.
    answer = accrue(books, allotment, [machine(1, 1700)], 1000)
    assert answer.error is not None
    assert (books.state().spent, books.state().excess) == (1700, 0)
    accrue(books, allotment, [machine(2, 500)], final=True)
    state = books.state()
    assert (state.spent, state.excess) == (2200, 300)
    assert not books.violations()


def test_a_hold_can_shrink(books: Books) -> None:
    allotment = opened(books)
    accrue(books, allotment, [], 400)
    assert books.state().reserved == 500
    assert listed(books)[compute_allotment_id(allotment)].state is AllotmentState.OFFERED


def test_a_new_window_is_held_in_anew_and_the_old_one_let_go(books: Books, clock: Clock) -> None:
    clock.now = 1_800_000_000 // 3600 * 3600 + 3000
    books.limits(limits={USD: 5000}, period=BudgetPeriod.HOURLY)
    allotment = books.active(need={USD: 100}, compute=HOLD)
    start = clock.now
    accrue(books, allotment, [machine(1, 300, start=start)], 1000)
    clock.now += 1000
    assert accrue(books, allotment, [machine(2, 200, start=start + 10)], 1000).error is None
    assert (books.state().spent, books.state().reserved) == (0, 1000)
    windows = sa.select(schema.windows.c.spent, schema.windows.c.reserved).order_by(schema.windows.c.starts_at)
    old = books.store.read(
        lambda connection: connection.execute(windows.where(schema.windows.c.period == "Hourly")).first()
    )
    assert tuple(old or ()) == (500, 100)
    assert not books.violations()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"resource_type": ResourceType.LLM}, "records.0.resource_type"),
        ({"model": "fpga"}, "records.0.model"),
        ({"cost_nanos": None}, "records.0.cost_nanos"),
        ({"requests": 1}, "records.0"),
        ({"tool_calls": 1}, "records.0"),
    ],
)
def test_what_is_no_machine_time_is_refused_by_name(books: Books, changes: dict[str, Any], field: str) -> None:
    allotment = opened(books)
    answer = refused(accrue(books, allotment, [machine(1, 5, **changes)], 1000))
    assert (answer.code, answer.field) == (ErrorCode.INVALID, field)
    assert books.state().spent == 0


# --- who speaks -------------------------------------------------------------------------------------------------------


def test_a_meter_speaks_for_no_machine_time(books: Books) -> None:
    allotment = opened(books)
    compute = compute_allotment_id(allotment)
    assert code(books.activate(compute)) is ErrorCode.FORBIDDEN
    assert code(books.extend(compute, {USD: 1})) is ErrorCode.FORBIDDEN
    assert code(books.post(compute, [machine(1, 1)])) is ErrorCode.FORBIDDEN
    assert code(books.give_back(compute, 0, {}, final=True)) is ErrorCode.FORBIDDEN
    answer = refused(books.post(allotment, [record(1, 5), machine(2, 1)]))
    assert (answer.code, answer.field) == (ErrorCode.INVALID, "records.1.resource_type")
    assert books.state().spent == 0


def test_machine_time_is_accrued_on_its_own_allotment(books: Books) -> None:
    allotment = opened(books)
    body = wire.AccrueAllotment(operation_id=new_id(), allotment=allotment, records=[machine(1, 5)])
    assert refused(books.run(Verb.ACCRUE, body, epoch=books.epoch)).field == "allotment"
    unknown = wire.AccrueAllotment(operation_id=new_id(), allotment=str(uuid.uuid4()))
    assert code(books.run(Verb.ACCRUE, unknown, epoch=books.epoch)) is ErrorCode.NOT_FOUND


def test_an_operator_that_leads_no_more_accrues_nothing(books: Books) -> None:
    allotment = opened(books)
    old = books.epoch
    books.epoch = books.take_epoch()
    body = wire.AccrueAllotment(
        operation_id=new_id(), allotment=compute_allotment_id(allotment), records=[machine(1, 5)]
    )
    assert code(books.run(Verb.ACCRUE, body, epoch=old)) is ErrorCode.STALE_EPOCH
    assert books.state().spent == 0


# --- the end ----------------------------------------------------------------------------------------------------------


def test_voiding_an_attempt_voids_its_machine_time(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.open(need={USD: 100}, compute=HOLD).allotment
    assert books.end(allotment, Verb.VOID).state == "void"
    assert beside(books, allotment).state == "void"
    assert books.state().reserved == 0
    assert not listed(books)
    assert code(accrue(books, allotment, [machine(1, 5)])) is ErrorCode.WRONG_STATE
    assert not books.violations()


def test_closing_an_attempt_gives_its_machine_time_back(books: Books) -> None:
    allotment = opened(books)
    accrue(books, allotment, [machine(1, 300)], 1000)
    assert books.end(allotment).state == "closed"
    assert beside(books, allotment).state == "closed"
    # The run's own hold is charged off; of the machine's, what the operator accrued is all.
    assert (books.state().spent, books.state().reserved) == (400, 0)
    assert not listed(books)
    assert not books.violations()


def test_closing_after_the_meters_last_word_ends_the_machine_time_too(books: Books) -> None:
    allotment = opened(books)
    books.give_back(allotment, 0, {}, final=True)
    assert beside(books, allotment).state == "offered"
    accrue(books, allotment, [machine(1, 300)], 1000)
    assert books.end(allotment).state == "closed"
    assert beside(books, allotment).state == "closed"
    assert (books.state().spent, books.state().reserved) == (300, 0)
    assert not books.violations()


def test_machine_time_alone_can_be_closed(books: Books) -> None:
    allotment = opened(books)
    assert books.end(compute_allotment_id(allotment)).state == "void"
    assert books.state().reserved == 100
    assert books.end(compute_allotment_id(allotment)).state == "void"
    assert not books.violations()


def test_machine_time_reported_late_still_counts(books: Books) -> None:
    allotment = opened(books)
    accrue(books, allotment, [machine(1, 300)], final=True)
    books.end(allotment)
    assert accrue(books, allotment, [machine(2, 50)], 1000).state == "closed"
    assert (books.state().spent, books.state().reserved, books.state().excess) == (450, 0, 0)
    assert not books.violations()


@pytest.mark.parametrize("accrued", [False, True])
def test_a_superseding_attempt_takes_over_what_machine_time_held(books: Books, accrued: bool) -> None:
    books.limits(limits={USD: 1400})
    uid = new_id()
    first = books.open(need={USD: 100}, compute=HOLD, uid=uid).allotment
    if accrued:  # Its pod ran, and its meter never spoke.
        accrue(books, first, [machine(1, 300)], 1000)
    second = books.open(need={USD: 100}, compute=HOLD, uid=uid, attempt=2)
    assert second.granted == {USD: 100}
    assert beside(books, first).state == ("closed" if accrued else "void")
    assert books.state().reserved == 1100
    totals = books.totals(uid)
    assert totals.states == {1: AllotmentState.VOID, 2: AllotmentState.OFFERED}
    assert totals.attempts[1].cost_nanos == (300 if accrued else 0)
    assert not books.violations()


# --- the audit --------------------------------------------------------------------------------------------------------


def test_the_audit_names_a_second_that_was_charged_twice(ledger_url: str) -> None:
    books = Books(ledger_url)
    try:
        allotment = opened(books)
        accrue(books, allotment, [machine(1, 10), machine(2, 10)], 1000)
        assert not books.violations()
        # The ledger takes the operator at its word; the audit does not.
        accrue(books, allotment, [machine(3, 10, start=19)], 1000)
        (violation,) = books.violations()
    finally:
        books.close()
    assert violation.invariant == "machine-time-once"
    assert compute_allotment_id(allotment) in violation.subject
    assert violation.found == "charged until 20000 ms, and again from 19000 ms"
