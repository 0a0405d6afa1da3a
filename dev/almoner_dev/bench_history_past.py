"""Makes a past for the `history` benchmark: attempts and entries by the million, in SQL, that obey the store's sums.

Role: what months of operation would have left, so that `almoner ledger verify` finds nothing wrong with it. Entries are
made first, and everything that sums them is summed from them. All of it follows from the numbers alone: two runs make
the same. Boundary: PostgreSQL only; writes to an empty, migrated database.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import AccountKey
from almoner_ledger import schema
from almoner_ledger.history import sources
from almoner_ledger.schema import ROLLUP_KEY, USAGE_COLUMNS
from almoner_ledger.store.state import quota_account_id

PER_ATTEMPT: Final = 20
DAYS: Final = 90
NAMESPACES: Final = 10
AGENTS: Final = 40
OWNERS_OF_AGENT: Final = 5
DAY_MS: Final = 86_400_000
LIMIT: Final = 10**18

# Spread a number over others; the same on every machine.
_HASH: Final = "(abs(hashint8(%s)::bigint) %% %d)"


def _hash(expression: str, modulus: int) -> str:
    return _HASH.replace("%%", "%").replace("%s", expression).replace("%d", str(modulus))


_ATTEMPTS: Final = f"""
CREATE TEMPORARY TABLE past_attempts ON COMMIT DROP AS
SELECT i, md5('attempt ' || i)::uuid::text AS id, md5('execution ' || i)::uuid::text AS uid,
       'team-' || (agent % {NAMESPACES}) AS namespace, 'run-' || i AS name, 'agent-' || agent AS agent,
       'owner-' || ((agent * 3 + {_hash("i + 7", OWNERS_OF_AGENT)}) % 60) AS owner, agent % {NAMESPACES} AS account,
       :since + CAST(i AS bigint) * :step AS opened_ms
  FROM (SELECT i, {_hash("i", AGENTS)} AS agent FROM generate_series(0, :attempts - 1) AS i) AS numbered
"""

_ENTRIES: Final = f"""
CREATE TEMPORARY TABLE past_entries ON COMMIT DROP AS
SELECT j, a.id AS allotment_id, a.opened_ms, j % {PER_ATTEMPT} + 1 AS sequence,
       a.opened_ms + (j % {PER_ATTEMPT} + 1) * 3000 AS started_ms,
       {_hash("j", 25)} = 0 AS tool, ({_hash("a.i + 3", 3)} + {_hash("j + 5", 2)}) AS model,
       CASE WHEN {_hash("j + 11", 40)} = 0 THEN 'error' ELSE 'ok' END AS outcome,
       {_hash("j + 13", 3000)} + 50 AS given, {_hash("j + 17", 900)} + 10 AS taken,
       CASE WHEN {_hash("j + 19", 200)} = 0 THEN NULL ELSE {_hash("j + 23", 20_000_000)} END AS cost
  FROM generate_series(0, :records - 1) AS j JOIN past_attempts a ON a.i = j / {PER_ATTEMPT}
"""

_RECORDS: Final = """
INSERT INTO records (id, month, number, kind, allotment_id, sequence, digest, posted_ms, resource_type, provider, model,
       operation, cost_nanos, total_tokens, input_tokens, cached_input_tokens, cache_write_tokens, output_tokens,
       reasoning_tokens, requests, tool_calls, units, price_version, started_ms, duration_ms, outcome, metadata)
SELECT md5('entry ' || j)::uuid::text, to_char(to_timestamp(opened_ms / 1000) AT TIME ZONE 'UTC', 'YYYYMM')::integer,
       j + 1, 'usage', allotment_id, sequence, md5('a' || j) || md5('b' || j), started_ms + 1500,
       CASE WHEN tool THEN 'tool' ELSE 'llm' END,
       CASE WHEN tool THEN '' WHEN model % 2 = 0 THEN 'openai' ELSE 'anthropic' END,
       CASE WHEN tool THEN '' ELSE 'model-' || model END, CASE WHEN tool THEN 'tool-' || model ELSE 'chat' END,
       cost, CASE WHEN tool THEN 0 ELSE given + taken END, CASE WHEN tool THEN 0 ELSE given END, 0, 0,
       CASE WHEN tool THEN 0 ELSE taken END, 0, CASE WHEN tool THEN 0 ELSE 1 END, CASE WHEN tool THEN 1 ELSE 0 END, 0,
       'bench-1', started_ms, 1200, outcome, '{"response_id"\\:"chatcmpl-0123456789abcdef"}'
  FROM past_entries ORDER BY j
"""

_EXECUTIONS: Final = """
INSERT INTO executions (uid, kind, namespace, name, created_ms)
SELECT uid, 'Execution', namespace, name, opened_ms FROM past_attempts
"""

_ALLOTMENTS: Final = """
INSERT INTO allotments (id, execution_uid, attempt, kind, namespace, name, agent, owner, pod, pod_uid, state, frozen,
       tracked, limited, opened_ms, activated_ms, exchanged_ms, closed_ms, close_reason, contiguous, ahead,
       final_sequence, final_settled)
SELECT id, uid, 1, 'Execution', namespace, name, agent, owner, name || '-1', md5('pod ' || i)::uuid::text, 'closed',
       false, '{"' || accounts.account_id || '":["usd"]}', '["usd"]', opened_ms, opened_ms + 900, opened_ms + 90000,
       opened_ms + 90000, 'returned', :per_attempt, '[]', :per_attempt, '{}'
  FROM past_attempts JOIN past_accounts accounts USING (account)
