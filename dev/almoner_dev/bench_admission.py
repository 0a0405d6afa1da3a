"""The `admission` benchmark: executions from apply to completion, on a real control plane, with simulated pods.

Role: starts API server and etcd, the ledger and the operator as the processes that they are, and a simulated node that
says of pods what a kubelet would; applies the shape of bench_admission_load; watches what becomes of it; and measures
the API server bare in the same run. See docs/benchmarks.md for what each key means.

Boundary: sees the product only through the API server, as a user does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from almoner_core.contract import LABEL_EXECUTION_UID
from almoner_dev import bench_admission_load as load
from almoner_dev.bench_admission_stack import Running, running
from almoner_dev.bench_kube import Kube, Writes, raw_writes_per_s
from almoner_dev.bench_report import Processor, machine, percentile, ratio, rounded, run_async, say

TERMINAL: Final = frozenset({"Succeeded", "Failed", "Cancelled"})
IDLE_PROBES: Final = 30
PROBE_SECONDS: Final = 0.2
PROBE_WAITING: Final = 1000
SETTLE_SECONDS: Final = 120.0
RAW_SECONDS: Final = 5.0
SAY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    executions: int
    seed: int
    timeout: float
    postgres: bool
    idle_probes: int


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.bench admission", description=__doc__)
    parser.add_argument("--executions", type=int, default=1500, help="how many to run (default 1500; Kueue's: 15000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the order in which they are applied (default 1)")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which it gives up (default 900)")
    parser.add_argument("--postgres", action="store_true", help="the ledger over PostgreSQL instead of SQLite")
    parser.add_argument("--idle-probes", type=int, default=IDLE_PROBES, help="executions applied one at a time before")
    return Options(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark and give its figures; keys are in docs/benchmarks.md."""
    options = parse(argv)
    say("admission: starting control plane, ledger, operator and simulated node")
    with running(postgres=options.postgres) as stack:
        figures = run_async(_measure(options, stack))
    figures["executions_to_raw_writes"] = ratio(figures["executions_per_s"], figures["raw_api_writes_per_s"])
    figures["api_writes_to_raw_writes"] = ratio(figures["api_writes_per_s"], figures["raw_api_writes_per_s"])
    figures["targets"] = {
        "executions_per_s": 100,
        "apply_to_pod_idle_ms_p50": 100,
        "apply_to_pod_ms_p99": 1000,
        "operator_rss_mb": 300,
    }
    figures["options"] = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    figures["machine"] = machine()
    return figures


@dataclass(slots=True)
class _Seen:
    """What was seen of executions, by uid, with instants of the monotonic clock."""

    sent: dict[tuple[str, str], float] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    pods: dict[str, float] = field(default_factory=dict)
    ended: dict[tuple[str, str], float] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)
    attempts: int = 0
    waiting: int = 0
    waiting_peak: int = 0
    waiting_when_sent: dict[tuple[str, str], int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, namespace: str, name: str) -> None:
        """Note that one is about to be applied."""
        self.sent[namespace, name] = time.monotonic()
        self.waiting_when_sent[namespace, name] = self.waiting
        self.waiting += 1
        self.waiting_peak = max(self.waiting_peak, self.waiting)

    def pod(self, uid: str) -> None:
        """Note that a pod for an execution was seen, the first or a later one."""
        self.attempts += 1
        if uid not in self.pods:
            self.pods[uid] = time.monotonic()
            self.waiting -= 1
            self.changed.set()

    def execution(self, document: dict[str, Any]) -> None:
        """Note how far one is."""
        meta = document["metadata"]
        key = meta["namespace"], meta["name"]
        self.names[meta["uid"]] = key
        phase = document.get("status", {}).get("phase")
        if phase in TERMINAL and key not in self.ended:
            self.ended[key] = time.monotonic()
            self.phases[phase] = self.phases.get(phase, 0) + 1
            self.changed.set()

    def to_pod_ms(self, keys: set[tuple[str, str]]) -> list[float]:
        """Give the time from apply to pod of some executions, in ms."""
        return [
            (seen - self.sent[key]) * 1000
            for uid, seen in self.pods.items()
            if (key := self.names.get(uid)) is not None and key in keys
        ]


