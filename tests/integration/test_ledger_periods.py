"""A quota's period is changed: what was spent in the time of its window counts, whatever the period was meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import ErrorCode
from almoner_ledger import migrations
from almoner_ledger.store import Verb
from almoner_ledger.windows import span_at
from tests.support.books import DOLLAR, USD, Books, Clock, code, key, new_id, record

TOTAL, HOURLY, DAILY, WEEKLY, MONTHLY = (
    BudgetPeriod.TOTAL,
    BudgetPeriod.HOURLY,
    BudgetPeriod.DAILY,
    BudgetPeriod.WEEKLY,
    BudgetPeriod.MONTHLY,
)
DAY = 24 * 3600


class Quota:
    """A quota whose calendar changes, and runs that spend at once."""

    def __init__(self, books: Books, clock: Clock, name: str = "quota", limit: int = DOLLAR) -> None:
        self.books, self.clock, self.name, self.limit = books, clock, name, limit
        self.generation = 0
        self.period, self.zone = TOTAL, "UTC"
        self.spends: list[tuple[int, int]] = []

    def be(self, period: BudgetPeriod, zone: str = "UTC", limit: int | None = None) -> Any:
        self.generation += 1
        self.period, self.zone = period, zone
        self.limit = self.limit if limit is None else limit
        answer = self.books.limits(
            self.name, limits={USD: self.limit}, period=period, time_zone=zone, generation=self.generation
        )
        assert isinstance(answer, wire.AccountsAnswer), answer
        return answer

    def open(self, need: int) -> str:
        return self.books.active(uid=new_id(), accounts=[key(self.name)], need={USD: need})

    def post(self, allotment: str, *costs: int, first: int = 1) -> None:
        started = int(self.clock() or 0)
        made = [record(first + index, cost, started_unix_ms=started) for index, cost in enumerate(costs)]
        answer = self.books.post(allotment, made)
        assert isinstance(answer, wire.Posted), answer
        self.spends += [(started // 1000, cost) for cost in costs]

    def spend(self, cost: int) -> None:
        allotment = self.open(cost)
        self.post(allotment, cost)
        self.books.give_back(allotment, 1, {USD: cost}, final=True)

    @property
    def spent(self) -> int:
        return int(self.books.state(self.name).spent)

    @property
    def reserved(self) -> int:
        return int(self.books.state(self.name).reserved)

    def expected(self) -> int:
        """The sum of what was spent since the window that holds now began."""
        span = span_at(self.period, self.zone, int(self.clock() or 0) // 1000)
        return sum(cost for second, cost in self.spends if second >= span.starts_at)


@pytest.fixture
def quota(books: Books, clock: Clock) -> Quota:
    return Quota(books, clock)


def test_total_counts_what_was_spent_while_it_was_daily(quota: Quota) -> None:
    quota.be(TOTAL)
    quota.spend(100)
    quota.be(DAILY)
    assert quota.spent == 100, "it was spent today"
    quota.spend(20)
    quota.clock.now += 2 * DAY
    quota.be(DAILY)
    quota.spend(3)
    assert quota.spent == 3
    quota.be(TOTAL)
    assert quota.spent == 123
    quota.be(DAILY)
    assert quota.spent == 3
    quota.be(TOTAL)
    assert quota.spent == 123


@pytest.mark.parametrize(
    ("before", "after", "spent"),
    [
        (MONTHLY, DAILY, 10),
        (MONTHLY, WEEKLY, 10),
        (TOTAL, MONTHLY, 110),
        (DAILY, MONTHLY, 110),
        (DAILY, TOTAL, 1110),
        (HOURLY, DAILY, 10),
        (WEEKLY, HOURLY, 0),
    ],
)
def test_the_window_that_holds_now_begins_with_what_was_spent_in_it(
    quota: Quota, before: BudgetPeriod, after: BudgetPeriod, spent: int
) -> None:
    """Spent last month, two weeks ago in this month, and three hours ago today."""
    quota.clock.now = _at("2027-03-20T12:00:00")
    for moment, cost in (("2027-02-15T12:00:00", 1000), ("2027-03-03T12:00:00", 100), ("2027-03-20T09:00:00", 10)):
        quota.clock.now = _at(moment)
        quota.be(before)
        quota.spend(cost)
    quota.clock.now = _at("2027-03-20T12:00:00")
    quota.be(after)
    assert quota.spent == spent == quota.expected()


def _at(text: str) -> int:
    import datetime as dt

    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp())


def test_another_time_zone_is_another_calendar(quota: Quota) -> None:
    quota.clock.now = _at("2027-03-20T20:00:00")
    quota.be(DAILY, "UTC")
    quota.spend(10)
    quota.clock.now = _at("2027-03-20T23:30:00")
    quota.spend(1)
    # In Berlin it is the 21st already: the window began at 23:00Z.
    quota.be(DAILY, "Europe/Berlin")
    assert quota.spent == 1
    quota.be(DAILY, "UTC")
    assert quota.spent == 11


def test_what_is_held_moves_along_and_settles_in_the_new_window(quota: Quota) -> None:
    quota.be(DAILY, limit=100)
    allotment = quota.open(60)
    quota.post(allotment, 10)
    quota.be(TOTAL, limit=100)
    assert (quota.spent, quota.reserved) == (10, 50)
    assert code(quota.books.open(uid=new_id(), accounts=[key("quota")], need={USD: 41})) is ErrorCode.INSUFFICIENT
    quota.post(allotment, 20, first=2)
    assert (quota.spent, quota.reserved) == (30, 30)
    quota.be(MONTHLY)
    quota.post(allotment, 5, first=3)
    quota.books.give_back(allotment, 3, {USD: 35}, final=True)
    assert (quota.spent, quota.reserved) == (35, 0)


def test_late_records_and_corrections_of_before_the_change_count_after_it(quota: Quota) -> None:
    quota.be(DAILY)
    allotment = quota.open(60)
    quota.books.end(allotment)
    assert quota.spent == 60, "charged off"
    quota.clock.now += 2 * DAY
    quota.be(TOTAL)
    assert quota.spent == 60
    # The last word comes late: 15 were spent, and 45 of the charge are taken back.
    made = [record(1, 15, started_unix_ms=(quota.clock.now - 2 * DAY) * 1000)]
    assert isinstance(quota.books.post(allotment, made), wire.Posted)
    quota.books.give_back(allotment, 1, {USD: 15}, final=True)
    assert quota.spent == 15
    change = wire.CorrectEntries(
        operation_id=new_id(), corrections=[wire.NewCost(record=made[0].id, cost_nanos=40)], reason="known now"
    )
    assert isinstance(quota.books.run(Verb.CORRECT, change, allotment=allotment), wire.Corrected)
    assert quota.spent == 40


def test_a_quota_that_is_deleted_and_made_again_remembers(quota: Quota) -> None:
    quota.be(DAILY)
    quota.spend(10)
    quota.generation += 1
    # As the operator tells of a quota that is gone.
    quota.books.limits("quota", limits={}, period=TOTAL, enforced=False, generation=quota.generation)
    quota.be(MONTHLY)
    assert quota.spent == 10
    quota.spend(5)
    quota.be(DAILY)
    assert quota.spent == 15
    quota.be(TOTAL)
    assert quota.spent == 15


def test_a_budget_that_is_spent_up_stays_so_under_another_period(quota: Quota) -> None:
    quota.be(DAILY, limit=100)
    quota.spend(100)
    for period in (TOTAL, MONTHLY, WEEKLY, DAILY):
        quota.be(period)
        assert code(quota.books.open(uid=new_id(), accounts=[key("quota")], need={USD: 1})) is ErrorCode.INSUFFICIENT


def test_a_database_from_before_counts_what_it_had_lost(quota: Quota) -> None:
    quota.be(TOTAL, limit=120)
    quota.spend(100)
    quota.be(DAILY)
    quota.clock.now += DAY
    quota.be(DAILY)
    quota.spend(23)
    quota.be(TOTAL)
    quota.books.database.migrate(lambda connection: command.downgrade(migrations.config(connection), "0012"))
    quota.books.store.migrate()
    assert quota.spent == 123
    assert code(quota.books.open(uid=new_id(), accounts=[key("quota")], need={USD: 1})) is ErrorCode.INSUFFICIENT
    quota.be(DAILY)
    assert quota.spent == 23


class Periods(RuleBasedStateMachine):
    """The period changes at random, and runs spend in between: at once, or over changes but not over a window's end."""

    books: Books
    clock: Clock
    number = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).number += 1
        self.quota = Quota(self.books, self.clock, f"quota-{self.number}")
        self.quota.be(TOTAL)
        self.running: list[list[Any]] = []

    @rule(period=st.sampled_from(list(BudgetPeriod)), zone=st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]))
    def change(self, period: BudgetPeriod, zone: str) -> None:
        self.quota.be(period, zone)

    @rule(cost=st.integers(0, 1000))
    def spend(self, cost: int) -> None:
        self.quota.spend(cost)

    @rule(need=st.integers(1, 1000))
    def begin(self, need: int) -> None:
        self.running.append([self.quota.open(need), need, 0, 0])

    @rule(data=st.data())
    def settle(self, data: Any) -> None:
        if self.running:
            run = data.draw(st.sampled_from(self.running))
            cost = data.draw(st.integers(0, run[1]))
            run[1] -= cost
            run[2] += 1
            run[3] += cost
            self.quota.post(run[0], cost, first=run[2])

    @rule(seconds=st.sampled_from([60, 3600, DAY, 8 * DAY, 31 * DAY]))
    def wait(self, seconds: int) -> None:
        for allotment, _, sequence, settled in self.running:
            self.books.give_back(allotment, sequence, {USD: settled}, final=True)
        self.running = []
        self.clock.now += seconds
        self.quota.be(self.quota.period, self.quota.zone)

    @invariant()
    def what_is_spent_is_the_sum_since_the_window_began(self) -> None:
        assert self.quota.spent == self.quota.expected()
        assert self.quota.reserved == sum(each[1] for each in self.running)

    def teardown(self) -> None:
        assert self.books.violations() == []


def test_whatever_the_period_was_the_window_counts_what_was_spent_in_it(books: Books, clock: Clock) -> None:
    machine = type("Machine", (Periods,), {"books": books, "clock": clock})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
