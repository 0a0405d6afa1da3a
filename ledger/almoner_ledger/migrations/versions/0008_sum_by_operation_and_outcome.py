"""Sum by operation and outcome too, and find history by time.

The sums by day get two more dimensions, so that the cost of a tool or the share of failures is an overview like any
other. What was summed before is not split any more: it stays with an empty operation and outcome.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0003"
branch_labels = None
depends_on = None

OLD_KEY = ["day", "namespace", "agent", "owner", "provider", "model", "resource_type"]
NEW_KEY = [*OLD_KEY, "operation", "outcome"]
SUMS = (
    "records",
    "cost_nanos",
    "unaccounted_nanos",
    "unpriced",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "requests",
    "tool_calls",
    "cpu_milli_seconds",
    "memory_mebibyte_seconds",
    "gpu_milli_seconds",
)


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("rollups") as rollups:
        rollups.add_column(sa.Column("operation", sa.String(64), nullable=False, server_default=""))
        rollups.add_column(sa.Column("outcome", sa.String(16), nullable=False, server_default=""))
        rollups.drop_constraint(op.f("pk_rollups"), type_="primary")
        rollups.create_primary_key(op.f("pk_rollups"), NEW_KEY)
    op.create_index(op.f("ix_allotments_opened_ms"), "allotments", ["opened_ms"])
    op.create_index(op.f("ix_executions_created_ms_uid"), "executions", ["created_ms", "uid"])


def downgrade() -> None:
    """Take back: the sums of a day come together again."""
    op.drop_index(op.f("ix_executions_created_ms_uid"), "executions")
    op.drop_index(op.f("ix_allotments_opened_ms"), "allotments")
    names = ", ".join(OLD_KEY)
    sums = ", ".join(f"CAST(sum({name}) AS BIGINT) AS {name}" for name in SUMS)
    op.execute(f"CREATE TEMPORARY TABLE coarse AS SELECT {names}, {sums} FROM rollups GROUP BY {names}")  # noqa: S608 - constants
    op.execute("DELETE FROM rollups")
    with op.batch_alter_table("rollups") as rollups:
        rollups.drop_constraint(op.f("pk_rollups"), type_="primary")
        rollups.drop_column("outcome")
        rollups.drop_column("operation")
        rollups.create_primary_key(op.f("pk_rollups"), OLD_KEY)
    columns = ", ".join([*OLD_KEY, *SUMS])
    op.execute(f"INSERT INTO rollups ({columns}) SELECT {columns} FROM coarse")  # noqa: S608 - constants
    op.execute("DROP TABLE coarse")
