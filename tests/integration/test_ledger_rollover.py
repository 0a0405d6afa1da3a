"""A window that rolls over under a call: everything of that call stays in the window of its hold, on both databases."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import ErrorCode
from almoner_ledger import schema
from almoner_ledger.store import Verb
from almoner_ledger.store.commands import Expire
from tests.support.books import USD, Books, Clock, code, record

ZONE = "America/New_York"
HOUR = 3600


def balances(books: Books) -> list[tuple[int, int, int]]:
    """Spent, reserved and excess of the budget's windows, the oldest first."""
    table = schema.windows
    query = sa.select(table).where(table.c.period != "Total").order_by(table.c.starts_at)
    rows = books.store.read(lambda c: c.execute(query).all())
    return [(row.spent, row.reserved, row.excess) for row in rows]


def under_way(books: Books, clock: Clock, period: BudgetPeriod = BudgetPeriod.HOURLY) -> tuple[str, int]:
    """An attempt that holds 600 of 1000 when its window ends; gives it, and when its call began (Unix ms)."""
    books.limits(limits={USD: 1000}, period=period, time_zone=ZONE)
    allotment = books.active(need={USD: 600})
    began = clock()
    resets = books.state().resets_in_seconds
    assert resets is not None
    clock.now += resets
    return allotment, began


@pytest.mark.parametrize("period", [BudgetPeriod.HOURLY, BudgetPeriod.DAILY, BudgetPeriod.WEEKLY, BudgetPeriod.MONTHLY])
def test_a_call_settles_where_it_was_held_and_the_next_is_held_in_the_new_window(
    books: Books, clock: Clock, period: BudgetPeriod
) -> None:
    allotment, began = under_way(books, clock, period)
    # The new window is whole, whatever is still held in the old one.
    assert books.open(need={USD: 1000}).granted == {USD: 1000}
    books.post(allotment, [record(1, 400, started_unix_ms=began)])
    assert balances(books) == [(400, 200, 0), (0, 1000, 0)]
    books.give_back(allotment, 1, {USD: 400}, final=True)
    assert balances(books) == [(400, 0, 0), (0, 1000, 0)]


def test_calls_of_both_windows_settle_each_in_its_own_in_any_order(books: Books, clock: Clock) -> None:
    allotment, began = under_way(books, clock)
    assert books.extend(allotment, {USD: 300}).granted == {USD: 300}
    books.post(allotment, [record(2, 250, started_unix_ms=clock())])
    books.post(allotment, [record(1, 500, started_unix_ms=began)])
    assert balances(books) == [(500, 100, 0), (250, 50, 0)]
    books.give_back(allotment, 2, {USD: 750}, final=True)
    assert balances(books) == [(500, 0, 0), (250, 0, 0)]


def test_what_is_billed_above_the_hold_is_excess_of_the_old_window(books: Books, clock: Clock) -> None:
    allotment, began = under_way(books, clock)
    posted = books.post(allotment, [record(1, 700, started_unix_ms=began)])
    assert posted.frozen
    assert balances(books)[0] == (700, 0, 100)
    assert books.state().spent == 0


def test_what_was_charged_off_after_the_rollover_belongs_to_the_old_window(books: Books, clock: Clock) -> None:
    allotment, began = under_way(books, clock)
    assert books.extend(allotment, {USD: 300}).granted == {USD: 300}
    clock.now += books.store.lease.silence_seconds
    assert books.run(Verb.EXPIRE, Expire(), allotment=allotment).state == "closed"
    assert balances(books) == [(600, 0, 0), (300, 0, 0)]
    # A late report settles it there too.
    books.post(allotment, [record(1, 500, started_unix_ms=began)])
    books.give_back(allotment, 1, {USD: 500}, final=True)
    assert sum(spent for spent, _, _ in balances(books)) == 500
    assert all(reserved == 0 for _, reserved, _ in balances(books))


def test_a_return_after_the_rollover_frees_the_old_window_alone(books: Books, clock: Clock) -> None:
    allotment, _ = under_way(books, clock)
    books.active(need={USD: 1000})
    books.give_back(allotment, 0, {}, {USD: 600})
    assert balances(books) == [(0, 0, 0), (0, 1000, 0)]
    assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT


@pytest.mark.parametrize(
    ("day", "hours"),
    [(dt.date(2027, 3, 14), 23), (dt.date(2027, 11, 7), 25), (dt.date(2027, 6, 1), 24)],
    ids=["spring", "autumn", "summer"],
)
def test_a_day_is_as_long_as_the_calendar_says(books: Books, clock: Clock, day: dt.date, hours: int) -> None:
    midnight = dt.datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(ZONE))
    clock.now = int(midnight.timestamp())
    books.limits(limits={USD: 1000}, period=BudgetPeriod.DAILY, time_zone=ZONE)
    assert books.state().resets_in_seconds == hours * HOUR
    allotment = books.active(need={USD: 1000})
    clock.now += hours * HOUR - 1
    assert code(books.open(need={USD: 1})) is ErrorCode.INSUFFICIENT
    clock.now += 1
    assert books.open(need={USD: 1}).granted == {USD: 1}
    assert books.give_back(allotment, 0, {}, final=True).held == {USD: 0}
