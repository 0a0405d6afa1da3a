"""What the operator makes of fired thresholds: status, condition, and what is still to be told."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from almoner_core.api.resource_quota import BudgetAlertReason, QuotaAlert
from almoner_operator import alerts
from almoner_operator.scheduling.model import Account

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
MIDNIGHT = datetime(2026, 3, 5, tzinfo=UTC)
DOLLAR = 1_000_000_000


def account(*percents: int, resets_at: datetime | None = MIDNIGHT) -> Account:
    fired = int(NOW.timestamp()) * 1000 + 123
    return Account(10 * DOLLAR, 8 * DOLLAR, 0, resets_at, tuple((percent, fired) for percent in percents))


def alert(percent: int, *, subject: str | None = None, resets_at: datetime | None = MIDNIGHT) -> QuotaAlert:
    return QuotaAlert(percent=percent, subject=subject, time=NOW, reset_time=resets_at)


def test_what_the_ledger_tells_stands_by_subject_and_percent() -> None:
    found = alerts.standing([], {"bob": account(50), "": account(80, 50), "ann": account()}, NOW)
    assert found == [alert(50), alert(80), alert(50, subject="bob")]


def test_a_restart_tells_nothing_again_and_takes_nothing_back() -> None:
    told = [alert(50), alert(80)]
    # Nothing is known of the account yet; then its balance, without alerts; then the feed.
    for accounts in ({}, {"": account()}, {"": account(50, 80)}):
        found = alerts.standing(told, accounts, NOW)
        assert found == told
        assert alerts.fresh(found, told) == []
    assert alerts.fresh(alerts.standing(told, {"": account(50, 80, 100)}, NOW), told) == [alert(100)]


def test_an_alert_stands_until_its_window_ends() -> None:
    told = [alert(80)]
    assert alerts.standing(told, {"": account()}, MIDNIGHT - timedelta(seconds=1)) == told
    assert alerts.standing(told, {"": account()}, MIDNIGHT) == []
    # The ledger speaks of the next window already; a little apart is the same one.
    assert alerts.standing(told, {"": account(resets_at=MIDNIGHT + timedelta(days=1))}, NOW) == []
    assert alerts.standing(told, {"": account(resets_at=MIDNIGHT + timedelta(seconds=2))}, NOW) == told
    # A budget that never resets.
    for_ever = [alert(80, resets_at=None)]
    assert alerts.standing(for_ever, {"": account(resets_at=None)}, NOW) == for_ever
    assert alerts.standing(for_ever, {"": account()}, NOW) == [], "the period was changed"


def test_the_same_threshold_in_another_window_is_another_firing() -> None:
    later = datetime(2026, 3, 5, 9, tzinfo=UTC)
    second = Account(10 * DOLLAR, 8 * DOLLAR, 0, None, ((80, int(later.timestamp()) * 1000),))
    found = alerts.standing([alert(80)], {"": second}, later)
    assert alerts.fresh(found, [alert(80)]) == found
    assert [each.time for each in found] == [later]


def test_the_condition_names_the_highest() -> None:
    accounts = {"": account(50, 80), "ann": account(100)}
    fired = [alert(50), alert(80), alert(100, subject="ann")]
    accounts["ann"] = replace(accounts["ann"], spent=10 * DOLLAR)
    assert alerts.condition(fired, accounts, [50, 80, 100]) == (
        True,
        BudgetAlertReason.THRESHOLD_REACHED,
        "100 % of the budget of owner ann is reached: 10.00 of 10.00 USD is spent; resets at 2026-03-05T00:00:00Z",
    )
    assert alerts.condition([], accounts, []) is None


@pytest.mark.parametrize(
    ("now", "thresholds", "expected"),
    [
        pytest.param(
            account(50),
            [50, 80],
            (True, "50 % of the budget is reached: 8.00 of 10.00 USD is spent; resets at 2026-03-05T00:00:00Z"),
            id="it stands",
        ),
        pytest.param(
            replace(account(50), spent=9 * DOLLAR),
            [50, 80],
            (True, "50 % of the budget is reached: 9.00 of 10.00 USD is spent; resets at 2026-03-05T00:00:00Z"),
            id="more is spent",
        ),
        pytest.param(
            replace(account(50), limit=12 * DOLLAR),
            [50, 80],
            (True, "50 % of the budget is reached: 8.00 of 12.00 USD is spent; resets at 2026-03-05T00:00:00Z"),
            id="the limit was raised a little",
        ),
        pytest.param(
            replace(account(50), limit=100 * DOLLAR),
            [50, 80],
            (False, "50 % of the budget was reached at 2026-03-04T12:00:00Z; now 8.00 of 100.00 USD is spent"),
            id="the limit was raised far",
        ),
        pytest.param(
            replace(account(50), spent=4 * DOLLAR),
            [50, 80],
            (False, "50 % of the budget was reached at 2026-03-04T12:00:00Z; now 4.00 of 10.00 USD is spent"),
            id="a cost was corrected",
        ),
        pytest.param(
            replace(account(50, 80), limit=12 * DOLLAR),
            [50, 80],
            (True, "50 % of the budget is reached: 8.00 of 12.00 USD is spent; resets at 2026-03-05T00:00:00Z"),
            id="the higher of two is not reached any more",
        ),
        pytest.param(
            replace(account(resets_at=MIDNIGHT + timedelta(days=1)), spent=0),
            [50, 80],
            (False, "less than 50 % of the budget is spent: 0.00 of 10.00 USD"),
            id="another window has begun",
        ),
        pytest.param(
            account(50),
            [90],
            (False, "less than 90 % of the budget is spent: 8.00 of 10.00 USD"),
            id="the threshold is not asked for any more",
        ),
        pytest.param(
            None,
            [50],
            (True, "50 % of the budget is reached; resets at 2026-03-05T00:00:00Z"),
            id="the operator has started, and the ledger has told nothing yet",
        ),
    ],
)
def test_the_condition_states_todays_numbers(
    now: Account | None, thresholds: list[int], expected: tuple[bool, str]
) -> None:
    """50 % had fired at noon."""
    accounts = {"": now} if now is not None else {}
    fired = alerts.standing([alert(50)], accounts, NOW)
    found = alerts.condition(fired, accounts, thresholds)
    assert found is not None
    holds, reason, message = found
    assert (holds, message) == expected
    assert (reason is BudgetAlertReason.THRESHOLD_REACHED) == holds


def test_the_status_is_bounded() -> None:
    many = {f"owner-{number}": account(50) for number in range(alerts.ALERTS_MAX + 10)}
    assert len(alerts.standing([], many, NOW)) == alerts.ALERTS_MAX
