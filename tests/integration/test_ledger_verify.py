"""The audit on both databases: each invariant is broken, alone where that is possible, and has to be named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger import schema
from almoner_ledger.store import Verb
from tests.support.books import DOLLAR, REQUESTS, TOKENS, USD, Books, new_id, record, tokens
from tests.support.ledger_service import LedgerService, meter_token, record_body
from tests.support.polling import until
from tests.support.tampering import tamper

ACCOUNTS, ALLOTMENTS, HOLDS, OPERATIONS, RECORDS, WINDOWS = (
    schema.accounts,
    schema.allotments,
    schema.holds,
    schema.operations,
    schema.records,
    schema.windows,
)


@dataclass
class World:
    """Books with an attempt in every state."""

    books: Books
    returned: str
    lost: str
    active: str
    offered: str
    void: str
    retried: str

    def hold(self, allotment: str) -> sa.ColumnElement[bool]:
        """The allotment's hold of money on the quota."""
        quota = sa.select(ACCOUNTS.c.id).where(ACCOUNTS.c.kind == "quota").scalar_subquery()
        return sa.and_(HOLDS.c.allotment_id == allotment, HOLDS.c.account_id == quota, HOLDS.c.dimension == "usd")


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    books = Books(ledger_url)
    books.limits(limits={USD: DOLLAR, TOKENS: 10_000, REQUESTS: 100}, period=BudgetPeriod.MONTHLY)
    need = {USD: 1000, TOKENS: 100, REQUESTS: 5}
    void = books.open(need=need).allotment
    books.end(void, Verb.VOID)
    returned = books.active(need=need)
    books.post(returned, [record(1, 100, tokens=tokens(10, 20)), record(2, 50)])
    books.give_back(returned, 2, {USD: 150, TOKENS: 30, REQUESTS: 2}, final=True)
    lost = books.active(need=need)
    books.post(lost, [record(1, 300)])
    books.end(lost)
    books.post(lost, [record(2, 70)])
    active = books.active(need=need)
    books.post(active, [record(1, 10), record(3, 20)])
    retried = new_id()
    books.end(books.active(need=need, uid=retried, attempt=2))
    books.end(books.active(need=need, uid=retried, attempt=3))
    offered = books.open(need=need).allotment
    assert books.violations() == []
    yield World(books, returned, lost, active, offered, void, retried)
    books.close()


def plus(column: sa.Column[int], amount: int = 1) -> dict[sa.Column[int], sa.ColumnElement[int]]:
    return {column: column + amount}


def of(table: sa.Table, allotment: str) -> sa.ColumnElement[bool]:
    return (table.c.id if table is ALLOTMENTS else table.c.allotment_id) == allotment


def spent(world: World) -> sa.ColumnElement[bool]:
    del world
    quota = sa.select(ACCOUNTS.c.id).where(ACCOUNTS.c.kind == "quota").scalar_subquery()
    return sa.and_(WINDOWS.c.account_id == quota, WINDOWS.c.dimension == "usd")


def newest_open(world: World) -> sa.ScalarSelect[str]:
    del world
    query = sa.select(OPERATIONS.c.id).where(OPERATIONS.c.verb == "open")
    return query.order_by(OPERATIONS.c.created_ms.desc()).limit(1).scalar_subquery()


def first_record(world: World) -> sa.ColumnElement[bool]:
    return sa.and_(RECORDS.c.allotment_id == world.active, RECORDS.c.sequence == 1)


