"""The database: engines for SQLite and PostgreSQL, transactions that are retried, and the clock.

Role: hides what differs between the two. SQLite: WAL, synchronous=FULL, BEGIN IMMEDIATE for writers, so that one writer
decides at a time. PostgreSQL: READ COMMITTED, rows locked by the store, bounded lock and statement times. A transaction
that lost its connection, a deadlock or a serialisation, or that found no room or a server that only reads, is run again
from its beginning with backoff, up to a deadline: that is safe because every mutation carries an operation id stored in
the same transaction.

Settings go with each transaction (SET LOCAL): a pooler such as PgBouncer refuses them at the start of a connection, and
gives each transaction another session. For the same reason locks are held by transactions, never by sessions.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
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
TELL_SECONDS: Final = 60.0
"""So often the log says that writes fail."""
FRESH_SECONDS: Final = 10.0
"""A write that worked so long ago still shows that writes work."""
# serialization_failure, deadlock_detected, lock_not_available, query_canceled: the database itself is well.
CONTENTION_STATES: Final = frozenset({"40001", "40P01", "55P03", "57014"})
# read_only_sql_transaction (the server is no primary any more, or fenced off), idle_in_transaction_session_timeout,
# transaction_timeout, idle_session_timeout: other connections of the pool are no better.
STALE_STATES: Final = frozenset({"25006", "25P03", "25P04", "57P05"})
# admin_shutdown, crash_shutdown, cannot_connect_now, too_many_connections, disk_full, out_of_memory, io_error
TRANSIENT_STATES: Final = (
    CONTENTION_STATES | STALE_STATES | {"57P01", "57P02", "57P03", "53300", "53100", "53200", "58030"}
)
READ_ONLY_STATE: Final = "25006"
CONTENTION_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
# Where a file is in use, cannot be opened or written now, or the disk is full: room may come back.
TRANSIENT_CODES: Final = CONTENTION_CODES | {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
UNDEFINED_TABLE: Final = "42P01"
READ_ONLY: Final = "almoner_read_only"
_NOW: Final = "almoner_now_ms"
_SETTINGS: Final = (
    f"SET LOCAL statement_timeout = {STATEMENT_MS}; SET LOCAL lock_timeout = {LOCK_MS}; SET LOCAL timezone = 'UTC'"
)
_CLOCK: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
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
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                # What was sent to a machine that vanished is not waited for any longer.
                "tcp_user_timeout": STATEMENT_MS,
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


def _state(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", None), "pgcode", None)


def _sqlite_code(error: BaseException) -> int | None:
    code = getattr(getattr(error, "orig", None), "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def is_contention(error: BaseException) -> bool:
    """Say whether others were in the way, and not the database itself."""
    return _state(error) in CONTENTION_STATES or _sqlite_code(error) in CONTENTION_CODES


def is_transient(error: BaseException) -> bool:
    """Say whether running the whole transaction again may help: locks, deadlocks, lost connections."""
    if isinstance(error, exc.TimeoutError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    state, code = _state(error), _sqlite_code(error)
    if state is not None:
        return state in TRANSIENT_STATES or state.startswith("08")
    if code is not None:
        return code in TRANSIENT_CODES
    # psycopg2 could not connect or lost the connection.
    return isinstance(error, exc.OperationalError | exc.InterfaceError)


class WriteHealth:
    """Whether writes work, as the last ones showed. Thread-safe. Logs a failure once a minute, and its end."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._worked_at: float | None = None
        self._failed_since: float | None = None
        self._told_at = 0.0
        self._failures = 0

    def worked(self) -> None:
        """Note that a write was committed."""
        with self._lock:
            self._worked_at = self._monotonic()
            if self._failed_since is None:
                return
            seconds = self._worked_at - self._failed_since
            self._failed_since, self._failures = None, 0
        log.warning("the database takes writes again, after %.1f s", seconds)

    def failed(self, why: str) -> None:
        """Note that a write failed for a reason that lies in the database."""
        with self._lock:
            now = self._monotonic()
            self._failures += 1
            if self._failed_since is None:
                self._failed_since = now
            elif now - self._told_at < TELL_SECONDS:
                return
            self._told_at, count = now, self._failures
        log.warning("the database takes no writes (%d tries failed so far): %s", count, why)

    def is_fresh(self) -> bool:
        """Whether a write worked lately, and none failed since."""
        with self._lock:
            return (
                self._failed_since is None
                and self._worked_at is not None
                and self._monotonic() - self._worked_at < FRESH_SECONDS
            )


def _write_probe(connection: Connection) -> None:
    connection.exec_driver_sql(
        "INSERT INTO counters (name, value) VALUES ('probes', 1) "
        "ON CONFLICT (name) DO UPDATE SET value = counters.value + 1"
    )