async def _measure(options: Options, stack: Running) -> dict[str, Any]:
    seen = _Seen()
    async with Kube(stack.kubeconfig) as kube, asyncio.TaskGroup() as group:
        watchers = [group.create_task(_watch_pods(kube, seen)), group.create_task(_watch_executions(kube, seen))]
        say("admission: making namespaces, providers, agents and quotas")
        await _create_environment(kube)
        say(f"admission: {options.idle_probes} executions one at a time")
        idle = await _one_at_a_time(kube, seen, options)
        say(f"admission: applying {options.executions} executions")
        figures = await _flood(kube, seen, options, stack)
        for watcher in watchers:
            watcher.cancel()
    figures["apply_to_pod_idle_ms_p50"] = rounded(percentile(idle, 50))
    figures["apply_to_pod_idle_ms_p99"] = rounded(percentile(idle, 99))
    say(f"admission: raw ConfigMap creates for {RAW_SECONDS:g} s")
    rate, _ = await raw_writes_per_s(stack.kubeconfig, seconds=RAW_SECONDS)
    figures["raw_api_writes_per_s"] = rounded(rate)
    return figures


async def _watch_pods(kube: Kube, seen: _Seen) -> None:
    async for kind, document in kube.watch("/api/v1/pods", metadata_only=True):
        uid = document["metadata"].get("labels", {}).get(LABEL_EXECUTION_UID)
        if kind == "ADDED" and uid:
            seen.pod(uid)


async def _watch_executions(kube: Kube, seen: _Seen) -> None:
    async for kind, document in kube.watch(f"/apis/{load.GROUP}/executions"):
        if kind != "DELETED":
            seen.execution(document)


async def _create_environment(kube: Kube) -> None:
    items = load.environment()
    for plural in ("namespaces", "modelproviders", "agents", "resourcequotas"):
        await kube.create_all([each for each in items if each[0].endswith(f"/{plural}")])
    deadline = time.monotonic() + SETTLE_SECONDS
    for plural in ("agents", "resourcequotas"):
        while True:
            listed = await kube.request("GET", f"/apis/{load.GROUP}/{plural}")
            waiting = [each["metadata"]["name"] for each in listed["items"] if not _ready(each)]
            if not waiting:
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(waiting)} {plural} are not Ready, such as {_why_not(listed['items'])}")
            await asyncio.sleep(0.2)


def _ready(document: dict[str, Any]) -> bool:
    conditions = document.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _why_not(documents: list[dict[str, Any]]) -> str:
    first = next(each for each in documents if not _ready(each))
    return f"{first['metadata']['namespace']}/{first['metadata']['name']}: {first.get('status')}"


async def _apply(kube: Kube, seen: _Seen, item: load.Item) -> tuple[str, str]:
    path, body = item
    key = body["metadata"]["namespace"], body["metadata"]["name"]
    seen.send(*key)
    made = await kube.request("POST", path, body)
    seen.names[made["metadata"]["uid"]] = key
    return key


async def _one_at_a_time(kube: Kube, seen: _Seen, options: Options) -> list[float]:
    keys = set()
    for number in range(options.idle_probes):
        key = await _apply(kube, seen, load.probe(number))
        keys.add(key)
        await _until(seen, lambda key=key: key in seen.ended, SETTLE_SECONDS, "an execution on an idle system")
    return seen.to_pod_ms(keys)


