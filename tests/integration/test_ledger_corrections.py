"""Corrections and settlements on both databases: differences where the entry was posted, and money counted once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import AllotmentState, ErrorCode
from almoner_ledger import schema
from almoner_ledger.store import Verb, charging
from almoner_ledger.verify import audit
from tests.support.books import DOLLAR, TOKENS, USD, Books, Clock, code, new_id, record, refused, tokens

HOUR = 3600


def correct(books: Books, allotment: str, *costs: tuple[str, int], operation_id: str | None = None, **more: Any) -> Any:
    body = wire.CorrectEntries(
        operation_id=operation_id or new_id(),
        corrections=[wire.NewCost(record=each, cost_nanos=cost, **more) for each, cost in costs],
        reason="the bill says so",
    )
    return books.run(Verb.CORRECT, body, allotment=allotment)


def settle(books: Books, allotment: str, cost: int, operation_id: str | None = None, **more: Any) -> Any:
    body = wire.SettleCharge(operation_id=operation_id or new_id(), cost_nanos=cost, reason="seen on the bill", **more)
    return books.run(Verb.SETTLE, body, allotment=allotment)


def entries(books: Books, kind: str = "correction") -> list[Any]:
    table = schema.records
    query = sa.select(table).where(table.c.kind == kind).order_by(table.c.posted_ms, table.c.id)
    return books.store.read(lambda connection: list(connection.execute(query)))


def by_day(books: Books, column: str = "cost_nanos") -> dict[int, int]:
    """Sums of the daily overview, by day."""
    table = schema.rollups
    query = sa.select(table.c.day, sa.func.sum(table.c[column])).group_by(table.c.day)
    return {row[0]: int(row[1]) for row in books.store.read(lambda connection: list(connection.execute(query)))}


# --- corrections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_cost", [0, 30, 70])
def test_an_entry_costs_what_is_said_and_the_old_one_stays(books: Books, new_cost: int) -> None:
    books.limits(limits={USD: 100})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 60})
    one = record(1, 50)
    books.post(allotment, [one])
    answer = correct(books, allotment, (one.id, new_cost))
    assert isinstance(answer, wire.Corrected), answer
    assert (answer.corrected[0].before, answer.corrected[0].after) == (50, new_cost)
    state = books.state()
    # What the meter holds is not touched: it counts on it.
    assert (state.spent, state.reserved, state.excess) == (new_cost, 10, 0)
    assert books.totals(uid).totals.cost_nanos == new_cost
    assert list(by_day(books).values()) == [new_cost]
    assert list(by_day(books, "records").values()) == [1], "a correction is no further use"
    (usage,) = entries(books, "usage")
    (entry,) = entries(books)
    assert usage.cost_nanos == 50
    assert (entry.corrects, entry.cost_nanos, entry.month) == (one.id, new_cost - 50, usage.month)
    assert entry.id == answer.corrected[0].entry


def test_a_negative_difference_frees_budget(books: Books) -> None:
    books.limits(limits={USD: 100})
    first = books.active(need={USD: 100})
    one = record(1, 100)
    books.post(first, [one])
    assert code(books.open(need={USD: 40})) is ErrorCode.INSUFFICIENT
    correct(books, first, (one.id, 60))
    assert isinstance(books.open(need={USD: 40}), wire.OpenAnswer)


def test_a_difference_above_the_limit_is_excess_with_its_cause(books: Books) -> None:
    books.limits(limits={USD: 100})
    allotment = books.active(need={USD: 90})
    one = record(1, 90)
    books.post(allotment, [one])
    correct(books, allotment, (one.id, 250))
    state = books.state()
    assert (state.spent, state.excess) == (250, 150)
    found = books.store.read(audit)
    assert [(each["excess"], each["corrected"]) for each in found.excess if "quota" in each["account"]] == [(150, 150)]
    assert code(books.open(need={USD: 1})) is ErrorCode.INSUFFICIENT
    # Taken back: nothing of the excess stays.
    correct(books, allotment, (one.id, 40))
    assert (books.state().spent, books.state().excess) == (40, 0)
    assert isinstance(books.open(need={USD: 50}), wire.OpenAnswer)


def test_excess_that_a_provider_billed_is_told_apart(books: Books) -> None:
    books.limits(limits={USD: 100})
    allotment = books.active(need={USD: 100})
    one = record(1, 130)
    books.post(allotment, [one])
    correct(books, allotment, (one.id, 140))
    (found,) = [each for each in books.store.read(audit).excess if "quota" in each["account"]]
    assert (found["excess"], found["corrected"]) == (40, 10)


def test_the_difference_goes_to_the_window_of_the_entry(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 100}, period=BudgetPeriod.HOURLY)
    allotment = books.active(need={USD: 50})
    one = record(1, 50, started_unix_ms=clock() + 1)
    clock.now += 1
    books.post(allotment, [one])
    books.give_back(allotment, 1, {USD: 50}, final=True)
    clock.now += 2 * HOUR
    later = books.active(need={USD: 20})
    books.post(later, [record(1, 20, started_unix_ms=clock())])
    correct(books, allotment, (one.id, 10))
    table = schema.windows
    quota = sa.select(table.c.spent).where(table.c.period == "Hourly").order_by(table.c.starts_at)
    assert books.store.read(lambda c: list(c.execute(quota).scalars())) == [10, 20]
    assert list(by_day(books).values()) == [30]


def test_a_closed_allotment_stays_closed_and_an_open_one_goes_on(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one, two = record(1, 50), record(2, 30)
    books.post(allotment, [one])
    correct(books, allotment, (one.id, 80))
    # The meter knows nothing of it: its totals are its own, and its last return is complete.
    assert books.activate(allotment).settled == {USD: 50, **dict.fromkeys(set(wire.Dimension) - {USD}, 0)} | {
        wire.Dimension.REQUESTS: 1
    }
    books.post(allotment, [two])
    answer = books.give_back(allotment, 2, {USD: 80}, final=True)
    assert answer.state is AllotmentState.CLOSED
    assert books.state().spent == 110
    correct(books, allotment, (two.id, 0), (one.id, 0))
    assert books.state().spent == 0
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.WRONG_STATE


def test_corrections_of_corrections_add_up(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    for cost in (80, 20, 20, 90):
        correct(books, allotment, (one.id, cost))
    assert [entry.cost_nanos for entry in entries(books)] != []
    assert sum(entry.cost_nanos for entry in entries(books)) == 40
    assert len(entries(books)) == 3, "an entry that costs what is said already is not corrected"
    assert books.state().spent == 90


def test_a_correction_is_done_once(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    operation = new_id()
    first = correct(books, allotment, (one.id, 80), operation_id=operation)
    correct(books, allotment, (one.id, 20))
    assert correct(books, allotment, (one.id, 80), operation_id=operation) == first
    assert books.state().spent == 20
    assert code(correct(books, allotment, (one.id, 81), operation_id=operation)) is ErrorCode.OPERATION_CONFLICT


def test_somebody_who_looked_too_early_is_told(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    correct(books, allotment, (one.id, 80), revision=0)
    assert code(correct(books, allotment, (one.id, 20), revision=0)) is ErrorCode.RECORD_CONFLICT
    assert books.state().spent == 80


def test_of_many_who_correct_at_once_one_is_first(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda cost: correct(books, allotment, (one.id, cost), revision=0), range(1, 13)))
    (first,) = [answer for answer in answers if isinstance(answer, wire.Corrected)]
    assert {code(answer) for answer in answers if answer is not first} == {ErrorCode.RECORD_CONFLICT}
    assert books.state().spent == first.corrected[0].after
    # Without a revision all are done, one after the other, while records go on coming.
    with ThreadPoolExecutor(6) as pool:
        later = pool.map(lambda n: books.post(allotment, [record(n, 1)]), range(2, 8))
        again = pool.map(lambda cost: correct(books, allotment, (one.id, cost)), range(20, 26))
        assert all(isinstance(answer, wire.Posted) for answer in later)
        assert all(isinstance(answer, wire.Corrected) for answer in again)
    assert books.state().spent - 6 in range(20, 26)


def test_what_cannot_be_corrected_is_refused_by_name(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment, other = books.active(need={USD: 100}), books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    assert code(correct(books, allotment, (new_id(), 1))) is ErrorCode.NOT_FOUND
    assert code(correct(books, other, (one.id, 1))) is ErrorCode.NOT_FOUND
    assert "named twice" in refused(correct(books, allotment, (one.id, 1), (one.id, 2))).message
    correct(books, allotment, (one.id, 60))
    (entry,) = entries(books)
    assert f"a correction of {one.id}" in refused(correct(books, allotment, (entry.id, 1))).message
    books.end(other)
    charge = charging.charge_id(other)
    assert "settle the allotment" in refused(correct(books, other, (charge, 1))).message
    assert code(correct(books, allotment, (one.id, 10**18), (new_id(), 1))) is ErrorCode.NOT_FOUND
    assert books.state().spent == 60 + 100, "a refused correction changes nothing"


def test_an_unknown_cost_becomes_known_and_explains_what_was_charged_for_it(books: Books) -> None:
    books.limits(limits={USD: 1000})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 100})
    one = record(1, None)
    books.post(allotment, [one])
    books.give_back(allotment, 1, {USD: 0}, final=True)
    before = books.totals(uid).totals
    assert (before.unpriced, before.unaccounted_nanos, books.state().spent) == (1, 100, 100)
    # A return that is repeated does not let go of what was charged for the unknown cost.
    books.give_back(allotment, 1, {USD: 0}, final=True)
    assert books.state().spent == 100
    answer = correct(books, allotment, (one.id, 30))
    assert answer.corrected[0].before is None
    after = books.totals(uid).totals
    assert (after.unpriced, after.unaccounted_nanos, after.cost_nanos, books.state().spent) == (0, 0, 30, 30)


def test_an_unknown_cost_turns_out_to_be_nothing(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, None)
    books.post(allotment, [one])
    answer = correct(books, allotment, (one.id, 0))
    assert answer.corrected[0].entry is not None, "unknown is not zero: saying so is a correction"
    assert list(by_day(books, "unpriced").values()) == [0]


def test_an_account_without_money_limits_is_corrected_too(books: Books) -> None:
    books.limits(limits={TOKENS: 1000})
    uid = new_id()
    allotment = books.active(uid=uid, need={TOKENS: 10})
    one = record(1, 50, tokens=tokens(4, 2))
    books.post(allotment, [one])
    correct(books, allotment, (one.id, 70))
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.input_tokens, totals.requests) == (70, 4, 1)


# --- settlements ------------------------------------------------------------------------------------------------------


def vanished(books: Books, uid: str, held: int = 100, spent: int = 30) -> str:
    """An attempt that reported `spent` of `held` and was never heard of again."""
    allotment = books.active(uid=uid, need={USD: held})
    if spent:
        books.post(allotment, [record(1, spent)])
    books.end(allotment)
    return allotment


@pytest.mark.parametrize(("said", "excess"), [(0, 0), (25, 0), (70, 0), (90, 0), (1000, 30)])
def test_a_person_settles_what_vanished(books: Books, said: int, excess: int) -> None:
    books.limits(limits={USD: 1000})
    uid = new_id()
    allotment = vanished(books, uid)
    assert books.totals(uid).totals.unaccounted_nanos == 70
    answer = settle(books, allotment, said)
    assert isinstance(answer, wire.ChargeSettled), answer
    assert (answer.charged_nanos, answer.cost_nanos) == (70, said)
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos) == (30 + said, 0)
    assert (books.state().spent, books.state().reserved, books.state().excess) == (30 + said, 0, excess)
    assert sum(by_day(books).values()) == 30 + said


def test_a_settlement_is_done_once_and_another_is_refused_by_name(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = vanished(books, new_id())
    operation = new_id()
    first = settle(books, allotment, 10, operation)
    assert settle(books, allotment, 10, operation) == first
    again = refused(settle(books, allotment, 20))
    assert again.code is ErrorCode.RECORD_CONFLICT
    assert "settled already, at 10" in again.message
    assert books.state().spent == 40


@pytest.mark.parametrize("meant", [0, 20, 70, 95])
def test_a_settlement_that_was_wrong_is_corrected(books: Books, meant: int) -> None:
    books.limits(limits={USD: 1000})
    uid = new_id()
    allotment = vanished(books, uid)
    settlement = settle(books, allotment, 50).entry
    answer = correct(books, allotment, (settlement, meant))
    assert (answer.corrected[0].before, answer.corrected[0].after) == (50, meant)
    assert (books.totals(uid).totals.cost_nanos, books.totals(uid).totals.unaccounted_nanos) == (30 + meant, 0)
    assert books.state().spent == 30 + meant
    # Late records take from what it was corrected to.
    books.post(allotment, [record(2, 60)])
    assert books.state().spent == 30 + max(60, meant)
    books.give_back(allotment, 2, {USD: 90}, final=True)
    assert books.state().spent == 90
    assert "every record of the attempt has come" in refused(correct(books, allotment, (settlement, 5))).message


@pytest.mark.parametrize(("late", "excess"), [(0, 0), (20, 0), (110, 40), (170, 100)])
def test_a_settlement_above_the_limit_takes_its_excess_with_it(books: Books, late: int, excess: int) -> None:
    books.limits(limits={USD: 100})
    uid = new_id()
    allotment = vanished(books, uid)  # 30 of 100 reported, 70 charged
    settle(books, allotment, 170)
    assert (books.state().spent, books.state().excess) == (200, 100)
    if late:
        books.post(allotment, [record(2, late)])
    books.give_back(allotment, 1 + (late > 0), {USD: 30 + late}, final=True)
    assert (books.state().spent, books.state().excess) == (30 + late, excess)
    assert books.totals(uid).totals.cost_nanos == 30 + late


def test_only_what_is_unaccounted_can_be_settled(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    assert code(settle(books, allotment, 10)) is ErrorCode.WRONG_STATE
    books.give_back(allotment, 0, {USD: 0}, final=True)
    assert code(settle(books, allotment, 10)) is ErrorCode.WRONG_STATE


@pytest.mark.parametrize(
    ("said", "late", "counted"),
    [
        (50, [20], 50),  # the late record explains part of the person's word
        (50, [20, 30], 50),
        (50, [20, 30, 10], 60),  # more than the person knew of
        (0, [20], 20),
        (50, [0], 50),
    ],
)
def test_a_late_report_after_a_settlement_counts_its_money_once(
    books: Books, said: int, late: list[int], counted: int
) -> None:
    books.limits(limits={USD: 1000})
    uid = new_id()
    allotment = vanished(books, uid)
    settle(books, allotment, said)
    for index, cost in enumerate(late):
        assert isinstance(books.post(allotment, [record(2 + index, cost)]), wire.Posted)
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.unaccounted_nanos) == (30 + counted, 0)
    assert books.state().spent == 30 + counted
    assert len(entries(books, "usage")) == 1 + len(late), "the records are kept"
    # The meter's last word makes the records complete: nothing is left of what stood in for them.
    books.give_back(allotment, 1 + len(late), {USD: 30 + sum(late)}, final=True)
    assert books.totals(uid).totals.cost_nanos == 30 + sum(late)
    assert books.state().spent == 30 + sum(late)


def test_tokens_of_which_nothing_is_said_stay_charged(books: Books) -> None:
    books.limits(limits={USD: 1000, TOKENS: 1000})
    one, two = (books.active(need={USD: 100, TOKENS: 200}) for _ in range(2))
    books.end(one)
    books.end(two)
    settle(books, one, 10)
    assert (books.state().spent, books.state(dimension=TOKENS).spent) == (110, 400)
    settle(books, two, 10, tokens=50)
    assert (books.state().spent, books.state(dimension=TOKENS).spent) == (20, 250)


def test_a_charge_for_unknown_costs_is_not_settled_over_their_heads(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, None)
    books.post(allotment, [one])
    books.end(allotment)
    assert "no known cost" in refused(settle(books, allotment, 10)).message
    correct(books, allotment, (one.id, 30))
    assert books.state().spent == 100, "the rest is still unaccounted: other records may be missing"
    settle(books, allotment, 0)
    assert books.state().spent == 30


def test_the_feed_tells_of_corrections(books: Books) -> None:
    books.limits(limits={USD: 1000})
    allotment = books.active(need={USD: 100})
    one = record(1, 50)
    books.post(allotment, [one])
    seen = books.changes()
    correct(books, allotment, (one.id, 10 * DOLLAR))
    news = books.changes(after=seen.after)
    assert news.executions[0].totals.cost_nanos == 10 * DOLLAR
    assert news.agents[0].totals.cost_nanos == 10 * DOLLAR
    assert news.accounts[0].spent == 10 * DOLLAR
