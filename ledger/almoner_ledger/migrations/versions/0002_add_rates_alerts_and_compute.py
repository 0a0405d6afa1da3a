"""Add rates, alerts and machine time.

Accounts get rates (token buckets), alert thresholds and a mark of recall; providers may have accounts; an attempt may
have a second allotment, for its machine time, which all sums of usage count.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

COMPUTE_COLUMNS = ("cpu_milli_seconds", "memory_mebibyte_seconds", "gpu_milli_seconds")
KINDS = "kind IN ('quota', 'execution', 'provider')"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("accounts") as accounts:
        accounts.add_column(sa.Column("rates", sa.Text(), nullable=False, server_default="[]"))
        accounts.add_column(sa.Column("alert_thresholds", sa.Text(), nullable=False, server_default="[]"))
        accounts.add_column(sa.Column("recall_ms", sa.BigInteger(), nullable=False, server_default="0"))
        accounts.drop_constraint(op.f("ck_accounts_kind"), type_="check")
        accounts.create_check_constraint(op.f("ck_accounts_kind"), KINDS)
    with op.batch_alter_table("allotments") as allotments:
        allotments.add_column(sa.Column("purpose", sa.String(16), nullable=False, server_default="run"))
        allotments.add_column(sa.Column("debits", sa.Text(), nullable=False, server_default="{}"))
        allotments.drop_constraint(op.f("uq_allotments_execution_uid_attempt"), type_="unique")
        allotments.create_unique_constraint(
            op.f("uq_allotments_execution_uid_attempt_purpose"), ["execution_uid", "attempt", "purpose"]
        )
        allotments.create_check_constraint(op.f("ck_allotments_purpose"), "purpose IN ('run', 'compute')")
    for table in ("allotments", "rollups", "agents"):
        for name in COMPUTE_COLUMNS:
            op.add_column(table, sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    _make_buckets()
    _make_alerts()


def downgrade() -> None:
    """Take back. What only the newer tables know is lost."""
    op.drop_table("alerts")
    op.drop_table("buckets")
    for table in ("allotments", "rollups", "agents"):
        with op.batch_alter_table(table) as batch:
            for name in COMPUTE_COLUMNS:
                batch.drop_column(name)
    with op.batch_alter_table("allotments") as allotments:
        allotments.drop_constraint(op.f("ck_allotments_purpose"), type_="check")
        allotments.drop_constraint(op.f("uq_allotments_execution_uid_attempt_purpose"), type_="unique")
        allotments.create_unique_constraint(op.f("uq_allotments_execution_uid_attempt"), ["execution_uid", "attempt"])
        allotments.drop_column("debits")
        allotments.drop_column("purpose")
    with op.batch_alter_table("accounts") as accounts:
        accounts.drop_constraint(op.f("ck_accounts_kind"), type_="check")
        accounts.create_check_constraint(op.f("ck_accounts_kind"), "kind IN ('quota', 'execution')")
        for name in ("recall_ms", "alert_thresholds", "rates"):
            accounts.drop_column(name)


def _make_buckets() -> None:
    op.create_table(
        "buckets",
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("dimension", sa.String(16), nullable=False),
        sa.Column("per_seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("capacity", sa.BigInteger(), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("refilled_ms", sa.BigInteger(), nullable=False),
        sa.Column("debited", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("refunded", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("amount > 0 AND capacity > 0 AND per_seconds > 0", name=op.f("ck_buckets_positive")),
        sa.CheckConstraint("level <= capacity * 1000 * per_seconds", name=op.f("ck_buckets_capacity")),
        sa.CheckConstraint("0 <= refunded AND refunded <= debited", name=op.f("ck_buckets_refunded")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_buckets_account_id_accounts")),
        sa.PrimaryKeyConstraint("account_id", "dimension", "per_seconds", name=op.f("pk_buckets")),
    )


def _make_alerts() -> None:
    op.create_table(
        "alerts",
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("dimension", sa.String(16), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("percent", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fired_ms", sa.BigInteger(), nullable=False),
        sa.Column("spent", sa.BigInteger(), nullable=False),
        sa.Column("limit", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id", "dimension", "period", "starts_at"],
            ["windows.account_id", "windows.dimension", "windows.period", "windows.starts_at"],
            name=op.f("fk_alerts_account_id_windows"),
        ),
        sa.PrimaryKeyConstraint("account_id", "dimension", "period", "starts_at", "percent", name=op.f("pk_alerts")),
    )
