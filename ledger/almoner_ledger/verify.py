"""`almoner ledger verify`: audits the invariants of the books on a live database, and names each violation.

Role: recomputes what the rows claim, in one transaction that sees one state (REPEATABLE READ on PostgreSQL). The checks
are plain SQL over sums, so that a million records take seconds. Boundary: repairs nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import Dimension
from almoner_ledger import schema
from almoner_ledger.database import Database
from almoner_ledger.schema import COMPUTE_COLUMNS, USAGE_COLUMNS

VIOLATIONS_MAX: Final = 1000
WINDOW_KEY: Final = ("account_id", "dimension", "period", "starts_at")


@dataclass(frozen=True, slots=True)
class Violation:
    """One invariant that does not hold: which, where, and what was found."""

    invariant: str
    subject: str
    found: str


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found. `excess` lists what providers billed above holds: allowed, but worth knowing."""

    violations: list[Violation]
    excess: list[dict[str, Any]]
    counts: dict[str, int]


def audit(connection: Connection) -> Audit:
    """Check every invariant; at most VIOLATIONS_MAX are named."""
    violations: list[Violation] = []
    for check in CHECKS:
        for violation in check(connection):
            if len(violations) >= VIOLATIONS_MAX:
                break
            violations.append(violation)
    counts = {
        table.name: int(connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
        for table in (schema.accounts, schema.windows, schema.allotments, schema.holds, schema.records)
    }
    return Audit(violations, _excess(connection), counts)


def report(database: Database, *, as_json: bool) -> int:
    """Audit, write what was found to standard output, and give the exit code: 1 where an invariant does not hold."""
    with database.engine.connect() as plain:
        snapshot = plain.execution_options(isolation_level="REPEATABLE READ") if database.is_postgresql else plain
        with snapshot.begin():
            found = audit(snapshot)
    if as_json:
        sys.stdout.write(json.dumps({"ok": not found.violations, **asdict(found)}, indent=2) + "\n")
        return 1 if found.violations else 0
    for violation in found.violations:
        sys.stdout.write(f"VIOLATION {violation.invariant}: {violation.subject}: {violation.found}\n")
    for each in found.excess:
        sys.stdout.write(f"excess billed above a hold: {each['account']} {each['dimension']}: {each['excess']}\n")
    counted = ", ".join(f"{count} {name}" for name, count in found.counts.items())
    verdict = f"{len(found.violations)} violations" if found.violations else "every invariant holds"
    sys.stdout.write(f"{verdict}: {counted}\n")
    return 1 if found.violations else 0


def _sum(column: Any) -> Any:
    return sa.cast(sa.func.coalesce(sa.func.sum(column), 0), sa.BigInteger)


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
        "spent": _sum(holds.c.used),
        "reserved": _sum(holds.c.granted - holds.c.used),
        "excess": _sum(holds.c.excess),
    }
    query = (
        sa.select(
            *(windows.c[name] for name in (*WINDOW_KEY, *sums)), *(sums[name].label(f"sum_{name}") for name in sums)
        )
        .outerjoin(holds, same)
        .group_by(*(windows.c[name] for name in (*WINDOW_KEY, *sums)))
        .having(sa.or_(*(windows.c[name] != total for name, total in sums.items())))
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
            sa.select(records.c.allotment_id, _sum(column).label("posted")).group_by(records.c.allotment_id).subquery()
        )
        query = (
            sa.select(
                holds.c.allotment_id,
                holds.c.account_id,
                _sum(holds.c.used).label("used"),
                sa.func.coalesce(posted.c.posted, 0).label("posted"),
            )
            .outerjoin(posted, posted.c.allotment_id == holds.c.allotment_id)
            .where(holds.c.dimension == dimension.value)
            .group_by(holds.c.allotment_id, holds.c.account_id, posted.c.posted)
            .having(_sum(holds.c.used) != sa.func.coalesce(posted.c.posted, 0))
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
    total = connection.execute(sa.select(*entries)).one()
    for table in (schema.agents, schema.rollups):
        sums = connection.execute(sa.select(*(_sum(table.c[name]) for name in USAGE_COLUMNS))).one()
        for name, here, there in zip(USAGE_COLUMNS, sums, total, strict=True):
            if here != there:
                yield Violation("totals-sum-entries", table.name, f"{name} {here}, entries sum to {there}")


def _entry_sums(records: sa.Table) -> list[Any]:
    usage = records.c.kind == "usage"
    special = {
        "cost_nanos": records.c.cost_nanos,
        "unaccounted_nanos": sa.case((usage, 0), else_=records.c.cost_nanos),
        "unpriced": sa.case((records.c.cost_nanos.is_(None), 1), else_=0),
        **{
            column: sa.case(
                (sa.and_(records.c.resource_type == "compute", records.c.model == model), records.c.units), else_=0
            )
            for model, column in COMPUTE_COLUMNS.items()
        },
    }
    # Of an attempt that vanished only the money is known: its other amounts are charged, but show in no total.
    return [
        _sum(special[name] if name in special else sa.case((usage, records.c[name]), else_=0)).label(name)
        for name in USAGE_COLUMNS
    ]


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
    query = sa.select(table.c.id, table.c.state).where(
        sa.or_(
            sa.and_(unused, sa.or_(table.c.activated_ms.is_not(None), has_records)),
            sa.and_(~unused, sa.or_(table.c.activated_ms.is_(None), table.c.pod_uid.is_(None))),
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
    """An account's holders are the open allotments that fall under it."""
    table = schema.allotments
    expected: dict[str, int] = {}
    for row in connection.execute(sa.select(table.c.tracked).where(table.c.state.in_(("offered", "active")))):
        for account in json.loads(row.tracked):
            expected[account] = expected.get(account, 0) + 1
    accounts = schema.accounts
    query = sa.select(accounts.c.id, accounts.c.holders)
    for row in connection.execute(query.where(sa.or_(accounts.c.holders != 0, accounts.c.id.in_(expected)))):
        if row.holders != expected.get(row.id, 0):
            yield Violation("holders-are-open", f"account {row.id}", f"{row.holders}, not {expected.get(row.id, 0)}")


def _excess(connection: Connection) -> list[dict[str, Any]]:
    windows, accounts = schema.windows, schema.accounts
    query = (
        sa.select(accounts.c.kind, accounts.c.namespace, accounts.c.name, accounts.c.subject, windows)
        .join(accounts, accounts.c.id == windows.c.account_id)
        .where(windows.c.excess > 0)
        .order_by(windows.c.excess.desc())
        .limit(100)
    )
    return [
        {
            "account": "/".join(part for part in (row.kind, row.namespace, row.name, row.subject) if part),
            "dimension": row.dimension,
            "starts_at": row.starts_at,
            "excess": row.excess,
        }
        for row in connection.execute(query)
    ]


CHECKS: Final[tuple[Callable[[Connection], Iterator[Violation]], ...]] = (
    within_limits,
    windows_sum_holds,
    holds_sum_records,
    totals_sum_records,
    closed_hold_nothing,
    one_activation,
    no_gaps_when_returned,
    holders_are_open,
)