async def _until(seen: _Seen, done: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        seen.changed.clear()
        left = deadline - time.monotonic()
        if left <= 0:
            raise RuntimeError(f"{what} did not end within {seconds:g} s; ended: {len(seen.ended)}, {seen.phases}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(seen.changed.wait(), left)


async def _flood(kube: Kube, seen: _Seen, options: Options, stack: Running) -> dict[str, Any]:
    items = load.executions(options.executions, options.seed)
    names = [(body["metadata"]["namespace"], body["metadata"]["name"]) for _, body in items]
    keys = set(names)
    before, probes, attempts = await kube.writes(), set[tuple[str, str]](), seen.attempts
    seen.phases.clear()
    cpu, processor = stack.cpu_seconds(), Processor.now()
    begun, enough = time.monotonic(), asyncio.Event()

    async def probing() -> None:
        # Told, not cancelled: a probe cancelled on its way runs all the same, and would be in no count.
        number = options.idle_probes
        while not enough.is_set():
            probes.add(await _apply(kube, seen, load.probe(number)))
            number += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), PROBE_SECONDS)

    async with asyncio.TaskGroup() as group:
        group.create_task(probing())
        progress = group.create_task(_progress(seen, keys))
        await kube.create_all(
            items,
            note=lambda index: seen.send(items[index][1]["metadata"]["namespace"], items[index][1]["metadata"]["name"]),
        )
        applied = time.monotonic()
        await _until(seen, lambda: keys <= seen.ended.keys(), options.timeout, "the flood of executions")
        enough.set()
        progress.cancel()
    ended = max(seen.ended[key] for key in keys)
    await _until(seen, lambda: probes <= seen.ended.keys(), SETTLE_SECONDS, "the probes")
    elapsed = ended - begun
    writes = (await kube.writes()).since(before)
    number = options.executions + len(probes)
    return {
        "benchmark": "admission",
        "executions": options.executions,
        "executions_per_s": rounded(options.executions / elapsed),
        "quota_bound_per_s": rounded(load.quota_bound_per_s()),
        "seconds": rounded(elapsed),
        "apply_seconds": rounded(applied - begun),
        "probes": len(probes),
        "phases": seen.phases,
        "pods": seen.attempts - attempts,
        **_api_figures(writes, elapsed, number),
        **_latency_figures(seen, keys, probes),
        "operator_rss_mb": stack.rss_mb("operator"),
        "ledger_rss_mb": stack.rss_mb("ledger"),
        "cpu_ms_per_execution": {
            name: rounded(1000 * (used - cpu[name]) / number) for name, used in stack.cpu_seconds().items()
        },
        "processor_shares": Processor.now().since(processor),
    }


def _api_figures(writes: Writes, elapsed: float, number: int) -> dict[str, Any]:
    return {
        "api_writes_per_s": rounded(writes.total / elapsed),
        "api_writes_per_execution": rounded(writes.total / number, 2),
        "api_writes_per_execution_by_kind": {
            kind: rounded(count / number, 2) for kind, count in list(writes.by_kind.items())[:12]
        },
    }


def _latency_figures(seen: _Seen, keys: set[tuple[str, str]], probes: set[tuple[str, str]]) -> dict[str, Any]:
    threshold = min(PROBE_WAITING, len(keys) // 2)
    crowded = {key for key in probes if seen.waiting_when_sent[key] >= threshold}
    latencies = seen.to_pod_ms(crowded)
    return {
        "apply_to_pod_ms_p50": rounded(percentile(latencies, 50)),
        "apply_to_pod_ms_p99": rounded(percentile(latencies, 99)),
        "apply_to_pod_probes": len(latencies),
        "apply_to_pod_waiting_at_least": threshold,
        "queued_ms_p50": rounded(percentile(seen.to_pod_ms(keys), 50)),
        "queue_depth_peak": seen.waiting_peak,
    }


async def _progress(seen: _Seen, keys: set[tuple[str, str]]) -> None:
    while True:
        await asyncio.sleep(SAY_SECONDS)
        say(f"admission: {len(keys & seen.ended.keys())} of {len(keys)} ended, {seen.waiting} waiting")
