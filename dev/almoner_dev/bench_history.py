"""The `history` benchmark: what people ask of a ledger that has a million entries, over HTTP.

Role: fills a real PostgreSQL (fsync on) with a past, runs the real service on it, and times every overview question, an
audit and the exports. See docs/benchmarks.md for what each key means. Boundary: the load of meters is not part of it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import http.client
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from almoner_dev import bench_history_past as past
from almoner_dev import processes
from almoner_dev.bench_report import Processor, machine, percentile, ratio, rounded, say
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.postgres import Postgres
from almoner_dev.processes import Child
from almoner_ledger.database import Database
from almoner_ledger.store import Store

LOOPBACK: Final = "127.0.0.1"
READY_SECONDS: Final = 60.0
TARGET_MS: Final = 100.0
OVERVIEWS: Final = {
    "by_day": "/v1/usage?by=day",
    "by_week": "/v1/usage?by=week",
    "by_month": "/v1/usage?by=month",
    "by_namespace": "/v1/usage?by=namespace",
    "by_agent": "/v1/usage?by=agent",
    "by_owner": "/v1/usage?by=owner",
    "by_provider": "/v1/usage?by=provider",
    "by_model": "/v1/usage?by=model",
    "by_resource_type": "/v1/usage?by=resource_type",
    "by_operation": "/v1/usage?by=operation",
    "by_outcome": "/v1/usage?by=outcome",
    "by_day_agent": "/v1/usage?by=day,agent",
    "by_month_model": "/v1/usage?by=month,model",
    "by_agent_owner_model": "/v1/usage?by=agent,owner,model",
    "by_agent_30_days": "/v1/usage?by=agent&from={month}",
    "by_day_model_30_days": "/v1/usage?by=day,model&from={month}",
    "by_owner_7_days_of_a_namespace": "/v1/usage?by=owner&from={week}&namespace=team-3",
    "by_day_of_an_agent": "/v1/usage?by=day&agent=team-7/agent-7",
    "executions_newest": "/v1/executions?limit=100",
    "executions_of_an_owner": "/v1/executions?limit=100&owner=owner-9",
    "records_newest": "/v1/records?limit=100",
    "records_of_an_execution": "/v1/records?limit=100&execution=run-17",
    "usage_of_an_execution": "/v1/usage?by=model,operation&execution=run-17",
}
DETAILS: Final = {
    "by_execution_7_days": "/v1/usage?by=execution&from={week}&limit=100",
    "by_execution_ever": "/v1/usage?by=execution&limit=100",
    "by_hour_1_day": "/v1/usage?by=hour&from={day}",
    "by_execution_and_model_1_day": "/v1/usage?by=execution,model&from={day}&limit=100",
}
"""Not overviews: from attempts or entries."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for."""

    records: int
    repeats: int


