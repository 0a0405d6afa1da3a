"""Log changes of the cluster's configuration.

The last spec of each object, and every change of one: append-only, numbered, sealed in the chain of the entries. On
SQLite, which cannot exchange a check, the table of seals is made anew with its definition and its triggers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

OLD_KINDS = "kind IN ('entries', 'closing')"
KINDS = "kind IN ('entries', 'closing', 'configuration')"
ACTIONS = "action IN ('created', 'found', 'changed', 'deleted')"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "configured",
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("namespace", sa.String(253), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_configured")),
    )
    op.create_table(
        "configuration_changes",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("namespace", sa.String(253), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("uid", sa.String(64), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger()),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("managers", sa.Text(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("left_out", sa.BigInteger(), nullable=False),
        sa.Column("before_digest", sa.String(64)),
        sa.Column("after_digest", sa.String(64)),
        sa.CheckConstraint(ACTIONS, name=op.f("ck_configuration_changes_action")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_configuration_changes")),
    )
    for columns in (["namespace", "name"], ["uid"]):
        name = op.f(f"ix_configuration_changes_{'_'.join(columns)}")
        op.create_index(name, "configuration_changes", columns)
    op.execute("INSERT INTO counters (name, value) VALUES ('configuration', 0)")
    _refuse_changes("configuration_changes")
    _exchange_kinds(OLD_KINDS, KINDS)


def downgrade() -> None:
    """Take back: the log is lost. Refused by the check where changes were sealed: seals are never changed."""
    _exchange_kinds(KINDS, OLD_KINDS)
    op.execute("DELETE FROM counters WHERE name = 'configuration'")
    op.drop_table("configuration_changes")
    op.drop_table("configured")


def _on_postgresql() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def _refuse_changes(table: str) -> None:
    if _on_postgresql():
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only_{event.lower()} BEFORE {event} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )


def _exchange_kinds(before: str, after: str) -> None:
    if _on_postgresql():
        op.execute("ALTER TABLE seals DROP CONSTRAINT ck_seals_kind")
        op.execute(f"ALTER TABLE seals ADD CONSTRAINT ck_seals_kind CHECK ({after})")
        return
    connection = op.get_bind()
    known = sa.text("SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'seals' AND sql IS NOT NULL")
    parts = {(row.type, row.name): row.sql for row in connection.execute(known)}
    definition = parts.pop(("table", "seals"))
    if before not in definition:
        raise RuntimeError(f"the table seals is not as it was made: {before!r} is not in its definition")
    _, _, columns = definition.partition("(")
    connection.exec_driver_sql(f"CREATE TABLE seals_after ({columns.replace(before, after)}")
    connection.exec_driver_sql("INSERT INTO seals_after SELECT * FROM seals")
    # A table that is dropped takes its triggers along, and asks none.
    connection.exec_driver_sql("DROP TABLE seals")
    connection.exec_driver_sql("ALTER TABLE seals_after RENAME TO seals")
    for statement in parts.values():
        connection.exec_driver_sql(statement)
