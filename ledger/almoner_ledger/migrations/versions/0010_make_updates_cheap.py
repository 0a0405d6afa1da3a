"""Make updates cheap: leave room in the pages of what is updated all the time, and drop an index that nobody reads.

On PostgreSQL an update whose new row fits into the old one's page touches no index and leaves nothing to vacuum (a
"HOT" update). Every grant, post and return updates holds, windows and allotments, and with full pages nine in ten of
them went elsewhere. Rows that are there already stay where they are until they are written anew.

Holds are found by their allotment alone. By the dropped index a planner without statistics would have found them by
their window, which for a quota is those of everybody.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = ("accounts", "windows", "buckets", "allotments", "holds")
INDEX = "ix_holds_account_id_dimension_period_starts_at"


def upgrade() -> None:
    """Apply."""
    op.drop_index(op.f(INDEX), table_name="holds")
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")


def downgrade() -> None:
    """Take back."""
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
    op.create_index(op.f(INDEX), "holds", ["account_id", "dimension", "period", "starts_at"], unique=False)
