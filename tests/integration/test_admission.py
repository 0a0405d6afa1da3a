"""Admission on a real API server: what was admitted counts, what can never start ends, and why something waits."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from kubernetes.client import ApiException

from almoner_dev import binaries
from almoner_dev.controlplane import ControlPlane
from almoner_dev.stack import Stack
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster


def relabel(cluster: Cluster, agent: str, **labels: str | None) -> None:
    body = {"metadata": {"labels": labels}}
    cluster.custom.patch_namespaced_custom_object(GROUP, VERSION, cluster.namespace, PLURALS["Agent"], agent, body)


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_what_was_admitted_counts_whatever_becomes_of_agent_and_quota(
    cluster: Cluster, stack: Stack, restart: bool
) -> None:
    cluster.provider()
    for name in ("forever", "run-1"):
        runner = {"resources": {"requests": {"cpu": "1"}}}
        cluster.create(
            "Agent",
            name,
            {"type": "Simulation", "model": {"provider": "local", "name": "small"}, "runner": runner},
            labels={"tier": "gold"},
        )
        cluster.wait_ready("Agent", name)
    scope = {"agentSelector": {"tier": "gold"}}
    cluster.quota("team", scope=scope, hard={"cpu": "1500m"}, budget={"amount": "1.00"})
    cluster.execution("one", agent="forever", timeoutSeconds=3600)
    status = cluster.wait_phase("one", "Running")
    if restart:
        stack.kill_operator()
    relabel(cluster, "forever", tier=None)
    cluster.patch(
        "Agent", "forever", {"limits": {"timeoutSeconds": 1}, "runner": {"resources": {"requests": {"cpu": "10m"}}}}
    )
    if restart:
        stack.start_operator()
    cluster.execution("two", agent="run-1")
    waits = cluster.wait_reason("two", "WaitingForQuota")
    assert "1050m of 1500m in use" in waits["message"]
    admission = status["attempts"][0]["admission"]
    assert (admission["cpuMilli"], admission["timeoutSeconds"]) == (1050, 3600)
    (pod,) = cluster.pods_of("one")
    told = {env.name: env.value for env in pod.spec.init_containers[0].env}
    config = json.loads(told["ALMONER_METER_CONFIG"])
    needed = int(config["extra"]["first_need"]["usd"])
    assert admission["firstCost"] == f"{needed / 10**9:.9f}".rstrip("0")
    assert cluster.status("one")["phase"] == "Running", "not the Agent's new timeout"
    cluster.delete("Agent", "forever")
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("two", "Succeeded")
    ended = cluster.wait_phase("one", "Cancelled")
    assert "admission" not in ended["attempts"][0], "what has ended needs it no more"


def printed(plane: ControlPlane, cluster: Cluster, name: str) -> list[str]:
    """The words that `kubectl get executions` prints about one, without -o wide."""
    program = shutil.which("kubectl") or str(binaries.find(["kubectl"]).path("kubectl"))
    command = [program, "--kubeconfig", str(plane.kubeconfig), "-n", cluster.namespace, "get", "executions", name]
    done = subprocess.run([*command, "--no-headers"], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.split()


@pytest.mark.parametrize("action", ["Wait", "Reject"])
def test_what_can_never_start_says_so_and_ends(bare_plane: ControlPlane, cluster: Cluster, action: str) -> None:
    cluster.world()
    cluster.agent("gpus", runner={"resources": {"limits": {"gpu": 2}}})
    cluster.wait_ready("Agent", "gpus")
    cluster.quota("team", hard={"gpu": 1}, onLimit={"action": action}, budget={"amount": "1.00"})
    cluster.execution("big", agent="gpus")
    status = cluster.wait_phase("big", "Failed")
    assert "asks for 2 GPUs, more than ResourceQuota team ever allows (1)" in status["message"]
    assert cluster.condition("Execution", "big", "Failed")["reason"] == "Rejected"
    assert not cluster.pods()
    assert printed(bare_plane, cluster, "big")[2:4] == ["Failed", "Rejected"]


def test_money_that_a_quota_never_has_ends_it_and_an_edit_on_its_way_does_not(cluster: Cluster) -> None:
    cluster.world()
    cluster.quota("money", budget={"amount": "0.000000001", "period": "Daily"})
    cluster.execution("edited", max_cost=None)
    cluster.wait_reason("edited", "BudgetExhausted")
    cluster.patch("ResourceQuota", "money", {"budget": {"amount": "1.00", "maxPerExecution": "0.000000002"}})
    status = cluster.wait_phase("edited", "Failed")
    assert "for one execution (maxPerExecution)" in status["message"]
    cluster.patch("ResourceQuota", "money", {"budget": {"maxPerExecution": "1.00"}})
    cluster.execution("fits", max_cost=None)
    cluster.wait_phase("fits", "Succeeded")


def test_a_queue_timeout_ends_a_wait_even_across_a_restart(
    bare_plane: ControlPlane, cluster: Cluster, stack: Stack
) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard={"executions": 1}, budget={"amount": "1.00"})
    cluster.execution("first", agent="forever")
    cluster.wait_phase("first", "Running")
    cluster.execution("patient")
    cluster.execution("hurried", queueTimeoutSeconds=3)
    cluster.wait_reason("hurried", "WaitingForQuota")
    assert printed(bare_plane, cluster, "hurried")[2:4] == ["Queued", "WaitingForQuota"]
    stack.kill_operator()
    stack.start_operator()
    status = cluster.wait_phase("hurried", "Failed")
    assert cluster.condition("Execution", "hurried", "Failed")["reason"] == "QueueTimeout"
    assert "1 of 1 in use" in status["message"]
    assert cluster.status("patient")["phase"] == "Queued"
    with pytest.raises(ApiException, match="immutable"):
        cluster.patch("Execution", "patient", {"queueTimeoutSeconds": 5})


@pytest.mark.parametrize("reason", ["Timeout", "Preempted", "Rejected", "InvalidSpec", "QueueTimeout"])
def test_a_reason_that_is_never_retried_is_refused(cluster: Cluster, reason: str) -> None:
    with pytest.raises(ApiException, match=r"retry\.reasons"):
        cluster.execution("odd", retry={"limit": 1, "reasons": [reason]})


# --- reasons within seconds -------------------------------------------------------------------------------------------


def kubelet_says(cluster: Cluster, pod: str, reason: str, message: str) -> None:
    """Write what a kubelet writes of an agent container that does not come to be, once the scheduler has spoken."""
    cluster.wait(
        lambda: cluster.core.read_namespaced_pod_status(pod, cluster.namespace).status.conditions,
        "the simulated scheduler's word, which would else come later",
    )
    waiting = {"name": "agent", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    status = {**waiting, "state": {"waiting": {"reason": reason, "message": message}}}
    scheduled = {"type": "PodScheduled", "status": "True"}
    body = {"status": {"containerStatuses": [status], "conditions": [scheduled]}}
    cluster.core.patch_namespaced_pod_status(pod, cluster.namespace, body)


@pytest.mark.parametrize("reason", ["InvalidImageName", "ImagePullBackOff"])
def test_an_image_that_cannot_be_pulled_says_so_and_fails(
    bare_plane: ControlPlane, cluster: Cluster, reason: str
) -> None:
    """Case C10. The start deadline of these tests is shorter than the patience with a pull: both end for good."""
    cluster.world()
    cluster.agent("unstarted")
    cluster.wait_ready("Agent", "unstarted")
    cluster.quota("team", hard={"executions": 1}, budget={"amount": "1.00"})
    cluster.execution("one", agent="unstarted", retry={"limit": 0})
    pod = cluster.wait(lambda: cluster.pods_of("one"), "its pod")[0].metadata.name
    kubelet_says(cluster, pod, reason, "registry.example/team/agent:typo")
    if reason == "ImagePullBackOff":
        said = cluster.wait(
            lambda: (c := cluster.condition("Execution", "one", "Ready")).get("reason") == "ImagePullFailed" and c,
            "the kubelet's words",
        )
        assert said["message"] == "agent: ImagePullBackOff: registry.example/team/agent:typo"
        assert printed(bare_plane, cluster, "one")[2:4] == ["Admitted", "ImagePullFailed"]
    cluster.execution("next")
    status = cluster.wait_phase("one", "Failed")
    assert len(status["attempts"]) == 1
    assert "registry.example/team/agent:typo" in status["message"]
    failed = cluster.condition("Execution", "one", "Failed")["reason"]
    assert failed == ("ImagePullFailed" if reason == "InvalidImageName" else "StartTimeout")
    cluster.wait_phase("next", "Succeeded")


def test_a_missing_key_of_the_inputs_config_map_is_named_and_waited_for(cluster: Cluster) -> None:
    """Case C20."""
    cluster.world()
    cluster.core.create_namespaced_config_map(cluster.namespace, {"metadata": {"name": "in"}, "data": {"right": "x"}})
    cluster.execution("one", input={"configMapKeyRef": {"name": "in", "key": "wrong"}})
    assert "ConfigMap in has no key wrong" in cluster.wait_reason("one", "InputNotFound")["message"]
    assert not cluster.pods()
    cluster.core.patch_namespaced_config_map("in", cluster.namespace, {"data": {"wrong": "y"}})
    cluster.wait_phase("one", "Succeeded")


def test_a_missing_key_of_the_environments_config_map_is_named_and_waited_for(cluster: Cluster) -> None:
    cluster.provider()
    reference = {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "mode"}}}
    cluster.agent("agent", runner={"env": [reference]})
    cluster.execution("one")
    cluster.wait_reason("one", "ConfigMapNotFound")
    cluster.core.create_namespaced_config_map(cluster.namespace, {"metadata": {"name": "settings"}})
    cluster.wait(
        lambda: "has no key mode" in cluster.condition("Execution", "one", "Admitted").get("message", ""), "the key"
    )
    assert not cluster.pods()
    cluster.core.patch_namespaced_config_map("settings", cluster.namespace, {"data": {"mode": "y"}})
    cluster.wait_phase("one", "Succeeded")


@pytest.mark.parametrize("written", ["data", "stringData", "applied"])
def test_a_missing_key_of_a_secret_is_named_and_waited_for(cluster: Cluster, written: str) -> None:
    """Case C20: the names of a Secret's keys are read from its metadata, however it was written."""
    field, value = ("data", "eA==") if written == "data" else ("stringData", "x")
    labels = {"almoner.dev/agent-readable": "true"}

    def secret(name: str, *keys: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": labels if name == "mine" else {}},
            field: dict.fromkeys(keys, value),
        }
        if written == "applied":
            cluster.core.patch_namespaced_secret(
                name, cluster.namespace, body, field_manager="test", _content_type="application/apply-patch+yaml"
            )
        else:
            try:
                cluster.core.create_namespaced_secret(cluster.namespace, body)
            except ApiException:
                cluster.core.patch_namespaced_secret(name, cluster.namespace, body)

    secret("provider", "other")
    secret("mine", "token")
    cluster.provider(credentials={"name": "provider", "key": "key"})
    reference = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "wrong"}}}
    cluster.agent("agent", runner={"env": [reference]})
    ready = cluster.wait_ready("ModelProvider", "local", "SecretNotFound")
    assert "Secret provider has no key key" in ready["message"]
    cluster.execution("one")
    assert "has no key key" in cluster.wait_reason("one", "ProviderNotReady")["message"]
    secret("provider", "other", "key")
    assert "Secret mine has no key wrong" in cluster.wait_reason("one", "SecretNotFound", seconds=90)["message"]
    assert not cluster.pods()
    secret("mine", "token", "wrong")
    cluster.wait_phase("one", "Succeeded", seconds=90)
