"""The history of executions: every one that ever had an allotment, also those whose custom resource is long gone.

Boundary: nothing here asks the API server; what the ledger noted at admission is what is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import AllotmentState, ExecutionHistory, ExecutionPage, Purpose
from almoner_ledger import schema
from almoner_ledger.history.asking import By, Question, Times, read_cursor, write_cursor
from almoner_ledger.history.sources import conditions
from almoner_ledger.store.loading import usage_of
from almoner_ledger.store.state import Usage

_executions, _allotments = schema.executions, schema.allotments
_OF_ATTEMPTS = (By.AGENT, By.OWNER)


def executions(connection: Connection, question: Question, limit: int, after: str | None) -> ExecutionPage:
    """Give executions, the newest first, at most `limit`, after a page's `next`. Times are those of their admission."""
    table = _executions.c
    query = sa.select(_executions).where(*_where(question)).order_by(table.created_ms.desc(), table.uid.desc())
    if after is not None:
        created, uid = read_cursor(after, [int, str])
        query = query.where(sa.tuple_(table.created_ms, table.uid) < sa.tuple_(sa.literal(created), sa.literal(uid)))
    rows = connection.execute(query.limit(limit + 1)).all()
    shown = rows[:limit]
    attempts = _attempts(connection, [row.uid for row in shown])
    return ExecutionPage(
        executions=[_history(row, attempts[row.uid]) for row in shown],
        next=write_cursor([shown[-1].created_ms, shown[-1].uid]) if len(rows) > limit else None,
    )


def _where(question: Question) -> list[Any]:
    table = _executions.c
    own = {"namespace": table.namespace, "name": table.name, "execution_uid": table.uid, "kind": table.kind}
    filters = question.filters
    found = conditions({by: values for by, values in filters.items() if by.value in own or by in _OWN}, own)
    found += _created(question.times)
    of_attempts = {by: values for by, values in filters.items() if by in _OF_ATTEMPTS}
    if of_attempts:
        mine = _allotments.c.execution_uid == table.uid
        keys = {name: _allotments.c[name] for name in ("namespace", "agent", "owner")}
        found.append(sa.select(sa.literal(1)).where(mine, *conditions(of_attempts, keys)).exists())
    if By.STATE in filters:
        found.append(_newest_state().in_(filters[By.STATE]))
    return found


_OWN = (By.EXECUTION, By.UID)


def _created(times: Times) -> list[Any]:
    created = _executions.c.created_ms
    found = [] if times.since_ms is None else [created >= times.since_ms]
    return found if times.until_ms is None else [*found, created < times.until_ms]


def _newest_state() -> Any:
    return (
        sa.select(_allotments.c.state)
        .where(_allotments.c.execution_uid == _executions.c.uid, _allotments.c.purpose == Purpose.RUN.value)
        .order_by(_allotments.c.attempt.desc())
        .limit(1)
        .correlate(_executions)
        .scalar_subquery()
    )


def _attempts(connection: Connection, uids: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {uid: [] for uid in uids}
    query = sa.select(_allotments).where(_allotments.c.execution_uid.in_(uids)).order_by(_allotments.c.attempt)
    for row in connection.execute(query) if uids else ():
        found[row.execution_uid].append(row)
    return found


def _history(execution: Any, attempts: Sequence[Any]) -> ExecutionHistory:
    totals = Usage()
    for row in attempts:
        totals.add(usage_of(row))
    newest = next((row for row in reversed(attempts) if row.purpose == Purpose.RUN), attempts[-1])
    return ExecutionHistory(
        kind=execution.kind,
        namespace=execution.namespace,
        name=execution.name,
        uid=execution.uid,
        agent=newest.agent,
        owner=newest.owner,
        created_unix_ms=execution.created_ms,
        attempts=len({row.attempt for row in attempts}),
        state=AllotmentState(newest.state),
        ended_unix_ms=newest.closed_ms,
        close_reason=newest.close_reason,
        totals=totals.to_wire(),
    )
