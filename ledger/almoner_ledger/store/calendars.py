"""Changes of an account's calendar (period and time zone): what was spent before counts in the window that holds now.

Role: when a quota's period changes, its window of the new period begins with what the entries say was spent in its
time: of `Total`, all that was ever spent. It is kept as `carried`, part of `spent`. What attempts hold moves along, so
that the new window reserves it too. What is settled later in windows of the earlier calendar (late records, charges,
corrections) is carried as it comes (`Books.carry`). Boundary: limits are accounts.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import AccountLimits, Dimension
from almoner_ledger import schema
from almoner_ledger.store.state import Account, Window, quota_account_id
from almoner_ledger.windows import span_at

if TYPE_CHECKING:
    from almoner_ledger.store.books import Books

_AMOUNTS = {
    Dimension.USD: schema.records.c.cost_nanos,
    Dimension.TOKENS: schema.records.c.total_tokens,
    Dimension.TOOL_CALLS: schema.records.c.tool_calls,
    Dimension.REQUESTS: schema.records.c.requests,
}


class RaceError(Exception):
    """An attempt began to hold on an account, or its calendar was changed, before the account was locked: try again."""


def changing(connection: Connection, updates: Iterable[AccountLimits]) -> set[str]:
    """The ids of the accounts whose calendar the updates change. Their rows are not locked yet."""
    asked = {quota_account_id(each.key): (each.period.value, each.time_zone) for each in updates}
    if not asked:
        return set()
    table = schema.accounts
    query = sa.select(table.c.id, table.c.period, table.c.time_zone).where(table.c.id.in_(sorted(asked)))
    return {row.id for row in connection.execute(query) if (row.period, row.time_zone) != asked[row.id]}


def holding(connection: Connection, accounts: set[str]) -> set[str]:
    """The allotments that hold something on these accounts."""
    if not accounts:
        return set()
    if connection.dialect.name == "postgresql":
        # Such transactions are rare, and look at much more than a few rows.
        for name in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
            connection.exec_driver_sql(f"SET LOCAL {name} = on")
    table = schema.holds
    query = (
        sa.select(table.c.allotment_id)
        .distinct()
        .where(table.c.account_id.in_(sorted(accounts)), table.c.granted > table.c.used)
    )
    return set(connection.execute(query).scalars())


def check(books: Books, updates: Iterable[AccountLimits], changed: set[str]) -> None:
    """Look again now that the accounts are locked. Raises RaceError where something is not in hand."""
    now = {
        key
        for key, each in ((quota_account_id(each.key), each) for each in updates)
        if (known := books.accounts.get(key)) is not None
        and (known.period, known.time_zone) != (each.period, each.time_zone)
    }
    if now - changed or (changed and holding(books.connection, changed) - books.allotments.keys()):
        raise RaceError


def mark(books: Books, account: Account) -> None:
    """Have what is spent in windows of an account's earlier calendars count in its current one too."""
    if not account.period_since:
        return
    for window in books.windows.values():
        if window.account_id == account.id:
            window.mirror = None if is_own(account, window) else books.carry


def is_own(account: Account, window: Window) -> bool:
    """Whether a window is one of the account's calendar as it is."""
    if window.period is not account.period:
        return False
    span = span_at(account.period, account.time_zone, window.starts_at)
    return (span.starts_at, span.ends_at) == (window.starts_at, window.ends_at)


def change(books: Books, account: Account) -> None:
    """Begin an account's new calendar. Call it once `account` has it, before the new limits are set."""
    account.period_since = max(1, books.now)
    mark(books, account)
    for dimension in Dimension:
        held = [
            (allotment, hold)
            for allotment in books.allotments.values()
            for hold in allotment.holds_of(dimension, account.id)
            if hold.window.mirror is not None and hold.remainder
        ]
        span = span_at(account.period, account.time_zone, books.now)
        spent = _spent_since(books.connection, account, dimension, span.starts_at)
        if not held and not spent and dimension not in account.limits:
            continue
        window = books.current_window(account, dimension)
        for allotment, hold in held:
            amount = hold.remainder
            hold.release(amount)
            books.hold(allotment, window).reserve(amount)
        window.carry(max(0, spent - (window.spent - window.carried)) - window.carried)


def _spent_since(connection: Connection, account: Account, dimension: Dimension, starts_at: int) -> int:
    """What the entries say was spent on an account since a moment (Unix seconds)."""
    holds, closed, records, allotments = schema.holds, schema.closing_windows, schema.records, schema.allotments
    if account.period is BudgetPeriod.TOTAL:
        # All of it, what retention dropped included: what was used of holds is what their entries sum to.
        parts = (
            sa.select(sa.func.sum(table.c.used)).where(
                table.c.account_id == account.id, table.c.dimension == dimension.value
            )
            for table in (holds, closed)
        )
        return sum(int(connection.execute(query).scalar_one() or 0) for query in parts)
    since = starts_at * 1000
    ours = sa.exists().where(
        holds.c.allotment_id == records.c.allotment_id,
        holds.c.account_id == account.id,
        holds.c.dimension == dimension.value,
    )
    # As charging.effective_ms has it.
    query = (
        sa.select(sa.func.sum(_AMOUNTS[dimension]))
        .join(allotments, allotments.c.id == records.c.allotment_id)
        .where(
            records.c.posted_ms >= since,
            sa.or_(records.c.started_ms >= since, allotments.c.opened_ms >= since),
            ours,
        )
    )
    return int(connection.execute(query).scalar_one() or 0)
