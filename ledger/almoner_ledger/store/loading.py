"""Reads and locks what a group of commands will work on, in the fixed order that Books describes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import AllotmentState, Dimension, ExecutionRef, Purpose, RateLimit
from almoner_ledger import schema
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.sequences import Sequences
from almoner_ledger.store import corrections, rates
from almoner_ledger.store.books import Books, StoredOperation, StoredRecord
from almoner_ledger.store.commands import WITH_RECORDS, Command, Verb
from almoner_ledger.store.compute import siblings_to_load
from almoner_ledger.store.state import (
    Account,
    AccountKind,
    Allotment,
    Hold,
    Usage,
    Window,
    execution_account_id,
    quota_account_id,
)


def load(connection: Connection, commands: Sequence[Command], now_ms: int) -> Books:
    """Load all that `commands` may need to be decided."""
    books = Books(connection, now_ms)
    _load_operations(books, {c.operation_id for c in commands if c.operation_id})
    if any(c.epoch is not None or c.verb is Verb.TAKE_EPOCH for c in commands):
        _load_epoch(books, exclusively=any(c.verb is Verb.TAKE_EPOCH for c in commands))
    opens = [c.body for c in commands if c.verb is Verb.OPEN]
    _load_executions(books, {body.execution.uid for body in opens})
    named = {c.allotment for c in commands if c.allotment} | siblings_to_load(commands)
    _load_allotments(books, named, {body.execution.uid for body in opens})
    account_ids = {account for allotment in books.allotments.values() for account in allotment.tracked}
    for body in opens:
        account_ids.add(execution_account_id(body.execution))
        account_ids.update(quota_account_id(key) for key in body.accounts)
    updates = [each for c in commands if c.verb is Verb.UPDATE_ACCOUNTS for each in c.body.accounts]
    account_ids.update(quota_account_id(each.key) for each in updates)
    _load_accounts(books, account_ids)
    rates.load(books, [(quota_account_id(each.key), each) for each in updates])
    _load_windows(books)
    _load_holds(books)
    corrections.load(books, commands)
    _load_records(books, {record.id for c in commands if c.verb in WITH_RECORDS for record in c.body.records})
    return books


def _rows(books: Books, query: sa.Select[Any]) -> Iterable[Any]:
    return books.connection.execute(query).all()


def _load_operations(books: Books, ids: set[str]) -> None:
    table = schema.operations
    if ids:
        query = sa.select(table.c.id, table.c.verb, table.c.digest, table.c.answer).where(table.c.id.in_(sorted(ids)))
        for row in _rows(books, query):
            books.operations[row.id] = StoredOperation(row.verb, row.digest, row.answer)


def _load_epoch(books: Books, *, exclusively: bool) -> None:
    # Shared: many replicas may serve one leader, but none while a new one takes over.
    row = books.connection.execute(sa.select(schema.epochs).with_for_update(read=not exclusively)).one()
    books.epoch, books.epoch_holder = row.epoch, row.holder


def _load_executions(books: Books, uids: set[str]) -> None:
    table = schema.executions
    if uids:
        query = sa.select(table).where(table.c.uid.in_(sorted(uids))).order_by(table.c.uid).with_for_update()
        for row in _rows(books, query):
            books.executions[row.uid] = (row.kind, row.namespace, row.name)


def _load_allotments(books: Books, ids: set[str], uids: set[str]) -> None:
    table = schema.allotments
    if not ids and not uids:
        return
    wanted: sa.ColumnElement[bool] = table.c.id.in_(sorted(ids))
    if uids:
        wanted = sa.or_(wanted, table.c.execution_uid.in_(sorted(uids)))
    for row in _rows(books, sa.select(table).where(wanted).order_by(table.c.id).with_for_update()):
        books.allotments[row.id] = allotment_of(row)


def execution_ref_of(row: Any) -> ExecutionRef:
    """Make the reference of an allotment's row; what is stored was checked when it came."""
    return ExecutionRef.model_construct(
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        uid=row.execution_uid,
        attempt=row.attempt,
        agent=row.agent,
        owner=row.owner,
    )


def usage_of(row: Any) -> Usage:
    """Make the sums of a row that has the usage columns."""
    return Usage(**{name: getattr(row, name) for name in USAGE_COLUMNS})