Break = Callable[[World], list[sa.Executable]]
BREAKS: dict[str, tuple[str, Break]] = {
    "1 a grant beyond the limit": (
        "within-limit",
        lambda w: [sa.update(WINDOWS).where(spent(w)).values({WINDOWS.c.limit: 1})],
    ),
    "3 spent": ("spent-sums-holds", lambda w: [sa.update(WINDOWS).where(spent(w)).values(plus(WINDOWS.c.spent))]),
    "3 reserved": (
        "reserved-sums-holds",
        lambda w: [sa.update(WINDOWS).where(spent(w)).values(plus(WINDOWS.c.reserved))],
    ),
    "2 excess": ("excess-sums-holds", lambda w: [sa.update(WINDOWS).where(spent(w)).values(plus(WINDOWS.c.excess))]),
    "3 an entry posted to no account": (
        "used-sums-entries",
        lambda w: [sa.update(RECORDS).where(first_record(w)).values(plus(RECORDS.c.total_tokens))],
    ),
    "3 totals of an attempt": (
        "totals-sum-entries",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.lost)).values(plus(ALLOTMENTS.c.reasoning_tokens))],
    ),
    "3 totals of an agent": (
        "totals-sum-entries",
        lambda _: [sa.update(schema.agents).values(plus(schema.agents.c.requests))],
    ),
    "3 sums by day": (
        "totals-sum-entries",
        lambda _: [sa.update(schema.rollups).values(plus(schema.rollups.c.cost_nanos))],
    ),
    "3 a closed one that holds": (
        "closed-holds-nothing",
        lambda w: [
            sa.update(HOLDS).where(w.hold(w.returned)).values(plus(HOLDS.c.granted)),
            sa.update(WINDOWS).where(spent(w)).values(plus(WINDOWS.c.reserved)),
        ],
    ),
    "4 no stored result": (
        "opened-once",
        lambda w: [sa.delete(OPERATIONS).where(OPERATIONS.c.id == newest_open(w))],
    ),
    "4 a result that is none": (
        "operations-have-results",
        lambda _: [sa.update(OPERATIONS).where(OPERATIONS.c.verb == "open").values(answer="nonsense")],
    ),
    "4 a duplicate told by nothing": (
        "sequences-are-records",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.active)).values(plus(ALLOTMENTS.c.contiguous))],
    ),
    "4 a return without all its records": (
        "records-complete",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.returned)).values(plus(ALLOTMENTS.c.final_sequence))],
    ),
    "4 a complete return that is open": (
        "closed-when-complete",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.active)).values(final_sequence=1)],
    ),
    "5 an entry in another month": (
        "entries-in-their-month",
        lambda w: [sa.update(RECORDS).where(first_record(w)).values(month=209901)],
    ),
    "5 an entry that is gone": (
        "entries-numbered",
        lambda w: [sa.update(RECORDS).where(first_record(w)).values(number=1_000)],
    ),
    "5 a correction of nothing": (
        "corrections-name-entries",
        lambda w: [sa.update(RECORDS).where(RECORDS.c.corrects.is_not(None)).values(corrects=new_id())],
    ),
    "6 a cost without its price version": (
        "rated-by-version",
        lambda w: [sa.update(RECORDS).where(first_record(w)).values(price_version=None)],
    ),
    "6 an unknown cost that counts as zero": (
        "totals-sum-entries",
        lambda _: [sa.update(schema.agents).values(plus(schema.agents.c.unpriced, -1))],
    ),
    "7 a charge without an entry": (
        "charges-are-entered",
        lambda w: [sa.update(HOLDS).where(w.hold(w.lost)).values(plus(HOLDS.c.charged, -1))],
    ),
    "life: void and active exclude each other": (
        "activated-or-void",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.void)).values(activated_ms=5)],
    ),
    "life: a superseded attempt on offer": (
        "superseded-is-void",
        lambda w: [
            sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.offered)).values(execution_uid=w.retried, attempt=1),
        ],
    ),
    "life: an end without a time": (
        "ended-when-closed",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.lost)).values(closed_ms=None)],
    ),
    "life: holders": (
        "holders-are-open",
        lambda _: [sa.update(ACCOUNTS).where(ACCOUNTS.c.kind == "quota").values(plus(ACCOUNTS.c.holders))],
    ),
    "life: all accounts or none": (
        "all-accounts-or-none",
        lambda w: [sa.update(ALLOTMENTS).where(of(ALLOTMENTS, w.returned)).values(tracked="{}")],
    ),
    "the feed": (
        "feed-is-numbered",
        lambda _: [sa.update(schema.counters).where(schema.counters.c.name == "changes").values(value=0)],
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_invariant_is_named_and_no_other(world: World, name: str) -> None:
    invariant, statements = BREAKS[name]
    tamper(world.books, *statements(world))
    # To break what a CHECK constraint keeps, the constraint has to go, which is named too.
    named = {each.invariant for each in world.books.violations()} - {"constraints-in-force"}
    assert named == {invariant}


def test_the_same_operation_for_two_openings_is_named(world: World) -> None:
    query = sa.select(OPERATIONS).where(OPERATIONS.c.verb == "open").limit(1)
    row = world.books.store.read(lambda c: dict(c.execute(query).mappings().one()))
    tamper(world.books, sa.insert(OPERATIONS).values({**row, "id": new_id()}))
    ((invariant, found),) = [
        (each.invariant, each.found) for each in world.books.violations() if "opened" in each.invariant
    ]
    assert (invariant, found) == ("opened-once", "2 operations opened it")


@pytest.mark.parametrize("table", ["records", "seals", "closings", "closing_windows", "closing_agents"])
def test_a_trigger_that_is_gone_is_named(world: World, table: str) -> None:
    books = world.books
    on_postgresql = books.database.is_postgresql
    books.execute(
        sa.text(f"DROP TRIGGER append_only ON {table}" if on_postgresql else f"DROP TRIGGER {table}_append_only_delete")
    )
    assert [(each.invariant, each.subject) for each in books.violations()] == [("append-only", f"table {table}")]


@pytest.mark.parametrize(
    ("statement", "subjects"),
    [
        ("ALTER TABLE records_default DISABLE TRIGGER append_only", {"table records_default"}),
        ("ALTER TABLE seals DISABLE TRIGGER ALL", {"table seals"}),
        ("ALTER TABLE windows DROP CONSTRAINT ck_windows_within_limit", {"table windows"}),
    ],
)
def test_a_guard_that_is_switched_off_is_named(postgres_url: str, statement: str, subjects: set[str]) -> None:
    books = Books(postgres_url)
    try:
        books.execute(sa.text(statement))
        assert {each.subject for each in books.violations()} == subjects
    finally:
        books.close()


def test_a_trigger_function_that_does_nothing_is_named(postgres_url: str) -> None:
    books = Books(postgres_url)
    try:
        head = "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        books.execute(sa.text(f"{head} $$ BEGIN RETURN NULL; END $$"))
        found = books.violations()
        assert {each.invariant for each in found} == {"append-only"}
        assert "table records" in {each.subject for each in found}
    finally:
        books.close()


def test_what_providers_billed_above_holds_is_reported_and_is_no_violation(ledger_url: str) -> None:
    books = Books(ledger_url)
    try:
        books.limits(limits={USD: DOLLAR})
        books.post(books.active(need={USD: 100}), [record(1, 130)])
        assert books.violations() == []
        done = verify(ledger_url)
        assert (done.returncode, "30 billed above a hold" in done.stdout) == (0, True), done.stdout
        answer = json.loads(verify(ledger_url, "-o", "json").stdout)
        assert answer["ok"]
        assert [each["excess"] for each in answer["excess"] if each["account"].startswith("quota")] == [30]
    finally:
        books.close()


def verify(url: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "almoner_ledger", "verify", *more]
    return subprocess.run(argv, env=ledger_environment(url), capture_output=True, text=True, timeout=60, check=False)


def test_the_books_of_a_live_service_are_proved_while_it_works(ledger_url: str, tmp_path: Path) -> None:
    """The audit sees one state, and nobody waits for it."""
    service = LedgerService(tmp_path, ledger_url, pods=["pod"])
    service.arguments += ["--seal-seconds", "0.1"]
    try:
        service.start()
        epoch = service.epoch()
        service.limit(epoch, {"usd": DOLLAR})
        allotment = service.active(epoch, "pod", {"usd": 100_000})
        auditor = subprocess.Popen(
            [sys.executable, "-m", "almoner_ledger", "verify"],
            env=ledger_environment(ledger_url),
            stdout=subprocess.PIPE,
            text=True,
        )
        posted = 0
        while auditor.poll() is None:
            posted += 1
            body = {"operation_id": new_id(), "records": [record_body(posted, 10)]}
            service.ask("POST", f"/v1/allotments/{allotment}/records", body, meter_token("pod"))
        said, _ = auditor.communicate()
        assert auditor.returncode == 0, said
        assert posted > 1
        done = until(lambda: _sealed(ledger_url, posted), 30, "the service to seal every entry")
        assert done is not None
        assert done.returncode == 0, done.stdout
    finally:
        service.close()


def _sealed(url: str, entries: int) -> subprocess.CompletedProcess[str] | None:
    done = verify(url)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        sealed = connection.execute(sa.select(sa.func.max(schema.seals.c.last_number))).scalar_one()
    engine.dispose()
    return done if sealed == entries else None
