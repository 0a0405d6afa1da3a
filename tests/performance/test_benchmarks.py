"""Every benchmark in small: it runs, prints one JSON object with its keys, and what it measured makes sense.

No absolute time is asserted: the machine is shared and unknown. What must hold anywhere are shares, sums and zeros.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from almoner_dev import bench_admission_load as load
from almoner_dev.binaries import BinariesMissing
from almoner_dev.binaries import find as find_control_plane
from almoner_dev.controlplane import API_SERVER, ETCD
from almoner_dev.postgres import PostgresMissing
from almoner_dev.postgres import find_binaries as find_postgres
from tests.conftest import missing

BENCH_SECONDS = 300


def bench(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "almoner_dev.bench", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=BENCH_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("\n") == 1, "one JSON object on standard output, and nothing else"
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    return figures


def check_machine(figures: dict[str, Any]) -> None:
    machine = figures["machine"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert {"cpu", "kernel", "python", "date"} <= machine.keys()
    shares = figures["processor_shares"]
    assert 0 < shares["ours"] + shares["others"] <= 1.1


@pytest.mark.integration
@pytest.mark.parametrize("database", ["PostgreSQL", "SQLite"])
def test_ledger(database: str) -> None:
    if database == "PostgreSQL":
        try:
            find_postgres()
        except PostgresMissing as error:
            missing(error)
    figures = bench(
        *("ledger", "--seconds", "1", "--processes", "1", "--connections", "4", "--seed", "3"),
        *("--spenders", "24", "--spender-calls", "600"),
        *(("--sqlite",) if database == "SQLite" else ()),
    )
    assert figures["database"].startswith(database)
    assert figures["overspent_nanos"] == 0
    spenders = figures["spenders"]
    assert spenders["errors"] == []
    assert spenders["processes"] == 24, "each spender is a process of its own"
    assert spenders["refusals"] == 24, "the budget refuses each spender in the end"
    assert spenders["refusals_that_say_when"] == 24, "and tells each when to come back"
    assert spenders["refusals_with_seconds"] == 24, "the budget's window ends some time"
    assert spenders["unposted_nanos"] == 0, "what the spenders settled is what the ledger posted"
    assert spenders["reserved_nanos_at_end"] == 0
    assert spenders["frozen_answers"] == 0
    assert spenders["settled_nanos"] <= spenders["limit_nanos"]
    # The design's bound is 1 % with 200 spenders on room for thousands of calls; here it is 24 on 600.
    assert 0 <= figures["idle_percent_at_refusal"] < 10
    assert figures["records_per_s"] > 0
    assert figures["allotments_per_s"] > 0
    assert figures["raw_rows_per_s"] > figures["records_per_s"], "nothing is faster than the bare database"
    assert 0 < figures["records_to_raw_rows"] < 1
    assert figures["grant_requests_per_s"] is None or figures["grant_ms_p99"] >= figures["grant_ms_p50"] > 0
    check_machine(figures)


@pytest.mark.integration
def test_history() -> None:
    """Also: the past that it makes obeys every invariant, or the audit would end the benchmark."""
    try:
        find_postgres()
    except PostgresMissing as error:
        missing(error)
    figures = bench("history", "--records", "4000", "--repeats", "2")
    assert (figures["records"], figures["attempts"]) == (4000, 200)
    overviews = figures["overviews"]
    assert all(each["rows"] > 0 for each in overviews.values())
    assert {overviews[name]["source"] for name in overviews if name.startswith("by_")} == {"rollups"}
    assert figures["overview_ms_p99"] >= figures["overview_ms_p50"] > 0
    assert figures["export_rows_per_s"] > 0
    assert figures["verify_s"] > 0
    check_machine(figures)


@pytest.mark.integration
def test_admission() -> None:
    try:
        find_control_plane([ETCD, API_SERVER])
    except BinariesMissing as error:
        missing(error)
    figures = bench("admission", "--executions", "60", "--idle-probes", "2", "--timeout", "200")
    assert figures["phases"].keys() == {"Succeeded"}
    assert figures["pods"] == figures["phases"]["Succeeded"] == 60 + figures["probes"], "one pod for each, never two"
    assert figures["executions_per_s"] > 0
    assert figures["executions_per_s"] < figures["quota_bound_per_s"], "never more than the quotas allow"
    # One to create it, one to create the pod, three by the node; what is above is the operator's.
    assert 5 < figures["api_writes_per_execution"] < 30
    assert figures["api_writes_per_execution_by_kind"]["POST pods"] == 1
    assert figures["api_writes_per_s"] > 0
    assert figures["raw_api_writes_per_s"] > 0
    assert 0 < figures["apply_to_pod_idle_ms_p50"] <= figures["apply_to_pod_idle_ms_p99"]
    assert 0 < figures["queue_depth_peak"] <= figures["executions"] + figures["pods"]
    assert figures["operator_rss_mb"] > 0
    check_machine(figures)


@pytest.mark.integration
def test_meter() -> None:
    figures = bench("meter", "--calls", "100", "--starts", "1")
    assert {"added_ms_p50", "added_ms_p99", "passthrough_ms_p50", "passthrough_ms_p99"} <= figures.keys()
    assert figures["rss_mb"] > 0
    assert figures["start_ms"] > 0


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "almoner_dev.bench", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "admission" in done.stderr


def test_the_shape_of_the_load() -> None:
    items = load.executions(1500, seed=1)
    by_queue: dict[str, dict[str, int]] = {}
    for _, body in items:
        sizes = by_queue.setdefault(body["metadata"]["namespace"], {})
        agent = body["spec"]["agentRef"]["name"]
        sizes[agent] = sizes.get(agent, 0) + 1
    assert len(by_queue) == 30
    assert all(sizes == {"small": 35, "medium": 10, "large": 5} for sizes in by_queue.values())
    assert items == load.executions(1500, seed=1)
    assert items != load.executions(1500, seed=2)
    # 20 cores a queue, and 0.7 x 0.2 + 0.2 x 5 x 0.5 + 0.1 x 20 x 1.0 core seconds an execution.
    assert load.quota_bound_per_s() == pytest.approx(30 * 20 / 2.64)
