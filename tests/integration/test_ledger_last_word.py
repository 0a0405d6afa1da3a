"""Last words in the books: what never came is entered as the meter summed it, until the records come themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from almoner_core import wire
from almoner_core.usage import Tokens, UsageRecord
from almoner_core.wire import ErrorCode
from almoner_ledger import schema, sealing
from almoner_ledger.store import Verb, command
from tests.support.books import (
    REQUESTS,
    TOKENS,
    TOOL_CALLS,
    USD,
    Books,
    Clock,
    code,
    key,
    new_id,
    record,
    tokens,
    word_of,
)

CALLS = [record(number, 10 * number, tokens=tokens(5, number)) for number in range(1, 5)]


@pytest.fixture
def books(ledger_url: str) -> Iterator[Books]:
    opened = Books(ledger_url, Clock())
    yield opened
    assert opened.violations() == []
    opened.close()


def fresh(calls: list[UsageRecord]) -> list[UsageRecord]:
    """The same calls under new ids: a record's id belongs to one allotment."""
    return [each.model_copy(update={"id": new_id()}) for each in calls]


def kinds(books: Books, allotment: str) -> dict[str, int]:
    """How much each kind of entry sums to, in nano-dollars."""
    table = schema.records
    query = sa.select(table.c.kind, sa.func.sum(table.c.cost_nanos).label("nanos")).where(
        table.c.allotment_id == allotment
    )
    rows = books.store.read(lambda c: c.execute(query.group_by(table.c.kind)).all())
    return {row.kind: int(row.nanos) for row in rows}


def sums(books: Books, uid: str) -> tuple[int, int, int, int, int]:
    """Cost, what of it is unaccounted, tokens, requests and tool calls of an execution."""
    totals = books.totals(uid).totals
    return (
        totals.cost_nanos,
        totals.unaccounted_nanos,
        totals.input_tokens + totals.output_tokens,
        totals.requests,
        totals.tool_calls,
    )


def begin(books: Books, held: int = 500, posted: int = 1, **more: Any) -> tuple[str, str, list[UsageRecord]]:
    """An active attempt of which the ledger has the first records; gives uid, allotment and all its calls."""
    books.limits(limits={USD: 1000, TOKENS: 1000})
    uid, calls = new_id(), fresh(CALLS)
    allotment = books.active(uid=uid, need={USD: held, TOKENS: held}, **more)
    if posted:
        assert isinstance(books.post(allotment, calls[:posted]), wire.Posted)
    return uid, allotment, calls


@pytest.mark.parametrize("posted", range(5))
def test_what_never_came_is_entered_once_and_the_rest_is_released(books: Books, posted: int) -> None:
    uid, allotment, calls = begin(books, posted=posted)
    answer = books.end(allotment, last_word=word_of(calls))
    missing = sum(each.cost_nanos or 0 for each in calls[posted:])
    assert (answer.state, answer.charged) == ("closed", None)
    assert (answer.last_word or {}).get(USD, 0) == missing
    assert sums(books, uid) == (100, 0, 30, 4, 0)
    state = books.state()
    assert (state.spent, state.reserved, state.excess) == (100, 0, 0)
    assert "unaccounted" not in kinds(books, allotment)
    assert kinds(books, allotment).get("last_word", 0) == missing


def test_a_retry_enters_nothing_again_and_a_second_word_is_not_heard(books: Books) -> None:
    uid, allotment, calls = begin(books)
    operation = new_id()
    first = books.end(allotment, last_word=word_of(calls), operation_id=operation)
    assert books.end(allotment, last_word=word_of(calls), operation_id=operation) == first
    assert code(books.end(allotment, last_word=word_of(calls[:2]), operation_id=operation)) is (
        ErrorCode.OPERATION_CONFLICT
    )
    assert books.end(allotment, last_word=word_of(calls, cost_nanos=400)).last_word is None
    assert sums(books, uid)[0] == 100


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2,), (3, 1)])
def test_late_records_take_the_place_of_the_word(books: Books, order: tuple[int, ...]) -> None:
    uid, allotment, calls = begin(books)
    books.end(allotment, last_word=word_of(calls))
    for index in order:
        assert isinstance(books.post(allotment, [calls[index]]), wire.Posted)
        assert sums(books, uid) == (100, 0, 30, 4, 0), "the sum is the meter's at every moment"
        assert books.state().spent == 100
        assert books.violations() == []
    here = sum(calls[index].cost_nanos or 0 for index in (0, *order))
    assert kinds(books, allotment) == {"usage": here, "last_word": 100 - here}
    if len(order) == 3:
        final = {USD: 100, TOKENS: 30, REQUESTS: 4, TOOL_CALLS: 0}
        assert books.give_back(allotment, 4, final, final=True).state == "closed"


