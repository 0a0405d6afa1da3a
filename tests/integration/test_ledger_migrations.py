"""The schema's revisions on both databases, with data in the tables: nothing that was entered is lost or changed."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.script import ScriptDirectory

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_ledger import migrations, schema, sealing
from tests.support.books import DOLLAR, REQUESTS, TOKENS, USD, Books, Clock, new_id, record, tokens

FIRST = "0001"
# Databases stand at these: a revision that was once on the main branch keeps its name.
KEPT = ("0001", "0002", "0003", "0008")


def rows(books: Books, table: str, names: list[str]) -> list[Any]:
    """All rows of a table as it is now, in a fixed order."""
    query: sa.Select[*tuple[Any, ...]] = sa.select(*(sa.column(name) for name in names)).select_from(sa.table(table))
    return sorted(map(tuple, books.store.read(lambda c: c.execute(query).all())), key=repr)


def columns(books: Books) -> dict[str, list[str]]:
    def look(connection: sa.Connection) -> dict[str, list[str]]:
        found = sa.inspect(connection)
        return {
            table.name: [column["name"] for column in found.get_columns(table.name)]
            for table in schema.metadata.sorted_tables
            if found.has_table(table.name)
        }

    return books.store.read(look)


def move(books: Books, revision: str) -> None:
    def work(connection: sa.Connection) -> None:
        config = migrations.config(connection)
        down = revision not in ("head", "heads")
        (alembic.downgrade if down else alembic.upgrade)(config, revision)

    books.database.migrate(work)


@pytest.fixture
def full(books: Books, clock: Clock) -> Books:
    """Attempts in every state, over three months."""
    books.limits(limits={USD: DOLLAR, TOKENS: 10_000, REQUESTS: 1000}, period=BudgetPeriod.MONTHLY)
    for month in range(3):
        clock.now += 31 * 24 * 3600 * min(month, 1)
        returned = books.active(need={USD: 1000, TOKENS: 100, REQUESTS: 5}, uid=new_id())
        books.post(returned, [record(1, 100, tokens=tokens(10, 20)), record(2, None, tokens=tokens(1, 2))])
        clock.now += 5
        books.give_back(returned, 2, {USD: 100, TOKENS: 33, REQUESTS: 2}, final=True)
        clock.now += 5
        lost = books.active(need={USD: 1000}, uid=new_id())
        books.post(lost, [record(1, 250), record(3, 50)])
        clock.now += 5
        books.end(lost)
        clock.now += 5
        books.post(lost, [record(2, 70)])
        books.open(need={USD: 5}, uid=new_id())
        books.active(need={USD: 5}, uid=new_id())
    return books


def test_there_is_one_line_of_revisions(books: Books) -> None:
    script = ScriptDirectory.from_config(books.store.read(migrations.config))
    assert len(script.get_heads()) == 1
    assert script.get_base() == FIRST
    line = [each.revision for each in script.walk_revisions()][::-1]
    assert line[: len(KEPT)] == list(KEPT)


def test_data_of_the_first_revision_moves_to_the_newest_and_back(full: Books, clock: Clock) -> None:
    sealing.seal_all(full.store, wait=True)
    numbers = rows(full, "records", ["id", "number"])
    move(full, FIRST)
    names = columns(full)
    assert "number" not in names["records"]
    first = {table: rows(full, table, listed) for table, listed in names.items()}
    assert len(first["records"]) == len(numbers) > 15

    move(full, "head")
    full.database.write(migrations.check)
    changed = {"counters", "alembic_version"}
    for table, listed in names.items():
        if table not in changed:
            assert rows(full, table, listed) == first[table], table
    assert rows(full, "records", ["id", "number"]) == numbers
    assert ("entries", len(numbers)) in rows(full, "counters", ["name", "value"])
    assert full.violations() == []

    # The books go on where they were, and are append-only as before.
    clock.now += 5
    full.end(full.active(need={USD: 5}, uid=new_id()))
    assert sealing.seal_all(full.store, wait=True) == len(numbers) + 1
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        full.execute(sa.delete(schema.records))


def test_every_month_that_has_entries_gets_its_partition(postgres_url: str, clock: Clock) -> None:
    books = Books(postgres_url, clock)
    try:
        books.limits(limits={USD: DOLLAR})
        months = []
        for year in (2020, 2021):
            clock.now = (year - 1970) * 365 * 24 * 3600 + 30 * 24 * 3600
            months.append(year * 100 + 1)
            books.end(books.active(need={USD: 5}, uid=new_id()))
        move(books, FIRST)
        move(books, "head")
        for month in months:
            assert rows(books, f"records_{month}", ["month"]) == [(month,)]
        assert rows(books, "records_default", ["month"]) == []
        assert books.violations() == []
    finally:
        books.close()
