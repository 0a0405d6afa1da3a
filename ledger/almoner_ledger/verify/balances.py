"""Invariants 1 to 3: limits are kept, balances are sums of holds, and holds are sums of entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_ledger import schema
from almoner_ledger.history.sources import entry_usage
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.verify.findings import AMOUNTS, Check, Violation, total

WINDOW_KEY: Final = ("account_id", "dimension", "period", "starts_at")


def within_limits(connection: Connection) -> Iterator[Violation]:
    """Invariants 1 and 2: use stays within the limit, or the floor, plus excess."""
    table = schema.windows
    use = table.c.spent + table.c.reserved - table.c.excess
    query = sa.select(table).where(
        table.c.enforced, table.c.limit.is_not(None), use > table.c.limit, use > table.c.floor
    )
    for row in connection.execute(query):
        found = f"spent {row.spent} + reserved {row.reserved} > limit {row.limit} (floor {row.floor}) + {row.excess}"
        yield Violation("within-limit", _window(row), found)


def _window(row: Any) -> str:
    return f"{row.account_id} {row.dimension} {row.period} from {row.starts_at}"


def windows_sum_holds(connection: Connection) -> Iterator[Violation]:
    """Invariant 3: spent and reserved are the sums over holds, with those of months that retention dropped."""
    windows, holds, closed = schema.windows, schema.holds, schema.closing_windows
    parts = sa.union_all(
        sa.select(
            *(holds.c[name] for name in WINDOW_KEY),
            holds.c.used.label("spent"),
            (holds.c.granted - holds.c.used).label("reserved"),
            holds.c.excess.label("excess"),
        ),
        sa.select(
            *(closed.c[name] for name in WINDOW_KEY),
            closed.c.used.label("spent"),
            sa.literal(0).label("reserved"),
            closed.c.excess.label("excess"),
        ),
    ).subquery()
    names = ("spent", "reserved", "excess")
    sums = (
        sa.select(*(parts.c[name] for name in WINDOW_KEY), *(total(parts.c[name]).label(name) for name in names))
        .group_by(*(parts.c[name] for name in WINDOW_KEY))
        .subquery()
    )
    same = sa.and_(*(windows.c[name] == sums.c[name] for name in WINDOW_KEY))
    added: dict[str, sa.ColumnElement[Any]] = {name: sa.func.coalesce(sums.c[name], 0) for name in names}
    # What was spent in the time of a window under another period counts in it too, without a hold in it.
    added["spent"] = added["spent"] + windows.c.carried
    query = (
        sa.select(
            *(windows.c[name] for name in (*WINDOW_KEY, *names)), *(added[name].label(f"sum_{name}") for name in names)
        )
        .outerjoin(sums, same)
        .where(sa.or_(*(windows.c[name] != added[name] for name in names)))
    )
    for row in connection.execute(query).mappings():
        for name in names:
            if row[name] != row[f"sum_{name}"]:
                subject = " ".join(str(row[key]) for key in WINDOW_KEY)
                yield Violation(f"{name}-sums-holds", subject, f"{row[name]}, holds sum to {row[f'sum_{name}']}")


def totals_count_everything(connection: Connection) -> Iterator[Violation]:
    """A budget for ever counts all that was spent on its account, whatever its period was meanwhile."""
    windows, accounts, holds, closed = schema.windows, schema.accounts, schema.holds, schema.closing_windows
    names = ("account_id", "dimension")
    used = sa.union_all(*(sa.select(*(t.c[name] for name in names), t.c.used) for t in (holds, closed))).subquery()
    sums = (
        sa.select(*(used.c[name] for name in names), total(used.c.used).label("used"))
        .group_by(*(used.c[name] for name in names))
        .subquery()
    )
    everything = sa.func.coalesce(sums.c.used, 0)
    query = (
        sa.select(windows, everything.label("everything"))
        .join(accounts, sa.and_(accounts.c.id == windows.c.account_id, accounts.c.period == windows.c.period))
        .outerjoin(sums, sa.and_(*(sums.c[name] == windows.c[name] for name in names)))
        .where(windows.c.period == BudgetPeriod.TOTAL.value, windows.c.spent != everything)
    )
    for row in connection.execute(query):
        yield Violation("total-counts-everything", _window(row), f"spent {row.spent}, in all {row.everything}")


def holds_sum_records(connection: Connection) -> Iterator[Violation]:
    """Invariant 3: what an allotment used of an account is the sum of its entries."""
    holds, records = schema.holds, schema.records
    posted = (
        sa.select(
            records.c.allotment_id, *(total(column).label(dimension.value) for dimension, column in AMOUNTS.items())
        )
        .group_by(records.c.allotment_id)
        .subquery()
    )
    names = ("allotment_id", "account_id", "dimension")
    held = (
        sa.select(*(holds.c[name] for name in names), total(holds.c.used).label("used"))
        .group_by(*(holds.c[name] for name in names))
        .subquery()
    )
    of_dimension = sa.case(*((held.c.dimension == each.value, posted.c[each.value]) for each in AMOUNTS), else_=0)
    amount = sa.func.coalesce(of_dimension, 0).label("posted")
    query = (
        sa.select(held, amount)
        .outerjoin(posted, posted.c.allotment_id == held.c.allotment_id)
        .where(held.c.used != amount)
    )
    for row in connection.execute(query):
        subject = f"allotment {row.allotment_id} account {row.account_id} {row.dimension}"
        yield Violation("used-sums-entries", subject, f"used {row.used}, entries sum to {row.posted}")


def totals_sum_records(connection: Connection) -> Iterator[Violation]:
    """Totals of attempts are sums of their entries."""
    records, allotments = schema.records, schema.allotments
    entries = (total(column).label(name) for name, column in entry_usage().items())
    posted = sa.select(records.c.allotment_id, *entries).group_by(records.c.allotment_id).subquery()
    wrong = sa.or_(*(allotments.c[name] != sa.func.coalesce(posted.c[name], 0) for name in USAGE_COLUMNS))
    query = (
        sa.select(allotments.c.id, *(allotments.c[name] for name in USAGE_COLUMNS))
        .outerjoin(posted, posted.c.allotment_id == allotments.c.id)
        .where(wrong)
    )
    for row in connection.execute(query):
        yield Violation("totals-sum-entries", f"allotment {row.id}", str(tuple(row[1:])))


def agents_sum_attempts(connection: Connection) -> Iterator[Violation]:
    """Totals of agents, and the sums by day, are sums over attempts, those that retention dropped included."""
    allotments, closed = schema.allotments, schema.closing_agents
    parts = sa.union_all(
        sa.select(allotments.c.namespace, allotments.c.agent, *(allotments.c[name] for name in USAGE_COLUMNS)),
        sa.select(closed.c.namespace, closed.c.agent, *(closed.c[name] for name in USAGE_COLUMNS)),
    ).subquery()
    expected = _by_agent(connection, parts, "agent")
    for table, name in ((schema.agents, "name"), (schema.rollups, "agent")):
        found = _by_agent(connection, table, name)
        for key in sorted(expected.keys() | found.keys()):
            zeros = (0,) * len(USAGE_COLUMNS)
            for column, here, there in zip(USAGE_COLUMNS, found.get(key, zeros), expected.get(key, zeros), strict=True):
                if here != there:
                    subject = f"{table.name} of {'/'.join(key)}"
                    yield Violation("totals-sum-entries", subject, f"{column} {here}, attempts sum to {there}")


def _by_agent(connection: Connection, table: sa.FromClause, name: str) -> dict[tuple[str, str], tuple[int, ...]]:
    keys = (table.c.namespace, table.c[name])
    query = sa.select(*keys, *(total(table.c[column]) for column in USAGE_COLUMNS)).group_by(*keys)
    return {(row[0], row[1]): tuple(row[2:]) for row in connection.execute(query)}


CHECKS: Final[tuple[Check, ...]] = (
    within_limits,
    windows_sum_holds,
    totals_count_everything,
    holds_sum_records,
    totals_sum_records,
    agents_sum_attempts,
)