def test_a_word_settles_the_charge_that_came_before_it(books: Books) -> None:
    """The ledger gave the attempt up while nobody could tell it; then the operator reads the pod's last word."""
    uid, allotment, calls = begin(books, held=500)
    assert books.end(allotment).charged == {USD: 490, TOKENS: 494}
    assert sums(books, uid)[:2] == (500, 490)
    assert books.end(allotment, last_word=word_of(calls)).last_word == {USD: 90, TOKENS: 24, REQUESTS: 3}
    assert sums(books, uid) == (100, 0, 30, 4, 0)
    assert (books.state().spent, books.state().reserved) == (100, 0)
    books.post(allotment, calls[1:])
    assert sums(books, uid) == (100, 0, 30, 4, 0)


def test_without_limits_nothing_is_held_and_the_word_counts_all_the_same(books: Books) -> None:
    uid, calls = new_id(), fresh(CALLS)
    allotment = books.active(uid=uid, accounts=[])
    assert books.end(allotment, last_word=word_of(calls)).last_word == {USD: 100, TOKENS: 30, REQUESTS: 4}
    assert sums(books, uid) == (100, 0, 30, 4, 0)


def test_what_the_word_says_above_what_was_held_is_entered_too(books: Books) -> None:
    uid, allotment, calls = begin(books, held=20, posted=0)
    books.limits(limits={USD: 50, TOKENS: 1000}, generation=2)
    books.end(allotment, last_word=word_of(calls))
    state = books.state()
    assert (sums(books, uid)[0], state.spent, state.excess) == (100, 100, 50)
    books.post(allotment, calls)
    state = books.state()
    assert (sums(books, uid)[0], state.spent, state.excess) == (100, 100, 50)


@pytest.mark.parametrize(
    "changes",
    [
        {"cost_nanos": 9},
        {"requests": 0},
        {"last_sequence": 0},
        {"unpriced": 1},
        {"last_sequence": 1},
        {"cost_nanos": 10**18, "input_tokens": 10**18, "output_tokens": 10**18},
    ],
    ids=str,
)
def test_a_word_that_cannot_be_true_changes_nothing_and_the_charge_stands(
    books: Books, changes: dict[str, Any]
) -> None:
    uid, allotment, calls = begin(books)
    answer = books.end(allotment, last_word=word_of(calls, **changes))
    assert (answer.state, answer.last_word, answer.charged) == ("closed", None, {USD: 490, TOKENS: 494})
    assert sums(books, uid)[:2] == (500, 490)


def test_a_persons_word_outlives_the_meters(books: Books) -> None:
    uid, allotment, calls = begin(books)
    books.end(allotment)
    body = wire.SettleCharge(operation_id=new_id(), cost_nanos=0, reason="the bill says so")
    assert isinstance(books.run(Verb.SETTLE, body, allotment=allotment), wire.ChargeSettled)
    assert books.end(allotment, last_word=word_of(calls)).last_word is None
    assert sums(books, uid)[0] == 10


def test_a_word_is_neither_settled_nor_corrected(books: Books) -> None:
    _, allotment, calls = begin(books)
    books.end(allotment, last_word=word_of(calls))
    body = wire.SettleCharge(operation_id=new_id(), cost_nanos=1, reason="no")
    refusal = books.run(Verb.SETTLE, body, allotment=allotment)
    assert code(refusal) is ErrorCode.WRONG_STATE
    assert "last word" in refusal.message
    entry = books.store.read(
        lambda c: c.execute(sa.select(schema.records.c.id).where(schema.records.c.kind == "last_word")).scalar_one()
    )
    change = wire.CorrectEntries(
        operation_id=new_id(),
        corrections=[wire.NewCost(record=entry, cost_nanos=1)],
        reason="no",
    )
    assert code(books.run(Verb.CORRECT, change, allotment=allotment)) is ErrorCode.INVALID


