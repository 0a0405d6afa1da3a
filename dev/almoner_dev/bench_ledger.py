"""The `ledger` benchmark: the real service over a real database, under the load of processes that act as meters.

Role: starts database, API server (for TokenReview) and ledger service, runs one kind of load after the other, measures
the raw database in the same run, and reports figures and ratios. See docs/benchmarks.md for what each key means.

Boundary: what is counted is what clients were answered; the ledger's own books are read only through its API.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Final, TypeVar

from almoner_dev import bench_ledger_load as load
from almoner_dev import bench_ledger_spenders as spenders
from almoner_dev.bench_ledger_client import NAMESPACE, Caller, Maker, Meter, activate, open_and_bind
from almoner_dev.bench_ledger_load import Tally, Task
from almoner_dev.bench_ledger_service import Service
from almoner_dev.bench_report import Processor, machine, percentile, ratio, rounded, run_async, say

T = TypeVar("T")

OWNERS: Final = 8
ROOMY_NANOS: Final = 10**17
START_SECONDS: Final = 2.0
RATES: Final = (1000, 750, 500, 350, 250, 150, 100, 50)
SUSTAINED_SHARE: Final = 0.98
SUSTAINED_P99_MS: Final = 1000.0
SPEND_SECONDS_MAX: Final = 300.0
OPEN_ITEMS: Final = 50
ATTEMPTS_PER_CONNECTION: Final = 8
"""Requests of allotments are small: it takes many under way to find what the service can do."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    seconds: float
    seed: int
    sqlite: bool
    processes: int
    connections: int
    batch: int
    spenders: int
    spender_calls: int


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.bench ledger", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured seconds of each load (default 10)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the content that is sent (default 1)")
    parser.add_argument("--sqlite", action="store_true", help="the embedded default instead of PostgreSQL")
    parser.add_argument("--processes", type=int, default=2, help="load processes (default 2)")
    parser.add_argument("--connections", type=int, default=8, help="connections of each load process (default 8)")
    parser.add_argument("--batch", type=int, default=50, help="records in a post (default 50)")
    parser.add_argument("--spenders", type=int, default=200, help="processes on one budget, 0: none (default 200)")
    parser.add_argument("--spender-calls", type=int, default=10_000, help="calls that their budget has room for")
    return Options(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark and give its figures; keys are in docs/benchmarks.md."""
    options = parse(argv)
    say(f"ledger: starting {'SQLite' if options.sqlite else 'PostgreSQL (fsync on)'}, API server and service")
    meters = max(options.processes * options.connections, options.spenders)
    with Service(sqlite=options.sqlite, meters=meters) as service:
        bench, processor = _Bench(options, service), Processor.now()
        figures: dict[str, Any] = {"benchmark": "ledger", "database": service.database_version}
        figures |= bench.records()
        figures |= bench.raw()
        figures |= bench.lifecycles()
        figures |= bench.grants()
        if options.spenders:
            figures |= bench.spenders()
        figures["service_rss_mb"] = service.rss_mb()
        figures["processor_shares"] = Processor.now().since(processor)
    raw = figures["raw_rows_per_s"]
    figures["records_to_raw_rows"] = ratio(figures["records_per_s"], raw)
    figures["raw_commits_per_s"] = rounded(raw / options.batch)
    figures["allotments_to_raw_commits"] = ratio(figures["allotments_per_s"], raw / options.batch)
    figures["targets"] = {
        "records_per_s": 5000,
        "allotments_per_s": 2000,
        "grant_ms_p99": 25.0,
        "grant_requests_per_s": 1000,
        "overspent_nanos": 0,
        "idle_percent_at_refusal": 1.0,
    }
    figures["options"] = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    figures["machine"] = machine()
    return figures


class _Bench:
    def __init__(self, options: Options, service: Service) -> None:
        self.options, self.service = options, service
        self.maker = Maker(options.seed)
        self.generation = 0
        self.seeds = iter(range(options.seed * 1000, options.seed * 1000 + 1000))

    # -- the loads -----------------------------------------------------------------------------------

    def records(self) -> dict[str, Any]:
        """Full batches, one under way for each connection."""
        options = self.options
        say(f"ledger: posting records in batches of {options.batch} for {options.seconds:g} s")
        per_process = [self._allotments(options.connections, active=True) for _ in range(options.processes)]
        cpu = self.service.cpu_seconds()
        tally = self._run(load.post_load, [{"allotments": tuple(each)} for each in per_process])
        busy = self.service.cpu_seconds() - cpu
        records = tally.counts.get("records", 0)
        return {
            "records_per_s": rounded(records / options.seconds),
            "record_batch_ms_p50": rounded(percentile(tally.latencies_ms, 50)),
            "record_batch_ms_p99": rounded(percentile(tally.latencies_ms, 99)),
            "service_cpu_us_per_record": rounded(1e6 * busy / records) if records else None,
        }

    def raw(self) -> dict[str, Any]:
        """The same rows without a service."""
        options = self.options
        say(f"ledger: raw inserts in batches of {options.batch}")
        seconds = max(1.0, options.seconds / 2)
        rows = self.service.raw_rows_per_s(
            seconds=seconds,
            processes=options.processes,
            connections=options.connections,
            batch=options.batch,
            seed=options.seed,
        )
        return {"raw_rows_per_s": rounded(rows)}

    def lifecycles(self) -> dict[str, Any]:
        """Attempts opened, used and returned; every operation but the opening and binding is a request of its own."""
        options = self.options
        say(f"ledger: opening, extending and returning allotments for {options.seconds:g} s")
        accounts = tuple(self._accounts())
        tally = self._run(
            load.lifecycle_load,
            [
                {"accounts": accounts, "connections": options.connections * ATTEMPTS_PER_CONNECTION}
                for _ in range(options.processes)
            ],
        )
        counted = sum(tally.counts.get(name, 0) for name in ("open", "extend", "return"))
        return {
            "allotments_per_s": rounded(counted / options.seconds),
            "allotment_operations_per_s": {
                name: rounded(number / options.seconds) for name, number in sorted(tally.counts.items())
            },
        }

    def grants(self) -> dict[str, Any]:
        """Extensions at a fixed pace: the highest of the list that the service sustains."""
        options = self.options
        allotments = [self._allotments(options.connections * 2, active=True) for _ in range(options.processes)]
        tried: dict[str, float | None] = {}
        figures: dict[str, Any] = {"grant_ms_p50": None, "grant_ms_p99": None, "grant_requests_per_s": None}
        for rate in RATES:
            say(f"ledger: {rate} extensions a second for {options.seconds:g} s")
            share = rate / options.processes
            tally = self._run(load.paced_load, [{"allotments": tuple(each), "rate": share} for each in allotments])
            p99 = percentile(tally.latencies_ms, 99)
            tried[str(rate)] = rounded(p99)
            granted = tally.counts.get("granted", 0)
            if p99 is not None and p99 <= SUSTAINED_P99_MS and granted >= SUSTAINED_SHARE * rate * options.seconds:
                figures["grant_ms_p50"] = rounded(percentile(tally.latencies_ms, 50))
                figures["grant_ms_p99"] = rounded(p99)
                figures["grant_requests_per_s"] = rate
                break
        return {**figures, "grant_ms_p99_by_rate": tried}

    def spenders(self) -> dict[str, Any]:
        """Many processes on one budget of the month until it refuses each."""
        options = self.options
        limit = options.spender_calls * spenders.CALL_BOUND_NANOS
        say(f"ledger: {options.spenders} spenders on a budget of {limit / 1e9:g} USD")
        key = {"namespace": NAMESPACE, "quota": "contended", "subject": ""}
        self._limits([key], limit, period="Monthly")
        accounts = [key, *self._accounts()[:1]]
        opened = self._allotments(options.spenders, accounts=accounts, limit=limit)
        target = replace(self.service.target, meters=())  # nobody needs the others' tokens
        spent = spenders.spend(
            [Task(target, next(self.seeds), 0.0, SPEND_SECONDS_MAX, allotments=(each,)) for each in opened]
        )
        self.generation += 1
        (state,) = [each for each in self._limits([key], limit, period="Monthly") if each["dimension"] == "usd"]
        refusals = [each.first_refusal for each in spent if each.first_refusal is not None]
        changes = [change for each in spent for change in each.idle_changes]
        idle = spenders.idle_at(changes, min(refusals)) if refusals else None
        settled = sum(each.settled_nanos for each in spent)
        return {
            "overspent_nanos": max(0, state["spent"] - limit) + state["excess"],
            "idle_percent_at_refusal": None if idle is None else round(100 * idle / limit, 3),
            "spenders": {
                "limit_nanos": limit,
                "processes": len({each.pid for each in spent}),
                "begun_within_ms": rounded(1000 * max(each.late_seconds for each in spent)),
                "calls": sum(each.calls for each in spent),
                "settled_nanos": settled,
                "unposted_nanos": settled - state["spent"],
                "reserved_nanos_at_end": state["reserved"],
                "refusals": sum(each.refusals for each in spent),
                "refusals_that_say_when": sum(each.refusals_that_say_when for each in spent),
                "refusals_with_seconds": sum(each.refusals_with_seconds for each in spent),
                "refusals_that_may_free_up": sum(each.refusals_that_may_free_up for each in spent),
                "frozen_answers": sum(each.frozen for each in spent),
                "errors": [error for each in spent for error in each.errors][:5],
            },
        }

    # -- what the operator does ----------------------------------------------------------------------

    def _accounts(self) -> list[dict[str, str]]:
        """An owner's account and the namespace's; the execution's own makes three."""
        if self.generation == 0:
            self.generation = 1
            self._limits([self._owner(number) for number in range(OWNERS)] + [self._namespace()], ROOMY_NANOS)
        owner = self._owner(self.maker.random.randrange(OWNERS))
        return [owner, self._namespace()]

    @staticmethod
    def _owner(number: int) -> dict[str, str]:
        return {"namespace": NAMESPACE, "quota": "owners", "subject": f"team-{number}"}

    @staticmethod
    def _namespace() -> dict[str, str]:
        return {"namespace": NAMESPACE, "quota": "everyone", "subject": ""}

    def _limits(self, keys: list[dict[str, str]], nanos: int, *, period: str = "Total") -> list[dict[str, Any]]:
        target = self.service.target
        limits = {"generation": self.generation, "limits": {"usd": nanos}, "period": period}
        items = [{"key": key, **limits} for key in keys]
        body = {"epoch": target.epoch, "operation_id": self.maker.id(), "accounts": items}

        async def ask() -> list[dict[str, Any]]:
            async with Caller(target.url, connections=1) as caller:
                answer = await caller.post("/v1/accounts:update", body, target.operator_token)
                states: list[dict[str, Any]] = answer["accounts"]
                return states

        return run_async(ask())

    def _allotments(
        self,
        number: int,
        *,
        accounts: list[dict[str, str]] | None = None,
        limit: int = load.LIMIT_NANOS,
        active: bool = False,
    ) -> list[tuple[str, Meter]]:
        """Open and bind allotments, each for a meter; activate them where the load does not."""
        target, maker = self.service.target, self.maker
        meters = [target.meters[each % len(target.meters)] for each in range(number)]
        items = [
            maker.open(pod="bench", accounts=accounts or self._accounts(), limit_nanos=limit, want_nanos=0)
            for _ in meters
        ]

        async def ask() -> list[tuple[str, Meter]]:
            async with Caller(target.url, connections=16) as caller:
                ids: list[str] = []
                for first in range(0, number, OPEN_ITEMS):
                    part = slice(first, first + OPEN_ITEMS)
                    ids += await open_and_bind(caller, target, items[part], meters[part], maker)
                pairs = list(zip(ids, meters, strict=True))
                if active:
                    await asyncio.gather(*(activate(caller, each, meter, maker) for each, meter in pairs))
                return pairs

        return run_async(ask())

    # -- processes -----------------------------------------------------------------------------------

    def _run(self, function: Callable[[Task], Tally], parts: list[dict[str, Any]]) -> Tally:
        total = Tally()
        for tally in self._spawn(function, parts):
            total.add(tally)
        return total

    def _spawn(self, function: Callable[[Task], T], parts: list[dict[str, Any]]) -> list[T]:
        begin = time.monotonic() + START_SECONDS + len(parts) / 2
        common = {
            "target": self.service.target,
            "begin": begin,
            "seconds": self.options.seconds,
            "batch": self.options.batch,
        }
        tasks = [Task(**{**common, "seed": next(self.seeds), **part}) for part in parts]
        with ProcessPoolExecutor(len(tasks), mp_context=get_context("spawn")) as pool:
            return list(pool.map(function, tasks))
