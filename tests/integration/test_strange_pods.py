"""Pods that are not the attempt's, on a real API server: whatever they say, no run ends, starts or pays by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes.client import ApiException

from almoner_core.identity import pod_name
from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from almoner_operator import failpoints
from tests.support.cluster import Cluster, Json, open_allotments, verify_ledger

RICH = "1000.00"


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """As the other tests', but machine time is charged at once: a second of 50 cores would show."""
    args = ["--start-deadline-seconds", "30", "--lost-seconds", "5", "--lease-seconds", "4"]
    args += ["--compute-price-cpu-hour", "3600", "--compute-interval-seconds", "1"]
    with Stack(bare_plane, operator_args=args) as running:
        yield running


@pytest.fixture
def other(bare_plane: ControlPlane) -> Iterator[Cluster]:
    """Another team's namespace."""
    made = Cluster(bare_plane)
    yield made
    made.close()


def pretender(execution: Json, name: str, *, attempt: int = 1, owned: bool = True, agent: str = "done") -> Json:
    """A pod that says it is an Execution's; the simulated node ends it at once, or lets it run (agent "forever")."""
    meta = execution["metadata"]
    owner = {
        "apiVersion": "almoner.dev/v1alpha1",
        "kind": "Execution",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
    }
    return {
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/component": "runner",
                "almoner.dev/kind": "Execution",
                "almoner.dev/execution-uid": meta["uid"],
                "almoner.dev/attempt": str(attempt),
                "almoner.dev/agent": agent,
            },
            "ownerReferences": [owner] if owned else [],
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "initContainers": [{"name": "meter", "image": "none", "restartPolicy": "Always"}],
            "containers": [{"name": "agent", "image": "none", "resources": {"requests": {"cpu": "50"}}}],
        },
    }


def make(cluster: Cluster, body: Json) -> str:
    """Create a pod; gives its uid."""
    return str(cluster.core.create_namespaced_pod(cluster.namespace, body).metadata.uid)


def ended(cluster: Cluster, name: str) -> bool:
    """Whether it has ended, or was collected: its owner is in no other namespace."""
    try:
        return bool(cluster.core.read_namespaced_pod(name, cluster.namespace).status.phase == "Succeeded")
    except ApiException as error:
        if error.status != 404:
            raise
        return True


def told(cluster: Cluster) -> list[Json]:
    """Events about strange pods in the namespace."""
    found = cluster.core.list_namespaced_event(cluster.namespace).items
    return [each for each in found if each.reason == "StrangePod"]


@pytest.mark.parametrize("where", ["another namespace", "another name", "a forged owner", "another attempt"])
def test_a_strangers_pod_neither_ends_nor_starts_nor_bills_a_run(
    cluster: Cluster, other: Cluster, stack: Stack, where: str
) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    execution = cluster.execution("victim", agent="forever", max_cost=RICH)
    uid = execution["metadata"]["uid"]
    status = cluster.wait_phase("victim", "Running")
    place = other if where == "another namespace" else cluster
    attempt = 2 if where == "another attempt" else 1
    name = pod_name("victim", uid, attempt) if where in ("another namespace", "another attempt") else "pretends"
    if where == "a forged owner":
        name = pod_name("x", uid, 1)
    make(place, pretender(execution, name, attempt=attempt, owned=where != "another name"))
    cluster.wait(lambda: ended(place, name), "the stranger to have ended")
    (event,) = cluster.wait(lambda: told(cluster), "an event")
    assert f"{place.namespace}/{name}" in event.note if hasattr(event, "note") else event.message
    make(place, pretender(execution, f"{name}-b", attempt=attempt))
    # What the stranger did is seen by now: a run that is looked at anew does not mind it.
    cluster.patch("Execution", "victim", {"priority": 7})
    cluster.wait(lambda: (cluster.status("victim").get("usage") or {}).get("cost", "0.00") != "0.00", "time charged")
    now = cluster.status("victim")
    assert now["phase"] == "Running"
    assert [each["podUID"] for each in now["attempts"]] == [status["attempts"][0]["podUID"]]
    if place is cluster:
        assert place.core.read_namespaced_pod(name, place.namespace).metadata.deletion_timestamp is None
    cluster.patch("Execution", "victim", {"cancel": True})
    last = cluster.wait_phase("victim", "Cancelled")
    assert float(last["usage"]["cost"]) < 50, "not 50 cores"
    assert last["usage"]["compute"]["cpuMilliSeconds"] > 0
    assert len(told(cluster)) == 1, "told once"
    verify_ledger(stack)


