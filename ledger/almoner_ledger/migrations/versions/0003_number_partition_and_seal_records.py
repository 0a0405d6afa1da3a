"""Number, partition and seal the records.

Every entry gets a number, in the order of commits. PostgreSQL keeps a partition for every month, and one for what fits
none. Seals chain the entries' digests; closings keep the sums of months that retention dropped.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

APPEND_ONLY = ("seals", "closings", "closing_windows", "closing_agents")
USAGE_COLUMNS = (
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
COLUMNS = (
    "id",
    "month",
    "kind",
    "corrects",
    "allotment_id",
    "sequence",
    "digest",
    "posted_ms",
    "resource_type",
    "provider",
    "model",
    "operation",
    "cost_nanos",
    "total_tokens",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "requests",
    "tool_calls",
    "units",
    "price_version",
    "started_ms",
    "duration_ms",
    "outcome",
    "error",
    "metadata",
)
OLD_KINDS = "kind IN ('usage', 'unaccounted')"
KINDS = "kind IN ('usage', 'unaccounted', 'correction')"

# Any number that nothing else locks in this database.
PARTITIONS_LOCK = 0x416C6D70


def upgrade() -> None:
    """Apply."""
    _move_records(_numbered_columns(), KINDS, numbered=True)
    op.execute("INSERT INTO counters (name, value) SELECT 'entries', count(*) FROM records")
    op.execute("INSERT INTO counters (name, value) VALUES ('seals', 0)")
    _make_seals()
    _make_closings()
    for table in APPEND_ONLY:
        _refuse_changes(table)


def downgrade() -> None:
    """Take back: numbers, seals and closings are lost."""
    for table in ("closing_agents", "closing_windows", "closings", "seals"):
        op.drop_table(table)
    op.execute("DELETE FROM counters WHERE name IN ('entries', 'seals')")
    _move_records(_columns(), OLD_KINDS, numbered=False)
    if _on_postgresql():
        op.execute("DROP FUNCTION almoner_make_partitions(integer)")
        op.execute("DROP FUNCTION almoner_make_partition(integer)")


def _on_postgresql() -> bool:
    return bool(op.get_bind().dialect.name == "postgresql")


def _move_records(columns: list[sa.Column[Any]], kinds: str, *, numbered: bool) -> None:
    """Make the table anew under its name, with the rows that it has."""
    if _on_postgresql():
        op.execute("ALTER TABLE records RENAME TO records_before")
        for name in ("pk_records", "uq_records_allotment_id_sequence_month"):
            op.execute(f"ALTER TABLE records_before DROP CONSTRAINT {name}")
        if not numbered:
            op.execute("DROP INDEX ix_records_number")
        name = "records"
    else:
        # SQLite renames what points to a renamed table along with it, so the new one takes the name last.
        name = "records_after"
    more: dict[str, Any] = {"postgresql_partition_by": "LIST (month)"} if numbered else {}
    op.create_table(
        name,
        *columns,
        sa.CheckConstraint(kinds, name=op.f("ck_records_kind")),
        sa.ForeignKeyConstraint(["allotment_id"], ["allotments.id"], name=op.f("fk_records_allotment_id")),
        sa.PrimaryKeyConstraint("id", "month", name=op.f("pk_records")),
        sa.UniqueConstraint("allotment_id", "sequence", "month", name=op.f("uq_records_allotment_id_sequence_month")),
        **more,
    )
    if numbered and _on_postgresql():
        _make_partitions()
    old = "records_before" if _on_postgresql() else "records"
    listed = ", ".join(COLUMNS)
    # What takes back a charge was entered just before the late record that explains it.
    number = "row_number() OVER (ORDER BY posted_ms, allotment_id, coalesce(sequence, 0), id)"
    op.execute(
        f"INSERT INTO {name} (number, {listed}) SELECT {number}, {listed} FROM {old}"  # noqa: S608 - constants
        if numbered
        else f"INSERT INTO {name} ({listed}) SELECT {listed} FROM {old}"  # noqa: S608 - constants
    )
    op.execute(f"DROP TABLE {old}")
    if name != "records":
        op.rename_table(name, "records")
    if numbered:
        op.create_index(op.f("ix_records_number"), "records", ["number"])
    _refuse_changes("records")


def _columns() -> list[sa.Column[Any]]:
    def text(name: str, length: int, *, nullable: bool = False) -> sa.Column[Any]:
        return sa.Column(name, sa.String(length=length), nullable=nullable)

    def amount(name: str, *, nullable: bool = False) -> sa.Column[Any]:
        return sa.Column(name, sa.BigInteger(), nullable=nullable)

    return [
        text("id", 36),
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        text("kind", 16),
        text("corrects", 36, nullable=True),
        text("allotment_id", 36),
        amount("sequence", nullable=True),
        text("digest", 64),
        amount("posted_ms"),
        text("resource_type", 16),
        text("provider", 253),
        text("model", 128),
        text("operation", 64),
        amount("cost_nanos", nullable=True),
        *(amount(name) for name in COLUMNS[COLUMNS.index("total_tokens") : COLUMNS.index("price_version")]),
        text("price_version", 128, nullable=True),
        amount("started_ms"),
        amount("duration_ms"),
        text("outcome", 16),
        text("error", 256, nullable=True),
        sa.Column("metadata", sa.Text(), nullable=False),
    ]


def _numbered_columns() -> list[sa.Column[Any]]:
    columns = _columns()
    return [*columns[:2], sa.Column("number", sa.BigInteger(), nullable=False), *columns[2:]]


def _refuse_changes(table: str) -> None:
    if _on_postgresql():
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        return
    for event in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_append_only_{event.lower()} BEFORE {event} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
        )


def _make_partitions() -> None:
    """Make the functions that make partitions, the partition for the rest, and those of the months that have rows."""
    schema = op.get_bind().exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
    path = f"SET search_path = {schema}, pg_temp"
    op.execute(
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% are append-only', TG_TABLE_NAME; END $$"
    )
    op.execute("CREATE TABLE records_default PARTITION OF records DEFAULT")
    _refuse_changes("records_default")
    # Locks are taken in the order in which posting takes them. A statement's trigger fires for the table that the
    # statement names, so every partition has its own. Rows that came before their partition move into it.
    op.execute(
        f"""
        CREATE FUNCTION almoner_make_partition(wanted integer) RETURNS integer LANGUAGE plpgsql {path} AS $$
        DECLARE part text := 'records_' || wanted;
        BEGIN
            IF to_regclass(quote_ident(part)) IS NOT NULL THEN
                RETURN 0;
            END IF;
            LOCK TABLE allotments IN SHARE ROW EXCLUSIVE MODE;
            LOCK TABLE records_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('CREATE TABLE %I (LIKE records INCLUDING CONSTRAINTS)', part);
            IF EXISTS (SELECT FROM records_default WHERE month = wanted) THEN
                ALTER TABLE records_default DISABLE TRIGGER append_only;
                EXECUTE format('INSERT INTO %I SELECT * FROM records_default WHERE month = %s', part, wanted);
                DELETE FROM records_default WHERE month = wanted;
                ALTER TABLE records_default ENABLE TRIGGER append_only;
            END IF;
            EXECUTE format('ALTER TABLE records ATTACH PARTITION %I FOR VALUES IN (%s)', part, wanted);
            EXECUTE format('CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I '
                'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', part);
            RETURN 1;
        END $$
        """  # noqa: S608 - no input
    )
    op.execute(
        f"""
        CREATE FUNCTION almoner_make_partitions(ahead integer) RETURNS integer
        LANGUAGE plpgsql SECURITY DEFINER {path} AS $$
        DECLARE
            made integer := 0;
            month integer;
            first timestamp := date_trunc('month', now() AT TIME ZONE 'UTC');
        BEGIN
            IF ahead NOT BETWEEN 0 AND 12 THEN
                RAISE EXCEPTION 'ahead: write 0 to 12 months';
            END IF;
            PERFORM pg_advisory_xact_lock({PARTITIONS_LOCK});
            FOR index IN 0..ahead LOOP
                month := to_char(first + make_interval(months => index), 'YYYYMM')::integer;
                made := made + almoner_make_partition(month);
            END LOOP;
            RETURN made;
        END $$
        """
    )
    for function in ("almoner_make_partition", "almoner_make_partitions"):
        op.execute(f"REVOKE ALL ON FUNCTION {function}(integer) FROM PUBLIC")
    op.execute("SELECT almoner_make_partitions(3)")
    op.execute("SELECT almoner_make_partition(month) FROM (SELECT DISTINCT month FROM records_before) AS known")


def _make_seals() -> None:
    op.create_table(
        "seals",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("form", sa.Integer(), nullable=False),
        sa.Column("month", sa.Integer(), nullable=False),
        sa.Column("first_number", sa.BigInteger(), nullable=False),
        sa.Column("last_number", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("sealed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('entries', 'closing')", name=op.f("ck_seals_kind")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_seals")),
    )


def _make_closings() -> None:
    op.create_table(
        "closings",
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("allotments", sa.BigInteger(), nullable=False),
        sa.Column("executions", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("first_number", sa.BigInteger(), nullable=True),
        sa.Column("last_number", sa.BigInteger(), nullable=True),
        sa.Column("closed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("month", name=op.f("pk_closings")),
    )
    op.create_table(
        "closing_windows",
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.String(length=32), nullable=False),
        sa.Column("dimension", sa.String(length=16), nullable=False),
        sa.Column("period", sa.String(length=16), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), autoincrement=False, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), server_default="0", nullable=False)
            for name in ("used", "charged", "excess")
        ),
        sa.ForeignKeyConstraint(["month"], ["closings.month"], name=op.f("fk_closing_windows_month")),
        sa.PrimaryKeyConstraint(
            "month", "account_id", "dimension", "period", "starts_at", name=op.f("pk_closing_windows")
        ),
    )
    op.create_table(
        "closing_agents",
        sa.Column("month", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("namespace", sa.String(length=253), nullable=False),
        sa.Column("agent", sa.String(length=253), nullable=False),
        *(sa.Column(name, sa.BigInteger(), server_default="0", nullable=False) for name in USAGE_COLUMNS),
        sa.ForeignKeyConstraint(["month"], ["closings.month"], name=op.f("fk_closing_agents_month")),
        sa.PrimaryKeyConstraint("month", "namespace", "agent", name=op.f("pk_closing_agents")),
    )
