"""What the operator tells Prometheus from its cache: what waits, what runs, and counters that begin at 0."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from almoner_operator import outcome
from almoner_operator.cache import Cache
from almoner_operator.live_metrics import CacheCollector
from almoner_operator.scheduling.model import EXECUTION, Requests

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def execution(namespace: str, name: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-01-02T03:00:00Z",
        },
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
    }


@pytest.fixture
def cache() -> Cache:
    return Cache(meter=Requests(cpu=50, memory=100), wake=lambda: None)


def told(cache: Cache, name: str) -> dict[tuple[str, ...], float]:
    (family,) = [each for each in CacheCollector(cache).collect() if each.name == name]
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


def test_what_was_rejected_waits_no_longer_though_its_end_is_not_written(cache: Cache) -> None:
    for name in ("one", "two"):
        cache.observe_run(EXECUTION, None, execution("live-a", name))
    assert told(cache, "almoner_pending_workloads") == {("live-a", "Queued"): 2}
    run = cache.runs["uid-live-a-one"]
    run.status = outcome.rejected(run, "it asks for more than there ever is", NOW)
    assert run.written.phase is None
    assert told(cache, "almoner_pending_workloads") == {("live-a", "Queued"): 1}


@pytest.mark.parametrize(
    ("counter", "labels"),
    [
        ("almoner_admitted_workloads_total", {}),
        ("almoner_finished_workloads_total", {"phase": "Succeeded", "reason": ""}),
    ],
)
def test_a_namespaces_counters_begin_at_0_before_its_first_run_does(
    cache: Cache, counter: str, labels: dict[str, str]
) -> None:
    namespace = f"begins-{'-'.join(counter.split('_')[1:3])}"
    where = {"namespace": namespace, **labels}
    assert REGISTRY.get_sample_value(counter, where) is None
    cache.observe_run(EXECUTION, None, execution(namespace, "one"))
    told(cache, "almoner_pending_workloads")
    assert REGISTRY.get_sample_value(counter, where) == 0