def test_unknown_costs_stay_unknown(books: Books) -> None:
    uid, calls = new_id(), [record(1, 10), record(2, None), record(3, None)]
    allotment = books.active(uid=uid, accounts=[])
    books.end(allotment, last_word=word_of(calls))
    assert (books.totals(uid).totals.cost_nanos, books.totals(uid).totals.unpriced) == (10, 1)
    books.post(allotment, calls[:2])
    assert books.violations() == []
    books.post(allotment, calls[2:])
    assert (books.totals(uid).totals.cost_nanos, books.totals(uid).totals.unpriced) == (10, 2)


def test_a_meter_that_lost_its_spool_knows_the_sum_of_its_tokens_alone(books: Books) -> None:
    uid, allotment, calls = begin(books, posted=2)
    books.end(allotment, last_word=word_of(calls, input_tokens=30, output_tokens=0))
    assert sums(books, uid) == (100, 0, 30, 4, 0)
    books.post(allotment, calls[2:])
    assert sums(books, uid) == (100, 0, 30, 4, 0)


def test_the_output_comes_along_and_never_replaces_one_that_is_there(books: Books) -> None:
    said = wire.LastOutput(content="the beginning", bytes=10_000, truncated=True)
    uid, allotment, calls = begin(books)
    books.end(allotment, last_word=word_of(calls, said))
    assert (books.totals(uid).output, books.totals(uid).output_bytes) == ("the beginning", 10_000)
    other = new_id()
    second = books.active(uid=other, accounts=[key()])
    put = command(
        Verb.OUTPUT, wire.PutOutput(operation_id=new_id(), content="all"), allotment=second, pod_uid="pod-uid"
    )
    books.run_all([put])
    books.end(second, last_word=word_of([], said))
    assert books.totals(other).output == "all"


def test_only_the_operator_that_leads_hands_a_word_over_and_only_of_what_has_ended(books: Books) -> None:
    uid, allotment, calls = begin(books)
    assert code(books.end(allotment, last_word=word_of(calls), terminated=False)) is ErrorCode.INVALID
    stale, books.epoch = books.epoch, books.take_epoch()
    current, books.epoch = books.epoch, stale
    assert code(books.end(allotment, last_word=word_of(calls))) is ErrorCode.STALE_EPOCH
    books.epoch = current
    assert sums(books, uid)[0] == 10


def test_words_are_sealed_and_history_counts_them(books: Books) -> None:
    _, allotment, calls = begin(books)
    books.end(allotment, last_word=word_of(calls))
    assert sealing.seal_all(books.store, wait=True) > 0
    page = books.usage("resource_type")
    found = {row.key[0]: row.totals.cost_nanos for row in page.rows}
    assert found == {"llm": 10, "last_word": 90}


@dataclasses.dataclass
class Call:
    """What one call cost, in every dimension."""

    cost: int
    given: int
    taken: int
    tool_calls: int


CALL = st.builds(Call, st.integers(0, 50), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(CALL, max_size=5), held=st.integers(0, 200), data=st.data())
def test_whatever_comes_before_and_after_the_sum_is_the_meters(
    books: Books, made: list[Call], held: int, data: Any
) -> None:
    quota = new_id()
    books.limits(quota, limits={USD: 200, TOKENS: 200})
    calls = [
        record(number, each.cost, tokens=Tokens(input=each.given, output=each.taken), tool_calls=each.tool_calls)
        for number, each in enumerate(made, 1)
    ]
    uid = new_id()
    allotment = books.active(uid=uid, accounts=[key(quota)], need={USD: held, TOKENS: held})
    early = data.draw(st.lists(st.sampled_from(calls), unique_by=lambda each: each.id) if calls else st.just([]))
    for each in early:
        books.post(allotment, [each])
    if data.draw(st.booleans()):
        books.end(allotment)
    books.end(allotment, last_word=word_of(calls))
    expected = (
        sum(each.cost for each in made),
        0,
        sum(each.given + each.taken for each in made),
        len(made),
        sum(each.tool_calls for each in made),
    )
    late = data.draw(st.permutations([each for each in calls if each not in early]))
    for each in [None, *late]:
        if each is not None:
            assert isinstance(books.post(allotment, [each]), wire.Posted)
        assert sums(books, uid) == expected
        assert (books.state(quota).spent, books.state(quota).reserved) == (expected[0], 0)
    assert books.violations() == []
