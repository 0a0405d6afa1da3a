"""Know what machine time costs.

With the rate of a pod, and until when it is charged, the ledger can tell for how long its machine time is paid, and
hold more while no operator does.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("allotments") as allotments:
        allotments.add_column(sa.Column("machine", sa.Text()))
        allotments.add_column(sa.Column("charged_ms", sa.BigInteger()))


def downgrade() -> None:
    """Take back: meters are told nothing of machine time any more."""
    with op.batch_alter_table("allotments") as allotments:
        allotments.drop_column("charged_ms")
        allotments.drop_column("machine")
