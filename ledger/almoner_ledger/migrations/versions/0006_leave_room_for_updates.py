"""Leave room in the pages of what is updated all the time.

On PostgreSQL an update whose new row fits into the old one's page touches no index and leaves nothing to vacuum (a
"HOT" update). Every grant, post and return updates holds, windows and allotments, and with full pages nine in ten of
them went elsewhere. Rows that are there already stay where they are until they are written anew.
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("accounts", "windows", "buckets", "allotments", "holds")


def upgrade() -> None:
    """Apply."""
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} SET (fillfactor = 50)")


def downgrade() -> None:
    """Take back."""
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} RESET (fillfactor)")
