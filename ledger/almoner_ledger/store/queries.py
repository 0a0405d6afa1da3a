"""Queries: open allotments, what changed, output, costs. They read only, and lock nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.contract import STATUS_OUTPUT_CHARS_MAX
from almoner_core.wire import (
    AccountState,
    AgentTotals,
    AllotmentPage,
    AllotmentState,
    AllotmentView,
    Changes,
    Dimension,
    ErrorCode,
    ExecutionTotals,
    MachineTerms,
    PaidSpan,
    Purpose,
)
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError
from almoner_ledger.store import alerts, calendars, compute, rates
from almoner_ledger.store.accounts import account_state
from almoner_ledger.store.flushing import CHANGES
from almoner_ledger.store.loading import account_of, allotment_of, execution_ref_of, usage_of, window_of
from almoner_ledger.store.state import Account, Usage, Window
from almoner_ledger.windows import span_at

RECENT_MS: Final = 7 * 24 * 3600 * 1000
"""The feed leaves out what was closed and has not changed for so long, so that a new reader need not read history."""
OPEN_STATES: Final = (AllotmentState.OFFERED.value, AllotmentState.ACTIVE.value)


def open_allotments(connection: Connection, now_ms: int, after: str, limit: int) -> AllotmentPage:
    """The allotments that hold something, in order of id, after `after`."""
    table = schema.allotments
    query = (
        sa.select(table).where(table.c.state.in_(OPEN_STATES), table.c.id > after).order_by(table.c.id).limit(limit + 1)
    )
    rows = connection.execute(query).all()
    held = held_of(connection, [row.id for row in rows[:limit]])
    accrued = _accrued(connection, [row.id for row in rows[:limit] if row.purpose == Purpose.COMPUTE.value])
    paid = paid_of(rows[:limit], held, now_ms)
    views = [
        AllotmentView(
            allotment=row.id,
            state=AllotmentState(row.state),
            execution=execution_ref_of(row),
            pod=row.pod,
            pod_uid=row.pod_uid,
            held=held.get(row.id, {}),
            seconds_since_exchange=max(0, (now_ms - row.exchanged_ms) // 1000),
            purpose=Purpose(row.purpose),
            last_sequence=row.contiguous,
            accrued_unix_ms=accrued.get(row.id),
            paid_seconds=paid.get(row.id, _UNPRICED)[0],
            paid_span=paid.get(row.id, _UNPRICED)[1],
        )
        for row in rows[:limit]
    ]
    following = views[-1].allotment if len(rows) > limit else None
    return AllotmentPage(allotments=views, next=following, now_unix_ms=now_ms)


_UNPRICED: Final = (None, None)


def paid_of(
    rows: Iterable[Any], held: Mapping[str, Mapping[Dimension, int]], now_ms: int
) -> dict[str, tuple[int, PaidSpan | None]]:
    """For how many seconds the machine time of compute allotments (rows of theirs) is paid: see store.compute."""
    paid: dict[str, tuple[int, PaidSpan | None]] = {}
    for row in rows:
        if row.machine is not None:
            allotment = allotment_of(row)
            usd = held.get(row.id, {}).get(Dimension.USD, 0) if Dimension.USD in allotment.limited else None
            since = row.opened_ms if row.charged_ms is None else row.charged_ms
            seconds = compute.seconds_paid(allotment.machine, usd, since, now_ms) or 0
            paid[row.id] = (seconds, compute.span_paid(allotment.machine, usd, since))
    return paid


def held_of(connection: Connection, ids: Sequence[str]) -> dict[str, dict[Dimension, int]]:
    """What allotments hold and have not used, by dimension: the least over their accounts."""
    table = schema.holds
    query = (
        sa.select(
            table.c.allotment_id,
            table.c.dimension,
            table.c.account_id,
            sa.cast(sa.func.sum(table.c.granted - table.c.used), sa.BigInteger).label("held"),
        )
        .where(table.c.allotment_id.in_(ids))
        .group_by(table.c.allotment_id, table.c.dimension, table.c.account_id)
    )
    held: dict[str, dict[Dimension, int]] = defaultdict(dict)
    for row in connection.execute(query):
        mine = held[row.allotment_id]
        dimension = Dimension(row.dimension)
        mine[dimension] = min(row.held, mine.get(dimension, row.held))
    return held


class Paid(NamedTuple):
    """For how many seconds from now machine time is held, and whether the operator is late to hold more."""

    seconds: int
    late: bool
    span: PaidSpan | None


def paid(connection: Connection, ids: Collection[str], now_ms: int) -> dict[str, Paid]:
    """Look at many compute allotments that are open and have a price."""
    if not ids:
        return {}
    table = schema.allotments
    query = sa.select(table).where(
        table.c.id.in_(sorted(ids)), table.c.state.in_(OPEN_STATES), table.c.machine.is_not(None)
    )
    rows = connection.execute(query).all()
    found = paid_of(rows, held_of(connection, [row.id for row in rows]) if rows else {}, now_ms)
    terms = {row.id: MachineTerms.model_validate_json(row.machine) for row in rows}
    return {key: Paid(left, left <= terms[key].late_seconds, span) for key, (left, span) in found.items()}


def _accrued(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Until when machine time was accrued (Unix milliseconds), by compute allotment: the end of its last record."""
    if not ids:
        return {}
    table, records = schema.allotments, schema.records
    last = sa.and_(records.c.allotment_id == table.c.id, records.c.sequence == table.c.contiguous)
    query = (
        sa.select(table.c.id, records.c.started_ms, records.c.duration_ms)
        .join(records, last)
        .where(table.c.id.in_(ids))
    )
    return {row.id: row.started_ms + row.duration_ms for row in connection.execute(query)}


