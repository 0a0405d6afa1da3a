"""Machine time: no second of a pod is charged twice, and what holds it stands beside an attempt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.verify.findings import Check, Violation


def charged_once(connection: Connection) -> Iterator[Violation]:
    """The stretches of one attempt and resource follow one another."""
    records = schema.records
    before = sa.func.lag(records.c.started_ms + records.c.duration_ms).over(
        partition_by=(records.c.allotment_id, records.c.model), order_by=records.c.sequence
    )
    stretches = (
        sa.select(records.c.allotment_id, records.c.model, records.c.started_ms, before.label("before"))
        .where(records.c.kind == "usage", records.c.resource_type == "compute")
        .subquery()
    )
    for row in connection.execute(sa.select(stretches).where(stretches.c.started_ms < stretches.c.before)):
        found = f"charged until {row.before} ms, and again from {row.started_ms} ms"
        yield Violation("machine-time-once", f"allotment {row.allotment_id} {row.model}", found)


def stands_beside(connection: Connection) -> Iterator[Violation]:
    """Every compute allotment has the attempt's own beside it, with machine time and money alone on its books."""
    table, records, holds = schema.allotments, schema.records, schema.holds
    run = table.alias("run")
    beside = sa.and_(
        run.c.execution_uid == table.c.execution_uid, run.c.attempt == table.c.attempt, run.c.purpose == "run"
    )
    alone = ~sa.select(sa.literal(1)).where(beside).exists()
    other = sa.and_(records.c.allotment_id == table.c.id, records.c.resource_type != "compute")
    strange = sa.select(sa.literal(1)).where(other, records.c.kind == "usage").exists()
    counted = sa.select(sa.literal(1)).where(holds.c.allotment_id == table.c.id, holds.c.dimension != "usd").exists()
    query = sa.select(table.c.id).where(table.c.purpose == "compute", sa.or_(alone, strange, counted))
    for row in connection.execute(query):
        found = "it stands alone, or has more than money and machine time on its books"
        yield Violation("machine-time-beside", f"allotment {row.id}", found)


CHECKS: Final[tuple[Check, ...]] = (charged_once, stands_beside)
