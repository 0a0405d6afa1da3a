"""Pods that are not as the operator left them: clocks of nodes, injected containers, what a cluster refuses or adds."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, open_allotments

Json = dict[str, Any]
RESOURCES = {"cpu": "100m", "memory": "64Mi"}


def seconds(attempt: Json) -> float:
    """How long an attempt ran, as its status has it."""
    began, ended = (datetime.fromisoformat(attempt[name]) for name in ("startTime", "finishTime"))
    return (ended - began).total_seconds()


@pytest.mark.parametrize("agent", ["behind-300", "ahead-600"])
def test_a_timeout_is_counted_by_the_operators_clock_not_the_nodes(cluster: Cluster, agent: str) -> None:
    cluster.provider()
    cluster.agent(agent)
    cluster.wait_ready("Agent", agent)
    cluster.execution("one", agent=agent, timeoutSeconds=8)
    cluster.wait_phase("one", "Running")
    status = cluster.wait_phase("one", "Failed")
    (attempt,) = status["attempts"]
    assert attempt["reason"] == "Timeout"
    ran = datetime.fromisoformat(status["completionTime"]) - datetime.fromisoformat(attempt["admittedTime"])
    assert ran.total_seconds() >= 7, "not before its time, but for the fractions of seconds that statuses have not"
    assert 0 <= seconds(attempt) < 60, "minutes of a clock that is off are not minutes of running"


@pytest.mark.parametrize("timeout", [None, 300], ids=["no timeout", "a timeout"])
def test_an_injected_container_does_not_keep_a_finished_agent_running(
    cluster: Cluster, stack: Stack, timeout: int | None
) -> None:
    cluster.provider()
    cluster.agent("injected")
    cluster.wait_ready("Agent", "injected")
    cluster.execution("one", agent="injected", timeoutSeconds=timeout)
    (pod,) = cluster.wait(lambda: cluster.pods_of("one"), "its pod")
    status = cluster.wait_phase("one", "Succeeded", "Failed")
    assert status["phase"] == "Succeeded", status
    (attempt,) = status["attempts"]
    assert attempt["exitCode"] == 0
    assert "reason" not in attempt
    grace = pod.spec.termination_grace_period_seconds
    ended = datetime.fromisoformat(attempt["finishTime"])
    waited = datetime.fromisoformat(status["completionTime"]) - ended
    assert waited.total_seconds() >= 4, "its meter had the time that it is given to settle"
    assert waited.total_seconds() < grace + 20
    assert not [each for each in open_allotments(stack) if each["execution"]["namespace"] == cluster.namespace]


def test_a_cancel_that_comes_after_the_agents_end_changes_nothing(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("injected")
    cluster.wait_ready("Agent", "injected")
    cluster.execution("one", agent="injected")

    def agent_ended() -> bool:
        states = [each.state for pod in cluster.pods_of("one") for each in pod.status.container_statuses or []]
        return any(state.terminated is not None for state in states)

    cluster.wait(agent_ended, "the agent to have ended")
    cluster.patch("Execution", "one", {"cancel": True})
    assert cluster.wait_phase("one", "Succeeded", "Cancelled", "Failed")["phase"] == "Succeeded"


def core_quota(cluster: Cluster, **hard: str) -> None:
    """A ResourceQuota of Kubernetes' own, in force."""
    body = {"metadata": {"name": "compute"}, "spec": {"hard": hard}}
    cluster.core.create_namespaced_resource_quota(cluster.namespace, body)
    cluster.wait(
        lambda: cluster.core.read_namespaced_resource_quota("compute", cluster.namespace).status.hard == hard,
        "the quota to be in force",
    )


def test_a_pod_that_a_core_quota_refuses_by_its_shape_says_which_setting_it_lacks(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("forever", runner={"resources": {"requests": RESOURCES, "limits": RESOURCES}})
    cluster.wait_ready("Agent", "forever")
    core_quota(cluster, **{"limits.cpu": "10", "limits.memory": "20Gi"})
    cluster.execution("one", agent="forever")
    condition = cluster.wait_reason("one", "PodRefused")
    assert "must specify limits.cpu for: meter" in condition["message"]
    assert "--meter-cpu-limit (ALMONER_METER_CPU_LIMIT)" in condition["message"]
    assert cluster.pods_of("one") == []


def test_a_pod_that_does_not_fit_a_core_quota_waits_for_it(cluster: Cluster) -> None:
    cluster.world()
    core_quota(cluster, pods="0")
    cluster.execution("one")
    assert "exceeded quota" in cluster.wait_reason("one", "WaitingForQuota")["message"]


def test_defaults_of_a_limit_range_are_counted_so_one_starts_and_the_others_wait(cluster: Cluster) -> None:
    cluster.provider()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    amounts = {"cpu": "1", "memory": "1Gi"}
    limits = [{"type": "Container", "defaultRequest": amounts, "default": amounts}]
    cluster.core.create_namespaced_limit_range(
        cluster.namespace, {"metadata": {"name": "d"}, "spec": {"limits": limits}}
    )
    cluster.quota("team", hard={"cpu": "2"})
    names = [f"run-{number}" for number in range(10)]
    for name in names:
        cluster.execution(name, agent="forever")

    def settled() -> bool:
        phases = [cluster.status(name).get("phase") for name in names]
        reasons = [cluster.condition("Execution", name, "Admitted").get("reason") for name in names]
        return phases.count("Running") == 1 and reasons.count("WaitingForQuota") == 9

    cluster.wait(settled, "one to run and nine to wait")
    (running,) = [name for name in names if cluster.status(name)["phase"] == "Running"]
    cluster.wait(lambda: len(cluster.pods()) == 1, "no other pod to be left")
    (attempt,) = cluster.status(running)["attempts"]
    assert attempt["admission"]["cpuMilli"] == 1050, "the agent's default and the meter's own"
    waiting = next(name for name in names if name != running)
    assert "ResourceQuota team" in cluster.condition("Execution", waiting, "Admitted")["message"]
    cluster.patch("Execution", running, {"cancel": True})
    cluster.wait_phase(running, "Cancelled")
    cluster.wait(settled_after(cluster, [name for name in names if name != running]), "the next one alone to run")


def settled_after(cluster: Cluster, names: list[str]) -> Any:
    """Whether one of these runs, and no other has a pod."""
    return lambda: [cluster.status(name).get("phase") for name in names].count("Running") == 1 == len(cluster.pods())
