"""Budgets by the calendar, several at once, and what waits for them: a real API server and a ledger ahead of its time.

The ledger's clock is set to just before the end of an hour, a day, a week and a month at once, in a time zone that is
a quarter of an hour off.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, verify_ledger
from tests.support.polling import until
from tests.support.spending import Spender

ZONE = "Asia/Kathmandu"
# Monday, the first of February: an hour, a day, a week and a month begin.
BOUNDARY = int(dt.datetime(2027, 2, 1, tzinfo=ZoneInfo(ZONE)).timestamp())
PERIODS = ("Hourly", "Daily", "Weekly", "Monthly")
CENT = 10_000_000


class Ahead:
    """The ledger's clock, set by tests."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds: int) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(self.file)

    def set_before(self, seconds: int) -> None:
        """So many seconds before the boundary."""
        self.set(BOUNDARY - seconds - int(time.time()))

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 + int(self.file.read_text()) * 1000


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Ahead:
    return Ahead(tmp_path_factory.mktemp("clock") / "ahead")


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode, ahead: Ahead) -> Iterator[Stack]:
    with Stack(bare_plane, ledger_args=["--clock-ahead-file", str(ahead.file)]) as running:
        yield running


@pytest.fixture
def spender(stack: Stack, ahead: Ahead) -> Iterator[Spender]:
    with Spender(stack.database, ahead) as made:
        yield made


def money(cluster: Cluster, quota: str) -> dict[str, Any]:
    limits = cluster.status(quota, "ResourceQuota").get("limits") or []
    return next((each for each in limits if each["name"] == "budget"), {})


def wait_used(cluster: Cluster, quota: str, used: str) -> None:
    cluster.wait(lambda: money(cluster, quota).get("used") == used, f"{used} USD used of {quota}")


def alert_is_over(cluster: Cluster, quota: str) -> bool:
    return bool(cluster.condition("ResourceQuota", quota, "BudgetAlert")["status"] == "False")


def is_not_named(cluster: Cluster, quota: str) -> bool:
    return f"ResourceQuota {quota} " not in cluster.condition("Execution", "one", "Admitted").get("message", "")


def test_every_window_ends_on_the_calendar_and_what_waited_starts_then(
    cluster: Cluster, stack: Stack, spender: Spender, ahead: Ahead
) -> None:
    ahead.set_before(1800)  # time enough to make all this, on any machine
    cluster.world()
    for period in PERIODS:
        cluster.quota(
            period.lower(),
            scope={"owners": [period]},
            budget={"amount": "1.00", "period": period, "timeZone": ZONE, "alertThresholdsPercent": [90]},
        )
        spender.spend(cluster.namespace, [period.lower()], 100 * CENT)
        cluster.execution(f"waits-{period.lower()}", owner=period, max_cost=None)
    for period in PERIODS:
        wait_used(cluster, period.lower(), "1.00")
        message = cluster.wait_reason(f"waits-{period.lower()}", "BudgetExhausted")["message"]
        assert f"ResourceQuota {period.lower()} has no room: 1.00 spent and 0.00 reserved of 1.00 USD" in message
        assert "resets at" in message
        assert cluster.condition("ResourceQuota", period.lower(), "BudgetAlert")["status"] == "True"
    assert not cluster.pods()
    # The operator learns of the jump by the next thing that is spent; nothing but time passes after that.
    ahead.set_before(8)
    for period in PERIODS:
        cluster.patch("ResourceQuota", period.lower(), {"hard": {"pending": 10}})
    for quota in map(str.lower, PERIODS):
        cluster.wait_phase(f"waits-{quota}", "Succeeded")
        until(partial(alert_is_over, cluster, quota), 60, "the alert to be over")
        assert not cluster.status(quota, "ResourceQuota").get("alerts")
        wait_used(cluster, quota, "0.00")
        # As the operator sees it, whose own clock is not ahead.
        assert dt.datetime.fromisoformat(money(cluster, quota)["resetTime"]) > dt.datetime.now(dt.UTC)
    verify_ledger(stack)


