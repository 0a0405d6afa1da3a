"""Sums of usage by up to three dimensions, from the smallest source that knows them all.

Role: the overview questions (any of day, week, month, namespace, agent, owner, provider, model, resource type,
operation, outcome, whole days) are answered from the sums by day; those about executions from the attempts; the rest
from the entries. The totals of all three agree. Boundary: one read-only transaction that sees one state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import CostRow, UsageBy, UsagePage, UsageSource, UsageTotals
from almoner_ledger import schema
from almoner_ledger.errors import invalid
from almoner_ledger.history import sources
from almoner_ledger.history.asking import Question, read_cursor, write_cursor
from almoner_ledger.history.sources import KEY_COLUMNS, Source
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.store.loading import usage_of
from almoner_ledger.store.state import Usage

BY_KEY: Final = "key"
ORDERS: Final = (BY_KEY, *USAGE_COLUMNS)
CALENDAR: Final = (UsageBy.HOUR, UsageBy.DAY, UsageBy.WEEK, UsageBy.MONTH)
NUMBERS: Final = frozenset(each.value for each in CALENDAR)
IDS_MAX: Final = 5000
"""More attempts than these are not named one by one in a query."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """How to group, order and page. `order` None: time first where there is any, else the dearest first."""

    by: tuple[UsageBy, ...]
    order: str | None = None
    limit: int = 500
    after: str | None = None

    @property
    def columns(self) -> list[str]:
        """The columns of the key, each once."""
        return [*dict.fromkeys(name for each in self.by for name in KEY_COLUMNS[each])]

    @property
    def effective_order(self) -> str:
        """The order asked for, or the usual one."""
        if self.order is not None:
            return self.order
        return BY_KEY if any(each in CALENDAR for each in self.by) else "cost_nanos"


def usage(connection: Connection, question: Question, grouping: Grouping) -> UsagePage:
    """Sum; at most `limit` groups, and where to go on. Raises LedgerError for what cannot be asked."""
    if grouping.order is not None and grouping.order not in ORDERS:
        raise invalid("order", f"write one of {', '.join(ORDERS)}")
    name = sources.choose(grouping.by, question)
    sums = _sums(connection, name, question, grouping.columns).subquery()
    rows = connection.execute(_page(sums, grouping)).all()
    shown = rows[: grouping.limit]
    return UsagePage(
        by=[*grouping.by],
        columns=grouping.columns,
        rows=[_row(row, grouping.columns) for row in shown],
        source=name,
        totals=_totals(connection, sums, None if len(rows) > len(shown) or grouping.after is not None else rows),
        next=_cursor(shown[-1], grouping) if len(rows) > grouping.limit else None,
    )


def _totals(connection: Connection, sums: sa.Subquery, rows: Sequence[Any] | None) -> UsageTotals:
    """Sum all groups: `rows`, or where those are not all, whatever the database has."""
    if rows is not None:
        total = Usage()
        for row in rows:
            total.add(usage_of(row))
        return total.to_wire()
    query = sa.select(*(_sum(sums.c[name], name) for name in USAGE_COLUMNS))
    return usage_of(connection.execute(query).one()).to_wire()


def _row(row: Any, columns: Sequence[str]) -> CostRow:
    key = [sources.show(name, value) for name, value in zip(columns, row, strict=False)]
    return CostRow(key=key, totals=usage_of(row).to_wire())


def _sums(connection: Connection, name: UsageSource, question: Question, columns: Sequence[str]) -> sa.Select[Any]:
    if name is UsageSource.ROLLUPS:
        return _grouped(sources.of_rollups(), question, columns)
    postgresql = connection.dialect.name == "postgresql"
    if name is UsageSource.RECORDS:
        return _grouped(sources.of_records(postgresql=postgresql), question, columns)
    whole = _grouped(sources.of_attempts(), question, columns)
    times = question.times
    if times.since_ms is None and times.until_ms is None:
        return whole
    entries = sources.of_records(postgresql=postgresql)
    ids = _across(connection, question)
    at_ends = _grouped(entries, question, columns).where(schema.records.c.allotment_id.in_(ids))
    both = sa.union_all(whole, at_ends).subquery()
    keys = [both.c[name] for name in columns]
    return sa.select(*keys, *(_sum(both.c[name], name) for name in USAGE_COLUMNS)).group_by(*keys)


def _across(connection: Connection, question: Question) -> Any:
    """Give the attempts whose entries have to be read: by name, where they are few, so that an index finds them."""
    attempts = sources.of_attempts()
    query = (
        sa.select(schema.allotments.c.id)
        .select_from(attempts.selectable)
        .where(sources.across(question.times), *sources.filtered(question.filters, attempts.keys))
    )
    found = connection.execute(query.limit(IDS_MAX + 1)).scalars().all()
    return query if len(found) > IDS_MAX else found


def _grouped(source: Source, question: Question, columns: Sequence[str]) -> sa.Select[Any]:
    keys = [source.keys[name].label(name) for name in columns]
    return (
        sa.select(*keys, *(_sum(source.usage[name], name) for name in USAGE_COLUMNS))
        .select_from(source.selectable)
        .where(*source.where(question))
        .group_by(*(source.keys[name] for name in columns))
    )


def _sum(column: Any, name: str) -> Any:
    # Null only where every cost is unknown, which `unpriced` says.
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger).label(name)


def _page(sums: sa.Subquery, grouping: Grouping) -> sa.Select[Any]:
    order, keys = grouping.effective_order, [sums.c[name] for name in grouping.columns]
    query = sa.select(sums).limit(grouping.limit + 1)
    if order == BY_KEY:
        if grouping.after is not None:
            query = query.where(_beyond(keys, read_cursor(grouping.after, _types(grouping))))
        return query.order_by(*keys)
    value = sums.c[order]
    if grouping.after is not None:
        last, *rest = read_cursor(grouping.after, [int, *_types(grouping)])
        query = query.where(sa.or_(value < last, sa.and_(value == last, _beyond(keys, rest))))
    return query.order_by(value.desc(), *keys)


def _beyond(keys: Sequence[Any], values: Sequence[Any]) -> Any:
    return sa.tuple_(*keys) > sa.tuple_(*(sa.literal(value) for value in values))


def _types(grouping: Grouping) -> list[type]:
    return [int if name in NUMBERS else str for name in grouping.columns]


def _cursor(row: Any, grouping: Grouping) -> str:
    key = [getattr(row, name) for name in grouping.columns]
    order = grouping.effective_order
    return write_cursor(key if order == BY_KEY else [getattr(row, order), *key])
