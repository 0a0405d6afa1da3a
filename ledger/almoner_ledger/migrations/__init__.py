"""Migrations of the schema (Alembic), shipped in the package; `upgrade` brings a database to the newest.

A release can be rolled back while its migrations stay: a version goes on with a schema that a newer one left behind,
where that one wrote down that it can (decision 0030). A migration that older versions cannot live with raises
`OLDEST_VERSION_S_HEAD` to its own revision.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from almoner_ledger.schema import counters

log = logging.getLogger(__name__)

OLDEST_VERSION_S_HEAD: Final = "0013"
"""The newest revision of the oldest version that works with the schema as this version leaves it."""
FLOOR: Final = "schema_floor"
"""The counter in which a database keeps that."""
# Any number that nothing else locks in this database.
_ADVISORY_LOCK = 0x416C6D6F


def config(connection: Connection) -> Config:
    """Give Alembic's configuration, bound to an open connection."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["connection"] = connection
    return made


class SchemaTooNewError(ValueError):
    """A newer version changed the schema so that this one cannot work with it."""


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision, in the connection's transaction; replicas queue up.

    Leaves a schema that a newer version made as it is. Raises SchemaTooNewError where this version cannot use it.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    script = ScriptDirectory.from_config(config(connection))
    stored = MigrationContext.configure(connection).get_current_revision()
    if stored is not None and stored not in {each.revision for each in script.walk_revisions()}:
        _go_on_with(connection, stored, script.get_current_head() or "")
        return
    command.upgrade(config(connection), "head")
    _keep_floor(connection)


def _go_on_with(connection: Connection, stored: str, head: str) -> None:
    floor = connection.execute(sa.select(counters.c.value).where(counters.c.name == FLOOR)).scalar_one_or_none()
    if floor is None or floor > int(head):
        raise SchemaTooNewError(
            f"a newer version brought the database to revision {stored}, and this one (revision {head}) cannot work "
            "with it: install that version again, or restore a backup from before the upgrade"
        )
    log.warning("the database is at revision %s of a newer version: this one (%s) goes on with it", stored, head)


def _keep_floor(connection: Connection) -> None:
    floor = int(OLDEST_VERSION_S_HEAD)
    named = counters.c.name == FLOOR
    known = connection.execute(sa.select(counters.c.value).where(named)).scalar_one_or_none()
    if known is None:
        connection.execute(sa.insert(counters).values(name=FLOOR, value=floor))
    elif known != floor:
        connection.execute(sa.update(counters).where(named).values(value=floor))


def check(connection: Connection) -> None:
    """Compare the migrated database with the tables in code. Raises alembic.util.CommandError where they differ."""
    command.check(config(connection))
