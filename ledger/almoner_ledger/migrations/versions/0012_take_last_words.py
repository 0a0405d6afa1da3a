"""Take last words: a kind of entry of their own, and what of an attempt's sums stands in for records.

On PostgreSQL the check of the kinds is exchanged; on SQLite, which cannot do that, the table is made anew with the
definition that it has, its indexes and its triggers.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0010"
branch_labels = None
depends_on = None

OLD_KINDS = "kind IN ('usage', 'unaccounted', 'correction')"
KINDS = "kind IN ('usage', 'unaccounted', 'correction', 'last_word')"


def upgrade() -> None:
    """Apply."""
    op.add_column("allotments", sa.Column("last_word", sa.Text(), nullable=True))
    _exchange_kinds(OLD_KINDS, KINDS)


def downgrade() -> None:
    """Take back. Refused by the check where last words were taken: entries are never changed."""
    _exchange_kinds(KINDS, OLD_KINDS)
    op.drop_column("allotments", "last_word")


def _exchange_kinds(before: str, after: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE records DROP CONSTRAINT ck_records_kind")
        op.execute(f"ALTER TABLE records ADD CONSTRAINT ck_records_kind CHECK ({after})")
        return
    connection = op.get_bind()
    known = sa.text("SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'records' AND sql IS NOT NULL")
    parts = {(row.type, row.name): row.sql for row in connection.execute(known)}
    definition = parts.pop(("table", "records"))
    if before not in definition:
        raise RuntimeError(f"the table records is not as it was made: {before!r} is not in its definition")
    _, _, columns = definition.partition("(")
    connection.exec_driver_sql(f"CREATE TABLE records_after ({columns.replace(before, after)}")
    connection.exec_driver_sql("INSERT INTO records_after SELECT * FROM records")
    # A table that is dropped takes its indexes and triggers along, and asks no trigger.
    connection.exec_driver_sql("DROP TABLE records")
    connection.exec_driver_sql("ALTER TABLE records_after RENAME TO records")
    for statement in parts.values():
        connection.exec_driver_sql(statement)
