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


def superseded_never_activate(connection: Connection) -> Iterator[Violation]:
    """No attempt is on offer once a higher one of its execution was opened: it is void, and can never activate."""
    table, later = schema.allotments, schema.allotments.alias("later")
    query = sa.select(table.c.id, table.c.attempt, later.c.attempt.label("newer")).join(
        later, sa.and_(later.c.execution_uid == table.c.execution_uid, later.c.purpose == table.c.purpose)
    )
    for row in connection.execute(query.where(table.c.state == "offered", later.c.attempt > table.c.attempt)):
        found = f"attempt {row.attempt} is on offer, and attempt {row.newer} was opened"
        yield Violation("superseded-is-void", f"allotment {row.id}", found)


def ended_once(connection: Connection) -> Iterator[Violation]:
    """What has ended says when; what is open has not ended, and is not complete: it closes with its last record."""
    table = schema.allotments
    is_open = table.c.state.in_(("offered", "active"))
    query = sa.select(table.c.id, table.c.state, table.c.closed_ms)
    for row in connection.execute(query.where(is_open == table.c.closed_ms.is_not(None))):
        found = "it has an end, and is open" if row.closed_ms is not None else "it has no end"
        yield Violation("ended-when-closed", f"allotment {row.id} ({row.state})", found)
    for row in connection.execute(query.where(is_open, table.c.contiguous >= table.c.final_sequence)):
        yield Violation("closed-when-complete", f"allotment {row.id} ({row.state})", "it was returned, and is complete")


def sequences_are_records(connection: Connection) -> Iterator[Violation]:
    """The sequences that an allotment says it has are those of its records: duplicates and gaps are told by them."""
    table, records = schema.allotments, schema.records
    below = sa.case((records.c.sequence <= table.c.contiguous, 1), else_=0)
    query = (
        sa.select(
            table.c.id,
            table.c.contiguous,
            table.c.ahead,
            sa.func.count(records.c.sequence).label("count"),
            sa.func.coalesce(sa.func.sum(below), 0).label("below"),
            sa.func.max(records.c.sequence).label("highest"),
        )
        .outerjoin(records, records.c.allotment_id == table.c.id)
        .group_by(table.c.id, table.c.contiguous, table.c.ahead)
    )
    wrong = sa.or_(
        table.c.ahead != "[]",
        sa.func.count(records.c.sequence) != table.c.contiguous,
        sa.func.coalesce(sa.func.max(records.c.sequence), 0) != table.c.contiguous,
    )
    for row in connection.execute(query.having(wrong)):
        ahead = json.loads(row.ahead)
        count = row.contiguous + sum(high - low + 1 for low, high in ahead)
        highest = ahead[-1][1] if ahead else row.contiguous
        if (row.below, row.count, row.highest or 0) != (row.contiguous, count, highest):
            found = f"it says {count} up to {highest}, there are {row.count} up to {row.highest}"
            yield Violation("sequences-are-records", f"allotment {row.id}", found)


def all_accounts_hold(connection: Connection) -> Iterator[Violation]:
    """An allotment has a hold on every account and dimension that it falls under, and nowhere else."""
    table, holds = schema.allotments, schema.holds
    held: dict[str, set[tuple[str, str]]] = {}
    names = (holds.c.allotment_id, holds.c.account_id, holds.c.dimension)
    for row in connection.execute(sa.select(*names).distinct()):
        held.setdefault(row.allotment_id, set()).add((row.account_id, row.dimension))
    for each in connection.execute(sa.select(table.c.id, table.c.tracked)):
        tracked = {(account, dimension) for account, names in json.loads(each.tracked).items() for dimension in names}
        found = held.get(each.id, set())
        for account, dimension in sorted(tracked ^ found):
            what = "no hold" if (account, dimension) in tracked else "a hold, and does not fall under it"
            yield Violation("all-accounts-or-none", f"allotment {each.id}", f"{what}: account {account} {dimension}")


CHECKS: Final[tuple[Check, ...]] = (
    closed_hold_nothing,
    one_activation,
    no_gaps_when_returned,
    holders_are_open,
    superseded_never_activate,
    ended_once,
    sequences_are_records,
    all_accounts_hold,
)
