"""Transactions for history: they see one state, and end when they have taken too long.

Role: a question that would read millions of entries must not hold a connection that meters wait for. Boundary: runs
what it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import Connection

from almoner_core.wire import ErrorCode
from almoner_ledger.database import Database
from almoner_ledger.errors import LedgerError

T = TypeVar("T")

SECONDS: Final = 20.0
CANCELLED: Final = "57014"
SORT_MEMORY: Final = "64MB"
"""What grouping takes on PostgreSQL before it goes to the disk, which costs more than twice the time."""
STEPS: Final = 100_000
"""SQLite asks after so many steps of its machine (about a millisecond) whether to go on."""


def read(database: Database, query: Callable[[Connection], T], *, seconds: float | None = SECONDS) -> T:
    """Run a query in a transaction that reads one state. Raises LedgerError `too_large` past `seconds`."""
    return database.read(lambda connection: run(connection, query, seconds=seconds))


def run(connection: Connection, query: Callable[[Connection], T], *, seconds: float | None = SECONDS) -> T:
    """Run a query in a transaction that has not read yet."""
    try:
        with _bounded(connection, seconds):
            return query(connection)
    except exc.DBAPIError as error:
        if not _was_cancelled(error):
            raise
        raise LedgerError(
            ErrorCode.TOO_LARGE,
            f"that takes more than {seconds:g} s: ask for less time (from, to), or for what is summed by day",
            field="from",
        ) from error


def generate(connection: Connection, rows: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Give what a query streams, in a transaction that has not read yet, however long it takes."""
    with _bounded(connection, None):
        yield from rows()


def _was_cancelled(error: exc.DBAPIError) -> bool:
    return getattr(error.orig, "pgcode", None) == CANCELLED or str(error.orig) == "interrupted"


@contextmanager
def _bounded(connection: Connection, seconds: float | None) -> Iterator[None]:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.exec_driver_sql(f"SET LOCAL work_mem = '{SORT_MEMORY}'")
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int((seconds or 0) * 1000)}")
        yield
        return
    driver: Any = connection.connection.driver_connection
    deadline = None if seconds is None else time.monotonic() + seconds
    driver.set_progress_handler(lambda: int(deadline is not None and time.monotonic() > deadline), STEPS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)
