"""Statuses that somebody else writes: a leader that was dead, a user, a tool. Nothing runs twice, ends stay ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from almoner_dev.controlplane import ControlPlane
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster, Json, verify_ledger


@pytest.fixture(scope="module")
def stack(bare_plane: ControlPlane, simulated: SimulatedNode) -> Iterator[Stack]:
    """A stack of this module's own: its operator is paused and killed in it."""
    with Stack(bare_plane, operator_args=["--lost-seconds", "5", "--lease-seconds", "4"]) as running:
        yield running


def overwrite(cluster: Cluster, name: str, status: Json | None, kind: str = "Execution", **metadata: Any) -> Json:
    """Write a status as whoever may: merged into what is there, or all of it away."""
    made: Json = cluster.custom.patch_namespaced_custom_object_status(
        GROUP, VERSION, cluster.namespace, PLURALS[kind], name, {"metadata": metadata, "status": status}
    )
    return made


def started(simulated: SimulatedNode, cluster: Cluster) -> list[str]:
    """Pods of the namespace that ran, in order."""
    return [name for name in simulated.started if name.startswith(f"{cluster.namespace}/")]


def test_an_end_that_somebody_overwrites_is_written_again(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode
) -> None:
    cluster.world()
    cluster.execution("one")
    before = cluster.wait_phase("one", "Succeeded")
    overwrite(cluster, "one", {"phase": "Running", "completionTime": None})
    after = cluster.wait_phase("one", "Succeeded")
    assert after == before, "all of it"
    overwrite(cluster, "one", None)
    cluster.wait(lambda: cluster.status("one") == before, "all of it again")
    cluster.wait(
        lambda: [
            each
            for each in cluster.core.list_namespaced_event(cluster.namespace).items
            if each.reason == "StatusOverwritten"
        ],
        "an event",
    )
    assert len(started(simulated, cluster)) == 1
    # Somebody who goes on for ever is left alone some time, and nothing runs for it.
    for _ in range(8):
        overwrite(cluster, "one", {"phase": "Running"})
    cluster.execution("next")
    cluster.wait_phase("next", "Succeeded")
    assert len(started(simulated, cluster)) == 2


@pytest.mark.parametrize("gone", [False, True], ids=["its pod is there", "its pod is gone"])
def test_an_end_that_was_overwritten_while_no_operator_looked_is_an_end(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, gone: bool
) -> None:
    cluster.world()
    cluster.execution("one", retry={"limit": 3})
    before = cluster.wait_phase("one", "Succeeded")
    stack.stop_operator()
    overwrite(cluster, "one", {"phase": "Running", "completionTime": None})
    if gone:
        cluster.core.delete_namespaced_pod(before["attempts"][0]["pod"], cluster.namespace, grace_period_seconds=0)
    stack.start_operator()
    after = cluster.wait_phase("one", "Succeeded")
    assert after["attempts"] == before["attempts"]
    cluster.execution("next")
    cluster.wait_phase("next", "Succeeded")
    assert len(started(simulated, cluster)) == 2


@pytest.mark.parametrize("how", ["wiped", "flipped"])
def test_a_running_ones_status_is_put_right_and_it_goes_on(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode, how: str
) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever")
    before = cluster.wait_phase("one", "Running")
    overwrite(cluster, "one", None if how == "wiped" else {"phase": "Succeeded"})
    cluster.wait(lambda: cluster.status("one").get("phase") == "Running", "what the operator knows")
    assert cluster.status("one")["attempts"] == before["attempts"]
    cluster.patch("Execution", "one", {"cancel": True})
    (attempt,) = cluster.wait_phase("one", "Cancelled")["attempts"]
    assert attempt["podUID"] == before["attempts"][0]["podUID"]
    assert len(started(simulated, cluster)) == 1


def test_a_running_one_whose_status_was_lost_while_no_operator_looked_goes_on_in_its_pod(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode
) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever")
    before = cluster.wait_phase("one", "Running")
    stack.kill_operator()
    overwrite(cluster, "one", None)
    stack.start_operator()
    after = cluster.wait_phase("one", "Running")
    assert [each["podUID"] for each in after["attempts"]] == [each["podUID"] for each in before["attempts"]]
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("one", "Cancelled")
    assert len(started(simulated, cluster)) == 1
    verify_ledger(stack)


