"""`almoner ledger prune`: drops months of history that nobody needs any more, and keeps what proves the sums.

Role: a month is that in which an allotment was opened. It is dropped whole, oldest first, one transaction each: its
entries (on PostgreSQL their partition), the holds, outputs and allotments, and executions that have no other. What
stays: balances, sums by day and by agent, seals, and the month's closing (`closings`, `closing_windows`,
`closing_agents`), sealed in the same transaction. Boundary: the owner's rights; it never drops what is open or not
sealed.

Executions' own accounts stay too, with what was spent of them: an execution that outlives its history (a paused one,
say) must not find its budget whole again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema, sealing
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.store import Store
from almoner_ledger.store.queries import OPEN_STATES
from almoner_ledger.windows import month_of

KEEP_MONTHS_MIN: Final = 1
WINDOW_KEY: Final = ("account_id", "dimension", "period", "starts_at")


@dataclass(frozen=True, slots=True)
class Month:
    """A month (YYYYMM, UTC) and what it holds. `kept` says why it cannot be dropped; empty: it can."""

    month: int
    allotments: int
    executions: int
    entries: int
    first_number: int | None
    last_number: int | None
    kept: str = ""


def bounds(month: int) -> tuple[int, int]:
    """The first instant of a month and that of the next one, in Unix milliseconds."""
    first = dt.datetime(month // 100, month % 100, 1, tzinfo=dt.UTC)
    following = (first + dt.timedelta(days=31)).replace(day=1)
    return int(first.timestamp()) * 1000, int(following.timestamp()) * 1000


def first_kept(now_ms: int, keep_months: int) -> int:
    """The oldest month that is kept: this one and the `keep_months` before it are."""
    this = month_of(now_ms)
    number = this // 100 * 12 + this % 100 - 1 - keep_months
    return number // 12 * 100 + number % 12 + 1


def months_before(connection: Connection, before: int) -> list[Month]:
    """The months before one that have allotments, oldest first."""
    table = schema.allotments
    found = []
    oldest = connection.execute(sa.select(sa.func.min(table.c.opened_ms))).scalar_one()
    until, _ = bounds(before)
    while oldest is not None and oldest < until:
        month = month_of(oldest)
        found.append(_look(connection, month))
        _, following = bounds(month)
        oldest = connection.execute(
            sa.select(sa.func.min(table.c.opened_ms)).where(table.c.opened_ms >= following)
        ).scalar_one()
    return found


def _of(month: int) -> sa.ColumnElement[bool]:
    first, following = bounds(month)
    return sa.and_(schema.allotments.c.opened_ms >= first, schema.allotments.c.opened_ms < following)


def _look(connection: Connection, month: int) -> Month:
    allotments, records = schema.allotments, schema.records
    count, still_open = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((allotments.c.state.in_(OPEN_STATES), 1), else_=0)), 0),
        ).where(_of(month))
    ).one()
    executions = connection.execute(sa.select(sa.func.count()).select_from(_alone(month).subquery())).scalar_one()
    entries, first, last = connection.execute(
        sa.select(sa.func.count(), sa.func.min(records.c.number), sa.func.max(records.c.number)).where(
            records.c.month == month
        )
    ).one()
    return Month(month, count, executions, entries, first, last, _kept(connection, still_open, last))


def _kept(connection: Connection, still_open: int, last: int | None) -> str:
    if still_open:
        return f"{still_open} of its allotments are open"
    sealed = sealing.head(connection).sealed
    if last is not None and last > sealed:
        return f"entry {last} is not sealed yet: run `almoner ledger seal`"
    return ""


def _alone(month: int) -> sa.Select[Any]:
    """The executions whose allotments are all of this month."""
    allotments, other = schema.allotments, schema.allotments.alias("other")
    first, following = bounds(month)
    elsewhere = sa.select(sa.literal(1)).where(
        other.c.execution_uid == allotments.c.execution_uid,
        sa.or_(other.c.opened_ms < first, other.c.opened_ms >= following),
    )
    return sa.select(allotments.c.execution_uid).where(_of(month), ~elsewhere.exists()).distinct()


def prune(
    store: Store, keep_months: int, *, dry_run: bool, say: Callable[[str], None], progress: Callable[[str], None]
) -> int:
    """Drop the months that may be dropped; gives how many had to be kept although they are old enough.

    `say` gets a line for each month, `progress` what is being done. Raises ValueError for fewer than KEEP_MONTHS_MIN.
    """
    if keep_months < KEEP_MONTHS_MIN:
        raise ValueError(f"--keep-months: write at least {KEEP_MONTHS_MIN}")
    database = store.database
    progress("looking for months to drop")
    months = database.snapshot(
        lambda connection: months_before(connection, first_kept(store.now_ms(connection), keep_months))
    )
    kept = 0
    for month in months:
        what = f"{month.entries} entries, {month.allotments} allotments, {month.executions} executions"
        if month.kept:
            kept += 1
            say(f"{month.month} is kept: {month.kept}")
            continue
        if dry_run:
            say(f"{month.month} would be dropped: {what}")
            continue
        progress(f"dropping {month.month}: {what}")
        reason = _drop(store, month.month)
        kept += bool(reason)
        say(f"{month.month} is kept: {reason}" if reason else f"{month.month} is dropped: {what}")
    if not months:
        say(f"no month is older than {keep_months} months")
    return kept


def _drop(store: Store, month: int) -> str:
    """Drop a month in one transaction; gives why not where it cannot be dropped after all."""
    reasons: list[str] = []

    def work(connection: Connection) -> None:
        reasons.clear()
        sealing.lock(connection, wait=True)
        if connection.dialect.name == "postgresql":
            # First what all posting locks first, so that nobody waits for us who holds what we need. While we wait,
            # everybody waits: not for long, whatever reads the books at this moment.
            connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
            connection.exec_driver_sql("LOCK TABLE allotments IN ACCESS EXCLUSIVE MODE")
        found = _look(connection, month)
        if found.kept:
            reasons.append(found.kept)
            return
        now_ms = store.now_ms(connection)
        _close(connection, found, now_ms)
        sealing.seal_closing(connection, month, now_ms)
        _delete(connection, month)

    store.database.migrate(work)
    return "; ".join(reasons)


def _close(connection: Connection, month: Month, now_ms: int) -> None:
    """Write what is kept of a month."""
    allotments, holds = schema.allotments, schema.holds
    connection.execute(
        sa.insert(schema.closings).values(
            month=month.month,
            allotments=month.allotments,
            executions=month.executions,
            entries=month.entries,
            first_number=month.first_number,
            last_number=month.last_number,
            closed_ms=now_ms,
        )
    )
    amounts = ("used", "charged", "excess")
    windows = (
        sa.select(
            sa.literal(month.month),
            *(holds.c[name] for name in WINDOW_KEY),
            *(sa.cast(sa.func.sum(holds.c[name]), sa.BigInteger) for name in amounts),
        )
        .join(allotments, allotments.c.id == holds.c.allotment_id)
        .where(_of(month.month))
        .group_by(*(holds.c[name] for name in WINDOW_KEY))
        .having(sa.or_(*(sa.func.sum(holds.c[name]) != 0 for name in amounts)))
    )
    connection.execute(sa.insert(schema.closing_windows).from_select(["month", *WINDOW_KEY, *amounts], windows))
    agents = (
        sa.select(
            sa.literal(month.month),
            allotments.c.namespace,
            allotments.c.agent,
            *(sa.cast(sa.func.sum(allotments.c[name]), sa.BigInteger) for name in USAGE_COLUMNS),
        )
        .where(_of(month.month))
        .group_by(allotments.c.namespace, allotments.c.agent)
    )
    connection.execute(
        sa.insert(schema.closing_agents).from_select(["month", "namespace", "agent", *USAGE_COLUMNS], agents)
    )


def _delete(connection: Connection, month: int) -> None:
    allotments = schema.allotments
    alone = list(connection.execute(_alone(month)).scalars())
    _delete_entries(connection, month)
    here = sa.select(allotments.c.id).where(_of(month))
    for table in (schema.holds, schema.outputs):
        connection.execute(sa.delete(table).where(table.c.allotment_id.in_(here)))
    connection.execute(sa.delete(allotments).where(_of(month)))
    feed, executions = schema.feed, schema.executions
    for start in range(0, len(alone), 1000):
        uids = alone[start : start + 1000]
        connection.execute(sa.delete(feed).where(feed.c.kind == "execution", feed.c.key.in_(uids)))
        connection.execute(sa.delete(executions).where(executions.c.uid.in_(uids)))


def _delete_entries(connection: Connection, month: int) -> None:
    records = schema.records
    if connection.dialect.name == "postgresql":
        partition = f"records_{month}"
        if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": partition}).scalar_one() is not None:
            connection.exec_driver_sql(f"DROP TABLE {partition}")
            return
        # Entries of a month that never got a partition of its own.
        connection.exec_driver_sql("ALTER TABLE records_default DISABLE TRIGGER append_only")
        connection.exec_driver_sql(f"DELETE FROM records_default WHERE month = {int(month)}")  # noqa: S608 - a number
        connection.exec_driver_sql("ALTER TABLE records_default ENABLE TRIGGER append_only")
        return
    with _without_triggers(connection, "records"):
        connection.execute(sa.delete(records).where(records.c.month == month))


@contextmanager
def _without_triggers(connection: Connection, table: str) -> Iterator[None]:
    """SQLite: set a table's triggers aside, and make them again, in the transaction that runs."""
    query = sa.text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = :table")
    triggers = connection.execute(query, {"table": table}).all()
    for name, _ in triggers:
        connection.exec_driver_sql(f"DROP TRIGGER {name}")
    yield
    for _, text in triggers:
        connection.exec_driver_sql(text)
