"""The database: engines for SQLite and PostgreSQL, transactions that are retried, and the clock.

Role: hides what differs between the two. SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE for writers, so that one writer
decides at a time. PostgreSQL: READ COMMITTED, rows locked by the store, bounded lock and statement times. A transaction
that lost its connection, a deadlock or a serialisation is run again from its beginning with backoff, up to a deadline:
that is safe because every mutation carries an operation id stored in the same transaction.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS: Final = 5
STATEMENT_MS: Final = 30_000
LOCK_MS: Final = 10_000
BACKOFF_FIRST_SECONDS: Final = 0.01
BACKOFF_LONGEST_SECONDS: Final = 1.0
# serialization_failure, deadlock_detected, lock_not_available, query_canceled, admin_shutdown, crash_shutdown,
# cannot_connect_now, too_many_connections
TRANSIENT_STATES: Final = frozenset({"40001", "40P01", "55P03", "57014", "57P01", "57P02", "57P03", "53300"})
# Where a file is in use, cannot be opened or written now, or the disk is full: room may come back.
TRANSIENT_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
UNDEFINED_TABLE: Final = "42P01"
READ_ONLY: Final = "almoner_read_only"
_CLOCK: Final = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
_CLOCK_BY_INDEX: Final = ", ".join(
    (
        _CLOCK,
        *(
            f"set_config('{setting}', 'off', true)"
            for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit")
        ),
    )
)


class DatabaseUnavailableError(Exception):
    """The database did not answer within the deadline; nothing was committed, or a retry will find that it was."""


def normalize(url: str) -> URL:
    """Read a database URL; plain `postgresql://` means psycopg2. Raises ValueError for other databases."""
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise ValueError("database: write a URL such as sqlite:////data/ledger.db or postgresql://...") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg2")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise ValueError("database: SQLite needs a file, such as sqlite:////data/ledger.db")
        return parsed
    raise ValueError(f"database: {backend} is not supported; use sqlite or postgresql")


def has_password(url: str) -> bool:
    """Say whether a database URL has a secret in it. Raises ValueError for what is no URL of a database."""
    parsed = normalize(url)
    return parsed.password is not None or any(name in parsed.query for name in ("password", "sslpassword"))


def check_file(url: str) -> None:
    """Raise ValueError where a URL names a file that is not there: SQLite would make an empty one of that name."""
    parsed = normalize(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database and not Path(parsed.database).exists():
        raise ValueError(f"--database: {parsed.database}: there is no such file")


def no_ledger(error: exc.DBAPIError) -> str | None:
    """Say why a database is none of a ledger; None where that is not what the error tells."""
    if getattr(error.orig, "pgcode", None) == UNDEFINED_TABLE or "no such table" in str(error.orig):
        return "the database has no ledger in it: is it the right one? `almoner ledger migrate` makes one"
    if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
        return f"--database: {error.orig}"
    return None


def make_engine(url: str, *, pool_size: int = 8) -> Engine:
    """Make an engine with the pragmas or session settings that the ledger relies on."""
    parsed = normalize(url)
    if parsed.get_backend_name() == "postgresql":
        return sa.create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            isolation_level="READ COMMITTED",
            executemany_mode="values_plus_batch",
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={LOCK_MS} -c timezone=UTC",
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "application_name": "almoner-ledger",
            },
        )
    engine = sa.create_engine(
        parsed,
        pool_size=pool_size,
        max_overflow=0,
        connect_args={"timeout": CONNECT_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    # The driver's own transaction control is switched off: BEGIN IMMEDIATE is ours to say.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def is_transient(error: BaseException) -> bool:
    """Say whether running the whole transaction again may help: locks, deadlocks, lost connections."""
    if isinstance(error, exc.TimeoutError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state = getattr(error.orig, "pgcode", None)
    if state is not None:
        return state in TRANSIENT_STATES or state.startswith("08")
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in TRANSIENT_CODES
    # psycopg2 could not connect or lost the connection.
    return isinstance(error, exc.OperationalError | exc.InterfaceError)


class Database:
    """Transactions on one database. Thread-safe. `patience_seconds` bounds the retries of one transaction."""

    def __init__(self, url: str, *, patience_seconds: float = 30.0, pool_size: int = 8) -> None:
        self.engine = make_engine(url, pool_size=pool_size)
        self.patience_seconds = patience_seconds
        self.retries = 0
        self.is_postgresql = self.engine.dialect.name == "postgresql"

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction and commit, again after a transient failure.

        Raises DatabaseUnavailableError past the patience, and whatever else `work` or the database raises, rolled back.
        """
        return self._retrying(lambda: self._once(work, read_only=False))

    def migrate(self, work: Callable[[Connection], None]) -> None:
        """Run a change of the schema, in one transaction without a time limit on its statements; retried like `write`.

        SQLite changes a table by making it anew, which foreign keys that point to it would stop: they are off
        meanwhile, and checked before COMMIT. Raises RuntimeError where one does not hold.
        """
        self._retrying(lambda: self._migrate_once(work))

    def _migrate_once(self, work: Callable[[Connection], None]) -> None:
        with self._connect(read_only=False) as connection:
            if self.is_postgresql:
                with connection.begin():
                    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
                    work(connection)
                return
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    work(connection)
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(3)
                    if broken:
                        raise RuntimeError(f"the migration broke references: {broken}")
            finally:
                driver.execute("PRAGMA foreign_keys=ON")

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads; retried like `write`."""
        return self._retrying(lambda: self._once(work, read_only=True))

    def snapshot(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads, however long, and sees one state throughout; retried."""
        return self._retrying(lambda: self._snapshot_once(work))

    def _snapshot_once(self, work: Callable[[Connection], T]) -> T:
        with self._connect(read_only=True) as connection:
            if not self.is_postgresql:
                with connection.begin():
                    return work(connection)
            steady = connection.execution_options(isolation_level="REPEATABLE READ")
            with steady.begin():
                steady.exec_driver_sql("SET LOCAL statement_timeout = 0")
                return work(steady)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads, for what is handed on as it comes and so cannot be run again.

        Raises DatabaseUnavailableError where the connection is lost.
        """
        try:
            with self._connect(read_only=True) as connection, connection.begin():
                yield connection
        except exc.SQLAlchemyError as error:
            if not is_transient(error):
                raise
            raise DatabaseUnavailableError(_first_line(error)) from error

    def _once(self, work: Callable[[Connection], T], *, read_only: bool) -> T:
        with self._connect(read_only=read_only) as connection, connection.begin():
            return work(connection)

    @contextmanager
    def _connect(self, *, read_only: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            if self.is_postgresql:
                # Set each time: the driver keeps it on the connection.
                connection = connection.execution_options(postgresql_readonly=read_only)  # noqa: PLW2901
            else:
                connection = connection.execution_options(**{READ_ONLY: read_only})  # noqa: PLW2901
            yield connection

    def _retrying(self, once: Callable[[], T]) -> T:
        deadline = time.monotonic() + self.patience_seconds
        wait = BACKOFF_FIRST_SECONDS
        while True:
            try:
                return once()
            except exc.SQLAlchemyError as error:
                if not is_transient(error):
                    raise
                if time.monotonic() + wait > deadline:
                    raise DatabaseUnavailableError(_first_line(error)) from error
                self.retries += 1
                log.info("database transaction is run again in %.3f s: %s", wait, _first_line(error))
            time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait = min(wait * 2, BACKOFF_LONGEST_SECONDS)

    def now_ms(self, connection: Connection, *, by_index: bool = False) -> int:
        """Read the database's clock in Unix milliseconds: all replicas follow the one clock.

        `by_index`: this transaction finds and joins its few rows by their indexes. PostgreSQL would scan a table of
        some thousand rows for them, which takes several times as long.
        """
        if self.is_postgresql:
            query = _CLOCK_BY_INDEX if by_index else _CLOCK
        else:
            # unixepoch('subsec') needs SQLite 3.42.
            query = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
        return int(connection.exec_driver_sql(query).scalar_one())

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0][:200]