def test_a_leader_that_was_paused_says_nothing_when_it_wakes_up(
    cluster: Cluster, stack: Stack, simulated: SimulatedNode
) -> None:
    cluster.provider()
    cluster.agent("run-3000")
    cluster.wait_ready("Agent", "run-3000")
    cluster.execution("one", agent="run-3000")
    cluster.wait_phase("one", "Running")
    first = stack.operator
    assert first is not None
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        stack.start_operator(beside=True)
        stack.wait_operator()
        before = cluster.wait_phase("one", "Succeeded")
        cluster.execution("next", agent="run-3000")
        cluster.wait_phase("next", "Running")
        version = cluster.get("Execution", "one")["metadata"]["resourceVersion"]
    finally:
        os.kill(first.process.pid, signal.SIGCONT)
    cluster.wait(lambda: first.process.poll() is not None, "the first one to end", 30)
    assert first.process.returncode == 3
    cluster.wait_phase("next", "Succeeded")
    assert cluster.status("one") == before
    assert cluster.get("Execution", "one")["metadata"]["resourceVersion"] == version, "nobody wrote at all"
    assert len(started(simulated, cluster)) == 2


def test_a_write_that_was_computed_from_an_older_version_is_refused(cluster: Cluster) -> None:
    """What a dead leader's patch on its way meets: every one of ours names the version that it knew."""
    from kubernetes.client import ApiException

    cluster.world()
    cluster.agent("run-500")
    cluster.wait_ready("Agent", "run-500")
    cluster.execution("one", agent="run-500")
    cluster.wait_phase("one", "Running")
    known = cluster.get("Execution", "one")["metadata"]["resourceVersion"]
    before = cluster.wait_phase("one", "Succeeded")
    with pytest.raises(ApiException) as refused:
        overwrite(cluster, "one", {"phase": "Running"}, resourceVersion=known)
    assert refused.value.status == 409
    assert cluster.status("one") == before


def test_a_label_on_a_running_one_costs_no_write(cluster: Cluster) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.execution("one", agent="forever")
    cluster.wait_phase("one", "Running")
    cluster.execution("two", agent="forever")
    cluster.wait_phase("two", "Running")
    labelled = cluster.custom.patch_namespaced_custom_object(
        GROUP, VERSION, cluster.namespace, "executions", "one", {"metadata": {"labels": {"a": "b"}}}
    )
    # A round trip later: what the label's event started has been done.
    cluster.patch("Execution", "two", {"cancel": True})
    cluster.wait_phase("two", "Cancelled")
    assert cluster.get("Execution", "one")["metadata"]["resourceVersion"] == labelled["metadata"]["resourceVersion"]


@pytest.mark.parametrize("kind", ["Execution", "TrainingJob"])
def test_what_a_backup_brings_back_waits_until_somebody_says_that_it_is_to_run(cluster: Cluster, kind: str) -> None:
    cluster.world()
    labels = {"velero.io/restore-name": "nightly"}
    spec: Json = {"agentRef": {"name": "agent"}, "limits": {"maxCost": "1.00"}}
    if kind == "Execution":
        spec["input"] = {"text": "hello"}
    for name in ("resumed", "unlabelled", "left"):
        cluster.create(kind, name, spec, labels=labels)

    def waits(name: str) -> bool:
        return bool(cluster.condition(kind, name, "Admitted").get("reason") == "Restored")

    cluster.wait(lambda: all(map(waits, ("resumed", "unlabelled", "left"))), "all to wait")
    assert cluster.condition(kind, "left", "Suspended")["status"] == "True"
    cluster.patch(kind, "resumed", {"suspend": True})
    cluster.wait(lambda: cluster.condition(kind, "resumed", "Admitted").get("reason") == "Suspended", "it is suspended")
    cluster.patch(kind, "resumed", {"suspend": False})
    cluster.custom.patch_namespaced_custom_object(
        GROUP,
        VERSION,
        cluster.namespace,
        PLURALS[kind],
        "unlabelled",
        {"metadata": {"labels": {"velero.io/restore-name": None}}},
    )
    for name in ("resumed", "unlabelled"):
        cluster.wait_phase(name, "Succeeded", kind=kind)
    assert waits("left")
