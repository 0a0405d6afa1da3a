"""What the raw database does: multi-row inserts of rows shaped like usage records, one commit a batch.

Role: the yardstick of the `ledger` benchmark. The same server, table shape (checks and indexes included), batch size
and number of connections as the service's load, and nothing else: no accounts, no holds, no HTTP.

Boundary: writes a table of its own beside the ledger's, and drops it.
"""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import psycopg2
import psycopg2.extras

from almoner_ledger import schema

TABLE: Final = "bench_raw_records"
COLUMNS: Final = tuple(column.name for column in schema.records.columns)
START_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class RawTask:
    """What one process inserts. `url` is libpq's; `begin` is of the monotonic clock."""

    url: str
    seed: int
    begin: float
    seconds: float
    connections: int
    batch: int


def postgres_rows_per_s(url: str, *, seconds: float, processes: int, connections: int, batch: int, seed: int) -> float:
    """Give rows a second, committed by `processes` times `connections` sessions. `url` is libpq's."""
    statement = f"CREATE TABLE {TABLE} (LIKE records INCLUDING ALL)"
    _execute(url, f"DROP TABLE IF EXISTS {TABLE}", statement)
    begin = time.monotonic() + START_SECONDS + processes
    tasks = [RawTask(url, seed + each, begin, seconds, connections, batch) for each in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        rows = sum(pool.map(insert_load, tasks))
    _execute(url, f"DROP TABLE {TABLE}")
    return rows / seconds


def sqlite_rows_per_s(path: Path, *, seconds: float, batch: int, seed: int) -> float:
    """Give rows a second of one writer with the ledger's own settings: a write-ahead log, synced at every commit."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        listed = "SELECT sql FROM sqlite_master WHERE tbl_name = 'records' AND sql IS NOT NULL AND type = ?"
        for kind in ("table", "index"):
            for (ddl,) in connection.execute(listed, (kind,)).fetchall():
                connection.execute(re.sub(r"\brecords\b", TABLE, ddl).replace("ix_records", f"ix_{TABLE}"))
        marks = ",".join("?" * len(COLUMNS))
        statement = f"INSERT INTO {TABLE} ({_names()}) VALUES ({marks})"
        chooser, rows, allotment = random.Random(seed), 0, str(uuid.UUID(int=seed))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, [_row(chooser, allotment, rows + each) for each in range(batch)])
            connection.execute("COMMIT")
            rows += batch
        connection.execute(f"DROP TABLE {TABLE}")
        return rows / seconds
    finally:
        connection.close()


def insert_load(task: RawTask) -> int:
    """Insert until the time is up; give the rows that were committed within it."""
    counts = [0] * task.connections

    def one(number: int) -> None:
        chooser = random.Random(f"{task.seed}/{number}")
        allotment = str(uuid.UUID(int=chooser.getrandbits(128)))
        connection = psycopg2.connect(task.url)
        statement = f"INSERT INTO {TABLE} ({_names()}) VALUES %s"
        sequence = 0
        time.sleep(max(0.0, task.begin - time.monotonic()))
        while time.monotonic() < task.begin + task.seconds:
            rows = [_row(chooser, allotment, sequence + each) for each in range(task.batch)]
            with connection.cursor() as cursor:
                psycopg2.extras.execute_values(cursor, statement, rows, page_size=task.batch)
            connection.commit()
            sequence += task.batch
            if time.monotonic() <= task.begin + task.seconds:
                counts[number] += task.batch
        connection.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(task.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


def _names() -> str:
    return ", ".join(f'"{name}"' for name in COLUMNS)


def _row(chooser: random.Random, allotment: str, sequence: int) -> tuple[Any, ...]:
    now_ms = int(time.time() * 1000)
    values: dict[str, Any] = {
        # The time first, as the records' own ids have it.
        "id": f"{now_ms >> 16:08x}-{now_ms & 0xFFFF:04x}-{uuid.UUID(int=chooser.getrandbits(128))!s:.22}",
        "month": 202601,
        "number": sequence,
        "kind": "usage",
        "corrects": None,
        "allotment_id": allotment,
        "sequence": sequence,
        "digest": f"{chooser.getrandbits(256):064x}",
        "posted_ms": now_ms,
        "resource_type": "llm",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "operation": "chat",
        "cost_nanos": 1000,
        "started_ms": now_ms,
        "duration_ms": chooser.randint(50, 5000),
        "outcome": "ok",
        "error": None,
        "price_version": "bench-1",
        "metadata": f'{{"response_id":"chatcmpl-{chooser.getrandbits(96):024x}","finish_reason":"stop"}}',
    }
    return tuple(values.get(name, 700) for name in COLUMNS)


def _execute(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.commit()
    finally:
        connection.close()
