"""Keep what corrections sum to.

An allotment's corrections are part of its cost and unknown to its meter, so they are summed apart; and what corrections
lift above a limit is told apart from what providers billed above holds.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("allotments") as allotments:
        allotments.add_column(sa.Column("corrected_nanos", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("holds") as holds:
        holds.add_column(sa.Column("excess_corrected", sa.BigInteger(), nullable=False, server_default="0"))
        holds.create_check_constraint(
            op.f("ck_holds_corrected"), "0 <= excess_corrected AND excess_corrected <= excess"
        )


def downgrade() -> None:
    """Take back: the two sums are lost."""
    with op.batch_alter_table("holds") as holds:
        holds.drop_constraint(op.f("ck_holds_corrected"), type_="check")
        holds.drop_column("excess_corrected")
    with op.batch_alter_table("allotments") as allotments:
        allotments.drop_column("corrected_nanos")
