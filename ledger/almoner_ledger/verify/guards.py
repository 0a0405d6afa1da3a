"""What the database itself refuses: the CHECK constraints and the triggers are there and in force."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.verify.findings import Check, Violation

APPEND_ONLY: Final = ("records", "seals", "closings", "closing_windows", "closing_agents", "configuration_changes")


def append_only(connection: Connection) -> Iterator[Violation]:
    """Invariant 5: the tables that are append-only, each partition too, refuse changes."""
    found = _guarded_in_postgresql if connection.dialect.name == "postgresql" else _guarded_in_sqlite
    tables, guarded = found(connection)
    for table in sorted(tables - guarded):
        yield Violation("append-only", f"table {table}", "its trigger is gone, switched off or another")


def _guarded_in_postgresql(connection: Connection) -> tuple[set[str], set[str]]:
    partitions = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'records'::regclass"
    tables = {*APPEND_ONLY, *connection.exec_driver_sql(partitions).scalars()}
    # tgtype: before (2), delete (8), update (16), truncate (32), for each statement (not 1).
    guarded = connection.exec_driver_sql(
        "SELECT tgrelid::regclass::text FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid "
        "WHERE tgname = 'append_only' AND tgenabled IN ('O', 'A') AND tgtype = 58 AND proname = 'refuse_change' "
        "AND prosrc LIKE '%%BEGIN RAISE EXCEPTION%%'"
    )
    return tables, set(guarded.scalars())


def _guarded_in_sqlite(connection: Connection) -> tuple[set[str], set[str]]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    triggers = {name for name, text in connection.exec_driver_sql(query) if "RAISE(ABORT" in text}
    guarded = {
        table for table in APPEND_ONLY if {f"{table}_append_only_update", f"{table}_append_only_delete"} <= triggers
    }
    return set(APPEND_ONLY), guarded


def constraints(connection: Connection) -> Iterator[Violation]:
    """Invariants 1 and 2: the CHECK constraints that keep them in each row are there, and were checked."""
    expected = {
        (table.name, str(each.name))
        for table in schema.metadata.sorted_tables
        for each in table.constraints
        if isinstance(each, sa.CheckConstraint)
    }
    if connection.dialect.name == "postgresql":
        query = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c' AND convalidated"
        found = {(table, name) for table, name in connection.exec_driver_sql(query)}
    else:
        texts = dict(tuple(row) for row in connection.exec_driver_sql("SELECT name, sql FROM sqlite_master"))
        found = {(table, name) for table, name in expected if f"CONSTRAINT {name} CHECK" in (texts.get(table) or "")}
    for table, name in sorted(expected - found):
        yield Violation("constraints-in-force", f"table {table}", f"{name} is not there")


CHECKS: Final[tuple[Check, ...]] = (append_only, constraints)
