"""Make the tables.

Revision: 0001
Revises: None
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# In an order in which they can be dropped.
TABLES = (
    "records",
    "outputs",
    "holds",
    "windows",
    "allotments",
    "rollups",
    "operations",
    "feed",
    "executions",
    "epochs",
    "counters",
    "agents",
    "accounts",
)


def upgrade() -> None:
    """Apply."""
    _make_accounts()
    _make_agents()
    _make_counters()
    _make_epochs()
    _make_executions()
    _make_feed()
    _make_operations()
    _make_rollups()
    _make_allotments()
    _make_windows()
    _make_holds()
    _make_outputs()
    _make_records()
    op.execute("INSERT INTO epochs (id, epoch, holder) VALUES (1, 0, '')")
    op.execute("INSERT INTO counters (name, value) VALUES ('changes', 0)")
    _make_records_append_only()


def downgrade() -> None:
    """Take back."""
    for table in TABLES:
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_change()")


def _make_records_append_only() -> None:
    # Entries are corrected by new entries. Retention drops whole partitions, which is no row's change.
    message = "records are append-only"
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER records_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON records "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER records_append_only_{event.lower()} BEFORE {event} ON records "
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def _make_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("subject", sa.String(length=253), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("enforced", sa.Boolean(), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("time_zone", sa.String(length=64), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.Column("max_per_execution", sa.Text(), nullable=False),
        sa.Column("max_per_request", sa.Text(), nullable=False),
        sa.Column("holders", sa.Integer(), nullable=False),
        sa.CheckConstraint("kind IN ('quota', 'execution')", name=op.f("ck_accounts_kind")),
        sa.CheckConstraint("holders >= 0", name=op.f("ck_accounts_holders")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint(
            "kind", "namespace", "name", "subject", name=op.f("uq_accounts_kind_namespace_name_subject")
        ),
    )


def _make_agents() -> None:
    op.create_table(
        "agents",
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unaccounted_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unpriced", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tool_calls", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_agents")),
    )


def _make_counters() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )


def _make_epochs() -> None:
    op.create_table(
        "epochs",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=253), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_epochs_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_epochs")),
    )


def _make_executions() -> None:
    op.create_table(
        "executions",
        sa.Column("uid", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("uid", name=op.f("pk_executions")),
    )
    op.create_index(op.f("ix_executions_namespace_name"), "executions", ["namespace", "name"], unique=False)


def _make_feed() -> None:
    op.create_table(
        "feed",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", name=op.f("pk_feed")),
        sa.UniqueConstraint("changed", name=op.f("uq_feed_changed")),
    )


def _make_operations() -> None:
    op.create_table(
        "operations",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    op.create_index(op.f("ix_operations_created_ms"), "operations", ["created_ms"], unique=False)


def _make_rollups() -> None:
    op.create_table(
        "rollups",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("agent", sa.String(length=253), nullable=False),
        sa.Column("owner", sa.String(length=253), nullable=False),
        sa.Column("provider", sa.String(length=253), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("resource_type", sa.String(length=16), nullable=False),
        sa.Column("records", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unaccounted_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unpriced", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tool_calls", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint(
            "day", "namespace", "agent", "owner", "provider", "model", "resource_type", name=op.f("pk_rollups")
        ),
    )


def _make_allotments() -> None:
    op.create_table(
        "allotments",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("execution_uid", sa.String(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("agent", sa.String(length=253), nullable=False),
        sa.Column("owner", sa.String(length=253), nullable=False),
        sa.Column("pod", sa.String(length=253), nullable=False),
        sa.Column("pod_uid", sa.String(length=64), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("tracked", sa.Text(), nullable=False),
        sa.Column("limited", sa.Text(), nullable=False),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("activated_ms", sa.BigInteger(), nullable=True),
        sa.Column("exchanged_ms", sa.BigInteger(), nullable=False),
        sa.Column("closed_ms", sa.BigInteger(), nullable=True),
        sa.Column("close_reason", sa.String(length=128), nullable=False),
        sa.Column("contiguous", sa.BigInteger(), nullable=False),
        sa.Column("ahead", sa.Text(), nullable=False),
        sa.Column("final_sequence", sa.BigInteger(), nullable=True),
        sa.Column("final_settled", sa.Text(), nullable=True),
        sa.Column("progress", sa.Text(), nullable=True),
        sa.Column("cost_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unaccounted_nanos", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("unpriced", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("requests", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("tool_calls", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("state IN ('offered', 'active', 'void', 'closed')", name=op.f("ck_allotments_state")),
        sa.ForeignKeyConstraint(["execution_uid"], ["executions.uid"], name=op.f("fk_allotments_execution_uid")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_allotments")),
        sa.UniqueConstraint("execution_uid", "attempt", name=op.f("uq_allotments_execution_uid_attempt")),
    )
    op.create_index(op.f("ix_allotments_state_id"), "allotments", ["state", "id"], unique=False)


def _make_windows() -> None:
    op.create_table(
        "windows",
        sa.Column("account_id", sa.String(length=32), nullable=False),
        sa.Column("dimension", sa.String(length=16), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("enforced", sa.Boolean(), nullable=False),
        sa.Column("limit", sa.BigInteger(), nullable=True),
        sa.Column("spent", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("excess", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("floor", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint('"limit" IS NULL OR "limit" >= 0', name=op.f("ck_windows_limit")),
        sa.CheckConstraint(
            'NOT enforced OR "limit" IS NULL OR spent + reserved - excess <= "limit" '
            "OR spent + reserved - excess <= floor",
            name=op.f("ck_windows_within_limit"),
        ),
        sa.CheckConstraint(
            "spent >= 0 AND reserved >= 0 AND excess >= 0 AND floor >= 0", name=op.f("ck_windows_not_negative")
        ),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_windows_account_id")),
        sa.PrimaryKeyConstraint("account_id", "dimension", "period", "starts_at", name=op.f("pk_windows")),
    )


def _make_holds() -> None:
    op.create_table(
        "holds",
        sa.Column("allotment_id", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.String(length=32), nullable=False),
        sa.Column("dimension", sa.String(length=16), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("granted", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("used", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("charged", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("excess", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "0 <= charged AND charged <= used AND 0 <= excess AND excess <= used", name=op.f("ck_holds_parts")
        ),
        sa.CheckConstraint("0 <= used AND used <= granted", name=op.f("ck_holds_used")),
        sa.ForeignKeyConstraint(
            ["account_id", "dimension", "period", "starts_at"],
            ["windows.account_id", "windows.dimension", "windows.period", "windows.starts_at"],
            name=op.f("fk_holds_account_id_dimension_period_starts_at"),
        ),
        sa.ForeignKeyConstraint(["allotment_id"], ["allotments.id"], name=op.f("fk_holds_allotment_id")),
        sa.PrimaryKeyConstraint(
            "allotment_id", "account_id", "dimension", "period", "starts_at", name=op.f("pk_holds")
        ),
    )
    op.create_index(
        op.f("ix_holds_account_id_dimension_period_starts_at"),
        "holds",
        ["account_id", "dimension", "period", "starts_at"],
        unique=False,
    )


def _make_outputs() -> None:
    op.create_table(
        "outputs",
        sa.Column("allotment_id", sa.String(length=36), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("truncated", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["allotment_id"], ["allotments.id"], name=op.f("fk_outputs_allotment_id")),
        sa.PrimaryKeyConstraint("allotment_id", name=op.f("pk_outputs")),
    )


def _make_records() -> None:
    op.create_table(
        "records",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("corrects", sa.String(length=36), nullable=True),
        sa.Column("allotment_id", sa.String(length=36), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("posted_ms", sa.BigInteger(), nullable=False),
        sa.Column("resource_type", sa.String(length=16), nullable=False),
        sa.Column("provider", sa.String(length=253), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("operation", sa.String(length=64), nullable=False),
        sa.Column("cost_nanos", sa.BigInteger(), nullable=True),
        sa.Column("total_tokens", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tool_calls", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("price_version", sa.String(length=128), nullable=True),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("error", sa.String(length=256), nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('usage', 'unaccounted')", name=op.f("ck_records_kind")),
        sa.ForeignKeyConstraint(["allotment_id"], ["allotments.id"], name=op.f("fk_records_allotment_id")),
        sa.PrimaryKeyConstraint("id", "month", name=op.f("pk_records")),
        sa.UniqueConstraint("allotment_id", "sequence", "month", name=op.f("uq_records_allotment_id_sequence_month")),
    )
