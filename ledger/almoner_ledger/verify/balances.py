"""Invariants 1 to 3: limits are kept, balances are sums of holds, and holds are sums of entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import Dimension
from almoner_ledger import schema
from almoner_ledger.schema import COMPUTE_COLUMNS, USAGE_COLUMNS
from almoner_ledger.store.entries import WAS_UNKNOWN
from almoner_ledger.verify.findings import Check, Violation, total

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
    """Invariant 3: spent and reserved are the sums over holds."""
    windows, holds = schema.windows, schema.holds
    same = sa.and_(*(windows.c[name] == holds.c[name] for name in WINDOW_KEY))
    sums = {
        "spent": total(holds.c.used),
        "reserved": total(holds.c.granted - holds.c.used),
        "excess": total(holds.c.excess),
    }
    query = (
        sa.select(
            *(windows.c[name] for name in (*WINDOW_KEY, *sums)), *(sums[name].label(f"sum_{name}") for name in sums)
        )
        .outerjoin(holds, same)
        .group_by(*(windows.c[name] for name in (*WINDOW_KEY, *sums)))
        .having(sa.or_(*(windows.c[name] != added for name, added in sums.items())))
    )
    for row in connection.execute(query).mappings():
        for name in sums:
            if row[name] != row[f"sum_{name}"]:
                subject = " ".join(str(row[key]) for key in WINDOW_KEY)
                yield Violation(f"{name}-sums-holds", subject, f"{row[name]}, holds sum to {row[f'sum_{name}']}")


def holds_sum_records(connection: Connection) -> Iterator[Violation]:
    """Invariant 3: what an allotment used of an account is the sum of its entries."""
    holds, records = schema.holds, schema.records
    columns = {
        Dimension.USD: sa.func.coalesce(records.c.cost_nanos, 0),
        Dimension.TOKENS: records.c.total_tokens,
        Dimension.TOOL_CALLS: records.c.tool_calls,
        Dimension.REQUESTS: records.c.requests,
    }
    for dimension, column in columns.items():
        posted = (
            sa.select(records.c.allotment_id, total(column).label("posted")).group_by(records.c.allotment_id).subquery()
        )
        query = (
            sa.select(
                holds.c.allotment_id,
                holds.c.account_id,
                total(holds.c.used).label("used"),
                sa.func.coalesce(posted.c.posted, 0).label("posted"),
            )
            .outerjoin(posted, posted.c.allotment_id == holds.c.allotment_id)
            .where(holds.c.dimension == dimension.value)
            .group_by(holds.c.allotment_id, holds.c.account_id, posted.c.posted)
            .having(total(holds.c.used) != sa.func.coalesce(posted.c.posted, 0))
        )
        for row in connection.execute(query):
            subject = f"allotment {row.allotment_id} account {row.account_id} {dimension.value}"
            yield Violation("used-sums-entries", subject, f"used {row.used}, entries sum to {row.posted}")


def totals_sum_records(connection: Connection) -> Iterator[Violation]:
    """Totals of attempts, agents and days are sums of the same entries."""
    records, allotments = schema.records, schema.allotments
    entries = _entry_sums(records)
    posted = sa.select(records.c.allotment_id, *entries).group_by(records.c.allotment_id).subquery()
    wrong = sa.or_(*(allotments.c[name] != sa.func.coalesce(posted.c[name], 0) for name in USAGE_COLUMNS))
    query = (
        sa.select(allotments.c.id, *(allotments.c[name] for name in USAGE_COLUMNS))
        .outerjoin(posted, posted.c.allotment_id == allotments.c.id)
        .where(wrong)
    )
    for row in connection.execute(query):
        yield Violation("totals-sum-entries", f"allotment {row.id}", str(tuple(row[1:])))
    posted_in_all = connection.execute(sa.select(*entries)).one()
    for table in (schema.agents, schema.rollups):
        sums = connection.execute(sa.select(*(total(table.c[name]) for name in USAGE_COLUMNS))).one()
        for name, here, there in zip(USAGE_COLUMNS, sums, posted_in_all, strict=True):
            if here != there:
                yield Violation("totals-sum-entries", table.name, f"{name} {here}, entries sum to {there}")


def _entry_sums(records: sa.Table) -> list[Any]:
    usage = records.c.kind == "usage"
    special = {
        "cost_nanos": records.c.cost_nanos,
        "unaccounted_nanos": sa.case((records.c.kind == "unaccounted", records.c.cost_nanos), else_=0),
        "unpriced": sa.case((records.c.cost_nanos.is_(None), 1), (records.c.digest == WAS_UNKNOWN, -1), else_=0),
        **{
            column: sa.case(
                (sa.and_(records.c.resource_type == "compute", records.c.model == model), records.c.units), else_=0
            )
            for model, column in COMPUTE_COLUMNS.items()
        },
    }
    # Of an attempt that vanished only the money is known: its other amounts are charged, but show in no total.
    return [
        total(special[name] if name in special else sa.case((usage, records.c[name]), else_=0)).label(name)
        for name in USAGE_COLUMNS
    ]


CHECKS: Final[tuple[Check, ...]] = (within_limits, windows_sum_holds, holds_sum_records, totals_sum_records)