def last_change(connection: Connection) -> int:
    """The newest change number that is committed."""
    table = schema.counters
    return int(connection.execute(sa.select(table.c.value).where(table.c.name == CHANGES)).scalar_one())


def changes(connection: Connection, now_ms: int, after: int, limit: int) -> Changes:
    """What changed after the cursor, at most `limit` things, and the next cursor.

    A cursor beyond the newest change is of newer books than these, which a backup brought back: everything is told.
    """
    newest = last_change(connection)
    if after > newest:
        after = 0
    feed, allotments = schema.feed, schema.allotments
    still_open = (
        sa.select(sa.literal(1))
        .where(allotments.c.execution_uid == feed.c.key, allotments.c.state.in_(OPEN_STATES))
        .exists()
    )
    query = (
        sa.select(feed.c.kind, feed.c.key, feed.c.changed)
        .where(
            feed.c.changed > after,
            sa.or_(
                feed.c.kind != "execution",
                feed.c.changed_ms > now_ms - RECENT_MS,
                still_open,
            ),
        )
        .order_by(feed.c.changed)
        .limit(limit + 1)
    )
    rows = connection.execute(query).all()
    more, rows = len(rows) > limit, rows[:limit]
    keys: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        keys[row.kind].append(row.key)
    cursor = rows[-1].changed if more else max(newest, after, rows[-1].changed if rows else 0)
    return Changes(
        after=cursor,
        executions=execution_totals(connection, keys["execution"]),
        agents=agent_totals(connection, keys["agent"]),
        accounts=account_states(connection, keys["account"], now_ms // 1000),
        more=more,
    )


def execution_totals(connection: Connection, uids: Sequence[str]) -> list[ExecutionTotals]:
    """Totals of executions over all attempts and by attempt, with the newest progress and output."""
    if not uids:
        return []
    table, outputs = schema.allotments, schema.outputs
    query = (
        sa.select(
            table,
            sa.func.substr(outputs.c.content, 1, STATUS_OUTPUT_CHARS_MAX).label("output"),
            outputs.c.bytes.label("output_bytes"),
        )
        .outerjoin(outputs, outputs.c.allotment_id == table.c.id)
        .where(table.c.execution_uid.in_(uids))
        .order_by(table.c.attempt)
    )
    attempts: dict[str, list[Any]] = {uid: [] for uid in uids}
    for row in connection.execute(query):
        attempts[row.execution_uid].append(row)
    return [_execution(rows) for rows in attempts.values() if rows]


def _execution(rows: Sequence[Any]) -> ExecutionTotals:
    total = Usage()
    for row in rows:
        total.add(usage_of(row))
    newest = rows[-1]
    attempts: dict[int, Usage] = {}
    for row in rows:
        attempts.setdefault(row.attempt, Usage()).add(usage_of(row))
    output = next((row for row in reversed(rows) if row.output is not None), None)
    progress = next((row.progress for row in reversed(rows) if row.progress is not None), None)
    return ExecutionTotals(
        kind=newest.kind,
        namespace=newest.namespace,
        name=newest.name,
        uid=newest.execution_uid,
        totals=total.to_wire(),
        attempts={attempt: usage.to_wire() for attempt, usage in attempts.items()},
        states=_states(rows, Purpose.RUN),
        compute_states=_states(rows, Purpose.COMPUTE),
        progress=json.loads(progress) if progress is not None else None,
        output=output.output if output is not None else None,
        output_bytes=output.output_bytes if output is not None else None,
        output_attempt=output.attempt if output is not None else None,
    )


def _states(rows: Sequence[Any], purpose: Purpose) -> dict[int, AllotmentState]:
    return {row.attempt: AllotmentState(row.state) for row in rows if row.purpose == purpose.value}


def agent_totals(connection: Connection, keys: Sequence[str]) -> list[AgentTotals]:
    """Totals of agents, given as namespace/name."""
    if not keys:
        return []
    table = schema.agents
    pairs = [tuple(key.split("/", 1)) for key in keys]
    query = sa.select(table).where(sa.tuple_(table.c.namespace, table.c.name).in_(pairs))
    return [
        AgentTotals(namespace=row.namespace, agent=row.name, totals=usage_of(row).to_wire())
        for row in connection.execute(query)
    ]


def account_states(connection: Connection, ids: Sequence[str], now: int) -> list[AccountState]:
    """Current windows of quota accounts, in every limited dimension.

    A window that has ended and that nobody opened anew shows as empty: that is what the next grant will find.
    """
    if not ids:
        return []
    table, windows = schema.accounts, schema.windows
    accounts = [account_of(row) for row in connection.execute(sa.select(table).where(table.c.id.in_(ids)))]
    live = sa.and_(windows.c.account_id.in_(ids), sa.or_(windows.c.ends_at.is_(None), windows.c.ends_at > now))
    found: dict[tuple[str, Dimension, str], Window] = {}
    by_id = {account.id: account for account in accounts}
    for row in connection.execute(sa.select(windows).where(live).order_by(windows.c.starts_at)):
        window = window_of(row)
        account = by_id[window.account_id]
        if account.period_since and not calendars.is_own(account, window):
            continue
        found[window.account_id, window.dimension, window.period] = window
    told = alerts.fired(connection, found.values())
    states = []
    for account in accounts:
        for dimension, limit in account.limits.items():
            window = found.get((account.id, dimension, account.period)) or _unopened(account, dimension, limit, now)
            states.append(account_state(account, window, now, told.get(window.key, ())))
    return [*states, *rates.read_states(connection, accounts, now * 1000)]


def _unopened(account: Account, dimension: Dimension, limit: int, now: int) -> Window:
    span = span_at(account.period, account.time_zone, now)
    return Window(account.id, dimension, account.period, span.starts_at, span.ends_at, account.enforced, limit)


def namespace_of(connection: Connection, uid: str) -> str | None:
    """The namespace of an execution; None of one that the ledger does not know."""
    table = schema.executions.c
    found: str | None = connection.execute(sa.select(table.namespace).where(table.uid == uid)).scalar_one_or_none()
    return found


def output(connection: Connection, uid: str) -> str:
    """The output of an execution's newest attempt that has one. Raises LedgerError where there is none."""
    table, outputs = schema.allotments, schema.outputs
    query = (
        sa.select(outputs.c.content)
        .join(table, table.c.id == outputs.c.allotment_id)
        .where(table.c.execution_uid == uid)
        .order_by(table.c.attempt.desc())
        .limit(1)
    )
    found = connection.execute(query).scalar_one_or_none()
    if found is None:
        raise LedgerError(ErrorCode.NOT_FOUND, "uid: no output of that execution is known", field="uid")
    return str(found)
