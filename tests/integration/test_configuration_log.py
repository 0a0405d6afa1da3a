"""Who changed which limit, price or provider: from a real API server, through operator and ledger, to the log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from almoner_core.contract import LEDGER_AUDIENCE
from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster, verify_ledger

Json = dict[str, Any]


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """A stack of these tests: its operator is stopped for a while."""
    with Stack(bare_plane) as running:
        yield running
        verify_ledger(running)


class Log:
    """The log as people read it, of one namespace, the oldest first."""

    def __init__(self, stack: Stack, cluster: Cluster) -> None:
        self._url, self._cluster = stack.ledger_url, cluster
        token = stack.token("almoner-operator", audience=LEDGER_AUDIENCE)
        self._headers = {"Authorization": f"Bearer {token}"}

    def read(self, name: str, **of: str) -> list[Json]:
        query = {**(of or {"namespace": self._cluster.namespace}), "name": name}
        answer = httpx.get(f"{self._url}/v1/audit/changes", params=query, headers=self._headers, timeout=30)
        assert answer.status_code == 200, answer.text
        return list(answer.json()["changes"][::-1])

    def wait(self, name: str, count: int, **of: str) -> list[Json]:
        self._cluster.wait(lambda: len(self.read(name, **of)) >= count, f"{count} changes of {name}")
        found = self.read(name, **of)
        assert len(found) == count, found
        return found


@pytest.fixture
def log(stack: Stack, cluster: Cluster) -> Log:
    return Log(stack, cluster)


def write(cluster: Cluster, kind: str, name: str, spec: Json, manager: str) -> None:
    """Change a spec as a client that calls itself so."""
    cluster.custom.patch_namespaced_custom_object(
        GROUP, VERSION, cluster.namespace, PLURALS[kind], name, {"spec": spec}, field_manager=manager
    )


def fields(change: Json) -> dict[str, tuple[Any, Any]]:
    return {each["path"]: (each["before"], each["after"]) for each in change["fields"]}


def whose(change: Json) -> list[str]:
    return [each["name"] for each in change["managers"]]


def test_limits_prices_and_providers_are_logged_with_who_from_what_to_what(cluster: Cluster, log: Log) -> None:
    cluster.quota("team", budget={"amount": "5.00", "period": "Monthly"})
    write(cluster, "ResourceQuota", "team", {"budget": {"amount": "500.00"}}, "somebody")
    created, changed = log.wait("team", 2)
    assert (created["action"], changed["action"]) == ("created", "changed")
    assert fields(created)["budget.amount"] == (None, '"5.00"')
    assert (fields(changed), whose(changed)) == ({"budget.amount": ('"5.00"', '"500.00"')}, ["somebody"])
    assert (changed["kind"], changed["generation"]) == ("ResourceQuota", 2)
    assert changed["changed_unix_ms"] <= changed["seen_unix_ms"] + 2000
    cluster.provider("models")
    log.wait("models", 1)
    price = [{"model": "small", "inputPerMillion": "0", "outputPerMillion": "0"}]
    write(cluster, "ModelProvider", "models", {"prices": price}, "cheat")
    _, cheaper = log.wait("models", 2)
    assert fields(cheaper) == {
        "prices[0].inputPerMillion": ('"1.00"', '"0"'),
        "prices[0].outputPerMillion": ('"2.00"', '"0"'),
    }
    assert whose(cheaper) == ["cheat"]
    cluster.create("ToolProvider", "search", {"type": "Chroma", "prices": [{"tool": "vector_query", "perCall": "0"}]})
    log.wait("search", 1)
    cluster.delete("ToolProvider", "search")
    assert [each["action"] for each in log.wait("search", 2)] == ["created", "deleted"]


def test_providers_of_the_cluster_are_logged_too(cluster: Cluster, log: Log) -> None:
    kind, plural, name = "ClusterModelProvider", "clustermodelproviders", f"whole-{cluster.namespace}"
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": name}}
    spec: Json = {"type": "OpenAICompatible", "baseURL": "http://127.0.0.1:9/v1", "models": [{"name": "small"}]}
    spec["allow"] = {"namespaces": [cluster.namespace]}
    cluster.custom.create_cluster_custom_object(GROUP, VERSION, plural, {**body, "spec": spec})
    log.wait(name, 1, kind=kind)
    cluster.custom.delete_cluster_custom_object(GROUP, VERSION, plural, name)
    created, deleted = log.wait(name, 2, kind=kind)
    assert fields(created)["models[0].name"] == (None, '"small"')
    assert (created["namespace"], deleted["action"]) == ("", "deleted")


def test_what_changed_while_no_operator_lived_is_found_by_the_next(cluster: Cluster, stack: Stack, log: Log) -> None:
    for name in ("kept", "raised", "removed"):
        cluster.quota(name, budget={"amount": "1.00", "period": "Monthly"})
        log.wait(name, 1)
    stack.stop_operator()
    write(cluster, "ResourceQuota", "raised", {"budget": {"amount": "2.00"}}, "first")
    write(cluster, "ResourceQuota", "raised", {"budget": {"amount": "3.00"}}, "second")
    cluster.delete("ResourceQuota", "removed")
    cluster.create("ResourceQuota", "new", {"budget": {"amount": "9.00", "period": "Daily"}})
    stack.start_operator()
    _, raised = log.wait("raised", 2)
    assert fields(raised) == {"budget.amount": ('"1.00"', '"3.00"')}
    assert (whose(raised), raised["generation"]) == (["second"], 3)
    assert log.wait("removed", 2)[1]["action"] == "deleted"
    assert log.wait("new", 1)[0]["action"] == "created"
    assert len(log.read("kept")) == 1


def test_a_change_while_the_ledger_was_away_is_logged_when_it_is_back(cluster: Cluster, stack: Stack, log: Log) -> None:
    cluster.quota("team", budget={"amount": "1.00", "period": "Monthly"})
    log.wait("team", 1)
    stack.kill_ledger()
    write(cluster, "ResourceQuota", "team", {"budget": {"amount": "4.00"}}, "somebody")
    stack.start_ledger()
    _, changed = log.wait("team", 2)
    assert fields(changed) == {"budget.amount": ('"1.00"', '"4.00"')}
