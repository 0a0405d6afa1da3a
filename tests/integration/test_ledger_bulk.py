"""Many rows at once, on both databases: what is written, in which order, and the numbers that rows bear."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.store import Database, Store, bulk
from almoner_ledger.store.flushing import CHANGES, ENTRIES
from tests.support.polling import until

FEED = schema.feed
NUMBERED = ("changed", CHANGES)
HOSTILE = """{"it's": "100 %s \\"ours\\" ; :here ? \\\\"}"""


@pytest.fixture
def store(ledger_url: str) -> Iterator[Store]:
    database = Database(ledger_url)
    made = Store(database)
    made.migrate()
    yield made
    database.dispose()


def entry(key: str, changed: int = 0, changed_ms: int = 1) -> dict[str, Any]:
    return {"kind": "agent", "key": key, "changed": changed, "changed_ms": changed_ms}


def operation(name: str, verb: str) -> dict[str, Any]:
    return {"id": name, "verb": verb, "digest": "d", "answer": HOSTILE, "created_ms": 1}


def written(store: Store) -> dict[str, tuple[int, int]]:
    rows = store.read(lambda connection: connection.execute(sa.select(FEED)).all())
    return {row.key: (row.changed, row.changed_ms) for row in rows}


def counter(store: Store, name: str) -> int:
    query = sa.select(schema.counters.c.value).where(schema.counters.c.name == name)
    return store.read(lambda connection: int(connection.execute(query).scalar_one()))


def test_rows_are_inserted_updated_and_left_alone_in_the_given_order(store: Store) -> None:
    table = schema.operations

    def work(connection: Connection) -> None:
        writer = bulk.writer(connection)
        writer.insert(table, [operation("one", "OPEN"), operation("two", "OPEN")])
        writer.update(table, [{"id": "two", "verb": "BIND"}])
        writer.insert_missing(table, [operation("two", "VOID"), operation("three", "VOID")])
        writer.insert(table, [])
        writer.send()
        writer.update(table, [{"id": "three", "verb": "CLOSE"}])
        writer.send()
        writer.send()

    store.database.write(work)
    rows = store.read(lambda connection: connection.execute(sa.select(table)).all())
    assert {row.id: row.verb for row in rows} == {"one": "OPEN", "two": "BIND", "three": "CLOSE"}
    assert {row.answer for row in rows} == {HOSTILE}, "text is data, whatever it looks like"


def test_what_is_there_is_replaced_or_added_to(store: Store) -> None:
    def work(connection: Connection, *rows: dict[str, Any]) -> None:
        writer = bulk.writer(connection)
        writer.upsert(FEED, rows, add=frozenset({"changed_ms"}))
        writer.send()

    store.database.write(lambda connection: work(connection, entry("a", 1, 10), entry("b", 2, 20)))
    store.database.write(lambda connection: work(connection, entry("b", 3, 30), entry("c", 4, 40)))
    assert written(store) == {"a": (1, 10), "b": (3, 50), "c": (4, 40)}


def test_more_rows_than_a_statement_takes(store: Store) -> None:
    count = 2 * bulk.ROWS_PER_STATEMENT + 1

    def work(connection: Connection) -> None:
        writer = bulk.writer(connection)
        first = writer.take(CHANGES, count)
        writer.upsert(FEED, [entry(f"{each:05}", first + each) for each in range(count)], numbered=NUMBERED)
        writer.send()

    before = counter(store, CHANGES)
    store.database.write(work)
    assert [changed for _, (changed, _) in sorted(written(store).items())] == [*range(before + 1, before + count + 1)]


def test_numbers_go_on_from_where_each_counter_stands(store: Store) -> None:
    def work(connection: Connection, *keys: str) -> None:
        writer = bulk.writer(connection)
        first, _ = writer.take(CHANGES, len(keys)), writer.take(ENTRIES, 3)
        writer.upsert(FEED, [entry(key, first + index) for index, key in enumerate(keys)], numbered=NUMBERED)
        writer.send()

    changes, entries = counter(store, CHANGES), counter(store, ENTRIES)
    store.database.write(lambda connection: work(connection, "a", "b"))
    store.database.write(work)
    store.database.write(lambda connection: work(connection, "b", "c"))
    assert {key: changed - changes for key, (changed, _) in written(store).items()} == {"a": 1, "b": 3, "c": 4}
    assert (counter(store, CHANGES) - changes, counter(store, ENTRIES) - entries) == (4, 9)


def test_one_bad_row_undoes_all(store: Store) -> None:
    before = counter(store, CHANGES)

    def work(connection: Connection) -> None:
        writer = bulk.writer(connection)
        writer.insert(schema.operations, [operation("one", "OPEN")])
        writer.upsert(FEED, [entry("a", writer.take(CHANGES, 1))], numbered=NUMBERED)
        writer.insert(schema.operations, [operation("one", "OPEN")])
        writer.send()

    with pytest.raises(exc.IntegrityError):
        store.database.write(work)
    assert written(store) == {}
    assert counter(store, CHANGES) == before


def test_numbers_become_visible_in_their_order(store: Store) -> None:
    """Whoever takes numbers later waits for the earlier ones' COMMIT, or a reader of the feed would pass them by."""
    if not store.database.is_postgresql:
        pytest.skip("SQLite has one writer at a time")
    before = counter(store, CHANGES)
    taken, waiting = threading.Event(), threading.Event()

    def work(connection: Connection, key: str) -> None:
        writer = bulk.writer(connection)
        writer.upsert(FEED, [entry(key, writer.take(CHANGES, 1))], numbered=NUMBERED)
        if key == "late":
            waiting.set()
        writer.send()
        if key == "early":
            taken.set()
            until(lambda: blocked(store) == 1, 20, "the later writer to wait for the lock")

    early = threading.Thread(target=lambda: store.database.write(lambda connection: work(connection, "early")))
    early.start()
    assert taken.wait(20)
    late = threading.Thread(target=lambda: store.database.write(lambda connection: work(connection, "late")))
    late.start()
    assert waiting.wait(20)
    early.join(20)
    late.join(20)
    assert {key: changed - before for key, (changed, _) in written(store).items()} == {"early": 1, "late": 2}


def blocked(store: Store) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return store.read(lambda connection: int(connection.exec_driver_sql(query).scalar_one()))
