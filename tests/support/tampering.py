"""Meddles with a ledger's database as somebody would who has all its rights: triggers and constraints set aside."""

from __future__ import annotations

import re

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tests.support.books import Books


def tamper(books: Books, *statements: sa.Executable) -> None:
    """Run statements with all triggers, foreign keys and CHECK constraints set aside, in one transaction."""
    if books.database.is_postgresql:
        books.database.write(lambda connection: _on_postgresql(connection, statements))
    else:
        _on_sqlite(books, statements)


def _on_postgresql(connection: Connection, statements: tuple[sa.Executable, ...]) -> None:
    # Replicas fire no triggers, those of foreign keys included.
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    checks = connection.exec_driver_sql(
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' "
        "AND conparentid = 0 AND conislocal AND connamespace = current_schema()::regnamespace"
    ).all()
    for table, name, _ in checks:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
    for statement in statements:
        connection.execute(statement)
    for table, name, definition in checks:
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition} NOT VALID")
    # As if they had never been away: a superuser may write the catalogue.
    connection.exec_driver_sql("UPDATE pg_constraint SET convalidated = true WHERE contype = 'c' AND NOT convalidated")


def _on_sqlite(books: Books, statements: tuple[sa.Executable, ...]) -> None:
    with books.database.engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.execute("PRAGMA foreign_keys=OFF")
        driver.execute("PRAGMA ignore_check_constraints=ON")
        try:
            with connection.begin():
                triggers = connection.exec_driver_sql(
                    "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
                ).all()
                for name, _ in triggers:
                    connection.exec_driver_sql(f"DROP TRIGGER {name}")
                for statement in statements:
                    connection.execute(statement)
                for _, text in triggers:
                    connection.exec_driver_sql(re.sub(r"\s+", " ", text))
        finally:
            driver.execute("PRAGMA ignore_check_constraints=OFF")
            driver.execute("PRAGMA foreign_keys=ON")