def test_the_tightest_of_several_quotas_refuses_with_its_numbers(cluster: Cluster, spender: Spender) -> None:
    cluster.world()
    cluster.quota("namespace", budget={"amount": "5.00"})
    cluster.quota("owner", scope={"owners": ["ann"]}, budget={"amount": "3.00", "period": "Daily"})
    cluster.quota("agent", scope={"agentTypes": ["Simulation"]}, budget={"amount": "4.00"})
    names = ["namespace", "owner", "agent"]
    spender.spend(cluster.namespace, names, 299 * CENT)
    wait_used(cluster, "owner", "2.99")
    spender.spend(cluster.namespace, ["namespace", "agent"], 101 * CENT)
    spender.spend(cluster.namespace, ["owner"], CENT)
    wait_used(cluster, "agent", "4.00")
    wait_used(cluster, "owner", "3.00")
    cluster.execution("one", owner="ann", max_cost=None)
    until(lambda: cluster.condition("Execution", "one", "Admitted").get("reason") == "BudgetExhausted", 60, "the wait")
    # Each that has no room in turn, until all have.
    seen = set()
    for _ in names:
        message = cluster.condition("Execution", "one", "Admitted")["message"]
        tight = next((name for name in names if f"ResourceQuota {name} " in message), None)
        if tight is None:
            break
        seen.add(tight)
        assert "spent and 0.00 reserved of" in message
        assert ("resets at" in message) == (tight == "owner")
        cluster.patch("ResourceQuota", tight, {"budget": {"amount": "9.00"}})
        until(partial(is_not_named, cluster, tight), 60, f"{tight} to have room")
    assert seen == {"owner", "agent"}
    cluster.wait_phase("one", "Succeeded")


def test_reject_ends_what_does_not_fit_and_says_why(cluster: Cluster, spender: Spender) -> None:
    cluster.world()
    cluster.quota("roomy", budget={"amount": "5.00"})
    cluster.quota("strict", budget={"amount": "1.00", "period": "Daily"}, onLimit={"action": "Reject"})
    spender.spend(cluster.namespace, ["roomy", "strict"], 100 * CENT)
    wait_used(cluster, "strict", "1.00")
    cluster.execution("one", max_cost=None)
    cluster.wait_phase("one", "Failed")
    failed = cluster.condition("Execution", "one", "Failed")
    assert failed["reason"] == "Rejected"
    for words in ("1.00 spent and 0.00 reserved of 1.00 USD", "resets at", "ResourceQuota strict rejects"):
        assert words in failed["message"]
    assert not cluster.pods()


def test_wait_has_an_end_where_the_quota_gives_it_one(cluster: Cluster, spender: Spender) -> None:
    cluster.world()
    cluster.quota("patient", budget={"amount": "1.00"}, onLimit={"action": "Wait", "timeoutSeconds": 3})
    spender.spend(cluster.namespace, ["patient"], 100 * CENT)
    wait_used(cluster, "patient", "1.00")
    cluster.execution("one", max_cost=None)
    cluster.wait_reason("one", "BudgetExhausted")
    cluster.wait_phase("one", "Failed")
    failed = cluster.condition("Execution", "one", "Failed")
    assert failed["reason"] == "Rejected"
    assert "it waited longer than ResourceQuota patient allows (3 s)" in failed["message"]


def test_an_empty_quota_blocks_nobody(cluster: Cluster) -> None:
    """kelos 1329: an empty budget spec blocked a whole namespace."""
    from kubernetes.client import ApiException

    cluster.world()
    cluster.quota("empty")
    cluster.quota("empty-parts", hard={}, onLimit={})
    cluster.execution("one", max_cost="0.10")
    cluster.wait_phase("one", "Succeeded")
    # A budget without an amount is no budget of nothing: it is refused when it is written.
    with pytest.raises(ApiException) as refusal:
        cluster.create("ResourceQuota", "no-amount", {"budget": {}})
    assert refusal.value.status == 422
    assert "spec.budget.amount" in str(refusal.value.body)
