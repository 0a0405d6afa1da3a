"""docs/sizing.md counts with the figures of docs/benchmarks.md, and counts right."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZING = (DOCS / "sizing.md").read_text()
BENCHMARKS = (DOCS / "benchmarks.md").read_text()
BYTES_A_RECORD = 790


def row(key: str) -> str:
    (found,) = [line for line in BENCHMARKS.splitlines() if line.startswith("|") and f"`{key}" in line]
    return found


def test_the_slopes_are_those_that_were_measured() -> None:
    api, operator, ledger, etcd, _ = re.findall(r"\d+", row("cpu_ms_per_execution").split("|")[2])
    assert f"| operator | one execution, from its creation to its end | {operator} ms of processor time |" in SIZING
    assert f"10.2 writes, {api} ms of processor time; etcd {etcd} ms" in SIZING
    assert f"one execution's allotment, without its calls | {ledger} ms" in SIZING
    assert "| 10.2 |" in row("api_writes_per_execution")
    assert "| 88 | 156 |" in row("service_cpu_us_per_record")
    assert "0.09 ms of processor time on PostgreSQL, 0.16 ms on SQLite" in SIZING
    assert "| 7,833 | 6,240 |" in row("records_per_s")
    assert "`rss_mb` 42, `start_ms` 252" in BENCHMARKS
    assert "42 MB of memory, 0.25 s until it is ready" in SIZING


def test_the_examples_are_calculated_right() -> None:
    assert f"about {BYTES_A_RECORD} bytes a record" in SIZING
    a_day = 100_000 * BYTES_A_RECORD
    assert f"100,000 calls a day are {a_day / 1e6:.0f} MB a day, {a_day * 365 / 1e9:.0f} GB a year" in SIZING
    assert f"{round(5_000_000 * BYTES_A_RECORD * 365 / 1e12, 1)} TB for each year" in SIZING
    assert f"1000 / 22, about {1000 // 22} a second" in SIZING
