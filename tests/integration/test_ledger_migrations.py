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
    # They are compared as numbers where a release is rolled back; before this one, two stand in another order.
    later = [int(revision) for revision in line[line.index("0013") :]]
    assert later == sorted(later)
    assert later[-1] == max(map(int, line))


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


def leave(books: Books, revision: str, floor: str | None) -> None:
    """Leave the database as a newer version would: at a revision that is not known here."""

    def work(connection: sa.Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE of_a_newer_version (id INTEGER PRIMARY KEY)")
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})
        named = schema.counters.c.name == migrations.FLOOR
        if floor is None:
            connection.execute(sa.delete(schema.counters).where(named))
        else:
            connection.execute(sa.update(schema.counters).where(named).values(value=int(floor)))

    books.database.migrate(work)


def head(books: Books) -> str:
    return str(ScriptDirectory.from_config(books.store.read(migrations.config)).get_current_head())


def test_a_version_goes_on_with_the_schema_of_a_newer_one(full: Books) -> None:
    """A rollback of the release leaves the newer version's migrations where they are."""
    leave(full, "9999", head(full))
    entries = rows(full, "records", ["id", "number"])
    full.store.migrate()
    assert rows(full, "alembic_version", ["version_num"]) == [("9999",)]
    assert rows(full, "records", ["id", "number"]) == entries
    full.end(full.active(need={USD: 5}, uid=new_id()))
    assert full.violations() == []


@pytest.mark.parametrize("floor", ["9000", None])
def test_a_version_refuses_a_schema_that_it_cannot_work_with(full: Books, floor: str | None) -> None:
    leave(full, "9999", floor)
    with pytest.raises(migrations.SchemaTooNewError, match=r"revision 9999.*restore a backup"):
        full.store.migrate()
    assert rows(full, "alembic_version", ["version_num"]) == [("9999",)]


def test_every_database_says_which_versions_can_go_on_with_it(full: Books) -> None:
    floor = int(migrations.OLDEST_VERSION_S_HEAD)
    assert (migrations.FLOOR, floor) in rows(full, "counters", ["name", "value"])
    move(full, FIRST)
    full.store.migrate()
    assert (migrations.FLOOR, floor) in rows(full, "counters", ["name", "value"])
    assert floor <= int(head(full))
