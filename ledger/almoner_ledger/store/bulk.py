"""Many rows at once: a whole group's inserts, updates and upserts, as each database does them fastest.

Role: on PostgreSQL the rows of a statement travel as one JSON parameter that json_populate_recordset turns into rows of
the table's own type. The statement's text is the same however many rows there are, so it is made once; and the update
of a group is one statement that is planned once. That takes half the processor time, in this process and in PostgreSQL,
of statements that spell the values out. All statements of a transaction go together: a round trip costs the thread that
waits for it a turn of the interpreter, which the thread that serves requests lets go of only now and then. On SQLite,
which has no round trips to save, statements run one by one and row by row.

Boundary: tables and rows; knows nothing of what they mean. `rows` all have the same columns, the whole primary key
among them.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

# SQLite's bound variables in one statement are limited (32,766); wide rows are sent in slices.
ROWS_PER_STATEMENT: Final = 500

Rows = Sequence[dict[str, Any]]
Numbered = tuple[str, str]
"""A column, and the counter that its numbers were taken from."""

# Made once: json.dumps with settings of its own makes an encoder a call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Writer(ABC):
    """Writes rows in one transaction, in the order in which it was given them, and at the latest when told to send."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @abstractmethod
    def insert(self, table: sa.Table, rows: Rows, *, numbered: Numbered | None = None) -> None:
        """Insert rows that are not there. `numbered`: see `take`."""

    @abstractmethod
    def insert_missing(self, table: sa.Table, rows: Rows) -> None:
        """Insert rows whose key is not there; the others stay as they are."""

    @abstractmethod
    def update(self, table: sa.Table, rows: Rows) -> None:
        """Set all given columns of rows that are there, found by primary key. The caller holds their locks already."""

    @abstractmethod
    def upsert(
        self, table: sa.Table, rows: Rows, *, add: frozenset[str] = frozenset(), numbered: Numbered | None = None
    ) -> None:
        """Insert rows or, where the key is there, add the columns `add` to what stands and replace the others.

        Rows are taken in the order of their keys, so that transactions that share some do not deadlock. `numbered`: see
        `take`.
        """

    @abstractmethod
    def take(self, counter: str, count: int) -> int:
        """Take the next `count` numbers of a counter, and keep everybody else from taking any until COMMIT.

        Gives the first, to count on from, for rows of this transaction that are written as `numbered` by the counter:
        for these alone it means something, as the number itself may be the database's secret until then.
        """

    @abstractmethod
    def send(self) -> None:
        """Send what waits to be sent."""


def writer(connection: Connection) -> Writer:
    """Make the writer of a transaction on its kind of database."""
    return _Together(connection) if connection.dialect.name == "postgresql" else _OneByOne(connection)


def _keys(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key]


# -- PostgreSQL ----------------------------------------------------------------------------------------

# Names of tables, columns and counters in the texts come from schema.py and flushing.py alone.
_TAKE: Final = "UPDATE counters SET value = value + %s WHERE name = %s"


class _Together(Writer):
    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._texts: list[str] = []
        self._parameters: list[str | int] = []

    def insert(self, table: sa.Table, rows: Rows, *, numbered: Numbered | None = None) -> None:
        if rows:
            self._gather(_insert_text(table, tuple(rows[0]), numbered), _encode(rows))

    def insert_missing(self, table: sa.Table, rows: Rows) -> None:
        if rows:
            self._gather(f"{_insert_text(table, tuple(rows[0]))} ON CONFLICT DO NOTHING", _encode(rows))

    def update(self, table: sa.Table, rows: Rows) -> None:
        if rows:
            self._gather(_update_text(table, tuple(rows[0])), _encode(rows))

    def upsert(
        self, table: sa.Table, rows: Rows, *, add: frozenset[str] = frozenset(), numbered: Numbered | None = None
    ) -> None:
        if rows:
            self._gather(_upsert_text(table, tuple(rows[0]), add, numbered), _encode(rows))

    def take(self, counter: str, count: int) -> int:
        if count:
            self._gather(_TAKE, count, counter)
        # Counted from where the counter stands then: the row is locked, so it stands there until COMMIT.
        return 1 - count

    def send(self) -> None:
        if self._texts:
            self._connection.exec_driver_sql(";\n".join(self._texts), tuple(self._parameters))
            self._texts.clear()
            self._parameters.clear()

    def _gather(self, text: str, *parameters: str | int) -> None:
        self._texts.append(text)
        self._parameters += parameters


