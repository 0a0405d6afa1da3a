"""Exports on both databases: what is read back is what the books hold, whole or not at all."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from almoner_core import wire
from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger.database import DatabaseUnavailableError
from almoner_ledger.history import asking, entries, export, exported, reading, usage
from almoner_ledger.history.asking import By, Question
from tests.support import history
from tests.support.books import DOLLAR, EVERYTHING, USD, Books, Clock, record

SEED = 9


@pytest.fixture
def past(books: Books, clock: Clock) -> list[history.Entry]:
    print(f"seed {SEED}")  # noqa: T201 - what a failure is reproduced with
    history.live(books, clock, seed=SEED, executions=10)
    return sorted(history.entries(books), key=lambda entry: int(entry["number"]))


def almoner(books: Books, *argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    url = books.database.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "almoner_cli.main", "ledger", *argv]
    more.setdefault("env", {})
    more["env"] = {**ledger_environment(url), **more["env"]}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


def export_to(books: Books, path: Path, question: Question = EVERYTHING) -> int:
    form = export.format_of(str(path), None)
    return export.to_file(books.database, question, path, form, export.Progress(lambda _: None))


def test_parquet_read_back_is_what_the_books_hold(books: Books, past: list[history.Entry], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "all.parquet"
    assert export_to(books, path) == len(past)
    table = pq.read_table(path)
    assert table.schema.field("counted").type == pa.timestamp("ms", tz="UTC")
    assert table.schema.field("cost_nanos").type == pa.int64()
    assert table.schema.field("cost_usd").type == pa.decimal128(28, 9)
    rows = table.to_pylist()
    assert [row["number"] for row in rows] == [entry["number"] for entry in past]
    for row, entry in zip(rows, past, strict=True):
        nanos = entry["cost_nanos"]
        assert row["cost_nanos"] == nanos
        assert row["cost_usd"] == (None if nanos is None else Decimal(nanos) / 10**9)
        for name in ("counted", "started", "posted"):
            assert row[name] == dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=entry[f"{name}_ms"])
        for name in ("id", "kind", "corrects", "model", "agent", "execution_uid", "sequence", "input_tokens", "units"):
            assert row[name] == entry[name]
    assert any(row["cost_nanos"] is None for row in rows)
    assert any((row["cost_nanos"] or 0) < 0 for row in rows)
    assert sum(row["cost_nanos"] or 0 for row in rows) == sum(
        row.totals.cost_nanos for row in books.usage("agent").rows
    )


def test_csv_read_back_is_what_the_books_hold(books: Books, past: list[history.Entry], tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    assert export_to(books, path) == len(past)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(exported.COLUMNS)
    assert [int(row["number"]) for row in rows] == [entry["number"] for entry in past]
    for row, entry in zip(rows, past, strict=True):
        nanos = entry["cost_nanos"]
        assert row["cost_nanos"] == ("" if nanos is None else str(nanos))
        assert (Decimal(row["cost_usd"]) * 10**9 == nanos) if nanos is not None else row["cost_usd"] == ""
        counted = dt.datetime.fromisoformat(row["counted"])
        assert (counted - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1) == entry["counted_ms"]
        assert row["corrects"] == (entry["corrects"] or "")
        assert row["owner"] == entry["owner"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_span_and_filters_are_exported_alone(
    books: Books, past: list[history.Entry], tmp_path: Path, suffix: str
) -> None:
    import pyarrow.parquet as pq

    moment = past[len(past) // 2]["counted_ms"]
    question = Question({By.AGENT: ("team/a", "b")}, asking.Times(since_ms=moment))
    expected = [e["id"] for e in past if e["agent"] in "ab" and e["counted_ms"] >= moment]
    path = tmp_path / f"some.{suffix}"
    assert export_to(books, path, question) == len(expected) > 0
    if suffix == "csv":
        with path.open(newline="") as stream:
            found = [row["id"] for row in csv.DictReader(stream)]
    else:
        found = pq.read_table(path, columns=["id"])["id"].to_pylist()
    assert found == expected


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_nothing_is_a_file_with_columns_and_no_rows(books: Books, tmp_path: Path, suffix: str) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / f"none.{suffix}"
    assert export_to(books, path) == 0
    if suffix == "csv":
        assert path.read_text() == ",".join(exported.COLUMNS) + "\n"
    else:
        table = pq.read_table(path)
        assert (table.num_rows, tuple(table.column_names)) == (0, exported.COLUMNS)


def test_the_largest_and_the_smallest_amounts_are_exact(books: Books, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    books.limits(limits={USD: 10**18})
    allotment = books.active(need={USD: 10})
    sent = [record(1, 10**18 - 1), record(2, 1), record(3, 0), record(4, None)]
    books.post(allotment, sent)
    export_to(books, tmp_path / "x.parquet")
    costs = pq.read_table(tmp_path / "x.parquet")["cost_usd"].to_pylist()
    assert costs == [Decimal("999999999.999999999"), Decimal("0.000000001"), Decimal(0), None]
    export_to(books, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as stream:
        written = [row["cost_usd"] for row in csv.DictReader(stream)]
    assert written == ["999999999.999999999", "0.000000001", "0.000000000", ""]


def test_what_is_posted_meanwhile_is_not_in_the_snapshot(
    books: Books, past: list[history.Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ROWS", 5)
    stream = io.BytesIO()
    allotment = books.active(need={USD: 10}, name="meanwhile")
    posted: list[Any] = []

    class Posting(export.CsvWriter):
        def write(self, rows: exported.Rows) -> None:
            assert len(rows) <= 5
            super().write(rows)
            sequence = len(posted) + 1
            posted.append(books.post(allotment, [record(sequence, 1)]))

    count = export.to_stream(books.database, EVERYTHING, stream, Posting, export.Progress(lambda _: None))
    assert len(posted) > 1
    assert count == len(past)
    assert "meanwhile" not in stream.getvalue().decode()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_export_that_fails_leaves_the_old_file_and_no_half_of_a_new_one(
    books: Books, past: list[history.Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"kept.{suffix}"
    path.write_text("the old one")
    monkeypatch.setattr(export, "ROWS", 5)
    whole = entries.stream

    def failing(*given: Any) -> Any:
        batches = whole(*given)
        yield next(batches)
        raise OSError("the disk is full")

    monkeypatch.setattr(entries, "stream", failing)
    with pytest.raises(OSError, match="disk is full"):
        export_to(books, path)
    assert path.read_text() == "the old one"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith((".", "kept"))] == [path.name]


def test_a_lost_connection_is_an_error_and_leaves_no_file(
    books: Books, past: list[history.Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not books.database.is_postgresql:
        pytest.skip("SQLite has no connection to lose")

    class Losing(export.CsvWriter):
        def write(self, rows: exported.Rows) -> None:
            super().write(rows)
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            books.database.write(lambda c: c.exec_driver_sql(f"{others} AND pid <> pg_backend_pid()"))

    monkeypatch.setattr(export, "open_writer", lambda _: Losing)
    monkeypatch.setattr(export, "ROWS", 5)
    with pytest.raises(DatabaseUnavailableError):
        export_to(books, tmp_path / "lost.csv")
    assert not [each for each in tmp_path.iterdir() if "lost" in each.name]


def test_the_command_writes_files_and_standard_output(books: Books, past: list[history.Entry], tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    done = almoner(books, "export", str(path))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert f"{len(past)} entries" in done.stderr
    assert path.read_bytes()[:4] == b"PAR1"
    printed = almoner(books, "export", "-", "--outcome", "error")
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    assert (printed.returncode, printed.stderr) == (0, "")
    assert [row["id"] for row in rows] == [entry["id"] for entry in past if entry["outcome"] == "error"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["export", "all.xls"], ".csv or .parquet"),
        (["export", "."], ".csv or .parquet"),
        (["export", "no/such/folder/x.csv"], "there is no such folder"),
        (["export", "x.csv", "--from", "yesterday"], "--from: write a day"),
        (["export", "x.csv", "--from", "2026-02-01", "--to", "2026-01-01"], "--to: it must be later"),
        (["export", "x.csv", "--resource-type", "gold"], "--resource-type: write one of"),
        (["costs", "--by", "colour"], "--by: 'colour' is none of"),
        (["costs", "--order", "colour"], "--order: write one of"),
        (["executions", "--state", "open"], "--state: write one of"),
        (["records", "--limit", "0"], "--limit"),
    ],
)
def test_commands_that_cannot_be_are_refused_by_name(
    books: Books, tmp_path: Path, argv: list[str], message: str
) -> None:
    done = almoner(books, *argv, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [each.name for each in tmp_path.iterdir() if "csv" in each.name] == []


def test_without_the_library_the_extra_is_named(books: Books, tmp_path: Path) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ImportError('not installed')")
    done = almoner(
        books, "export", str(tmp_path / "x.parquet"), env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "almoner[export]" in done.stderr
    assert not (tmp_path / "x.parquet").exists()


def test_costs_executions_and_records_are_shown_as_tables_json_and_csv(books: Books, past: list[history.Entry]) -> None:
    shown = almoner(books, "costs", "--by", "agent,operation", "--agent", "a")
    assert shown.returncode == 0, shown.stderr
    head, *lines = shown.stdout.splitlines()
    assert head.split()[:4] == ["NAMESPACE", "AGENT", "OPERATION", "COST"]
    assert lines[-1].startswith("TOTAL")
    rows = json.loads(almoner(books, "costs", "--by", "agent,operation", "-o", "json").stdout)
    expected = history.summed(past, ["namespace", "agent", "operation"])
    found: dict[tuple[str, ...], Any] = {(row["namespace"], row["agent"], row["operation"]): row for row in rows}
    for key, totals in expected.items():
        assert Decimal(found[key]["cost_usd"]) * 10**9 == totals["cost_nanos"]
        assert found[key]["cpu_milli_seconds"] == totals["cpu_milli_seconds"]
    listed = list(csv.DictReader(io.StringIO(almoner(books, "executions", "-o", "csv", "--limit", "4").stdout)))
    assert len(listed) == 4
    assert listed[0]["uid"] in {entry["execution_uid"] for entry in past}
    table = almoner(books, "records", "--limit", "3").stdout.splitlines()
    assert len(table) == 5
    assert table[-1] == "more was left out: raise --limit"
    unknown = almoner(books, "records", "-o", "json", "--limit", "1000").stdout
    assert {row["cost_usd"] for row in json.loads(unknown) if row["cost_nanos"] is None} == {None}


@pytest.mark.parametrize("by", ["agent", "day", "execution", "agent,hour"])
def test_total_is_of_everything_asked_for_however_few_rows_are_shown(
    books: Books, past: list[history.Entry], by: str
) -> None:
    total = Decimal(sum(entry["cost_nanos"] or 0 for entry in past if entry["agent"] != "b")) / 10**9
    agents = ("--agent", "a", "--agent", "c")
    for limit in ("1", "1000"):
        lines = almoner(books, "costs", "--by", by, *agents, "--limit", limit).stdout.splitlines()
        summed = next(line for line in lines if line.startswith("TOTAL"))
        assert Decimal(summed.split()[1]) == total
        assert lines[-1].startswith("TOTAL") == (limit == "1000")
    grouping = usage.Grouping(asking.read_by(by), None, 1)
    pages: list[wire.UsagePage] = []
    while not pages or pages[-1].next is not None:
        after = pages[-1].next if pages else None
        page = reading.read(
            books.database, partial(usage.usage, question=EVERYTHING, grouping=replace(grouping, after=after))
        )
        pages.append(page)
    assert len({page.totals.model_dump_json() for page in pages}) == 1
    assert pages[0].totals.cost_nanos == sum(row.totals.cost_nanos for page in pages for row in page.rows)


def test_commands_that_read_make_no_file(tmp_path: Path) -> None:
    asked = {"verify": [], "costs": [], "executions": [], "records": [], "seal": [], "export": ["out.csv"]}
    for name, more in asked.items():
        command = [sys.executable, "-m", "almoner_cli.main", "ledger", name, "--database", "sqlite:///typo.db", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
        assert done.returncode == 2, name
        assert "typo.db: there is no such file" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_said_to_be_none_at_once(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "text.db").write_text("no database " * 100)
    for name, words in (("empty.db", "almoner ledger migrate"), ("text.db", "not a database")):
        command = [sys.executable, "-m", "almoner_cli.main", "ledger", "costs", "--database", f"sqlite:///{name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_terminal_gets_no_control_characters(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    books.post(allotment, [record(1, 5, model="m\x1b[31m", operation="two\nlines")])
    shown = almoner(books, "records").stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2
