"""Many rows in one statement: a whole group's inserts, updates and upserts, as each database does them fastest.

Role: on PostgreSQL the rows travel as one JSON parameter that json_populate_recordset turns into rows of the table's
own type. The statement's text is the same however many rows there are, so it is made once; and the update of a group is
one statement that is planned once. That takes half the processor time, in this process and in PostgreSQL, of statements
that spell the values out. On SQLite, which has no round trips to save, statements run row by row.

Boundary: tables and rows; knows nothing of what they mean. `rows` all have the same columns, the whole primary key
among them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection

# SQLite's bound variables in one statement are limited (32,766); wide rows are sent in slices.
ROWS_PER_STATEMENT = 500

Rows = Sequence[dict[str, Any]]

# Made once: json.dumps with settings of its own makes an encoder a call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


def insert(connection: Connection, table: sa.Table, rows: Rows) -> None:
    """Insert rows that are not there."""
    if not rows:
        return
    if _on_postgresql(connection):
        _send(connection, _insert_text(table, tuple(rows[0])), rows)
    else:
        connection.execute(sa.insert(table), list(rows))


def update(connection: Connection, table: sa.Table, rows: Rows) -> None:
    """Set all given columns of rows that are there, found by primary key. The caller holds their locks already."""
    if not rows:
        return
    if _on_postgresql(connection):
        _send(connection, _update_text(table, tuple(rows[0])), rows)
        return
    keys = _keys(table)
    statement = (
        sa.update(table)
        .where(*(table.c[key] == sa.bindparam(f"key_{key}") for key in keys))
        .values({name: sa.bindparam(f"set_{name}") for name in rows[0] if name not in keys})
    )
    connection.execute(
        statement, [{(f"key_{name}" if name in keys else f"set_{name}"): row[name] for name in row} for row in rows]
    )


def upsert(connection: Connection, table: sa.Table, rows: Rows, *, add: frozenset[str]) -> None:
    """Insert rows or, where the key is there, add the columns `add` to what stands and replace the others.

    Rows are taken in the order of their keys, so that transactions that share some do not deadlock.
    """
    if not rows:
        return
    if _on_postgresql(connection):
        _send(connection, _upsert_text(table, tuple(rows[0]), add), rows)
        return
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        statement = sqlite_insert(table).values(list(rows[start : start + ROWS_PER_STATEMENT]))
        changed = {
            name: table.c[name] + statement.excluded[name] if name in add else statement.excluded[name]
            for name in rows[0]
            if name not in _keys(table)
        }
        connection.execute(statement.on_conflict_do_update(index_elements=_keys(table), set_=changed))


def _on_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _send(connection: Connection, text: str, rows: Rows) -> None:
    connection.exec_driver_sql(text, {"rows": _encode(rows)})


def _keys(table: sa.Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _listed(names: Sequence[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{name}"' for name in names)


@functools.cache
def _insert_text(table: sa.Table, names: tuple[str, ...]) -> str:
    # Names of tables and columns come from schema.py alone.
    return (
        f'INSERT INTO "{table.name}" ({_listed(names)}) SELECT {_listed(names)} '  # noqa: S608
        f'FROM json_populate_recordset(NULL::"{table.name}", %(rows)s)'
    )


@functools.cache
def _update_text(table: sa.Table, names: tuple[str, ...]) -> str:
    keys = _keys(table)
    changed = ", ".join(f'"{name}" = new."{name}"' for name in names if name not in keys)
    same = " AND ".join(f'old."{key}" = new."{key}"' for key in keys)
    return (
        f'UPDATE "{table.name}" AS old SET {changed} '  # noqa: S608
        f'FROM json_populate_recordset(NULL::"{table.name}", %(rows)s) AS new WHERE {same}'
    )


@functools.cache
def _upsert_text(table: sa.Table, names: tuple[str, ...], add: frozenset[str]) -> str:
    keys = _keys(table)
    changed = ", ".join(
        f'"{name}" = old."{name}" + excluded."{name}"' if name in add else f'"{name}" = excluded."{name}"'
        for name in names
        if name not in keys
    )
    return (
        f'INSERT INTO "{table.name}" AS old ({_listed(names)}) SELECT {_listed(names)} '  # noqa: S608
        f'FROM json_populate_recordset(NULL::"{table.name}", %(rows)s) ORDER BY {_listed(keys)} '
        f"ON CONFLICT ({_listed(keys)}) DO UPDATE SET {changed}"
    )
