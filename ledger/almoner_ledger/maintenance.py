"""What the service does on the side: seals entries, makes partitions ahead of need, forgets old operations.

Role: two tasks beside the service, each with transactions of its own, so that nothing of it delays a post. Replicas
exclude each other by advisory locks. A failure is logged and counted, and the work is due again at the next turn: rows
without a partition of their own go to the default one, and what is not sealed today is sealed tomorrow. Boundary: drops
no history; that is `retention`, with the owner's rights.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Final

import sqlalchemy as sa
from aiohttp import web
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from almoner_ledger import metrics, schema, sealing
from almoner_ledger.database import DatabaseUnavailableError
from almoner_ledger.store import Store

log = logging.getLogger(__name__)

SEAL_SECONDS: Final = 60.0
TIDY_SECONDS: Final = 3600.0
MONTHS_AHEAD: Final = 3
OPERATIONS_KEPT_MS: Final = 7 * 24 * 3600 * 1000
"""Nobody retries an operation for so long; a later one with its id would be taken for a new one."""
OPERATIONS_BATCH: Final = 2000

# Any number that nothing else locks in this database.
_ADVISORY_LOCK: Final = 0x416C6D72


class Maintenance:
    """The tasks. `start` and `close` them with the service; `close` lets a transaction that runs end."""

    def __init__(self, store: Store, *, seal_seconds: float = SEAL_SECONDS, tidy_seconds: float = TIDY_SECONDS) -> None:
        self._store = store
        self._periods = {"seal": (seal_seconds, self.seal), "tidy": (tidy_seconds, self.tidy)}
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = threading.Event()
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Start; the first turn is now."""
        for name, (seconds, work) in self._periods.items():
            self._tasks.append(asyncio.create_task(self._every(name, seconds, work), name=f"ledger-{name}"))

    async def close(self) -> None:
        """Stop after the transaction that runs."""
        self._stop.set()
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Run beside an application: for its `cleanup_ctx`."""
        self.start()
        yield
        await self.close()

    async def _every(self, name: str, seconds: float, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                await asyncio.to_thread(work)
            except (DatabaseUnavailableError, exc.SQLAlchemyError) as error:
                metrics.MAINTENANCE_FAILURES.labels(name).inc()
                log.warning("%s failed and is due again in %g s: %.300s", name, seconds, error)
            except Exception:
                metrics.MAINTENANCE_FAILURES.labels(name).inc()
                log.exception("%s failed and is due again in %g s", name, seconds)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()

    def seal(self) -> None:
        """Seal what is not sealed, unless a replica is at it."""
        sealed = sealing.seal_all(self._store, wait=False, stop=self._stop.is_set)
        metrics.SEALED.inc(sealed)

    def tidy(self) -> None:
        """Make partitions for the months to come, and forget the oldest operations."""
        made = self._store.database.write(make_partitions)
        if made:
            log.info("made %d partitions", made)
        while not self._stop.is_set() and self._store.database.write(self._forget_operations) == OPERATIONS_BATCH:
            pass

    def _forget_operations(self, connection: Connection) -> int:
        if connection.dialect.name == "postgresql":
            locked = connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})").scalar_one()
            if not locked:
                return 0
        return forget_operations(connection, self._store.now_ms(connection))


def make_partitions(connection: Connection) -> int:
    """Make the partitions of this month and the next ones that are missing; gives their number. SQLite has none."""
    if connection.dialect.name != "postgresql":
        return 0
    # While this waits for its locks (an audit may hold one for long), all posting waits behind it.
    connection.exec_driver_sql("SET LOCAL lock_timeout = '200ms'")
    return int(connection.exec_driver_sql(f"SELECT almoner_make_partitions({MONTHS_AHEAD})").scalar_one())


def forget_operations(connection: Connection, now_ms: int) -> int:
    """Delete a batch of the operations that are too old to be retried; gives their number."""
    table = schema.operations
    old = (
        sa.select(table.c.id)
        .where(table.c.created_ms < now_ms - OPERATIONS_KEPT_MS)
        .order_by(table.c.created_ms)
        .limit(OPERATIONS_BATCH)
    )
    return int(connection.execute(sa.delete(table).where(table.c.id.in_(old))).rowcount)