def parse(argv: Sequence[str]) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.bench history", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="entries in the books (default a million)")
    parser.add_argument("--repeats", type=int, default=30, help="how often each question is asked (default 30)")
    return Options(**vars(parser.parse_args(argv)))


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run the benchmark and give its figures; keys are in docs/benchmarks.md."""
    options = parse(argv)
    directory = Path(tempfile.mkdtemp(prefix="almoner-bench-history-"))
    directory.chmod(0o755)
    say("history: starting PostgreSQL (fsync on)")
    try:
        with Postgres(fsync=True) as server:
            return _measure(options, server.create_database("history"), directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(options: Options, url: str, directory: Path) -> dict[str, Any]:
    processor, begun = Processor.now(), time.monotonic()
    rows = _load(url, options.records)
    figures: dict[str, Any] = {
        "benchmark": "history",
        "records": options.records,
        **rows,
        "load_s": rounded(time.monotonic() - begun),
        "raw_count_ms_p50": _raw_count_ms(url, options.repeats),
    }
    with _Service(url, directory) as service:
        overviews = {name: service.ask(name, path, options.repeats) for name, path in OVERVIEWS.items()}
        details = {name: service.ask(name, path, max(3, options.repeats // 5)) for name, path in DETAILS.items()}
    for key in ("ms_p50", "ms_p99", "cpu_ms"):
        figures[f"overview_{key}"] = max(each[key] for each in overviews.values())
        figures[f"overview_{key}_of"] = max(overviews, key=lambda name: overviews[name][key])
    figures["overview_to_raw_count"] = ratio(figures["overview_ms_p50"], figures["raw_count_ms_p50"])
    figures["overviews"] = overviews
    figures["details"] = details
    say(f"history: {json.dumps(figures)}")
    figures |= _exports(url, directory, options.records)
    figures |= _verify(url, directory)
    figures["processor_shares"] = Processor.now().since(processor)
    figures["targets"] = {"overview_ms_p50": TARGET_MS, "overview_ms_p99": TARGET_MS}
    figures["options"] = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    figures["machine"] = machine()
    return figures


def _load(url: str, records: int) -> dict[str, Any]:
    say(f"history: filling the books with {records} entries")
    database = Database(url)
    try:
        store = Store(database)
        store.migrate()
        with database.engine.connect() as connection, connection.begin():
            past.make(connection, records, store.now_ms(connection))
        with database.engine.connect() as plain:
            connection = plain.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql("SET statement_timeout = 0")
            connection.exec_driver_sql("VACUUM ANALYZE")
            counted = {
                table: connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
                for table in ("allotments", "rollups")
            }
            size = int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())
    finally:
        database.dispose()
    # The empty catalogue, 8 MB, is in it: the more records, the nearer to what one more takes.
    bytes_each = rounded(size / records)
    return {"attempts": counted["allotments"], "rollups": counted["rollups"], "bytes_per_record": bytes_each}


def _raw_count_ms(url: str, repeats: int) -> float | None:
    database = Database(url)
    taken = []
    try:
        with database.engine.connect() as connection:
            for _ in range(repeats):
                begun = time.perf_counter()
                connection.exec_driver_sql("SELECT count(*) FROM records").scalar_one()
                taken.append((time.perf_counter() - begun) * 1000)
    finally:
        database.dispose()
    return rounded(percentile(taken, 50))


class _Service:
    """The real service, asked as a reader."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._token = url, secrets.token_urlsafe(24)
        self._port = processes.free_port(LOOPBACK)
        tokens = directory / "tokens.json"
        tokens.write_text(json.dumps([{"token": self._token, "role": "reader", "name": "reader"}]))
        self._argv: list[str | Path] = [sys.executable, "-m", "almoner_ledger", "serve"]
        self._argv += ["--listen", f"{LOOPBACK}:{self._port}", "--static-tokens", tokens, "--log-level", "warning"]
        self._log = directory / "ledger.log"
        self._child: Child | None = None
        self._connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=60)

    def __enter__(self) -> Self:
        environment = ledger_environment(self._url)
        self._child = processes.start("ledger", self._argv, log_path=self._log, env=environment)
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                if self._get("/readyz")[0] == 200:
                    return self
            except OSError:
                self._connection.close()
            if not self._child.running() or time.monotonic() > deadline:
                raise self._child.failure("it is not ready")
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        if self._child is not None:
            self._child.stop()

    def _get(self, path: str) -> tuple[int, bytes]:
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def ask(self, name: str, path: str, repeats: int) -> dict[str, Any]:
        """Ask a question again and again, once before it counts."""
        say(f"history: asking {name}")
        today = dt.datetime.now(dt.UTC).date()
        days = {key: today - dt.timedelta(days=ago) for key, ago in (("day", 1), ("week", 6), ("month", 29))}
        asked = path.format(**{key: urllib.parse.quote(str(day)) for key, day in days.items()})
        taken, answer, before = [], b"", Processor.now()
        for number in range(repeats + 1):
            before = Processor.now() if number == 1 else before
            begun = time.perf_counter()
            status, answer = self._get(asked)
            taken.append((time.perf_counter() - begun) * 1000)
            if status != 200:
                raise RuntimeError(f"{asked} was answered {status}: {answer[:500]!r}")
        found = json.loads(answer)
        rows = next(found[key] for key in ("rows", "executions", "records") if key in found)
        return {
            "ms_p50": rounded(percentile(taken[1:], 50)),
            "ms_p99": rounded(percentile(taken[1:], 99)),
            "cpu_ms": rounded(1000 * (Processor.now().ours - before.ours) / repeats),
            "source": found.get("source"),
            "rows": len(rows),
        }


def _exports(url: str, directory: Path, records: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for form in ("csv", "parquet"):
        say(f"history: exporting {records} entries to {form}")
        path = directory / f"all.{form}"
        seconds, rss_mb = _command(["export", str(path)], url, directory)
        figures[f"export_{form}_rows_per_s"] = rounded(records / seconds)
        figures[f"export_{form}_mb"] = rounded(path.stat().st_size / 1e6)
        figures[f"export_{form}_rss_mb"] = rss_mb
        path.unlink()
    figures["export_rows_per_s"] = min(figures[f"export_{form}_rows_per_s"] for form in ("csv", "parquet"))
    return figures


def _verify(url: str, directory: Path) -> dict[str, Any]:
    say("history: verifying")
    seconds, rss_mb = _command(["verify"], url, directory)
    return {"verify_s": rounded(seconds), "verify_rss_mb": rss_mb}


def _command(argv: Sequence[str], url: str, directory: Path) -> tuple[float, float]:
    """Run a command of the ledger that has to succeed; gives its seconds and the most memory it had, in MB."""
    log = directory / "command.log"
    begun = time.monotonic()
    with log.open("wb") as stream:
        actions = [(os.POSIX_SPAWN_DUP2, stream.fileno(), 1), (os.POSIX_SPAWN_DUP2, stream.fileno(), 2)]
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "almoner_ledger", *argv],
            ledger_environment(url),
            file_actions=actions,
        )
        _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{argv[0]} ended with status {status}: {log.read_text()[-4000:]}")
    return time.monotonic() - begun, used.ru_maxrss / 1000