def _listed(names: Sequence[str], numbered: Numbered | None = None) -> str:
    listed = [f'"{name}"' for name in names]
    if numbered is not None:
        column, counter = numbered
        at = names.index(column)
        listed[at] = f"(SELECT value FROM counters WHERE name = '{counter}') + {listed[at]}"  # noqa: S608 - names of ours
    return ", ".join(listed)


@functools.cache
def _insert_text(table: sa.Table, names: tuple[str, ...], numbered: Numbered | None = None) -> str:
    return (
        f'INSERT INTO "{table.name}" ({_listed(names)}) SELECT {_listed(names, numbered)} '  # noqa: S608 - names of ours
        f'FROM json_populate_recordset(NULL::"{table.name}", %s)'
    )


@functools.cache
def _update_text(table: sa.Table, names: tuple[str, ...]) -> str:
    keys = _keys(table)
    changed = ", ".join(f'"{name}" = new."{name}"' for name in names if name not in keys)
    same = " AND ".join(f'old."{key}" = new."{key}"' for key in keys)
    return (
        f'UPDATE "{table.name}" AS old SET {changed} '  # noqa: S608 - names of ours
        f'FROM json_populate_recordset(NULL::"{table.name}", %s) AS new WHERE {same}'
    )


@functools.cache
def _upsert_text(table: sa.Table, names: tuple[str, ...], add: frozenset[str], numbered: Numbered | None) -> str:
    keys = _keys(table)
    changed = ", ".join(
        f'"{name}" = old."{name}" + excluded."{name}"' if name in add else f'"{name}" = excluded."{name}"'
        for name in names
        if name not in keys
    )
    return (
        f'INSERT INTO "{table.name}" AS old ({_listed(names)}) SELECT {_listed(names, numbered)} '  # noqa: S608 - names of ours
        f'FROM json_populate_recordset(NULL::"{table.name}", %s) ORDER BY {_listed(keys)} '
        f"ON CONFLICT ({_listed(keys)}) DO UPDATE SET {changed}"
    )


# -- SQLite --------------------------------------------------------------------------------------------


class _OneByOne(Writer):
    # Its numbers are known as soon as they are taken, so what is `numbered` by what is of no interest.

    def insert(self, table: sa.Table, rows: Rows, *, numbered: Numbered | None = None) -> None:
        del numbered
        if rows:
            self._connection.execute(sa.insert(table), list(rows))

    def insert_missing(self, table: sa.Table, rows: Rows) -> None:
        if rows:
            self._connection.execute(sqlite_insert(table).on_conflict_do_nothing(), list(rows))

    def update(self, table: sa.Table, rows: Rows) -> None:
        if not rows:
            return
        keys = _keys(table)
        statement = (
            sa.update(table)
            .where(*(table.c[key] == sa.bindparam(f"key_{key}") for key in keys))
            .values({name: sa.bindparam(f"set_{name}") for name in rows[0] if name not in keys})
        )
        self._connection.execute(
            statement, [{(f"key_{name}" if name in keys else f"set_{name}"): row[name] for name in row} for row in rows]
        )

    def upsert(
        self, table: sa.Table, rows: Rows, *, add: frozenset[str] = frozenset(), numbered: Numbered | None = None
    ) -> None:
        del numbered
        for start in range(0, len(rows), ROWS_PER_STATEMENT):
            statement = sqlite_insert(table).values(list(rows[start : start + ROWS_PER_STATEMENT]))
            changed = {
                name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
                for name in rows[0]
                if name not in _keys(table)
            }
            self._connection.execute(statement.on_conflict_do_update(index_elements=_keys(table), set_=changed))

    def take(self, counter: str, count: int) -> int:
        if not count:
            return 0
        text = "UPDATE counters SET value = value + ? WHERE name = ? RETURNING value"
        last: int = self._connection.exec_driver_sql(text, (count, counter)).scalar_one()
        return last - count + 1

    def send(self) -> None:
        """Nothing waits."""
