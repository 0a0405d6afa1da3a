"""The rights of the service's own database role: what it needs, and no way to change or drop an entry.

Role: the owner of the tables (`almoner ledger migrate --grant-to ROLE`) grants, after each migration. The service then
runs as ROLE, with --no-migrate. Boundary: PostgreSQL; it makes no role and no password.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema

APPEND_ONLY: Final = frozenset({"records", "seals", "alerts", "configuration_changes"})
"""What the service adds to and never changes."""
READ_ONLY: Final = frozenset({"closings", "closing_windows", "closing_agents"})
"""What only retention writes, with the owner's rights."""
DELETES: Final = frozenset({"operations"})
"""What the service may forget."""
REVISION: Final = "alembic_version"


def rights(table: str) -> str:
    """What the service may do with a table."""
    if table in READ_ONLY or table == REVISION:
        return "SELECT"
    if table in APPEND_ONLY:
        return "SELECT, INSERT"
    if table in DELETES:
        return "SELECT, INSERT, DELETE"
    return "SELECT, INSERT, UPDATE"


def grant(connection: Connection, role: str) -> None:
    """Give the role the rights that the service needs on the tables of this schema, and take all others from it.

    Raises ValueError where the database has no roles, the role is not there, or grants would not bind it.
    """
    if connection.dialect.name != "postgresql":
        raise ValueError("--grant-to: SQLite has no roles; whoever can write the file can change it")
    _check(connection, role)
    quote = connection.dialect.identifier_preparer.quote
    name, place = quote(role), quote(str(_scalar(connection, "SELECT current_schema()")))
    statements = [
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {place} FROM {name}",
        f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA {place} FROM {name}",
        f"REVOKE ALL ON ALL FUNCTIONS IN SCHEMA {place} FROM {name}",
        f"REVOKE ALL ON SCHEMA {place} FROM {name}",
        f"GRANT USAGE ON SCHEMA {place} TO {name}",
        f"GRANT EXECUTE ON FUNCTION {place}.almoner_make_partitions(integer) TO {name}",
        *(
            f"GRANT {rights(table)} ON {place}.{quote(table)} TO {name}"
            for table in (*schema.metadata.tables, REVISION)
        ),
    ]
    for statement in statements:
        connection.exec_driver_sql(statement)
    if _scalar(connection, "SELECT has_schema_privilege(:role, current_schema(), 'CREATE')", role=role):
        # PostgreSQL before 15 lets everybody create in the schema `public`.
        raise ValueError(
            f"--grant-to: {role} may still create tables, as everybody may: run "
            f"REVOKE CREATE ON SCHEMA {place} FROM PUBLIC first"
        )


def _check(connection: Connection, role: str) -> None:
    found = connection.execute(sa.text("SELECT rolsuper FROM pg_roles WHERE rolname = :role"), {"role": role}).first()
    if found is None:
        raise ValueError(f"--grant-to: there is no role {role!r:.70}: run CREATE ROLE ... LOGIN PASSWORD ... first")
    if found.rolsuper:
        raise ValueError(f"--grant-to: {role} is a superuser, whom no grant binds: make a role for the service")
    owners = (
        "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND pg_has_role(:role, tableowner, 'USAGE')"
    )
    if _scalar(connection, owners, role=role):
        raise ValueError(f"--grant-to: {role} owns tables of the ledger, or may act as their owner: make another role")


def _scalar(connection: Connection, query: str, **values: str) -> object:
    return connection.execute(sa.text(query), values).scalar_one()
