"""The operator killed between any two steps: what the next one finds is finished once, and nothing is held for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from almoner_operator import failpoints
from tests.support.cluster import Cluster, open_allotments, verify_ledger


@pytest.fixture
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """A stack of each test's own: it is killed in it."""
    with Stack(bare_plane, operator_args=["--lost-seconds", "5", "--lease-seconds", "4"]) as running:
        yield running


def attempts_by_pod(cluster: Cluster) -> Counter[tuple[str, str]]:
    """How many pods there are for each attempt of each execution."""
    return Counter(
        (pod.metadata.labels["almoner.dev/execution-uid"], pod.metadata.labels["almoner.dev/attempt"])
        for pod in cluster.pods()
    )


def left_open(cluster: Cluster, stack: Stack) -> list[str]:
    return [each["allotment"] for each in open_allotments(stack) if each["execution"]["namespace"] == cluster.namespace]


@pytest.mark.parametrize("point", failpoints.ALL)
def test_a_kill_at_every_point_is_repaired(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, point: str
) -> None:
    cluster.world()
    cluster.quota("team", hard={"executions": 2}, budget={"amount": "1.00"})
    stack.stop_operator()
    names = [f"run-{number}" for number in range(4)]
    for name in names:
        cluster.execution(name)
    before = len(simulated.started)
    stack.start_operator(env={failpoints.ENV_FAILPOINT: point}, wait=False)
    assert stack.wait_operator_died() == -9
    stack.start_operator()
    for name in names:
        status = cluster.wait_phase(name, "Succeeded")
        assert sum(each["outcome"] == "Succeeded" for each in status["attempts"]) == 1
        assert not any(each["outcome"] == "Failed" for each in status["attempts"])
    counted = attempts_by_pod(cluster)
    assert set(counted.values()) == {1}, "more than one pod for an attempt"
    ran = Counter(name for name in simulated.started[before:] if name.startswith(f"{cluster.namespace}/"))
    assert len(ran) == len(names), f"each ran in one pod: {ran}"
    assert set(ran.values()) == {1}, f"a pod was started twice: {ran}"
    cluster.wait(lambda: not left_open(cluster, stack), "no allotment to be open")
    cluster.wait(
        lambda: all(each["reserved"] == "0.00" for each in cluster.status("team", "ResourceQuota")["limits"][-1:]),
        "nothing to be reserved",
    )
    verify_ledger(stack)


def test_deleted_while_the_operator_was_down_is_given_back(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard={"executions": 1}, budget={"amount": "1.00"})
    cluster.execution("one", agent="forever")
    cluster.wait_phase("one", "Running")
    stack.kill_operator()
    cluster.delete("Execution", "one")
    cluster.wait(lambda: not cluster.exists("Execution", "one"), "its deletion: no finalizer holds it")
    stack.start_operator()
    cluster.execution("two")
    cluster.wait_phase("two", "Succeeded", seconds=30)
    cluster.wait(lambda: not left_open(cluster, stack), "no allotment to be open")
    verify_ledger(stack)


def test_what_ended_while_the_operator_was_down_is_settled(cluster: Cluster, stack: Stack) -> None:
    cluster.provider()
    cluster.agent("run-1000")
    cluster.wait_ready("Agent", "run-1000")
    cluster.execution("one", agent="run-1000")
    cluster.wait_phase("one", "Running")
    stack.kill_operator()
    cluster.wait(lambda: cluster.pods_of("one")[0].status.phase == "Succeeded", "its pod to end")
    cluster.patch("Execution", "one", {"cancel": True})
    stack.start_operator()
    status = cluster.wait_phase("one", "Succeeded")
    assert len(status["attempts"]) == 1, "what was done is done: a late cancel does not undo it"


