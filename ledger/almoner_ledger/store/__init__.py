"""The store: mutations and queries of the books on one database.

    store = Store(Database(url))
    store.migrate()
    answers = store.execute([command(Verb.OPEN, message, epoch=1)])

Role: transactions, and the fallback that runs a group one by one. Boundary: knows no HTTP and no callers' identities
beyond the pod uid in a command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import Connection

from almoner_ledger import migrations, usage_metrics
from almoner_ledger.database import Database
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.store import calendars, leases
from almoner_ledger.store.commands import Command, Verb, command
from almoner_ledger.store.operations import Answer, PoisonedError, run

__all__ = ["Answer", "Command", "Database", "Store", "Verb", "command"]

log = logging.getLogger(__name__)

T = TypeVar("T")
RACES_MAX: Final = 5
"""How often a group is run again after a replica wrote the same key first."""


class Store:
    """The books. Thread-safe. `clock` replaces the database's clock (Unix milliseconds) in tests."""

    def __init__(
        self, database: Database, *, clock: Callable[[], int] | None = None, lease: LeasePolicy | None = None
    ) -> None:
        self.database = database
        self.lease = lease or LeasePolicy()
        self._clock = clock

    def migrate(self) -> None:
        """Bring the schema to the newest revision."""
        self.database.migrate(migrations.upgrade)

    def now_ms(self, connection: Connection, *, by_index: bool = False) -> int:
        """The clock that all windows follow. `by_index`: see Database.now_ms."""
        if self._clock is None:
            return self.database.now_ms(connection, by_index=by_index)
        return self._clock()

    def execute(self, commands: Sequence[Command]) -> list[Answer]:
        """Run commands in one transaction and give their answers, in order, after COMMIT.

        A command that is refused has a LedgerError as its answer. Raises DatabaseUnavailableError; then it is unknown
        whether anything was committed, and the callers retry with the same operation ids.
        """
        if len(commands) > 1 and any(each.verb is Verb.UPDATE_ACCOUNTS for each in commands):
            return [answer for each in _apart(commands) for answer in self.execute(each)]
        for _ in range(RACES_MAX):
            try:
                return self._transaction(commands)
            except calendars.RaceError:
                log.info("limits are put in force again: an attempt was opened meanwhile")
            except exc.IntegrityError as error:
                log.info("group of %d is run again: %s", len(commands), str(error.orig).partition("\n")[0])
            except PoisonedError as error:
                if len(commands) == 1 and error.__cause__ is not None:
                    return [error.__cause__]  # type: ignore[list-item]
                break
        if len(commands) > 1:
            return [self.execute([each])[0] for each in commands]
        return self._transaction(commands)

    def _transaction(self, commands: Sequence[Command]) -> list[Answer]:
        ran = self.database.write(
            lambda connection: run(connection, commands, self.now_ms(connection, by_index=True), self.lease),
            by_index=True,
        )
        usage_metrics.count(ran.posted)
        return ran.answers

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query in a transaction that only reads."""
        return self.database.read(query)

    def silent(self) -> dict[str, int]:
        """Active attempts that fell silent, and when each was last heard of: see leases."""
        if self.read(lambda connection: leases.ahead(connection, self.now_ms(connection))):
            count = self.database.write(lambda connection: leases.set_back(connection, self.now_ms(connection)))
            log.warning("the clock went back: the silence of %d attempts counts from now on", count)
        return self.read(lambda connection: leases.silent(connection, self.now_ms(connection), self.lease))

    def renew(self, ids: Collection[str]) -> set[str]:
        """Renew the leases of active attempts, after COMMIT; gives those that were."""
        return self.database.write(lambda connection: leases.renew(connection, ids, self.now_ms(connection)))


def _apart(commands: Sequence[Command]) -> list[list[Command]]:
    """Commands in their order, those that put limits in force alone: they look at what is committed."""
    groups: list[list[Command]] = []
    for each in commands:
        alone = each.verb is Verb.UPDATE_ACCOUNTS
        if groups and not alone and groups[-1][-1].verb is not Verb.UPDATE_ACCOUNTS:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups
