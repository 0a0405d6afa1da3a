"""The store on both databases: windows, records, operations, the change feed."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.usage import Outcome
from almoner_core.wire import AllotmentState, ErrorCode
from almoner_ledger import schema
from almoner_ledger.store import Verb, queries
from almoner_ledger.store.flushing import CHANGES
from tests.support.books import (
    DOLLAR,
    TOKENS,
    USD,
    Books,
    Clock,
    code,
    key,
    new_id,
    record,
    refused,
    tokens,
)

HOUR = 3600


# --- windows ----------------------------------------------------------------------------------------------------------


def test_a_window_opens_when_it_is_its_time_and_not_before(books: Books, clock: Clock) -> None:
    """Peer failure: a reset wipes the budget at creation, or never comes (BerriAI/litellm 22013, 7129)."""
    clock.now = 1_800_000_000 // HOUR * HOUR + 10
    books.limits(limits={USD: 100}, period=BudgetPeriod.HOURLY)
    allotment = books.active(need={USD: 100})
    books.post(allotment, [record(1, 100)])
    books.limits(limits={USD: 100}, period=BudgetPeriod.HOURLY, generation=2)
    answer = refused(books.extend(allotment, {USD: 1}))
    assert answer.refusal is not None
    assert answer.refusal.retry_after_seconds == HOUR - 10
    clock.now += HOUR - 11
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT
    clock.now += 1
    extended = books.extend(allotment, {USD: 60})
    assert (extended.granted, extended.window_ends_in_seconds) == ({USD: 60}, HOUR)
    assert (books.state().spent, books.state().reserved) == (0, 60)


def test_a_call_in_flight_settles_in_the_window_of_its_hold(books: Books, clock: Clock) -> None:
    clock.now = 1_800_000_000 // HOUR * HOUR
    books.limits(limits={USD: 100}, period=BudgetPeriod.HOURLY)
    started = (clock.now + HOUR - 1) * 1000
    allotment = books.active(need={USD: 70})
    clock.now += HOUR
    books.extend(allotment, {USD: 20})
    books.post(allotment, [record(1, 50, started_unix_ms=started)])
    assert (books.state().spent, books.state().reserved) == (0, 20)
    # What is idle of the old window goes back first.
    books.give_back(allotment, 1, {USD: 50}, {USD: 20})
    assert books.state().reserved == 20
    books.post(allotment, [record(2, 20, started_unix_ms=clock.now * 1000)])
    assert (books.state().spent, books.state().reserved) == (20, 0)


def test_windows_never_go_backwards_when_the_clock_does(books: Books, clock: Clock) -> None:
    clock.now = 1_800_000_000 // HOUR * HOUR
    books.limits(limits={USD: 100}, period=BudgetPeriod.HOURLY)
    allotment = books.active(need={USD: 100})
    books.post(allotment, [record(1, 100)])
    clock.now -= 10
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT


def test_an_unknown_time_zone_is_refused_by_name(books: Books) -> None:
    answer = refused(books.limits(limits={USD: 1}, time_zone="Mars/Olympus"))
    assert (answer.code, answer.field) == (ErrorCode.INVALID, "time_zone")


# --- records ----------------------------------------------------------------------------------------------------------


def test_duplicates_are_counted_once_and_conflicts_named(books: Books) -> None:
    """Peer failures: a failed settlement is counted twice; retries inflate counts (BerriAI/litellm 35569, 39455)."""
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    first, second = record(1, 10), record(2, 20)
    operation = new_id()
    once = books.post(allotment, [first], operation_id=operation)
    assert books.post(allotment, [first], operation_id=operation) == once
    assert books.post(allotment, [first, second, second]).last_sequence == 2
    assert books.totals(uid).totals.requests == 2
    changed = first.model_copy(update={"cost_nanos": 11})
    answer = refused(books.post(allotment, [record(3, 1), changed]))
    assert (answer.code, answer.field) == (ErrorCode.RECORD_CONFLICT, "records.1.id")
    same_sequence = refused(books.post(allotment, [record(2, 1)]))
    assert (same_sequence.code, same_sequence.field) == (ErrorCode.RECORD_CONFLICT, "records.0.sequence")
    other = books.active(need={USD: 1000})
    stolen = refused(books.post(other, [first]))
    assert (stolen.code, stolen.field) == (ErrorCode.RECORD_CONFLICT, "records.0.id")
    assert code(books.post(allotment, [second], operation_id=operation)) is ErrorCode.OPERATION_CONFLICT
    assert books.totals(uid).totals.cost_nanos == 30


def test_an_unknown_cost_is_not_zero(books: Books) -> None:
    """Peer failure: a success on an unpriced model releases the hold as if it were free (BerriAI/litellm 35525)."""
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    assert books.post(allotment, [record(1, None, tokens=tokens(5))]).held == {USD: 1000}
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unpriced, totals.input_tokens) == (0, 1, 5)
    books.give_back(allotment, 1, {USD: 0}, final=True)
    assert (books.state().spent, books.state().reserved) == (1000, 0)
    assert books.totals(uid).totals.unaccounted_nanos == 1000


def test_without_a_money_limit_an_unpriced_record_is_only_counted(books: Books) -> None:
    books.limits(limits={TOKENS: 1000})
    uid = new_id()
    allotment = books.active(uid=uid, need={TOKENS: 100})
    books.post(allotment, [record(1, None, tokens=tokens(60, 10))])
    assert books.give_back(allotment, 1, {TOKENS: 70}, final=True).state is AllotmentState.CLOSED
    assert books.state(dimension=TOKENS).spent == 70
    totals = books.totals(uid).totals
    assert (totals.unaccounted_nanos, totals.unpriced) == (0, 1)


def test_cached_tokens_are_a_part_of_input_and_counted_once(books: Books) -> None:
    """Peer failure: cached tokens billed twice (BerriAI/litellm 14849, 11789)."""
    books.limits(limits={TOKENS: 1000})
    allotment = books.active(need={TOKENS: 500})
    from almoner_core.usage import Tokens

    counted = Tokens(input=100, cached_input=80, cache_write=10, output=20, reasoning=15)
    assert books.post(allotment, [record(1, 0, tokens=counted)]).held == {TOKENS: 380}


def test_absurd_sums_are_refused_by_name_and_the_books_stay_sound(books: Books) -> None:
    books.limits(limits={}, enforced=False)
    allotment = books.active()
    assert isinstance(books.post(allotment, [record(1, 10**18)]), wire.Posted)
    assert refused(books.post(allotment, [record(2, 10**18)])).field == "records.0"
    big = record(2, 0, metadata={"k": "x" * 5000})
    assert refused(books.post(allotment, [big])).field == "records.0.metadata"


def test_output_and_progress_travel_the_same_road(books: Books) -> None:
    uid = new_id()
    allotment = books.active(uid=uid, accounts=[])
    body = wire.PutOutput(operation_id=new_id(), content="ä" * 5000)
    books.run(Verb.OUTPUT, body, allotment=allotment, pod_uid="pod-uid")
    books.run(Verb.PROGRESS, wire.PostProgress(step=4, total=9), allotment=allotment, pod_uid="pod-uid")
    totals = books.totals(uid)
    assert totals.output == "ä" * 4096
    assert (totals.output_bytes, totals.output_attempt) == (10000, 1)
    assert totals.progress is not None
    assert totals.progress["step"] == 4
    assert books.store.read(lambda c: queries.output(c, uid)) == "ä" * 5000


# --- operations, groups, feed -----------------------------------------------------------------------------------------


def test_a_retry_gets_the_same_answer_and_changes_nothing(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    made = books.open_command(need={USD: 100}, want={USD: 10**9})
    first = books.run_all([made])[0]
    assert books.run_all([made, made]) == [first, first]
    assert isinstance(first, wire.OpenAnswer)
    allotment = first.allotment
    bind, activate, extend = new_id(), new_id(), new_id()
    assert books.bind(allotment, operation_id=bind) == books.bind(allotment, operation_id=bind)
    assert books.activate(allotment, operation_id=activate) == books.activate(allotment, operation_id=activate)
    once = books.extend(allotment, {USD: 7}, operation_id=extend)
    assert books.extend(allotment, {USD: 7}, operation_id=extend) == once
    assert code(books.extend(allotment, {USD: 8}, operation_id=extend)) is ErrorCode.OPERATION_CONFLICT
    assert first.granted is not None
    assert books.state().reserved == first.granted[USD] + 7


def test_a_refusal_is_decided_anew_when_it_is_retried(books: Books) -> None:
    books.limits(limits={USD: 100})
    holder = books.active(need={USD: 100})
    made = books.open_command(need={USD: 50})
    assert code(books.run_all([made])[0]) is ErrorCode.INSUFFICIENT
    books.give_back(holder, 0, {}, final=True)
    assert isinstance(books.run_all([made])[0], wire.OpenAnswer)


def test_a_bad_one_does_not_fail_its_neighbours(books: Books) -> None:
    books.limits(limits={USD: 100})
    group = [
        books.open_command(need={USD: 40}),
        books.open_command(accounts=[key("nowhere")], need={USD: 1}),
        books.open_command(need={USD: 61}),
        books.open_command(need={USD: 60}),
    ]
    answers = books.run_all(group)
    assert [isinstance(answer, wire.OpenAnswer) for answer in answers] == [True, False, False, True]
    assert books.state().reserved == 100


def test_the_feed_gives_everything_that_changed_in_pages(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    uids = [new_id() for _ in range(5)]
    for uid in uids:
        books.active(uid=uid, need={USD: 10})
    seen: list[str] = []
    after, more = 0, True
    while more:
        page = books.changes(after, 2)
        assert len(page.executions) + len(page.agents) + len(page.accounts) <= 2
        assert page.after > after
        seen += [each.uid for each in page.executions]
        after, more = page.after, page.more
    assert sorted(seen) == sorted(uids)
    assert books.changes(after, 2).after == after
    allotment = books.active(uid=new_id(), need={USD: 10})
    books.post(allotment, [record(1, 5, outcome=Outcome.OK)])
    page = books.changes(after, 100)
    assert [each.totals.cost_nanos for each in page.executions] == [5]
    assert [each.totals.cost_nanos for each in page.agents] == [5]
    assert [(each.spent, each.reserved) for each in page.accounts] == [(5, 55)]


def test_a_cursor_of_newer_books_is_told_everything(books: Books) -> None:
    """The ledger was restored from a backup, and the operator that went on is ahead of it."""
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    books.active(uid=uid, need={USD: 10})
    newest = books.changes().after
    told = books.changes(newest + 1000)
    assert [each.uid for each in told.executions] == [uid]
    assert [each.reserved for each in told.accounts] == [10]
    assert (told.after, told.more) == (newest, False)
    assert not books.changes(told.after).executions


def test_change_numbers_are_taken_last_and_held_until_commit(books: Books) -> None:
    """What commits late is not skipped: numbers become visible in their order."""
    if not books.database.is_postgresql:
        pytest.skip("SQLite has one writer at a time")
    counters = schema.counters
    with books.database.engine.connect() as late, late.begin():
        late.execute(sa.update(counters).where(counters.c.name == CHANGES).values(value=counters.c.value + 1))
        with books.database.engine.connect() as other, other.begin():
            other.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(exc.OperationalError, match="lock timeout"):
                other.execute(sa.update(counters).where(counters.c.name == CHANGES).values(value=counters.c.value + 1))


def test_open_allotments_are_listed_in_pages(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    ids = sorted(books.active(need={USD: 10}) for _ in range(3))
    books.end(ids[2])
    first = books.store.read(lambda c: queries.open_allotments(c, books.store.now_ms(c), "", 1))
    assert [each.allotment for each in first.allotments] == ids[:1]
    assert first.next == ids[0]
    second = books.store.read(lambda c: queries.open_allotments(c, books.store.now_ms(c), ids[0], 1))
    assert [(each.allotment, each.held) for each in second.allotments] == [(ids[1], {USD: 10})]
    assert second.next is None


def test_costs_by_every_dimension_sum_to_the_same(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    for agent, owner in (("a", "x"), ("a", "y"), ("b", "y")):
        allotment = books.active(agent=agent, owner=owner, need={USD: 100})
        books.post(allotment, [record(1, 30, model="small"), record(2, 40, model="large")])
        books.end(allotment)
    for by in wire.UsageBy:
        found = books.usage(by)
        assert sum(row.totals.cost_nanos for row in found.rows) == 300
    by_model = books.usage("model")
    assert {row.key[-1]: row.totals.cost_nanos for row in by_model.rows} == {"small": 90, "large": 120, "": 90}


def test_a_meter_that_lost_what_it_posted_is_told_what_is_here(books: Books) -> None:
    """It posted from memory while its disk was full, died, and knows of the call alone, not of its settlement."""
    books.limits(limits={USD: DOLLAR})
    first, other = books.active(need={USD: 100}), books.active(need={USD: 100})
    posted, elsewhere = record(1, 60), record(1, 10)
    books.post(first, [posted])
    books.post(other, [elsewhere])
    answer = books.activate(first, unsettled=[posted.id, elsewhere.id, new_id()])
    assert (answer.known, answer.next_sequence) == ([posted.id], 2)