def test_a_pod_of_the_attempts_own_name_that_somebody_made_before_is_not_adopted(
    cluster: Cluster, stack: Stack
) -> None:
    cluster.world()
    cluster.quota("team", hard={"executions": 1})
    execution = cluster.execution("one", suspend=True, max_cost=RICH)
    cluster.wait_reason("one", "Suspended")
    squatted = pod_name("one", execution["metadata"]["uid"], 1)
    squatter = make(cluster, pretender(execution, squatted))
    cluster.wait(lambda: ended(cluster, squatted), "the squatter to have ended")
    cluster.patch("Execution", "one", {"suspend": False})
    condition = cluster.wait_reason("one", "PodNameTaken")
    assert squatted in condition["message"]
    assert not [each for each in open_allotments(stack) if each["execution"]["name"] == "one"]
    status = cluster.wait_phase("one", "Succeeded")
    (attempt,) = status["attempts"]
    assert attempt["number"] == 2, "under another name, which the operator had first"
    assert attempt["podUID"] != squatter
    assert cluster.core.read_namespaced_pod(squatted, cluster.namespace).metadata.uid == squatter


def test_a_pod_that_takes_the_place_of_a_bound_one_is_not_the_attempts(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    execution = cluster.execution("one", agent="forever", max_cost=RICH)
    status = cluster.wait_phase("one", "Running")
    name = status["attempts"][0]["pod"]
    cluster.core.delete_namespaced_pod(name, cluster.namespace, grace_period_seconds=0)

    def taken() -> bool:
        try:
            make(cluster, pretender(execution, name))
        except ApiException as error:
            if error.status != 409:
                raise
            return False
        return True

    cluster.wait(taken, "the place to be free")
    last = cluster.wait_phase("one", "Failed")
    assert last["attempts"][0]["reason"] == "NodeLost", "not the success that the other pod speaks of"


def test_a_crash_between_creation_and_binding_does_not_make_a_stranger_of_the_own_pod(
    cluster: Cluster, stack: Stack
) -> None:
    cluster.world()
    stack.stop_operator()
    cluster.execution("one", max_cost=RICH)
    stack.start_operator(env={failpoints.ENV_FAILPOINT: failpoints.AFTER_POD}, wait=False)
    assert stack.wait_operator_died() == -9
    (pod,) = cluster.pods_of("one")
    stack.start_operator()
    (attempt,) = cluster.wait_phase("one", "Succeeded")["attempts"]
    assert (attempt["number"], attempt["podUID"]) == (1, pod.metadata.uid)
    assert not told(cluster)


def test_a_stranger_that_came_while_no_operator_was_there_is_not_adopted_after_a_crash(
    cluster: Cluster, stack: Stack
) -> None:
    cluster.world()
    stack.stop_operator()
    execution = cluster.execution("one", max_cost=RICH)
    stack.start_operator(env={failpoints.ENV_FAILPOINT: failpoints.AFTER_STATUS}, wait=False)
    assert stack.wait_operator_died() == -9
    name = cluster.status("one")["attempts"][0]["pod"]
    squatter = make(cluster, pretender(execution, name))
    cluster.wait(lambda: ended(cluster, name), "the squatter to have ended")
    stack.start_operator()
    status = cluster.wait_phase("one", "Succeeded")
    assert squatter not in [each.get("podUID") for each in status["attempts"]]
    assert status["attempts"][-1]["number"] == 2
    verify_ledger(stack)
