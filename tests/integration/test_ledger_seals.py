"""The chain of seals on both databases: what was tampered with is named, whatever it is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from almoner_dev.ledger_environment import ledger_environment
from almoner_ledger import schema, sealing
from almoner_ledger.verify import audit, seals
from tests.support.books import DOLLAR, USD, Books, new_id, record
from tests.support.tampering import tamper

RECORDS, SEALS = schema.records, schema.seals
ENTRY = (
    "id month number kind corrects allotment_id sequence digest posted_ms resource_type provider model operation "
    "cost_nanos total_tokens input_tokens cached_input_tokens cache_write_tokens output_tokens reasoning_tokens "
    "requests tool_calls units price_version started_ms duration_ms outcome error metadata"
)
SEAL = "number kind form month first_number last_number entries content previous sealed_ms"


@pytest.fixture
def books(ledger_url: str) -> Iterator[Books]:
    """Books that need not be sound at the end."""
    opened = Books(ledger_url)
    yield opened
    opened.close()


@pytest.fixture
def sealed(books: Books) -> Books:
    """Twelve entries in four seals."""
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    for batch in range(4):
        books.post(allotment, [record(3 * batch + each, 10, operation=f"op, {each}: é") for each in (1, 2, 3)])
        assert sealing.seal_all(books.store, wait=True) == 3
    return books


def violations(books: Books, invariant: str = "") -> list[tuple[str, str]]:
    return [(v.subject, v.found) for v in books.violations() if invariant in v.invariant]


def test_entries_are_numbered_by_commits_and_sealed_in_a_chain(sealed: Books) -> None:
    assert sealed.violations() == []
    numbers = sealed.store.read(
        lambda c: c.execute(sa.select(RECORDS.c.number).order_by(RECORDS.c.number)).scalars().all()
    )
    assert list(numbers) == list(range(1, 13))
    rows = sealed.store.read(lambda c: c.execute(sa.select(SEALS).order_by(SEALS.c.number)).all())
    assert [(row.number, row.first_number, row.last_number, row.entries) for row in rows] == [
        (1, 1, 3, 3),
        (2, 4, 6, 3),
        (3, 7, 9, 3),
        (4, 10, 12, 3),
    ]
    assert [row.previous for row in rows] == [sealing.GENESIS, *(row.digest for row in rows[:-1])]
    assert sealing.seal_all(sealed.store, wait=True) == 0
    assert sealed.store.read(sealing.head) == sealing.Head(4, rows[-1].digest, 12)


def test_the_digest_is_what_the_protocol_says(sealed: Books) -> None:
    """Written out by hand from the docstring of sealing.py, so that the protocol cannot change unnoticed."""
    entries = sealed.store.read(
        lambda c: c.execute(sa.select(RECORDS).order_by(RECORDS.c.number).limit(3)).mappings().all()
    )
    names = ENTRY.split()
    content = hashlib.sha256()
    for entry in entries:
        fields = ["-" if entry[name] is None else f"{len(str(entry[name]))}:{entry[name]}" for name in names]
        content.update((",".join(fields) + "\n").encode())
    seal = sealed.store.read(lambda c: c.execute(sa.select(SEALS).where(SEALS.c.number == 1)).mappings().one())
    assert seal["content"] == content.hexdigest()
    names = SEAL.split()
    text = ",".join(f"{len(str(seal[name]))}:{seal[name]}" for name in names) + "\n"
    assert seal["digest"] == hashlib.sha256(text.encode()).hexdigest()


def test_every_column_of_an_entry_is_sealed() -> None:
    assert set(sealing.ENTRY_FORMS[sealing.FORM]) == set(RECORDS.c.keys())
    assert {*sealing.SEAL_FORM, "digest"} == set(SEALS.c.keys())
    for name, columns in sealing.CLOSING_FORMS.items():
        assert list(columns) == schema.metadata.tables[name].c.keys()


@pytest.mark.parametrize("table", [RECORDS, SEALS, schema.closings, schema.closing_windows, schema.closing_agents])
def test_what_is_append_only_refuses_changes(sealed: Books, table: sa.Table) -> None:
    column = next(iter(table.c))
    if table not in (RECORDS, SEALS):
        closing = {"month": 202001, "allotments": 0, "executions": 0, "entries": 0, "closed_ms": 0}
        sealed.execute(sa.insert(schema.closings).values(closing))
        if table is not schema.closings:
            names = {c.name: "x" for c in table.primary_key if isinstance(c.type, sa.String)}
            sealed.execute(
                sa.insert(table).values(
                    {**names, "month": 202001} | ({"starts_at": 0} if "starts_at" in table.c else {})
                )
            )
    statements: list[sa.Executable] = [sa.update(table).values({column: column}), sa.delete(table)]
    if sealed.database.is_postgresql:
        statements.append(sa.text(f"TRUNCATE {table.name} CASCADE"))
        if table is RECORDS:
            month = sealed.store.read(lambda c: c.execute(sa.select(RECORDS.c.month).limit(1)).scalar_one())
            known = sa.text("SELECT count(*) FROM pg_class WHERE relname = :name").bindparams(name=f"records_{month}")
            partition = (
                f"records_{month}" if sealed.store.read(lambda c: c.execute(known).scalar_one()) else "records_default"
            )
            statements += [
                sa.text(f"DELETE FROM {partition}"),
                sa.text(f"UPDATE {partition} SET cost_nanos = 0"),
                sa.text(f"TRUNCATE {partition}"),
            ]
    for statement in statements:
        with pytest.raises(exc.DBAPIError, match="append-only"):
            sealed.execute(statement)


def test_a_changed_entry_is_named(sealed: Books) -> None:
    tamper(sealed, sa.update(RECORDS).where(RECORDS.c.number == 5).values(operation="other"))
    assert [subject for subject, _ in violations(sealed)] == ["seal 2"]
    (_, found) = violations(sealed)[0]
    assert "4 to 6" in found
    assert "changed" in found


def test_a_deleted_entry_is_named(sealed: Books) -> None:
    tamper(sealed, sa.delete(RECORDS).where(RECORDS.c.number == 8))
    ((subject, found),) = violations(sealed, seals.SEALED)
    assert subject == "seal 3"
    assert "8 missing" in found


def test_an_inserted_entry_is_named(sealed: Books) -> None:
    row = sealed.store.read(lambda c: dict(c.execute(sa.select(RECORDS).where(RECORDS.c.number == 8)).mappings().one()))
    tamper(sealed, sa.insert(RECORDS).values({**row, "id": new_id(), "sequence": 99}))
    ((subject, found),) = violations(sealed, seals.SEALED)
    assert (subject, "are 4, not the 3" in found) == ("seal 3", True)


def test_an_entry_in_a_month_without_seals_is_named(sealed: Books) -> None:
    row = sealed.store.read(lambda c: dict(c.execute(sa.select(RECORDS).where(RECORDS.c.number == 8)).mappings().one()))
    tamper(sealed, sa.insert(RECORDS).values({**row, "id": new_id(), "month": 202001}))
    assert ("entry 8 of 202001", "no seal covers it") in violations(sealed, seals.SEALED)


def test_reordered_entries_are_named(sealed: Books) -> None:
    swap = sa.case((RECORDS.c.number == 10, 11), else_=10)
    tamper(sealed, sa.update(RECORDS).where(RECORDS.c.number.in_((10, 11))).values(number=swap))
    ((subject, found),) = violations(sealed)
    assert subject == "seal 4"
    assert "reordered" in found


def test_gaps_and_doubles_that_are_not_sealed_yet_are_named(sealed: Books) -> None:
    uid = new_id()
    allotment = sealed.active(uid=uid, need={USD: 1000})
    sealed.post(allotment, [record(each, 10) for each in (1, 2, 3, 4)])
    assert violations(sealed) == []
    tamper(sealed, sa.update(RECORDS).where(RECORDS.c.number == 14).values(number=15))
    assert violations(sealed) == [
        ("entry 14", "missing, and not sealed yet"),
        ("entry 15", "there are 2 of them"),
    ]
    tamper(sealed, sa.update(RECORDS).where(RECORDS.c.number > 12).values(number=99))
    assert ("entries 13 to 98", "missing, and not sealed yet") in violations(sealed, seals.NUMBERED)
    # What is sealed with a gap keeps showing it.
    sealing.seal_all(sealed.store, wait=True)
    assert ("entries 13 to 16", "0 were there when they were sealed") in violations(sealed, seals.NUMBERED)


@pytest.mark.parametrize(
    ("change", "subject", "found"),
    [
        (sa.delete(SEALS).where(SEALS.c.number == 2), "seal 2", "removed"),
        (sa.delete(SEALS).where(SEALS.c.number == 4), "seal 4", "removed: 4 seals were made"),
        (sa.update(SEALS).where(SEALS.c.number == 3).values(sealed_ms=1), "seal 3", "edited"),
        (sa.update(SEALS).where(SEALS.c.number == 3).values(content="0" * 64), "seal 3", "edited"),
        (sa.update(SEALS).where(SEALS.c.number == 3).values(digest="0" * 64), "seal 3", "edited"),
        (sa.update(SEALS).where(SEALS.c.number == 3).values(previous="0" * 64), "seal 3", "it follows 000"),
        (sa.update(SEALS).where(SEALS.c.number == 3).values(form=7), "seal 3", "its form 7"),
    ],
    ids=["middle", "last", "time", "content", "digest", "previous", "form"],
)
def test_a_removed_or_edited_seal_is_named(sealed: Books, change: sa.Executable, subject: str, found: str) -> None:
    tamper(sealed, change)
    named = violations(sealed, seals.CHAIN)
    assert any(each == subject and why.startswith(found) for each, why in named), named


def test_a_chain_that_is_rewritten_whole_lacks_the_head_that_was_kept_elsewhere(sealed: Books) -> None:
    kept = sealed.store.read(sealing.head)
    tamper(
        sealed,
        sa.update(RECORDS).where(RECORDS.c.number == 5).values(operation="other"),
        sa.delete(SEALS),
        sa.update(schema.counters).where(schema.counters.c.name == sealing.SEALS).values(value=0),
    )
    sealing.seal_all(sealed.store, wait=True)
    assert violations(sealed) == []
    found = sealed.store.read(lambda c: audit(c, {kept.number: kept.digest})).violations
    assert [(v.invariant, v.subject) for v in found] == [(seals.EXPECTED, f"seal {kept.number}")]


def ledger(books: Books, *arguments: str) -> subprocess.CompletedProcess[str]:
    url = books.database.engine.url.render_as_string(hide_password=False)
    argv = [sys.executable, "-m", "almoner_ledger", *arguments]
    return subprocess.run(argv, env=ledger_environment(url), capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_seals_prints_the_head_and_looks_for_it(sealed: Books) -> None:
    sealed.post(sealed.active(uid=new_id(), need={USD: 10}), [record(1, 10)])
    done = ledger(sealed, "seal")
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "1 entries sealed"), done.stderr
    head = ledger(sealed, "verify", "--head").stdout.strip()
    assert done.stdout.strip().endswith(head)
    assert ledger(sealed, "verify", "--expect-head", head).returncode == 0
    wrong = ledger(sealed, "verify", "--expect-head", "2:" + "0" * 64)
    assert wrong.returncode == 1
    assert "VIOLATION chain-holds-expected-seal: seal 2" in wrong.stdout
    assert ledger(sealed, "verify", "--expect-head", "nonsense").returncode == 2


def test_batches_are_bounded_and_follow_each_other(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "BATCH", 4)
    books.limits(limits={USD: DOLLAR})
    books.post(books.active(need={USD: 1000}), [record(each, 1) for each in range(1, 11)])
    assert sealing.seal_all(books.store, wait=True) == 10
    ranges = books.store.read(lambda c: c.execute(sa.select(SEALS.c.first_number, SEALS.c.last_number)).all())
    assert [tuple(row) for row in ranges] == [(1, 4), (5, 8), (9, 10)]
    assert books.violations() == []


def test_a_batch_that_is_gone_is_sealed_as_nothing_and_what_follows_as_it_is(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "BATCH", 4)
    books.limits(limits={USD: DOLLAR})
    books.post(books.active(need={USD: 1000}), [record(each, 1) for each in range(1, 11)])
    tamper(books, sa.delete(RECORDS).where(RECORDS.c.number <= 4))
    assert sealing.seal_all(books.store, wait=True) == 10
    assert sealing.seal_all(books.store, wait=True) == 0
    columns = (SEALS.c.first_number, SEALS.c.last_number, SEALS.c.entries)
    ranges = books.store.read(lambda c: c.execute(sa.select(*columns).order_by(SEALS.c.number)).all())
    assert [tuple(row) for row in ranges] == [(1, 4, 0), (5, 8, 4), (9, 10, 2)]
    assert violations(books, seals.NUMBERED) == [("entries 1 to 4", "0 were there when they were sealed")]
    assert violations(books, seals.SEALED) == []


def test_one_sealer_at_a_time(postgres_url: str) -> None:
    books = Books(postgres_url)
    try:
        books.limits(limits={USD: DOLLAR})
        books.post(books.active(need={USD: 1000}), [record(1, 1)])
        with books.database.engine.connect() as other, other.begin():
            assert sealing.lock(other, wait=False)
            assert sealing.seal_all(books.store, wait=False) == 0
        assert sealing.seal_all(books.store, wait=False) == 1
    finally:
        books.close()
