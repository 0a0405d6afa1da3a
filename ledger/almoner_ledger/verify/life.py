"""The life of an allotment: what it was is what its rows show, and what has ended holds nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.verify.findings import Check, Violation


def closed_hold_nothing(connection: Connection) -> Iterator[Violation]:
    """A void or closed allotment holds nothing; a void one was never used."""
    allotments, holds = schema.allotments, schema.holds
    query = (
        sa.select(allotments.c.id, allotments.c.state, holds.c.granted, holds.c.used)
        .join(holds, holds.c.allotment_id == allotments.c.id)
        .where(
            sa.or_(
                sa.and_(allotments.c.state.in_(("void", "closed")), holds.c.granted != holds.c.used),
                sa.and_(allotments.c.state == "void", holds.c.used != 0),
            )
        )
    )
    for row in connection.execute(query):
        found = f"granted {row.granted}, used {row.used}"
        yield Violation("closed-holds-nothing", f"allotment {row.id} ({row.state})", found)


def one_activation(connection: Connection) -> Iterator[Violation]:
    """Offered and void allotments were never activated and have no records; active and closed ones were bound."""
    table, records = schema.allotments, schema.records
    has_records = sa.select(sa.literal(1)).where(records.c.allotment_id == table.c.id).exists()
    unused = table.c.state.in_(("offered", "void"))
    # Machine time is accrued from a pod's start, whether or not the pod could be bound.
    machine_time = table.c.purpose == "compute"
    query = sa.select(table.c.id, table.c.state).where(
        sa.or_(
            sa.and_(unused, sa.or_(table.c.activated_ms.is_not(None), has_records)),
            sa.and_(~unused, sa.or_(table.c.activated_ms.is_(None), sa.and_(table.c.pod_uid.is_(None), ~machine_time))),
        )
    )
    for row in connection.execute(query):
        yield Violation("activated-or-void", f"allotment {row.id}", f"state {row.state} contradicts its history")


def no_gaps_when_returned(connection: Connection) -> Iterator[Violation]:
    """An allotment that closed by a return has every record up to the last one."""
    table, records = schema.allotments, schema.records
    count = (
        sa.select(sa.func.count())
        .where(records.c.allotment_id == table.c.id, records.c.kind == "usage")
        .scalar_subquery()
    )
    query = sa.select(table.c.id, table.c.final_sequence, count.label("count")).where(
        table.c.close_reason == "returned", table.c.state == "closed", count != table.c.final_sequence
    )
    for row in connection.execute(query):
        yield Violation("records-complete", f"allotment {row.id}", f"{row.count} records of {row.final_sequence}")


def holders_are_open(connection: Connection) -> Iterator[Violation]:
    """An account's holders are the open allotments that fall under it, those of machine time apart."""
    table = schema.allotments
    query = sa.select(table.c.tracked).where(table.c.state.in_(("offered", "active")), table.c.purpose == "run")
    expected: dict[str, int] = {}
    for row in connection.execute(query):
        for account in json.loads(row.tracked):
            expected[account] = expected.get(account, 0) + 1
    accounts = schema.accounts
    holders = sa.select(accounts.c.id, accounts.c.holders)
    for row in connection.execute(holders.where(sa.or_(accounts.c.holders != 0, accounts.c.id.in_(expected)))):
        if row.holders != expected.get(row.id, 0):
            yield Violation("holders-are-open", f"account {row.id}", f"{row.holders}, not {expected.get(row.id, 0)}")


CHECKS: Final[tuple[Check, ...]] = (closed_hold_nothing, one_activation, no_gaps_when_returned, holders_are_open)