def test_suspended_while_the_operator_was_down_stops(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever")
    cluster.wait_phase("one", "Running")
    stack.kill_operator()
    cluster.patch("Execution", "one", {"suspend": True})
    stack.start_operator()
    cluster.wait(lambda: cluster.condition("Execution", "one", "Suspended").get("status") == "True", "it is suspended")
    assert cluster.status("one")["attempts"][0]["outcome"] == "Suspended"


def test_the_ledger_away_admits_nothing_and_loses_nothing(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    stack.kill_ledger()
    cluster.execution("one")
    cluster.wait_reason("one", "LedgerUnavailable", seconds=40)
    assert not cluster.pods()
    stack.start_ledger()
    cluster.wait_phase("one", "Succeeded", seconds=40)
    verify_ledger(stack)


@pytest.mark.parametrize("point", [failpoints.AFTER_STATUS, failpoints.AFTER_POD])
def test_a_pod_that_the_ledger_does_not_know_is_made_known(cluster: Cluster, stack: Stack, point: str) -> None:
    cluster.world()
    cluster.agent("unstarted")
    cluster.wait_ready("Agent", "unstarted")
    stack.stop_operator()
    cluster.execution("one", agent="unstarted")
    stack.start_operator(env={failpoints.ENV_FAILPOINT: point}, wait=False)
    stack.wait_operator_died()
    stack.start_operator()

    def bound() -> bool:
        views = [each for each in open_allotments(stack) if each["execution"]["namespace"] == cluster.namespace]
        pods = cluster.pods_of("one")
        uids = [pod.metadata.uid for pod in pods]
        return len(uids) == 1 and sorted((each["purpose"], each["pod_uid"]) for each in views) == [
            ("compute", uids[0]),
            ("run", uids[0]),
        ]

    cluster.wait(bound, "the one pod to be bound to the one allotment and to the one of its machine time")


def test_what_a_cluster_adds_to_a_pod_is_judged_by_whoever_finishes_its_admission(
    cluster: Cluster, stack: Stack
) -> None:
    """An operator that dies between a pod's creation and the look at what it asks for leaves that look to the next."""
    cluster.provider()
    cluster.agent("unstarted")
    cluster.wait_ready("Agent", "unstarted")
    amounts = {"cpu": "1", "memory": "1Gi"}
    limits = [{"type": "Container", "defaultRequest": amounts, "default": amounts}]
    cluster.core.create_namespaced_limit_range(
        cluster.namespace, {"metadata": {"name": "d"}, "spec": {"limits": limits}}
    )
    cluster.quota("team", hard={"cpu": "1500m"})
    stack.stop_operator()
    names = ["one", "two"]
    for name in names:
        cluster.execution(name, agent="unstarted")
    stack.start_operator(env={failpoints.ENV_FAILPOINT: failpoints.AFTER_POD}, wait=False)
    stack.wait_operator_died()
    stack.start_operator()

    def settled() -> bool:
        phases = [cluster.status(name).get("phase") for name in names]
        reasons = [cluster.condition("Execution", name, "Admitted").get("reason") for name in names]
        return phases.count("Admitted") == 1 and reasons.count("WaitingForQuota") == 1 and len(cluster.pods()) == 1

    cluster.wait(settled, "one to be admitted, and one to wait without a pod")
    (admitted,) = [name for name in names if cluster.status(name)["phase"] == "Admitted"]
    cluster.wait(
        lambda: cluster.status(admitted)["attempts"][0]["admission"]["cpuMilli"] == 1050,
        "the agent's default and the meter's own to be in the status, for whoever takes over",
    )


def test_a_stolen_lease_ends_the_process_at_once(cluster: Cluster, stack: Stack) -> None:
    from kubernetes import client

    leases = client.CoordinationV1Api(cluster.api)
    leases.patch_namespaced_lease("almoner-operator", "almoner-system", {"spec": {"holderIdentity": "a-thief"}})
    assert stack.wait_operator_died(15) == 3
    assert "leadership lost" in stack.operator_log.read_text()


def test_a_second_operator_stands_by_and_takes_over(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    first = stack.operator
    assert first is not None
    stack.start_operator(beside=True)
    assert stack.operator is not None
    assert not stack.operator_state().get("leader")
    cluster.execution("one")
    cluster.wait_phase("one", "Succeeded")
    first.kill()
    stack.wait_operator()
    cluster.execution("two")
    cluster.wait_phase("two", "Succeeded")
    verify_ledger(stack)


def test_a_clean_stop_ends_well_and_hands_over_at_once(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    assert stack.stop_operator() == 0
    cluster.execution("one")
    stack.start_operator()
    cluster.wait_phase("one", "Succeeded")