class Database:
    """Transactions on one database. Thread-safe. `patience_seconds` bounds the retries of one transaction."""

    def __init__(self, url: str, *, patience_seconds: float = 30.0, pool_size: int = 8) -> None:
        self.engine = make_engine(url, pool_size=pool_size)
        self.patience_seconds = patience_seconds
        self.retries = 0
        self.health = WriteHealth()
        self.is_postgresql = self.engine.dialect.name == "postgresql"

    def write(
        self, work: Callable[[Connection], T], *, by_index: bool = False, patience_seconds: float | None = None
    ) -> T:
        """Run `work` in a transaction and commit, again after a transient failure.

        `by_index`: see `now_ms`. Raises DatabaseUnavailableError past the patience, and whatever else `work` or the
        database raises, rolled back.
        """
        patience = self.patience_seconds if patience_seconds is None else patience_seconds
        done = self._retrying(lambda: self._once(work, read_only=False, by_index=by_index), patience, writes=True)
        self.health.worked()
        return done

    def check_writable(self) -> None:
        """Write a row, unless a write succeeded just now. Raises DatabaseUnavailableError at the first failure."""
        if not self.health.is_fresh():
            self.write(_write_probe, patience_seconds=0.0)

    def migrate(self, work: Callable[[Connection], None]) -> None:
        """Run a change of the schema, in one transaction without a time limit on its statements; retried like `write`.

        SQLite changes a table by making it anew, which foreign keys that point to it would stop: they are off
        meanwhile, and checked before COMMIT. Raises RuntimeError where one does not hold.
        """
        self._retrying(lambda: self._migrate_once(work), self.patience_seconds, writes=True)

    def _migrate_once(self, work: Callable[[Connection], None]) -> None:
        with self._connect(read_only=False) as connection:
            if self.is_postgresql:
                with connection.begin():
                    connection.exec_driver_sql(f"{_SETTINGS}; SET LOCAL statement_timeout = 0")
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
        return self._retrying(lambda: self._once(work, read_only=True), self.patience_seconds, writes=False)

    def snapshot(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that only reads, however long, and sees one state throughout; retried."""
        return self._retrying(lambda: self._snapshot_once(work), self.patience_seconds, writes=False)

    def _snapshot_once(self, work: Callable[[Connection], T]) -> T:
        with self._connect(read_only=True) as connection:
            if not self.is_postgresql:
                with connection.begin():
                    return work(connection)
            steady = connection.execution_options(isolation_level="REPEATABLE READ")
            with steady.begin():
                steady.exec_driver_sql(f"{_SETTINGS}; SET LOCAL statement_timeout = 0; SET TRANSACTION READ ONLY")
                return work(steady)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that only reads, for what is handed on as it comes and so cannot be run again.

        Raises DatabaseUnavailableError where the connection is lost.
        """
        try:
            with self._connect(read_only=True) as connection, connection.begin():
                self._set_up(connection, read_only=True)
                yield connection
        except exc.SQLAlchemyError as error:
            if not is_transient(error):
                raise
            raise DatabaseUnavailableError(_first_line(error)) from error

    def _once(self, work: Callable[[Connection], T], *, read_only: bool, by_index: bool = False) -> T:
        with self._connect(read_only=read_only) as connection, connection.begin():
            self._set_up(connection, read_only=read_only, by_index=by_index)
            return work(connection)

    def _set_up(self, connection: Connection, *, read_only: bool, by_index: bool = False) -> None:
        """Set the limits of a transaction, in one exchange with the clock where `by_index`."""
        if not self.is_postgresql:
            return
        # Not the driver's own way: it would say READ WRITE where nothing is asked, and so write to a server that is
        # fenced off by default_transaction_read_only.
        text = f"{_SETTINGS}; SET TRANSACTION READ ONLY" if read_only else _SETTINGS
        if not by_index:
            connection.exec_driver_sql(text)
            return
        connection.info[_NOW] = int(connection.exec_driver_sql(f"{text}; SELECT {_CLOCK_BY_INDEX}").scalar_one())

    @contextmanager
    def _connect(self, *, read_only: bool) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            if not self.is_postgresql:
                connection = connection.execution_options(**{READ_ONLY: read_only})  # noqa: PLW2901
            yield connection

    def _retrying(self, once: Callable[[], T], patience_seconds: float, *, writes: bool) -> T:
        deadline = time.monotonic() + patience_seconds
        wait = BACKOFF_FIRST_SECONDS
        while True:
            try:
                return once()
            except exc.SQLAlchemyError as error:
                state = _state(error)
                if not is_transient(error) or (state == READ_ONLY_STATE and not writes):
                    raise
                if state in STALE_STATES:
                    # The idle connections are to the same server: the next one may be to another.
                    self.engine.dispose()
                if writes and not is_contention(error):
                    self.health.failed(_first_line(error))
                if time.monotonic() + wait > deadline:
                    raise DatabaseUnavailableError(_first_line(error)) from error
                self.retries += 1
                log.debug("database transaction is run again in %.3f s: %s", wait, _first_line(error))
            time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait = min(wait * 2, BACKOFF_LONGEST_SECONDS)

    def now_ms(self, connection: Connection, *, by_index: bool = False) -> int:
        """Read the database's clock in Unix milliseconds: all replicas follow the one clock.

        `by_index`: this transaction finds and joins its few rows by their indexes. PostgreSQL would scan a table of
        some thousand rows for them, which takes several times as long. Where `write` was told so, the clock was read
        when the transaction began.
        """
        if self.is_postgresql:
            known = connection.info.pop(_NOW, None)
            if by_index and known is not None:
                return int(known)
            query = f"SELECT {_CLOCK_BY_INDEX if by_index else _CLOCK}"
        else:
            # unixepoch('subsec') needs SQLite 3.42.
            query = "SELECT CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
        return int(connection.exec_driver_sql(query).scalar_one())

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _first_line(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).partition("\n")[0][:200]
