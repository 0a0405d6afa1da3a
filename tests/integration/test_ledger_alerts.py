"""Alerts on both databases: once per window and threshold, in the transaction that reached it, whatever comes later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_ledger import schema
from almoner_ledger.store import Verb
from almoner_ledger.store.alerts import reached
from almoner_ledger.store.commands import Expire
from tests.support.books import DOLLAR, TOKENS, USD, Books, Clock, key, record, tokens

THRESHOLDS = [50, 80, 100]


def fired(books: Books, quota: str = "quota", subject: str = "") -> list[int]:
    return [each.percent for each in books.state(quota, subject=subject).alerts]


def rows(books: Books) -> int:
    table = schema.alerts
    return int(books.store.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()))


def budget(books: Books, amount: int = 1000, generation: int = 1, **more: Any) -> None:
    more.setdefault("alert_thresholds_percent", THRESHOLDS)
    answer = books.limits(limits={USD: amount}, generation=generation, **more)
    assert not isinstance(answer, Exception), answer


@given(st.integers(0, 2**62), st.integers(1, 2**62), st.integers(1, 100))
def test_a_threshold_is_reached_at_exactly_its_share(spent: int, limit: int, percent: int) -> None:
    assert reached(spent, limit, percent) == (spent > 0 and spent / 1 >= 0 and 100 * spent >= limit * percent)
    assert not reached(spent, None, percent)
    assert not reached(0, 0, percent)
    assert reached(1, 0, percent)


def test_each_threshold_fires_as_it_is_reached(books: Books, clock: Clock) -> None:
    budget(books)
    allotment = books.active(need={USD: 1000})
    # Held is not spent.
    assert fired(books) == []
    books.post(allotment, [record(1, 499)])
    assert fired(books) == []
    clock.now += 5
    books.post(allotment, [record(2, 1)])
    (alert,) = books.state().alerts
    assert (alert.percent, alert.fired_unix_ms) == (50, clock())
    clock.now += 5
    books.post(allotment, [record(3, 500)])
    assert fired(books) == THRESHOLDS
    assert books.state().alerts[0].fired_unix_ms == clock() - 5000


def test_the_feed_tells_the_alert_with_the_use_that_fired_it(books: Books) -> None:
    budget(books)
    allotment = books.active(need={USD: 1000})
    cursor = books.changes().after
    books.post(allotment, [record(1, 900)])
    (account,) = books.changes(cursor).accounts
    assert (account.spent, [each.percent for each in account.alerts]) == (900, [50, 80])


def test_an_account_that_only_watches_fires_too(books: Books) -> None:
    budget(books, enforced=False)
    allotment = books.active(need={USD: 10})
    books.post(allotment, [record(1, 5000)])
    assert fired(books) == THRESHOLDS


def test_a_limit_that_is_raised_and_lowered_fires_nothing_twice(books: Books, clock: Clock) -> None:
    budget(books)
    allotment = books.active(need={USD: 1000})
    books.post(allotment, [record(1, 600)])
    first = books.state().alerts
    for generation, amount in enumerate((10_000, 1000, 10_000, 700), start=2):
        clock.now += 60
        budget(books, amount, generation)
    # Lowered to 700, 80 % is reached by what was spent; the old one stays as it was.
    assert fired(books) == [50, 80]
    assert books.state().alerts[0] == first[0]
    assert rows(books) == 2


def test_a_threshold_that_is_added_fires_for_what_was_spent_already(books: Books) -> None:
    budget(books, alert_thresholds_percent=[90])
    allotment = books.active(need={USD: 1000})
    books.post(allotment, [record(1, 600)])
    assert fired(books) == []
    budget(books, generation=2, alert_thresholds_percent=[25, 90])
    assert fired(books) == [25]


def test_a_charge_fires_and_its_settlement_takes_nothing_back(books: Books) -> None:
    budget(books)
    allotment = books.active(need={USD: 900})
    books.end(allotment)
    assert fired(books) == [50, 80]
    books.post(allotment, [record(1, 10)])
    books.give_back(allotment, 1, {USD: 10}, final=True)
    assert books.state().spent == 10
    other = books.active(need={USD: 900})
    books.post(other, [record(1, 900)])
    assert fired(books) == [50, 80], "both fired in this window already"
    assert rows(books) == 2


def test_silence_that_is_charged_off_fires(books: Books, clock: Clock) -> None:
    budget(books)
    allotment = books.active(need={USD: 900})
    clock.now += books.store.lease.silence_seconds
    assert books.run(Verb.EXPIRE, Expire(), allotment=allotment).state == "closed"
    assert fired(books) == [50, 80]


def test_a_new_window_fires_anew_and_the_old_one_keeps_what_it_had(books: Books, clock: Clock) -> None:
    budget(books, period=BudgetPeriod.HOURLY)
    for _ in range(2):
        allotment = books.active(need={USD: 600})
        books.post(allotment, [record(1, 600, started_unix_ms=clock())])
        assert fired(books) == [50]
        books.give_back(allotment, 1, {USD: 600}, final=True)
        clock.now += 3600
        assert fired(books) == [], "the window that begins has spent nothing"
    assert rows(books) == 2


def test_a_call_that_ends_in_the_next_window_fires_in_that_of_its_hold(books: Books, clock: Clock) -> None:
    budget(books, period=BudgetPeriod.HOURLY)
    allotment = books.active(need={USD: 900})
    began = clock()
    clock.now += 3600
    books.post(allotment, [record(1, 900, started_unix_ms=began)])
    assert fired(books) == []
    starts = sa.select(schema.alerts.c.starts_at).distinct()
    assert books.store.read(lambda c: c.execute(starts).scalar_one()) <= began // 1000


def test_every_subject_and_dimension_fires_for_itself(books: Books) -> None:
    for owner in ("ann", "bob"):
        books.limits(limits={USD: 1000, TOKENS: 100}, subject=owner, alert_thresholds_percent=[50])
    allotment = books.active(accounts=[key(subject="ann")], need={USD: 600, TOKENS: 10})
    books.post(allotment, [record(1, 600, tokens=tokens(5))])
    assert fired(books, subject="ann") == [50]
    assert books.state(dimension=TOKENS, subject="ann").alerts == []
    assert fired(books, subject="bob") == []


@pytest.mark.parametrize("amount", [0, 1])
def test_a_budget_of_nothing_does_not_fire_at_nothing(books: Books, amount: int) -> None:
    budget(books, amount)
    assert fired(books) == []


def test_what_crosses_nothing_costs_no_statement(books: Books) -> None:
    budget(books, DOLLAR)
    allotment = books.active(need={USD: 1000})

    def alerting(act: Callable[[], object]) -> list[str]:
        seen: list[str] = []

        def note(*arguments: object) -> None:
            seen.append(str(arguments[2]))

        sa.event.listen(books.database.engine, "before_cursor_execute", note)
        act()
        sa.event.remove(books.database.engine, "before_cursor_execute", note)
        return [each for each in seen if "alerts" in each]

    assert alerting(lambda: books.post(allotment, [record(1, 10)])) == []
    assert len(alerting(lambda: books.post(allotment, [record(2, DOLLAR // 2)]))) == 1
    assert alerting(lambda: books.post(allotment, [record(3, 10)])) == []
