"""Carry what was spent: a window begins with what was spent in its time under another period.

Quotas whose period was changed before count now what was spent meanwhile, where they are for ever (`Total`).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0012"
branch_labels = None
depends_on = None

_USED = """(SELECT coalesce(sum(used), 0) FROM {table} WHERE {table}.account_id = windows.account_id
    AND {table}.dimension = windows.dimension AND {table}.period <> 'Total')"""


def upgrade() -> None:
    """Apply."""
    op.add_column("windows", sa.Column("carried", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("period_since", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE accounts SET period_since = 1 WHERE EXISTS "
        "(SELECT 1 FROM windows WHERE windows.account_id = accounts.id AND windows.period <> accounts.period)"
    )
    used = f"{_USED.format(table='holds')} + {_USED.format(table='closing_windows')}"
    op.execute(
        f"UPDATE windows SET carried = {used} WHERE period = 'Total' AND EXISTS "  # noqa: S608 - names of ours
        "(SELECT 1 FROM accounts WHERE id = windows.account_id AND period = 'Total' AND period_since > 0)"
    )
    op.execute(
        "UPDATE windows SET spent = spent + carried, floor = spent + carried + reserved - excess WHERE carried > 0"
    )


def downgrade() -> None:
    """Take back: what was carried counts in the windows alone in which it was spent."""
    op.execute("UPDATE windows SET spent = spent - carried WHERE carried > 0")
    op.drop_column("windows", "carried")
    op.drop_column("accounts", "period_since")
