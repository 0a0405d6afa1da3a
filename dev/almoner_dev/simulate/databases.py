"""The databases that schedules run on: one fresh copy each, of a schema that was migrated once.

Role: PostgreSQL (which can be killed at any statement, and recovers from its log) or an SQLite file. Boundary: starts,
copies, breaks; speaks no SQL of the ledger's.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from almoner_dev.postgres import Postgres
from almoner_ledger.store import Database, Store

MEMORY = Path("/dev/shm")


class Source(Protocol):
    """Gives fresh databases with the ledger's schema."""

    name: str
    postgres: Postgres | None

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Database]:
        """Give a fresh database: always the same engine, so that it keeps what it has compiled."""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a scratch folder, in memory where there is such a place: spools and SQLite flush to it all the time."""
    where = MEMORY if MEMORY.is_dir() else None
    return tempfile.TemporaryDirectory(prefix="almoner-simulate-", dir=where)


class PostgresSource:
    """Databases on one PostgreSQL server, copied from a template."""

    name = "postgresql"

    def __init__(self, postgres: Postgres, prefix: str = "simulate") -> None:
        self.postgres: Postgres | None = postgres
        self._server = postgres
        self._template = f"{prefix}_template"
        _migrate(postgres.create_database(self._template))
        self._name = f"{prefix}_now"
        self._database = Database(postgres.url(self._name), pool_size=4)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Database]:
        """Give a fresh database, dropped afterwards."""
        self._server.drop_database(self._name)
        self._server.execute(f"CREATE DATABASE {self._name} TEMPLATE {self._template}")
        try:
            yield self._database
        finally:
            self._server.start()
            self._database.dispose()
            self._server.drop_database(self._name)


class SqliteSource:
    """SQLite files, copied from one."""

    name = "sqlite"
    postgres: Postgres | None = None

    def __init__(self, folder: Path) -> None:
        self._template = folder / "template.db"
        self._path = folder / "schedule.db"
        _migrate(f"sqlite:///{self._template}")
        self._database = Database(f"sqlite:///{self._path}", pool_size=4)

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Database]:
        """Give a fresh database, removed afterwards."""
        self._remove()
        shutil.copyfile(self._template, self._path)
        try:
            yield self._database
        finally:
            self._database.dispose()
            self._remove()

    def _remove(self) -> None:
        for each in self._path.parent.glob(f"{self._path.name}*"):
            each.unlink()


def _migrate(url: str) -> None:
    database = Database(url)
    try:
        Store(database).migrate()
    finally:
        # Closing the last connection folds SQLite's write-ahead log into the file that is copied.
        database.dispose()
