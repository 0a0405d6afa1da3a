"""Grant keys of providers: an allotment says which keys of cluster-scoped providers its meter may ask for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("allotments") as allotments:
        allotments.add_column(sa.Column("provider_keys", sa.Text()))


def downgrade() -> None:
    """Take back: meters are handed no keys any more."""
    with op.batch_alter_table("allotments") as allotments:
        allotments.drop_column("provider_keys")