def allotment_of(row: Any) -> Allotment:
    """Make an allotment of its row, without its holds."""
    settled = json.loads(row.final_settled) if row.final_settled is not None else None
    return Allotment(
        id=row.id,
        execution=execution_ref_of(row),
        pod=row.pod,
        pod_uid=row.pod_uid,
        state=AllotmentState(row.state),
        frozen=row.frozen,
        tracked={account: tuple(map(Dimension, names)) for account, names in json.loads(row.tracked).items()},
        limited=tuple(map(Dimension, json.loads(row.limited))),
        opened_ms=row.opened_ms,
        activated_ms=row.activated_ms,
        exchanged_ms=row.exchanged_ms,
        closed_ms=row.closed_ms,
        close_reason=row.close_reason,
        sequences=Sequences(row.contiguous, tuple((low, high) for low, high in json.loads(row.ahead))),
        final_sequence=row.final_sequence,
        final_settled={Dimension(name): value for name, value in settled.items()} if settled is not None else None,
        progress=row.progress,
        purpose=Purpose(row.purpose),
        debits={
            provider: {Dimension(name): value for name, value in amounts.items()}
            for provider, amounts in json.loads(row.debits).items()
        },
        corrected_nanos=row.corrected_nanos,
        usage=usage_of(row),
    )


def _load_accounts(books: Books, ids: set[str]) -> None:
    table = schema.accounts
    if ids:
        query = sa.select(table).where(table.c.id.in_(sorted(ids))).order_by(table.c.id).with_for_update()
        for row in _rows(books, query):
            books.accounts[row.id] = account_of(row)


def account_of(row: Any) -> Account:
    """Make an account of its row."""
    return Account(
        id=row.id,
        kind=AccountKind(row.kind),
        namespace=row.namespace,
        name=row.name,
        subject=row.subject,
        generation=row.generation,
        enforced=row.enforced,
        period=BudgetPeriod(row.period),
        time_zone=row.time_zone,
        limits=_amounts(row.limits),
        max_per_execution=_amounts(row.max_per_execution),
        max_per_request=_amounts(row.max_per_request),
        holders=row.holders,
        rates=tuple(RateLimit.model_construct(**_rate(each)) for each in json.loads(row.rates)),
        alert_thresholds=tuple(json.loads(row.alert_thresholds)),
        recall_ms=row.recall_ms,
    )


def _rate(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "dimension": Dimension(values["dimension"])}


def _amounts(text: str) -> dict[Dimension, int]:
    return {Dimension(name): value for name, value in json.loads(text).items()}


def window_of(row: Any) -> Window:
    """Make a window of its row."""
    return Window(
        account_id=row.account_id,
        dimension=Dimension(row.dimension),
        period=BudgetPeriod(row.period),
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        enforced=row.enforced,
        limit=row.limit,
        spent=row.spent,
        reserved=row.reserved,
        excess=row.excess,
        floor=row.floor,
    )


def _load_windows(books: Books) -> None:
    """Load the windows that have not ended, or that an allotment in hand has a hold in."""
    if not books.accounts:
        return
    table, holds = schema.windows, schema.holds
    live = sa.and_(
        table.c.account_id.in_(sorted(books.accounts)), sa.or_(table.c.ends_at.is_(None), table.c.ends_at > books.now)
    )
    for row in _rows(books, sa.select(table).where(live)):
        window = window_of(row)
        books.windows[window.key] = window
    if books.allotments:
        same = [table.c[name] == holds.c[name] for name in ("account_id", "dimension", "period", "starts_at")]
        query = (
            sa.select(table)
            .join(holds, sa.and_(*same))
            .where(holds.c.allotment_id.in_(sorted(books.allotments)), table.c.ends_at <= books.now)
        )
        for row in _rows(books, query):
            window = window_of(row)
            books.windows.setdefault(window.key, window)
    newest: dict[tuple[str, Dimension, BudgetPeriod], int] = {}
    for account, dimension, period, starts_at in books.windows:
        newest[account, dimension, period] = max(starts_at, newest.get((account, dimension, period), starts_at))
    books.newest_start = lambda account, dimension: newest.get((account.id, dimension, account.period))


def _load_holds(books: Books) -> None:
    if not books.allotments:
        return
    table = schema.holds
    for row in _rows(books, sa.select(table).where(table.c.allotment_id.in_(sorted(books.allotments)))):
        key = (row.account_id, Dimension(row.dimension), BudgetPeriod(row.period), row.starts_at)
        books.allotments[row.allotment_id].holds[key] = Hold(
            allotment_id=row.allotment_id,
            window=books.windows[key],
            granted=row.granted,
            used=row.used,
            charged=row.charged,
            excess=row.excess,
            excess_corrected=row.excess_corrected,
        )


def _load_records(books: Books, ids: set[str]) -> None:
    table = schema.records
    if ids:
        query = sa.select(table.c.id, table.c.allotment_id, table.c.digest).where(table.c.id.in_(sorted(ids)))
        for row in _rows(books, query):
            books.records[row.id] = StoredRecord(row.allotment_id, row.digest)