"""

_HOLDS: Final = """
INSERT INTO holds (allotment_id, account_id, dimension, period, starts_at, granted, used)
SELECT a.id, accounts.account_id, 'usd', 'Total', 0, sums.nanos, sums.nanos
  FROM past_attempts a JOIN past_accounts accounts USING (account)
  JOIN (SELECT allotment_id, coalesce(sum(cost), 0)::bigint AS nanos FROM past_entries GROUP BY 1) sums
    ON sums.allotment_id = a.id
"""

_FEED: Final = """
INSERT INTO feed (kind, key, changed, changed_ms)
SELECT 'execution', uid, i + 1, opened_ms + 90000 FROM past_attempts
"""


def make(connection: Connection, records: int, now_ms: int) -> None:
    """Fill the books with `records` entries of the days before `now_ms`. Commit is the caller's."""
    attempts = -(-records // PER_ATTEMPT)
    since = now_ms - DAYS * DAY_MS
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    connection.exec_driver_sql("SET LOCAL work_mem = '256MB'")
    _partitions(connection, since, now_ms)
    _accounts(connection)
    values = {"since": since, "step": (DAYS * DAY_MS - 200_000) // attempts, "attempts": attempts}
    connection.execute(sa.text(_ATTEMPTS), values)
    connection.execute(sa.text(_ENTRIES), {"records": records})
    connection.exec_driver_sql("ANALYZE past_attempts")
    connection.exec_driver_sql(_EXECUTIONS)
    connection.execute(sa.text(_ALLOTMENTS), {"per_attempt": PER_ATTEMPT})
    connection.execute(sa.text(_RECORDS))
    connection.exec_driver_sql(_HOLDS)
    connection.exec_driver_sql(_FEED)
    _sums(connection)
    _windows(connection)
    counters = {"changes": attempts, "entries": records}
    for name, value in counters.items():
        table = schema.counters
        connection.execute(sa.update(table).where(table.c.name == name).values(value=value))


def _partitions(connection: Connection, since_ms: int, until_ms: int) -> None:
    """Make the partitions of the past months, as the service did in each of them."""
    months = connection.execute(
        sa.text(
            "SELECT DISTINCT to_char(to_timestamp(day / 1000) AT TIME ZONE 'UTC', 'YYYYMM') "
            "FROM generate_series(CAST(:since AS bigint), CAST(:until AS bigint), 86400000) AS day"
        ),
        {"since": since_ms, "until": until_ms},
    ).scalars()
    for month in sorted(months):
        connection.exec_driver_sql(f"SELECT almoner_make_partition({int(month)})")


def _accounts(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TEMPORARY TABLE past_accounts (account integer, account_id text) ON COMMIT DROP")
    for number in range(NAMESPACES):
        namespace = f"team-{number}"
        account = quota_account_id(AccountKey(namespace=namespace, quota="budget"))
        row = {
            "id": account,
            "kind": "quota",
            "namespace": namespace,
            "name": "budget",
            "subject": "",
            "generation": 1,
            "enforced": True,
            "period": "Total",
            "time_zone": "UTC",
            "limits": f'{{"usd":{LIMIT}}}',
            "max_per_execution": "{}",
            "max_per_request": "{}",
            "holders": 0,
        }
        connection.execute(sa.insert(schema.accounts), row)
        connection.execute(
            sa.text("INSERT INTO past_accounts VALUES (:account, :id)"), {"account": number, "id": account}
        )
        window = {"account_id": account, "dimension": "usd", "period": "Total", "starts_at": 0, "enforced": True}
        connection.execute(sa.insert(schema.windows), {**window, "limit": LIMIT})


def _sums(connection: Connection) -> None:
    """Sum the entries by day, attempt and agent, as posting them would have."""
    source = sources.of_records(postgresql=True)
    sums = [
        sa.cast(sa.func.coalesce(sa.func.sum(source.usage[name]), 0), sa.BigInteger).label(name)
        for name in USAGE_COLUMNS
    ]

    def grouped(*names: str) -> sa.Select[tuple[int]]:
        keys = [source.keys[name] for name in names]
        return sa.select(*keys, *sums).select_from(source.selectable).group_by(*keys)

    by_day = grouped(*ROLLUP_KEY).add_columns(sa.func.count())
    connection.execute(
        sa.insert(schema.rollups).from_select([*ROLLUP_KEY, *USAGE_COLUMNS, "records"], by_day, include_defaults=False)
    )
    of_agents = grouped("namespace", "agent")
    connection.execute(
        sa.insert(schema.agents).from_select(["namespace", "name", *USAGE_COLUMNS], of_agents, include_defaults=False)
    )
    table = schema.allotments
    of_attempts = (
        sa.select(schema.records.c.allotment_id, *sums)
        .select_from(source.selectable)
        .group_by(schema.records.c.allotment_id)
        .subquery()
    )
    connection.execute(
        sa.update(table)
        .where(table.c.id == of_attempts.c.allotment_id)
        .values({name: of_attempts.c[name] for name in USAGE_COLUMNS})
    )


def _windows(connection: Connection) -> None:
    connection.exec_driver_sql(
        "UPDATE windows SET spent = sums.used FROM "
        "(SELECT account_id, sum(used)::bigint AS used FROM holds GROUP BY 1) AS sums "
        "WHERE windows.account_id = sums.account_id"
    )
