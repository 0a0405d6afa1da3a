"""The store on both databases: schema, life of an allotment, grants and limits."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import AllotmentState, ErrorCode
from almoner_ledger import migrations, schema
from almoner_ledger.store import Verb, command, recall
from tests.support.books import (
    DOLLAR,
    REQUESTS,
    TOKENS,
    TOOL_CALLS,
    USD,
    Books,
    code,
    key,
    new_id,
    record,
    refused,
    tokens,
)

# --- schema -----------------------------------------------------------------------------------------------------------


def test_the_migrated_schema_is_the_one_in_code(books: Books) -> None:
    books.database.write(migrations.check)


def test_migrating_again_changes_nothing_and_down_leaves_nothing(books: Books) -> None:
    from alembic import command as alembic

    books.store.migrate()
    books.database.write(lambda connection: alembic.downgrade(migrations.config(connection), "base"))
    with books.database.engine.connect() as connection:
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version"}
    books.store.migrate()


def test_entries_are_append_only(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 100})
    books.post(allotment, [record(1, 60)])
    for statement in (sa.update(schema.records).values(cost_nanos=0), sa.delete(schema.records)):
        with pytest.raises(exc.DBAPIError, match="append-only"):
            books.execute(statement)


def test_the_database_itself_refuses_a_grant_beyond_the_limit(books: Books) -> None:
    books.limits(limits={USD: 100})
    with pytest.raises(exc.IntegrityError, match="within_limit"):
        books.execute(sa.update(schema.windows).values(reserved=101))


# --- life -------------------------------------------------------------------------------------------------------------


def test_an_allotment_is_offered_bound_activated_used_and_returned(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    opened = books.open(need={USD: 1000})
    assert opened.granted == {USD: 1000}
    allotment = opened.allotment
    assert code(books.activate(allotment)) is ErrorCode.NOT_BOUND
    assert books.bind(allotment).state == "offered"
    activated = books.activate(allotment)
    assert activated.limited == [USD]
    assert activated.held == {USD: 1000}
    assert activated.remaining == {USD: DOLLAR - 1000}
    assert activated.next_sequence == 1
    posted = books.post(allotment, [record(1, 300), record(2, 200)])
    assert (posted.last_sequence, posted.held, posted.frozen) == (2, {USD: 500}, False)
    assert books.extend(allotment, {USD: 700}).held == {USD: 1200}
    returned = books.give_back(allotment, 2, {USD: 500}, {USD: 200})
    assert (returned.state, returned.held) == (AllotmentState.ACTIVE, {USD: 1000})
    final = books.give_back(allotment, 2, {USD: 500}, final=True)
    assert (final.state, final.held) == (AllotmentState.CLOSED, {USD: 0})
    state = books.state()
    assert (state.spent, state.reserved, state.excess) == (500, 0, 0)


def test_another_pod_may_not_speak_for_an_allotment(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    operation = new_id()
    assert isinstance(books.extend(allotment, {USD: 5}, operation_id=operation), wire.Extended)
    answers = [
        books.activate(allotment, "other"),
        books.extend(allotment, {USD: 1}, pod_uid="other"),
        books.extend(allotment, {USD: 5}, pod_uid="other", operation_id=operation),
        books.post(allotment, [record(1, 1)], pod_uid="other"),
        books.give_back(allotment, 0, {}, final=True, pod_uid="other"),
    ]
    assert {code(answer) for answer in answers} == {ErrorCode.FORBIDDEN}
    assert books.state().reserved == 1005


def test_void_and_active_exclude_each_other(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    void = books.open(need={USD: 10}).allotment
    books.bind(void)
    assert books.end(void, Verb.VOID).state == "void"
    assert books.end(void, Verb.VOID).state == "void"
    assert code(books.activate(void)) is ErrorCode.WRONG_STATE
    assert code(books.post(void, [record(1, 1)])) is ErrorCode.WRONG_STATE
    active = books.active(need={USD: 10})
    assert code(books.end(active, Verb.VOID)) is ErrorCode.WRONG_STATE
    assert books.state().reserved == 10


def test_a_superseded_attempt_can_never_activate(books: Books) -> None:
    books.limits(limits={USD: 100})
    uid = new_id()
    first = books.open(uid=uid, attempt=1, need={USD: 80}).allotment
    books.bind(first)
    # Room for it comes from the first, which is voided in the same transaction.
    second = books.open(uid=uid, attempt=2, need={USD: 90})
    assert second.granted == {USD: 90}
    assert "superseded" in refused(books.activate(first)).message
    assert code(books.open(uid=uid, attempt=1, need={USD: 1})) is ErrorCode.WRONG_STATE
    assert books.state().reserved == 90


def test_close_charges_off_what_could_still_have_been_spent(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000}, limits={TOKENS: 500})
    books.extend(allotment, {USD: 0, TOKENS: 50})
    books.post(allotment, [record(1, 300, tokens=tokens(7, 3))])
    assert books.end(allotment).state == "closed"
    assert books.end(allotment).state == "closed"
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos, totals.input_tokens) == (1000, 700, 7)
    assert books.state().spent == 1000
    entries = books.store.read(
        lambda c: c.execute(sa.select(schema.records).where(schema.records.c.kind == "unaccounted")).all()
    )
    assert [(each.cost_nanos, each.total_tokens) for each in entries] == [(700, 40)]


def test_a_close_with_nothing_held_writes_no_entry(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 100})
    books.post(allotment, [record(1, 100)])
    books.end(allotment)
    assert books.store.read(lambda c: c.execute(sa.select(schema.records.c.kind)).scalars().all()) == ["usage"]


def test_a_late_report_settles_the_charge(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    books.end(allotment)
    assert books.totals(uid).totals.unaccounted_nanos == 1000
    posted = books.post(allotment, [record(1, 300)])
    # Settled within the charge; and it is over: no further call.
    assert (posted.last_sequence, posted.frozen) == (1, True)
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos) == (1000, 700)
    books.give_back(allotment, 1, {USD: 300}, final=True)
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos) == (300, 0)
    assert (books.state().spent, books.state().reserved) == (300, 0)


def test_a_final_return_closes_when_the_last_record_comes_in_any_order(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    records = [record(n, 100) for n in (1, 2, 3)]
    assert books.post(allotment, [records[2]]).last_sequence == 0
    returned = books.give_back(allotment, 3, {USD: 300}, final=True)
    # Only granted minus settled is released: two records are still to come.
    assert (returned.state, returned.held) == (AllotmentState.ACTIVE, {USD: 200})
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.WRONG_STATE
    assert books.post(allotment, [records[0]]).held == {USD: 100}
    posted = books.post(allotment, [records[1], records[0]])
    assert (posted.last_sequence, posted.held) == (3, {USD: 0})
    assert books.store.read(lambda c: recall.attention(c, [allotment], 0))[allotment][:2] == ("closed", "pod-uid")
    assert (books.state().spent, books.state().reserved) == (300, 0)


def test_a_return_that_contradicts_its_records_is_refused_by_name(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    books.post(allotment, [record(1, 100)])
    assert refused(books.give_back(allotment, 1, {USD: 90}, final=True)).field == "settled.usd"
    assert refused(books.give_back(allotment, 1, {USD: 110}, final=True)).field == "settled.usd"
    assert refused(books.give_back(allotment, 0, {}, final=True)).field == "last_sequence"
    assert refused(books.give_back(allotment, 1, {USD: 100}, {USD: 901})).field == "amounts.usd"
    # A record under way still needs what it settles from.
    assert refused(books.give_back(allotment, 2, {USD: 200}, {USD: 801})).field == "amounts.usd"


def test_a_deposed_leader_is_refused(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    old = books.epoch
    new = books.take_epoch()
    assert new == old + 1
    assert code(books.open(need={USD: 1})) is ErrorCode.STALE_EPOCH
    books.epoch = new + 1
    assert refused(books.open(need={USD: 1})).field == "epoch"
    books.epoch = new
    assert books.open(need={USD: 1}).granted == {USD: 1}


# --- grants and limits ------------------------------------------------------------------------------------------------


def test_every_account_must_have_room_or_none_is_touched(books: Books) -> None:
    books.limits("wide", limits={USD: DOLLAR})
    books.limits("narrow", limits={USD: 100, REQUESTS: 5})
    answer = refused(books.open(accounts=[key("wide"), key("narrow")], need={USD: 101}))
    assert answer.code is ErrorCode.INSUFFICIENT
    assert answer.refusal is not None
    assert (answer.refusal.account, answer.refusal.limit) == ("team/narrow", 100)
    assert code(books.open(accounts=[key("wide"), key("narrow")], need={USD: 1, REQUESTS: 6})) is ErrorCode.INSUFFICIENT
    assert books.state("wide").reserved == 0
    assert books.state("narrow").reserved == 0
    # A refusal leaves no trace of the execution.
    assert books.store.read(lambda c: c.execute(sa.select(schema.executions)).all()) == []
    opened = books.open(accounts=[key("wide"), key("narrow")], need={USD: 100, REQUESTS: 1})
    assert opened.granted == {USD: 100, REQUESTS: 1}
    assert (books.state("wide").reserved, books.state("narrow", REQUESTS).reserved) == (100, 1)


def test_the_executions_own_limit_holds_over_all_attempts(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    first = books.active(uid=uid, attempt=1, limits={USD: 100}, need={USD: 60})
    books.post(first, [record(1, 60)])
    books.give_back(first, 1, {USD: 60}, final=True)
    answer = refused(books.open(uid=uid, attempt=2, limits={USD: 100}, need={USD: 41}))
    assert answer.refusal is not None
    assert (answer.refusal.account, answer.refusal.spent) == ("execution", 60)
    assert books.open(uid=uid, attempt=2, limits={USD: 100}, need={USD: 40}).granted == {USD: 40}


def test_max_per_execution_of_a_quota_binds_each_execution(books: Books) -> None:
    books.limits(limits={USD: DOLLAR}, max_per_execution={USD: 50})
    answer = refused(books.open(limits={USD: 100}, need={USD: 51}))
    assert answer.refusal is not None
    assert (answer.refusal.account, answer.refusal.limit) == ("execution", 50)
    allotment = books.active(need={USD: 30})
    assert code(books.extend(allotment, {USD: 21})) is ErrorCode.INSUFFICIENT
    # A new cap binds what runs already.
    books.limits(limits={USD: DOLLAR}, max_per_execution={USD: 31}, generation=2)
    assert code(books.extend(allotment, {USD: 2})) is ErrorCode.INSUFFICIENT
    assert books.extend(allotment, {USD: 1}).held == {USD: 31}


def test_want_is_half_a_percent_of_what_is_left_among_the_holders(books: Books) -> None:
    books.limits(limits={USD: 1_000_000})
    assert books.open(need={USD: 10}, want={USD: 10**9}).granted == {USD: 5000}
    assert books.open(need={USD: 10}, want={USD: 10**9}).granted == {USD: 995_000 // 400}
    assert books.open(need={USD: 9999}, want={USD: 10**9}).granted == {USD: 9999}


def test_unknown_accounts_are_refused_by_name(books: Books) -> None:
    """Peer failure: first requests of an unknown principal bypass the default budget (BerriAI/litellm 40095)."""
    answer = refused(books.open(accounts=[key("never-told")], need={USD: 1}))
    assert (answer.code, answer.field) == (ErrorCode.NOT_FOUND, "accounts.0")


def test_an_empty_budget_blocks_nothing(books: Books) -> None:
    """Peer failure: an empty budget spec blocks a whole namespace (kelos 1329)."""
    books.limits(limits={})
    opened = books.open(need={USD: 10**15, TOKENS: 5})
    assert opened.granted == {}
    books.bind(opened.allotment)
    assert books.activate(opened.allotment).limited == []
    posted = books.post(opened.allotment, [record(1, 12345)])
    assert not posted.frozen


def test_a_limit_that_shrinks_below_use_tears_nothing_away_and_grants_nothing(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 600})
    books.post(allotment, [record(1, 200)])
    answer = books.limits(limits={USD: 100}, generation=2)
    assert (answer.accounts[0].limit, answer.accounts[0].spent, answer.accounts[0].reserved) == (100, 200, 400)
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT
    # What was granted before stays usable.
    assert not books.post(allotment, [record(2, 400)]).frozen
    assert code(books.limits(limits={USD: 5000}, generation=1)) is ErrorCode.STALE_GENERATION
    books.limits(limits={USD: 700}, generation=3)
    assert books.extend(allotment, {USD: 100}).held == {USD: 100}


def test_monitor_counts_and_never_refuses(books: Books) -> None:
    books.limits(limits={USD: 10}, enforced=False)
    opened = books.open(need={USD: 1000})
    assert opened.granted == {}
    books.bind(opened.allotment)
    assert books.activate(opened.allotment).limited == []
    assert not books.post(opened.allotment, [record(1, 5000)]).frozen
    state = books.state()
    assert (state.enforced, state.limit, state.spent, state.excess) == (False, 10, 5000, 0)
    # Switched on, the use so far is the floor.
    books.limits(limits={USD: 10}, generation=2)
    assert code(books.open(need={USD: 1})) is ErrorCode.INSUFFICIENT
    assert not books.post(opened.allotment, [record(2, 5)]).frozen


def test_what_is_billed_above_the_hold_is_excess_and_freezes(books: Books) -> None:
    """Peer failure: a limit applies to the call after the stream that broke it (envoyproxy/ai-gateway 2394)."""
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 1000})
    posted = books.post(allotment, [record(1, 1300)])
    assert posted.frozen
    state = books.state()
    assert (state.spent, state.reserved, state.excess) == (1300, 0, 300)
    assert "billed" in refused(books.extend(allotment, {USD: 1})).message
    assert books.post(allotment, [record(2, 10)]).last_sequence == 2
    assert books.give_back(allotment, 2, {USD: 1310}, final=True).state is AllotmentState.CLOSED


def test_parallel_calls_may_not_pass_the_tool_limit(books: Books) -> None:
    """Peer failure: parallel tool calls pass the tool limit (pydantic/pydantic-ai 2978)."""
    allotment = books.active(accounts=[], limits={TOOL_CALLS: 3}, need={TOOL_CALLS: 1})
    extends = [
        command(
            Verb.EXTEND,
            wire.Extend(operation_id=new_id(), need={TOOL_CALLS: 1}),
            allotment=allotment,
            pod_uid="pod-uid",
        )
        for _ in range(5)
    ]
    answers = books.run_all(extends)
    assert [isinstance(answer, wire.Extended) for answer in answers] == [True, True, False, False, False]


def test_five_calls_under_one_token_limit_use_no_more_than_it(books: Books) -> None:
    """Peer failure: five parallel calls under a limit of 100 tokens used 663 (BerriAI/litellm 18730)."""
    books.limits(limits={TOKENS: 100}, period=BudgetPeriod.HOURLY)
    granted = [books.open(need={TOKENS: 40}) for _ in range(5)]
    assert [isinstance(answer, wire.OpenAnswer) for answer in granted] == [True, True, False, False, False]
