"""What happens to a run is told: log lines, events, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.request
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kubernetes import client

from almoner_dev.stack import Stack
from almoner_operator import credentials
from almoner_operator.events import EventRecorder
from almoner_operator.kubernetes import KubernetesClient
from tests.support.cluster import Cluster
from tests.support.polling import until

if TYPE_CHECKING:
    from almoner_dev.controlplane import ControlPlane

SECONDS = 60.0


def lines(stack: Stack, cluster: Cluster, run: str) -> list[dict[str, Any]]:
    """The operator's lines about one run, every line of the log being one JSON object."""
    found = [json.loads(line) for line in stack.operator_log.read_text().splitlines()]
    return [line for line in found if line.get("run") == run and line.get("namespace") == cluster.namespace]


def steps(stack: Stack, cluster: Cluster, run: str) -> list[str]:
    return [line["step"] for line in lines(stack, cluster, run) if "step" in line]


def events(cluster: Cluster, run: str) -> dict[str, Any]:
    found = client.EventsV1Api(cluster.api).list_namespaced_event(cluster.namespace).items
    return {each.reason: each for each in found if each.regarding.name == run}


def metric(stack: Stack, name: str, **labels: str) -> float | None:
    """The value of one series, None where there is none."""
    with urllib.request.urlopen(f"{stack.health_url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            return float(found[2])
    return None


def test_every_step_of_a_run_is_a_line_with_the_same_trace(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("run-3000")
    cluster.wait_ready("Agent", "run-3000")
    cluster.execution("one", agent="run-3000")
    cluster.wait_phase("one", "Succeeded")
    until(lambda: "ended" in steps(stack, cluster, "one"), SECONDS, "the line of the end")
    assert [step for step in steps(stack, cluster, "one") if step != "waits"] == [
        "admitted",
        "pod-created",
        "started",
        "attempt-ended",
        "ended",
    ]
    told = {line["step"]: line for line in lines(stack, cluster, "one")}
    (attempt,) = cluster.status("one")["attempts"]
    assert {line["trace_id"] for line in told.values() if "trace_id" in line} == {attempt["allotment"].replace("-", "")}
    assert told["ended"]["cost"] == "0.00"
    assert told["ended"]["phase"] == "Succeeded"
    assert told["pod-created"]["pod_uid"] == attempt["podUID"]
    cluster.wait(lambda: {"Admitted", "Started", "Succeeded"} <= events(cluster, "one").keys(), "the three events")
    assert events(cluster, "one")["Succeeded"].note == "it cost 0.00 US dollars: 0 calls, 0 tokens"
    finished = metric(stack, "almoner_finished_workloads_total", namespace=cluster.namespace, phase="Succeeded")
    assert finished == 1
    assert metric(stack, "almoner_admitted_workloads_total", namespace=cluster.namespace) == 1
    assert metric(stack, "almoner_admission_wait_time_seconds_count", namespace=cluster.namespace) == 1
    assert metric(stack, "almoner_run_duration_seconds_count", namespace=cluster.namespace) == 1


def test_what_waits_is_said_once_and_counted_while_it_waits(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.agent("forever")
    cluster.wait_ready("Agent", "forever")
    cluster.quota("team", hard={"executions": 1})
    cluster.execution("first", agent="forever")
    cluster.wait_phase("first", "Running")
    cluster.execution("second")
    cluster.wait_reason("second", "WaitingForQuota")
    assert steps(stack, cluster, "second").count("waits") == 1
    here = {"namespace": cluster.namespace}
    assert metric(stack, "almoner_pending_workloads", **here, reason="WaitingForQuota") == 1
    assert metric(stack, "almoner_admitted_active_workloads", **here) == 1
    limit = {**here, "quota": "team", "dimension": "executions"}
    cluster.wait(lambda: metric(stack, "almoner_quota_spent", **limit) == 1, "the quota's use to be told")
    assert metric(stack, "almoner_quota_limit", **limit) == 1
    assert metric(stack, "almoner_ledger_up") == 1
    cluster.patch("Execution", "first", {"cancel": True})
    cluster.wait_phase("first", "Cancelled")
    cluster.wait_phase("second", "Succeeded")
    until(lambda: "ended" in steps(stack, cluster, "first"), SECONDS, "the line of the end")
    assert steps(stack, cluster, "first")[-3:] == ["stopping", "attempt-ended", "ended"]
    assert metric(stack, "almoner_pending_workloads", **here, reason="WaitingForQuota") is None


def test_what_can_never_run_is_refused_in_the_log_too(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    cluster.quota("team", hard={"cpu": "10m"})
    cluster.execution("large")
    cluster.wait_phase("large", "Failed")
    until(lambda: "ended" in steps(stack, cluster, "large"), SECONDS, "the line of the end")
    told = {line["step"]: line for line in lines(stack, cluster, "large")}
    assert told["refused"]["reason"] == told["ended"]["reason"] != ""
    assert "cpu" in told["refused"]["message"]


async def test_an_event_that_is_told_again_becomes_a_series(cluster: Cluster, bare_plane: ControlPlane) -> None:
    cluster.provider()
    uid = cluster.get("ModelProvider", "local")["metadata"]["uid"]
    async with KubernetesClient(credentials.load(bare_plane.kubeconfig)) as api:
        recorder = EventRecorder(api, instance="test")
        sending = asyncio.create_task(recorder.run())

        def tell() -> None:
            where = ("ModelProvider", cluster.namespace, "local", uid)
            recorder.tell(*where, reason="Odd", note="it is odd", warning=True)

        def seen() -> Any:
            return events(cluster, "local").get("Odd")

        tell()
        first = await asyncio.to_thread(until, seen, SECONDS, "the event")
        assert first.series is None
        for _ in range(50):
            tell()
        told = await asyncio.to_thread(until, lambda: (e := seen()).series and e, SECONDS, "the series")
        assert told is not None
        assert told.series.count == 51  # Written once: the count is that of when it was sent.
        assert told.series.last_observed_time <= datetime.now(UTC)
        assert told.metadata.uid == first.metadata.uid
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending


def test_the_ledgers_lines_are_json_too(stack: Stack) -> None:
    for line in stack.ledger_log.read_text().splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
