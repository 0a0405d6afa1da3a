"""Retention on both databases: what is dropped, what stays, and that the sums can still be proved."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger import maintenance, retention, schema, sealing
from tests.support.books import DOLLAR, USD, Books, Clock, new_id, record
from tests.support.tampering import tamper


def at(year: int, month: int, day: int = 10) -> int:
    return int(datetime(year, month, day, 12, tzinfo=UTC).timestamp())


def run(books: Books, *, cost: int, uid: str | None = None, **more: Any) -> str:
    allotment = books.active(need={USD: 1000}, uid=uid or new_id(), **more)
    now_ms = books.store.read(books.store.now_ms)
    books.post(allotment, [record(1, cost, started_unix_ms=now_ms), record(2, cost, started_unix_ms=now_ms)])
    return allotment


def prune(books: Books, keep_months: int, *, dry_run: bool = False) -> list[str]:
    said: list[str] = []
    retention.prune(books.store, keep_months, dry_run=dry_run, say=said.append, progress=lambda _: None)
    return said


def sums(books: Books) -> list[object]:
    """What people are shown: totals of agents, and sums by day."""
    queries = [sa.select(t).order_by(*t.primary_key) for t in (schema.agents, schema.rollups, schema.windows)]
    return books.store.read(lambda c: [c.execute(query).all() for query in queries])


def count(books: Books, table: sa.Table) -> int:
    return books.store.read(lambda c: c.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


@pytest.fixture
def history(books: Books, clock: Clock) -> Iterator[Books]:
    """January to April 2027, one finished attempt a month and one open one of March; it is May."""
    books.limits(limits={USD: 100 * DOLLAR}, period=BudgetPeriod.MONTHLY)
    for month in (1, 2, 3, 4):
        clock.now = at(2027, month)
        books.end(run(books, cost=100 * month, agent=f"agent-{month % 2}"))
    clock.now = at(2027, 3, 20)
    run(books, cost=7)
    clock.now = at(2027, 5)
    sealing.seal_all(books.store, wait=True)
    yield books
    assert books.violations() == []


def test_closed_months_are_dropped_and_everything_can_still_be_proved(history: Books) -> None:
    before = sums(history)
    windows = count(history, schema.windows)
    assert prune(history, 1) == [
        "202701 is dropped: 3 entries, 1 allotments, 1 executions",
        "202702 is dropped: 3 entries, 1 allotments, 1 executions",
        "202703 is kept: 1 of its allotments are open",
    ]
    assert sums(history) == before
    assert (count(history, schema.windows), count(history, schema.allotments), count(history, schema.executions)) == (
        windows,
        3,
        3,
    )
    assert history.violations() == []
    assert prune(history, 1) == ["202703 is kept: 1 of its allotments are open"]
    closing = history.store.read(lambda c: c.execute(sa.select(schema.closings).order_by("month")).all())
    assert [(row.month, row.allotments, row.entries, row.first_number, row.last_number) for row in closing] == [
        (202701, 1, 3, 1, 3),
        (202702, 1, 3, 4, 6),
    ]
    # The books go on as before, and are sealed on.
    history.end(run(history, cost=5))
    sealing.seal_all(history.store, wait=True)


def test_a_dry_run_drops_nothing(history: Books) -> None:
    assert prune(history, 2, dry_run=True) == [
        "202701 would be dropped: 3 entries, 1 allotments, 1 executions",
        "202702 would be dropped: 3 entries, 1 allotments, 1 executions",
    ]
    assert prune(history, 12, dry_run=True) == ["no month is older than 12 months"]
    assert count(history, schema.closings) == 0
    with pytest.raises(ValueError, match="keep-months"):
        prune(history, 0)


def test_what_is_not_sealed_is_never_dropped(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    clock.now = at(2027, 1)
    books.end(run(books, cost=1))
    clock.now = at(2027, 6)
    assert prune(books, 1) == ["202701 is kept: entry 3 is not sealed yet: run `almoner ledger seal`"]
    sealing.seal_all(books.store, wait=True)
    assert prune(books, 1) == ["202701 is dropped: 3 entries, 1 allotments, 1 executions"]


def test_an_execution_with_a_later_attempt_stays_and_keeps_what_it_has_spent(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    clock.now = at(2027, 1)
    books.end(run(books, cost=400, uid=uid, limits={USD: 5000}))
    clock.now = at(2027, 2)
    books.end(run(books, cost=400, uid=uid, attempt=2, limits={USD: 5000}))
    clock.now = at(2027, 3)
    sealing.seal_all(books.store, wait=True)
    assert prune(books, 1) == ["202701 is dropped: 3 entries, 1 allotments, 0 executions"]
    clock.now = at(2027, 4)
    assert prune(books, 1) == ["202702 is dropped: 3 entries, 1 allotments, 1 executions"]
    assert count(books, schema.executions) == 0
    own = (
        sa.select(schema.windows.c.limit, schema.windows.c.spent)
        .join(schema.accounts, schema.accounts.c.id == schema.windows.c.account_id)
        .where(schema.accounts.c.kind == "execution")
    )
    assert books.store.read(lambda c: [tuple(row) for row in c.execute(own)]) == [(5000, 2000)]
    assert books.state().spent == 2000


def test_months_that_never_got_a_partition_can_be_dropped_too(postgres_url: str, clock: Clock) -> None:
    clock.now = at(2020, 1)
    books = Books(postgres_url, clock)
    try:
        books.limits(limits={USD: DOLLAR})
        books.end(run(books, cost=1))
        clock.now = at(2020, 3)
        sealing.seal_all(books.store, wait=True)
        assert prune(books, 1) == ["202001 is dropped: 3 entries, 1 allotments, 1 executions"]
        assert books.violations() == []
        with pytest.raises(exc.DBAPIError, match="append-only"):
            books.execute(sa.text("DELETE FROM records_default"))
    finally:
        books.close()


def test_partitions_are_made_ahead_and_take_what_came_before_them(postgres_url: str) -> None:
    books = Books(postgres_url)
    try:
        partitions = sa.text("SELECT count(*) FROM pg_inherits WHERE inhparent = 'records'::regclass")
        made = books.store.read(lambda c: c.execute(partitions).scalar_one())
        assert made == 1 + 1 + maintenance.MONTHS_AHEAD, "the default one, this month's, and those to come"
        assert books.database.write(maintenance.make_partitions) == 0
        books.limits(limits={USD: DOLLAR})
        books.end(run(books, cost=1))
        month = books.store.read(lambda c: c.execute(sa.select(schema.records.c.month).limit(1)).scalar_one())
        # As if nobody had made the partition in time.
        for statement in (
            f"ALTER TABLE records DETACH PARTITION records_{month}",
            f"INSERT INTO records_default SELECT * FROM records_{month}",
            f"DROP TABLE records_{month}",
        ):
            books.execute(sa.text(statement))
        assert books.database.write(maintenance.make_partitions) == 1
        assert books.store.read(lambda c: c.execute(sa.text("SELECT count(*) FROM records_default")).scalar_one()) == 0
        assert books.store.read(lambda c: c.execute(sa.text(f"SELECT count(*) FROM records_{month}")).scalar_one()) == 3
        with pytest.raises(exc.DBAPIError, match="append-only"):
            books.execute(sa.text(f"DELETE FROM records_{month}"))
        assert books.violations() == []
    finally:
        books.close()


def test_old_operations_are_forgotten_in_batches(books: Books, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "OPERATIONS_BATCH", 2)
    for generation in range(1, 6):
        books.limits(limits={USD: DOLLAR}, generation=generation)
    clock.now += 8 * 24 * 3600
    books.limits(limits={USD: DOLLAR}, generation=6)
    maintenance.Maintenance(books.store).tidy()
    assert count(books, schema.operations) == 1


@pytest.mark.parametrize(
    ("change", "invariant", "subject"),
    [
        (sa.update(schema.closing_windows).values(used=1), "spent-sums-holds", ""),
        (sa.update(schema.closing_agents).values(requests=99), "totals-sum-entries", "agents of team/agent"),
        (sa.update(schema.closings).values(entries=2), "closings-as-sealed", "closing of 202701"),
        (sa.update(schema.closings).values(closed_ms=2), "closings-as-sealed", "closing of 202701"),
        (sa.delete(schema.closing_agents), "closings-as-sealed", "closing of 202701"),
        (sa.delete(schema.seals).where(schema.seals.c.kind == "closing"), "closings-as-sealed", "closing of 202701"),
    ],
)
def test_a_closing_that_was_tampered_with_is_named(
    ledger_url: str, clock: Clock, change: sa.Executable, invariant: str, subject: str
) -> None:
    clock.now = at(2027, 1)
    books = Books(ledger_url, clock)
    try:
        books.limits(limits={USD: DOLLAR})
        books.end(run(books, cost=1))
        clock.now = at(2027, 6)
        sealing.seal_all(books.store, wait=True)
        prune(books, 1)
        assert books.violations() == []
        tamper(books, change)
        named = [(v.invariant, v.subject) for v in books.violations()]
        assert any(each == invariant and where.startswith(subject) for each, where in named), named
    finally:
        books.close()


def test_the_command_line_says_what_it_did(ledger_url: str, clock: Clock) -> None:
    clock.now = at(2020, 1)
    books = Books(ledger_url, clock)
    books.limits(limits={USD: DOLLAR})
    books.end(run(books, cost=1))
    sealing.seal_all(books.store, wait=True)
    books.close()
    argv = [sys.executable, "-m", "almoner_ledger", "prune", "--keep-months", "12"]
    environment = ledger_environment(ledger_url)
    for more, said in ((["--dry-run"], "would be dropped"), ([], "is dropped"), ([], "no month is older than 12")):
        done = subprocess.run([*argv, *more], env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, said in done.stdout) == (0, True), done.stdout + done.stderr
