"""Migrations of the schema (Alembic), shipped in the package; `upgrade` brings a database to the newest."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.engine import Connection

# Any number that nothing else locks in this database.
_ADVISORY_LOCK = 0x416C6D6F


def config(connection: Connection) -> Config:
    """Give Alembic's configuration, bound to an open connection."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest revision, in the connection's transaction; replicas queue up."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
    command.upgrade(config(connection), "head")


def check(connection: Connection) -> None:
    """Compare the migrated database with the tables in code. Raises alembic.util.CommandError where they differ."""
    command.check(config(connection))
