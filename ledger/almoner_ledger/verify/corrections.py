"""Corrections: each names the entry that it corrects, in the same allotment and month, and they sum to what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.store.entries import CORRECTION, WAS_UNKNOWN
from almoner_ledger.verify.findings import Check, Violation, total


def corrections_name_entries(connection: Connection) -> Iterator[Violation]:
    """A correction names an entry of its own allotment and month; a record of usage corrects nothing."""
    records = schema.records
    other = records.alias("other")
    there = (
        sa.select(sa.literal(1))
        .where(
            other.c.id == records.c.corrects,
            other.c.month == records.c.month,
            other.c.allotment_id == records.c.allotment_id,
            other.c.id != records.c.id,
        )
        .exists()
    )
    wrong = sa.or_(
        sa.and_(records.c.kind == CORRECTION, records.c.corrects.is_(None)),
        sa.and_(records.c.kind == "usage", records.c.corrects.is_not(None)),
        sa.and_(records.c.corrects.is_not(None), ~there),
    )
    query = sa.select(records.c.id, records.c.kind, records.c.corrects).where(wrong)
    for row in connection.execute(query):
        yield Violation("corrections-name-entries", f"{row.kind} entry {row.id}", f"corrects {row.corrects}")


def corrections_sum_up(connection: Connection) -> Iterator[Violation]:
    """An allotment's corrections sum to what it keeps of them."""
    records, allotments = schema.records, schema.allotments
    sums = (
        sa.select(records.c.allotment_id, total(records.c.cost_nanos).label("nanos"))
        .where(records.c.kind == CORRECTION)
        .group_by(records.c.allotment_id)
        .subquery()
    )
    found = sa.func.coalesce(sums.c.nanos, 0)
    query = (
        sa.select(allotments.c.id, allotments.c.corrected_nanos, found.label("nanos"))
        .outerjoin(sums, sums.c.allotment_id == allotments.c.id)
        .where(allotments.c.corrected_nanos != found)
    )
    for row in connection.execute(query):
        yield Violation(
            "corrections-sum-up", f"allotment {row.id}", f"{row.corrected_nanos}, corrections sum to {row.nanos}"
        )


def corrected_costs(connection: Connection) -> Iterator[Violation]:
    """No entry costs less than nothing, corrections included; an unknown cost becomes known exactly once."""
    records = schema.records
    later = records.alias("later")
    cost = sa.func.coalesce(records.c.cost_nanos, 0) + total(later.c.cost_nanos)
    priced = total(sa.case((later.c.digest == WAS_UNKNOWN, 1), else_=0))
    query = (
        sa.select(records.c.id, cost.label("cost"), priced.label("priced"))
        .join(later, sa.and_(later.c.corrects == records.c.id, later.c.allotment_id == records.c.allotment_id))
        .where(later.c.kind == CORRECTION, records.c.kind == "usage")
        .group_by(records.c.id, records.c.cost_nanos)
        .having(sa.or_(cost < 0, priced != sa.case((records.c.cost_nanos.is_(None), 1), else_=0)))
    )
    for row in connection.execute(query):
        found = f"costs {row.cost} with its corrections, {row.priced} of them from an unknown cost"
        yield Violation("corrected-costs", f"entry {row.id}", found)


CHECKS: Final[tuple[Check, ...]] = (corrections_name_entries, corrections_sum_up, corrected_costs)
