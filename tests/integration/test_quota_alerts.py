"""Alerts from the ledger to people: status, condition, event and metric of a ResourceQuota, on a real API server."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, verify_ledger
from tests.support.spending import Spender

CENT = 10_000_000
BUDGET = {"amount": "1.00", "alertThresholdsPercent": [50, 80, 100]}


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """A stack of these tests: its operator is started anew."""
    with Stack(bare_plane) as running:
        yield running


@pytest.fixture
def spender(stack: Stack) -> Iterator[Spender]:
    with Spender(stack.database) as made:
        yield made


def told(cluster: Cluster, name: str) -> list[str]:
    """The notes of a quota's alert events."""
    events = client.EventsV1Api(cluster.api).list_namespaced_event(cluster.namespace).items
    return sorted(each.note for each in events if each.reason == "BudgetAlert" and each.regarding.name == name)


def percents(cluster: Cluster, name: str) -> list[tuple[str | None, int]]:
    alerts = cluster.status(name, "ResourceQuota").get("alerts") or []
    return [(each.get("subject"), each["percent"]) for each in alerts]


def wait_fired(cluster: Cluster, name: str, *wanted: tuple[str | None, int]) -> None:
    cluster.wait(lambda: percents(cluster, name) == list(wanted), f"{wanted} to have fired")


def counted(stack: Stack, cluster: Cluster, quota: str) -> dict[str, float]:
    """The operator's counter, by percent."""
    with urllib.request.urlopen(f"{stack.health_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    start = f'almoner_quota_alerts_total{{namespace="{cluster.namespace}",percent="'
    found = {}
    for line in lines:
        if line.startswith(start) and f'quota="{quota}"' in line:
            found[line.removeprefix(start).partition('"')[0]] = float(line.rpartition(" ")[2])
    return found


def condition(cluster: Cluster, name: str) -> tuple[Any, Any]:
    found = cluster.condition("ResourceQuota", name, "BudgetAlert")
    return found.get("status"), found.get("reason")


def test_a_threshold_is_told_once_also_by_the_next_operator(cluster: Cluster, stack: Stack, spender: Spender) -> None:
    cluster.quota("team", budget=BUDGET)
    cluster.quota("silent", budget={"amount": "1.00"})
    cluster.wait(lambda: condition(cluster, "team") == ("False", "BelowThresholds"), "the condition")
    spender.spend(cluster.namespace, ["team", "silent"], 60 * CENT)
    wait_fired(cluster, "team", (None, 50))
    assert condition(cluster, "team") == ("True", "ThresholdReached")
    message = cluster.condition("ResourceQuota", "team", "BudgetAlert")["message"]
    assert message == "50 % of the budget is reached: 0.60 of 1.00 USD is spent"
    cluster.wait(lambda: told(cluster, "team") == [message], "the event")
    assert counted(stack, cluster, "team") == {"50": 1.0}
    # A limit that is raised, and lowered to what fires the next one.
    cluster.patch("ResourceQuota", "team", {"budget": {"amount": "100.00"}})
    cluster.wait(lambda: condition(cluster, "team") == ("False", "BelowThresholds"), "the condition to say what is so")
    said = cluster.condition("ResourceQuota", "team", "BudgetAlert")["message"]
    assert said.startswith("50 % of the budget was reached at 20")
    assert said.endswith("; now 0.60 of 100.00 USD is spent")
    cluster.patch("ResourceQuota", "team", {"budget": {"amount": "1.00"}})
    cluster.wait_ready("ResourceQuota", "team")
    stack.restart_operator()
    spender.spend(cluster.namespace, ["team"], 20 * CENT)
    wait_fired(cluster, "team", (None, 50), (None, 80))
    cluster.wait(lambda: len(told(cluster, "team")) >= 2, "the second event")
    assert [note.partition(" %")[0] for note in told(cluster, "team")] == ["50", "80"]
    assert counted(stack, cluster, "team") == {"80": 1.0}, "the next operator tells what is new alone"
    assert cluster.condition("ResourceQuota", "team", "BudgetAlert")["message"].startswith("80 %")
    # The kstatus conditions say whether the limits hold, not how much is left.
    assert cluster.condition("ResourceQuota", "team", "Ready")["status"] == "True"
    assert condition(cluster, "silent") == (None, None)
    assert percents(cluster, "silent") == []
    verify_ledger(stack)


def test_a_quota_that_only_watches_alerts(cluster: Cluster, spender: Spender) -> None:
    cluster.quota("watch", budget=BUDGET, enforcement="Monitor")
    spender.spend(cluster.namespace, ["watch"], 300 * CENT)
    wait_fired(cluster, "watch", (None, 50), (None, 80), (None, 100))
    assert cluster.condition("ResourceQuota", "watch", "BudgetAlert")["message"].startswith("100 %")


def test_each_owner_has_alerts_of_its_own(cluster: Cluster, spender: Spender) -> None:
    cluster.world()
    cluster.quota("each", budget=BUDGET, scope={"perOwner": True, "owners": ["ann", "bob"]})
    cluster.wait(
        lambda: {each.get("subject") for each in cluster.status("each", "ResourceQuota")["limits"]} >= {"ann", "bob"},
        "both accounts",
    )
    spender.spend(cluster.namespace, ["each"], 60 * CENT, subject="bob")
    spender.spend(cluster.namespace, ["each"], 90 * CENT, subject="ann")
    wait_fired(cluster, "each", ("ann", 50), ("ann", 80), ("bob", 50))
    cluster.wait(lambda: len(told(cluster, "each")) == 3, "an event each")
    assert [note for note in told(cluster, "each") if "owner bob" in note] == [
        "50 % of the budget of owner bob is reached: 0.60 of 1.00 USD is spent"
    ]
