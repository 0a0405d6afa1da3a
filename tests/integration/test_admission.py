"""Admission on a real API server: what was admitted counts, what can never start ends, and why something waits."""

from __future__ import annotations

import json

import pytest

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
