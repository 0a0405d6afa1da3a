"""The tables, as SQLAlchemy Core knows them. Migrations make them; `alembic check` keeps the two equal.

Money is BIGINT nano-dollars; times are BIGINT Unix milliseconds (`_ms`), window bounds Unix seconds; JSON is text.
`windows` holds the balances (one row per account, dimension and window), `holds` what each allotment has in each
window, `records` the append-only entries. CHECK constraints keep the invariants that one row can show.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Boolean, Column, Integer, String, Table, Text

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

ACCOUNT_ID_LENGTH = 32

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
"""The columns of UsageTotals, in every table that sums usage."""

COMPUTE_COLUMNS = {"cpu": "cpu_milli_seconds", "memory": "memory_mebibyte_seconds", "gpu": "gpu_milli_seconds"}
"""Which of them a record of type `compute` counts its units in, by its `model`."""


def _amount(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0, server_default="0")


def _usage() -> list[Column[int]]:
    return [_amount(name) for name in USAGE_COLUMNS]


# Rows that every grant, post and return updates leave half of each page free: PostgreSQL then writes the new row into
# the old one's page and touches no index (a "HOT" update). Pages of closed attempts stay half empty: without it, dead
# rows and the indexes' pointers to them took more.
_ROOM = {"fillfactor": 50}

# One row: who leads. Lower epochs are refused.
epochs = Table(
    "epochs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("holder", String(253), nullable=False),
    sa.CheckConstraint("id = 1", name="one"),
)

# Numbers handed out at commit: the row lock is held until then, so numbers become visible in their order.
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# Every mutation's id with its answer, so that a retry gets the same one.
operations = Table(
    "operations",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("verb", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("answer", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False, index=True),
)

# Policy of an account: a quota's (for one subject), or an execution's own limits.
accounts = Table(
    "accounts",
    metadata,
    Column("id", String(ACCOUNT_ID_LENGTH), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("namespace", String(253), nullable=False),
    Column("name", String(253), nullable=False),
    Column("subject", String(253), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("enforced", Boolean, nullable=False),
    Column("period", String(16), nullable=False),
    Column("time_zone", String(64), nullable=False),
    Column("limits", Text, nullable=False),
    Column("max_per_execution", Text, nullable=False),
    Column("max_per_request", Text, nullable=False),
    Column("holders", Integer, nullable=False),
    # JSON: the rates as the wire has them (RateLimit), and the percentages at which an alert fires.
    Column("rates", Text, nullable=False, server_default="[]"),
    Column("alert_thresholds", Text, nullable=False, server_default="[]"),
    # When somebody was last refused what others hold: they are asked to return what is idle.
    _amount("recall_ms"),
    # Since when (Unix seconds) period and time zone are what they are; 0: they never were anything else.
    _amount("period_since"),
    sa.UniqueConstraint("kind", "namespace", "name", "subject"),
    sa.CheckConstraint("kind IN ('quota', 'execution', 'provider')", name="kind"),
    sa.CheckConstraint("holders >= 0", name="holders"),
    postgresql_with=_ROOM,
)

windows = Table(
    "windows",
    metadata,
    Column("account_id", String(ACCOUNT_ID_LENGTH), sa.ForeignKey("accounts.id"), primary_key=True),
    Column("dimension", String(16), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False),
    Column("ends_at", BigInteger),
    Column("enforced", Boolean, nullable=False),
    Column("limit", BigInteger),
    _amount("spent"),
    _amount("reserved"),
    _amount("excess"),
    _amount("floor"),
    # Part of spent: what was spent in this span of time while the account had other windows.
    _amount("carried"),
    sa.CheckConstraint("spent >= 0 AND reserved >= 0 AND excess >= 0 AND floor >= 0", name="not_negative"),
    sa.CheckConstraint('"limit" IS NULL OR "limit" >= 0', name="limit"),
    # spent + reserved <= greatest(limit, floor) + excess, in words that both databases know.
    sa.CheckConstraint(
        'NOT enforced OR "limit" IS NULL OR spent + reserved - excess <= "limit" OR spent + reserved - excess <= floor',
        name="within_limit",
    ),
    postgresql_with=_ROOM,
)

# Token buckets: one row per rate of an account. `level` is what may be debited now, scaled by 1000 * per_seconds so
# that a millisecond refills exactly `amount`; below zero where more was used than debited. `debited` and `refunded`
# only grow.
buckets = Table(
    "buckets",
    metadata,
    Column("account_id", String(ACCOUNT_ID_LENGTH), sa.ForeignKey("accounts.id"), primary_key=True),
    Column("dimension", String(16), primary_key=True),
    Column("per_seconds", Integer, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("capacity", BigInteger, nullable=False),
    Column("level", BigInteger, nullable=False),
    Column("refilled_ms", BigInteger, nullable=False),
    _amount("debited"),
    _amount("refunded"),
    sa.CheckConstraint("amount > 0 AND capacity > 0 AND per_seconds > 0", name="positive"),
    sa.CheckConstraint("level <= capacity * 1000 * per_seconds", name="capacity"),
    sa.CheckConstraint("0 <= refunded AND refunded <= debited", name="refunded"),
    postgresql_with=_ROOM,
)

# Thresholds that a window's spent part reached: once each.
alerts = Table(
    "alerts",
    metadata,
    Column("account_id", String(ACCOUNT_ID_LENGTH), primary_key=True),
    Column("dimension", String(16), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False),
    Column("percent", Integer, primary_key=True, autoincrement=False),
    Column("fired_ms", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
    Column("limit", BigInteger, nullable=False),
    sa.ForeignKeyConstraint(
        ["account_id", "dimension", "period", "starts_at"],
        ["windows.account_id", "windows.dimension", "windows.period", "windows.starts_at"],
    ),
)

executions = Table(
    "executions",
    metadata,
    Column("uid", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("namespace", String(253), nullable=False),
    Column("name", String(253), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    sa.Index(None, "namespace", "name"),
    sa.Index(None, "created_ms", "uid"),
)

allotments = Table(
    "allotments",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("execution_uid", String(64), sa.ForeignKey("executions.uid"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("namespace", String(253), nullable=False),
    Column("name", String(253), nullable=False),
    Column("agent", String(253), nullable=False),
    Column("owner", String(253), nullable=False),
    Column("pod", String(253), nullable=False),
    Column("pod_uid", String(64)),
    Column("state", String(16), nullable=False),
    Column("frozen", Boolean, nullable=False),
    # JSON: account id -> dimensions it counts for this allotment; dimensions that the meter was told are limited.
    Column("tracked", Text, nullable=False),
    Column("limited", Text, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("activated_ms", BigInteger),
    Column("exchanged_ms", BigInteger, nullable=False),
    Column("closed_ms", BigInteger),
    Column("close_reason", String(128), nullable=False),
    # 1..contiguous have come, and the ranges ahead (JSON); last_sequence and settled (JSON) as a final return states.
    Column("contiguous", BigInteger, nullable=False),
    Column("ahead", Text, nullable=False),
    Column("final_sequence", BigInteger),
    Column("final_settled", Text),
    Column("progress", Text),
    # What it pays for: the run's calls (reported by its meter) or its machine time (by the operator).
    Column("purpose", String(16), nullable=False, server_default="run"),
    # JSON: what was debited from rates and is neither settled nor refunded, by account/seconds and dimension.
    Column("debits", Text, nullable=False, server_default="{}"),
    # What the corrections of its entries sum to, in nano-dollars: part of its cost, and not of what its meter reported.
    _amount("corrected_nanos"),
    # JSON: what of its sums stands in for records that have not come, from its meter's last word; null: none was taken.
    Column("last_word", Text),
    # Of machine time, JSON: what it costs and how far ahead it is held; and until when it is charged, or was not used.
    Column("machine", Text),
    Column("charged_ms", BigInteger),
    # JSON: keys of cluster-scoped providers that its meter may ask for, by the names of Secret and key; null: none.
    Column("provider_keys", Text),
    *_usage(),
    sa.UniqueConstraint("execution_uid", "attempt", "purpose"),
    sa.CheckConstraint("purpose IN ('run', 'compute')", name="purpose"),
    sa.CheckConstraint("state IN ('offered', 'active', 'void', 'closed')", name="state"),
    sa.Index(None, "state", "id"),
    sa.Index(None, "opened_ms"),
    postgresql_with=_ROOM,
)

# What an allotment has in one window: granted covers used; what is granted and not used is reserved there.
holds = Table(
    "holds",
    metadata,
    Column("allotment_id", String(36), sa.ForeignKey("allotments.id"), primary_key=True),
    Column("account_id", String(ACCOUNT_ID_LENGTH), primary_key=True),
    Column("dimension", String(16), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False),
    _amount("granted"),
    _amount("used"),
    # Parts of used: charged off without a record; above what was held, and of that: by corrections.
    _amount("charged"),
    _amount("excess"),
    _amount("excess_corrected"),
    sa.ForeignKeyConstraint(
        ["account_id", "dimension", "period", "starts_at"],
        ["windows.account_id", "windows.dimension", "windows.period", "windows.starts_at"],
    ),
    sa.CheckConstraint("0 <= used AND used <= granted", name="used"),
    sa.CheckConstraint("0 <= charged AND charged <= used AND 0 <= excess AND excess <= used", name="parts"),
    sa.CheckConstraint("0 <= excess_corrected AND excess_corrected <= excess", name="corrected"),
    postgresql_with=_ROOM,
)

# Entries: append-only. `month` (YYYYMM of the allotment's opening, the ledger's clock) is in the key so that PostgreSQL
# can keep a partition for each. `number` counts all entries from 1, in the order of commits, without gaps.
# `cost_nanos` NULL: unknown. `total_tokens` is what the entry posts to accounts. A column that is added here belongs
# into the canonical form of sealing.py.
records = Table(
    "records",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("corrects", String(36)),
    Column("allotment_id", String(36), sa.ForeignKey("allotments.id"), nullable=False),
    Column("sequence", BigInteger),
    Column("digest", String(64), nullable=False),
    Column("posted_ms", BigInteger, nullable=False),
    Column("resource_type", String(16), nullable=False),
    Column("provider", String(253), nullable=False),
    Column("model", String(128), nullable=False),
    Column("operation", String(64), nullable=False),
    Column("cost_nanos", BigInteger),
    Column("total_tokens", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_input_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("tool_calls", BigInteger, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("price_version", String(128)),
    Column("started_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("error", String(256)),
    Column("metadata", Text, nullable=False),
    sa.UniqueConstraint("allotment_id", "sequence", "month"),
    sa.CheckConstraint("kind IN ('usage', 'unaccounted', 'correction', 'last_word')", name="kind"),
    postgresql_partition_by="LIST (month)",
)

# The chain of digests over the entries (append-only): see sealing.py. A seal covers the entries of one month among the
# numbers first_number..last_number, so that the chain can be checked where a month was dropped.
seals = Table(
    "seals",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("form", Integer, nullable=False),
    Column("month", Integer, nullable=False),
    Column("first_number", BigInteger, nullable=False),
    Column("last_number", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("content", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("sealed_ms", BigInteger, nullable=False),
    sa.CheckConstraint("kind IN ('entries', 'closing', 'configuration')", name="kind"),
)

# The last spec of each object of the configuration that the operator told of (canonical JSON), deleted ones too.
configured = Table(
    "configured",
    metadata,
    Column("uid", String(64), primary_key=True),
    Column("kind", String(64), nullable=False),
    Column("namespace", String(253), nullable=False),
    Column("name", String(253), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("deleted", Boolean, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
)

# Every change of one (append-only), numbered from 1 without gaps and sealed: see sealing.py. JSON: `managers` lists
# [name, operation, Unix milliseconds], `fields` lists [path, before, after].
configuration_changes = Table(
    "configuration_changes",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(64), nullable=False),
    Column("namespace", String(253), nullable=False),
    Column("name", String(253), nullable=False),
    Column("uid", String(64), nullable=False),
    Column("action", String(16), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("changed_ms", BigInteger),
    Column("seen_ms", BigInteger, nullable=False),
    Column("managers", Text, nullable=False),
    Column("fields", Text, nullable=False),
    Column("left_out", BigInteger, nullable=False),
    Column("before_digest", String(64)),
    Column("after_digest", String(64)),
    sa.CheckConstraint("action IN ('created', 'found', 'changed', 'deleted')", name="action"),
    sa.Index(None, "namespace", "name"),
    sa.Index(None, "uid"),
)

# What retention dropped, so that sums can still be proved (append-only): months; what their holds had used of each
# window; what their entries summed to by agent.
closings = Table(
    "closings",
    metadata,
    Column("month", Integer, primary_key=True, autoincrement=False),
    Column("allotments", BigInteger, nullable=False),
    Column("executions", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("first_number", BigInteger),
    Column("last_number", BigInteger),
    Column("closed_ms", BigInteger, nullable=False),
)

closing_windows = Table(
    "closing_windows",
    metadata,
    Column("month", Integer, sa.ForeignKey("closings.month"), primary_key=True, autoincrement=False),
    Column("account_id", String(ACCOUNT_ID_LENGTH), primary_key=True),
    Column("dimension", String(16), primary_key=True),
    Column("period", String(16), primary_key=True),
    Column("starts_at", BigInteger, primary_key=True, autoincrement=False),
    _amount("used"),
    _amount("charged"),
    _amount("excess"),
)

closing_agents = Table(
    "closing_agents",
    metadata,
    Column("month", Integer, sa.ForeignKey("closings.month"), primary_key=True, autoincrement=False),
    Column("namespace", String(253), primary_key=True),
    Column("agent", String(253), primary_key=True),
    *_usage(),
)

outputs = Table(
    "outputs",
    metadata,
    Column("allotment_id", String(36), sa.ForeignKey("allotments.id"), primary_key=True),
    Column("content", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("truncated", Boolean, nullable=False),
)

# Sums by day (UTC) and every dimension that people ask by, kept in the transaction that posts.
rollups = Table(
    "rollups",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),  # YYYYMMDD
    Column("namespace", String(253), primary_key=True),
    Column("agent", String(253), primary_key=True),
    Column("owner", String(253), primary_key=True),
    Column("provider", String(253), primary_key=True),
    Column("model", String(128), primary_key=True),
    Column("resource_type", String(16), primary_key=True),
    Column("operation", String(64), primary_key=True, server_default=""),
    Column("outcome", String(16), primary_key=True, server_default=""),
    _amount("records"),
    *_usage(),
)
ROLLUP_KEY = tuple(column.name for column in rollups.primary_key)

agents = Table(
    "agents",
    metadata,
    Column("namespace", String(253), primary_key=True),
    Column("name", String(253), primary_key=True),
    *_usage(),
)

# The change feed: the newest change of each execution, agent and quota account.
feed = Table(
    "feed",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("key", String(512), primary_key=True),
    Column("changed", BigInteger, nullable=False, unique=True),
    Column("changed_ms", BigInteger, nullable=False),
)
