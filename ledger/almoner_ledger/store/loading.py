"""Reads and locks what a group of commands will work on, in the fixed order that Books describes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import AllotmentState, Dimension, ExecutionRef, MachineTerms, Purpose, RateLimit
from almoner_ledger import schema
from almoner_ledger.sequences import Sequences
from almoner_ledger.store import alerts, calendars, configuration, corrections, rates
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
    Word,
    execution_account_id,
    quota_account_id,
    usage_values,
)
from almoner_ledger.windows import month_of

# Looked up rather than called: an enum's call costs several times a dictionary's.
DIMENSIONS: Final = {each.value: each for each in Dimension}
PERIODS: Final = {each.value: each for each in BudgetPeriod}
PARSED_MAX: Final = 4096


def load(connection: Connection, commands: Sequence[Command], now_ms: int) -> Books:
    """Load all that `commands` may need to be decided."""
    books = Books(connection, now_ms)
    _load_operations(books, {c.operation_id for c in commands if c.operation_id})
    if any(c.epoch is not None or c.verb is Verb.TAKE_EPOCH for c in commands):
        _load_epoch(books, exclusively=any(c.verb is Verb.TAKE_EPOCH for c in commands))
    opens = [c.body for c in commands if c.verb is Verb.OPEN]
    _load_executions(books, {body.execution.uid for body in opens})
    named = {c.allotment for c in commands if c.allotment} | siblings_to_load(commands)
    updates = [each for c in commands if c.verb is Verb.UPDATE_ACCOUNTS for each in c.body.accounts]
    changing = calendars.changing(connection, updates)
    named |= calendars.holding(connection, changing)
    _load_allotments(books, named, {body.execution.uid for body in opens})
    account_ids = {account for allotment in books.allotments.values() for account in allotment.tracked}
    for body in opens:
        account_ids.add(execution_account_id(body.execution))
        account_ids.update(quota_account_id(key) for key in body.accounts)
    account_ids.update(quota_account_id(each.key) for each in updates)
    _load_accounts(books, account_ids)
    calendars.check(books, updates, changing)
    rates.load(books, [(quota_account_id(each.key), each) for each in updates])
    _load_windows(books)
    for account in books.accounts.values():
        calendars.mark(books, account)
    alerts.watch(books)
    corrections.load(books, commands)
    configuration.load(books, commands)
    ids = {record.id for c in commands if c.verb in WITH_RECORDS for record in c.body.records}
    ids.update(each for c in commands if c.verb is Verb.ACTIVATE for each in c.body.unsettled)
    _load_records(books, ids)
    return books


def _rows(books: Books, query: Callable[[str], sa.Select[Any]], **parameters: Any) -> Sequence[Any]:
    return books.connection.execute(query(books.connection.dialect.name), parameters).all()


# The statements are made once for each database. Those that a group is loaded by take keys as one array on PostgreSQL:
# their text is the same however many there are.


def _among(column: sa.Column[Any], dialect: str, name: str = "keys") -> sa.ColumnElement[bool]:
    if dialect == "postgresql":
        return column == sa.any_(sa.bindparam(name, type_=ARRAY(sa.String)))
    return column.in_(sa.bindparam(name, expanding=True))


@functools.cache
def _operations(dialect: str) -> sa.Select[Any]:
    table = schema.operations
    return sa.select(table.c.id, table.c.verb, table.c.digest, table.c.answer).where(_among(table.c.id, dialect))


@functools.cache
def _executions(dialect: str) -> sa.Select[Any]:
    table = schema.executions
    return sa.select(table).where(_among(table.c.uid, dialect)).order_by(table.c.uid).with_for_update()


@functools.cache
def _allotments(dialect: str) -> sa.Select[Any]:
    table = schema.allotments
    return sa.select(table).where(_among(table.c.id, dialect)).order_by(table.c.id).with_for_update()


@functools.cache
def _allotments_of_executions(dialect: str) -> sa.Select[Any]:
    table = schema.allotments
    wanted = sa.or_(_among(table.c.id, dialect), _among(table.c.execution_uid, dialect, "uids"))
    return sa.select(table).where(wanted).order_by(table.c.id).with_for_update()


@functools.cache
def _accounts(dialect: str) -> sa.Select[Any]:
    table = schema.accounts
    return sa.select(table).where(_among(table.c.id, dialect)).order_by(table.c.id).with_for_update()


@functools.cache
def _live_windows(dialect: str) -> sa.Select[Any]:
    table = schema.windows
    live = sa.or_(table.c.ends_at.is_(None), table.c.ends_at > sa.bindparam("now", type_=sa.BigInteger))
    return sa.select(table).where(_among(table.c.account_id, dialect), live)


@functools.cache
def _ended_windows(dialect: str) -> sa.Select[Any]:
    table, holds = schema.windows, schema.holds
    same = [table.c[name] == holds.c[name] for name in ("account_id", "dimension", "period", "starts_at")]
    ended = table.c.ends_at <= sa.bindparam("now", type_=sa.BigInteger)
    return sa.select(table).join(holds, sa.and_(*same)).where(_among(holds.c.allotment_id, dialect), ended)


@functools.cache
def _holds(dialect: str) -> sa.Select[Any]:
    return sa.select(schema.holds).where(_among(schema.holds.c.allotment_id, dialect))


@functools.cache
def _records(dialect: str) -> sa.Select[Any]:
    table = schema.records
    # In the partitions of the months alone: a record that comes twice comes for the same allotment.
    return sa.select(table.c.id, table.c.allotment_id, table.c.digest).where(
        _among(table.c.id, dialect), table.c.month.in_(sa.bindparam("months", expanding=True))
    )


def _load_operations(books: Books, ids: set[str]) -> None:
    if ids:
        for row in _rows(books, _operations, keys=sorted(ids)):
            books.operations[row.id] = StoredOperation(row.verb, row.digest, row.answer)


def _load_epoch(books: Books, *, exclusively: bool) -> None:
    # Shared: many replicas may serve one leader, but none while a new one takes over.
    row = books.connection.execute(sa.select(schema.epochs).with_for_update(read=not exclusively)).one()
    books.epoch, books.epoch_holder = row.epoch, row.holder


def _load_executions(books: Books, uids: set[str]) -> None:
    if uids:
        for row in _rows(books, _executions, keys=sorted(uids)):
            books.executions[row.uid] = (row.kind, row.namespace, row.name)


def _load_allotments(books: Books, ids: set[str], uids: set[str]) -> None:
    if uids:
        rows = _rows(books, _allotments_of_executions, keys=sorted(ids), uids=sorted(uids))
    elif ids:
        rows = _rows(books, _allotments, keys=sorted(ids))
    else:
        return
    for row in rows:
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
    return Usage(*usage_values(row))


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
        tracked={
            account: tuple([DIMENSIONS[name] for name in names]) for account, names in json.loads(row.tracked).items()
        },
        limited=_dimensions(row.limited),
        opened_ms=row.opened_ms,
        activated_ms=row.activated_ms,
        exchanged_ms=row.exchanged_ms,
        closed_ms=row.closed_ms,
        close_reason=row.close_reason,
        sequences=Sequences(row.contiguous, _ranges(row.ahead)),
        final_sequence=row.final_sequence,
        final_settled={Dimension(name): value for name, value in settled.items()} if settled is not None else None,
        progress=row.progress,
        purpose=Purpose(row.purpose),
        debits=_debits(row.debits),
        corrected_nanos=row.corrected_nanos,
        word=None if row.last_word is None else Word.of_json(row.last_word),
        machine=MachineTerms.model_validate_json(row.machine) if row.machine is not None else None,
        charged_ms=row.charged_ms,
        usage=usage_of(row),
        stored=(row.state, row.progress, *usage_values(row)),
    )


def _ranges(text: str) -> tuple[tuple[int, int], ...]:
    return tuple((low, high) for low, high in json.loads(text)) if text != "[]" else ()


def _debits(text: str) -> dict[str, dict[Dimension, int]]:
    if text == "{}":
        return {}
    return {
        bucket: {Dimension(name): value for name, value in amounts.items()}
        for bucket, amounts in json.loads(text).items()
    }


def _load_accounts(books: Books, ids: set[str]) -> None:
    if ids:
        for row in _rows(books, _accounts, keys=sorted(ids)):
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
        period=PERIODS[row.period],
        time_zone=row.time_zone,
        limits=_amounts(row.limits),
        max_per_execution=_amounts(row.max_per_execution),
        max_per_request=_amounts(row.max_per_request),
        holders=row.holders,
        rates=_rates(row.rates),
        alert_thresholds=tuple(json.loads(row.alert_thresholds)) if row.alert_thresholds != "[]" else (),
        recall_ms=row.recall_ms,
        period_since=row.period_since,
    )


@functools.lru_cache(PARSED_MAX)
def _rates(text: str) -> tuple[RateLimit, ...]:
    rates = [{**values, "dimension": Dimension(values["dimension"])} for values in json.loads(text)]
    return tuple(RateLimit.model_construct(**each) for each in rates)


def _amounts(text: str) -> dict[Dimension, int]:
    return dict(_parsed_amounts(text))


@functools.lru_cache(PARSED_MAX)
def _parsed_amounts(text: str) -> dict[Dimension, int]:
    return {Dimension(name): value for name, value in json.loads(text).items()}


@functools.lru_cache(PARSED_MAX)
def _dimensions(text: str) -> tuple[Dimension, ...]:
    return tuple(map(Dimension, json.loads(text)))


def window_of(row: Any) -> Window:
    """Make a window of its row."""
    return Window(
        account_id=row.account_id,
        dimension=DIMENSIONS[row.dimension],
        period=PERIODS[row.period],
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        enforced=row.enforced,
        limit=row.limit,
        spent=row.spent,
        reserved=row.reserved,
        excess=row.excess,
        floor=row.floor,
        carried=row.carried,
    )


def _load_windows(books: Books) -> None:
    """Load the windows that have not ended, and with the holds those that an allotment in hand has a hold in."""
    if not books.accounts:
        return
    for row in _rows(books, _live_windows, keys=sorted(books.accounts), now=books.now):
        window = window_of(row)
        books.windows[window.key] = window
    _load_holds(books)
    newest: dict[tuple[str, Dimension, BudgetPeriod], int] = {}
    for account, dimension, period, starts_at in books.windows:
        newest[account, dimension, period] = max(starts_at, newest.get((account, dimension, period), starts_at))
    books.newest_start = lambda account, dimension: newest.get((account.id, dimension, account.period))


def _load_holds(books: Books) -> None:
    if not books.allotments:
        return
    keys = sorted(books.allotments)
    rows = [
        ((row.account_id, DIMENSIONS[row.dimension], PERIODS[row.period], row.starts_at), row)
        for row in _rows(books, _holds, keys=keys)
    ]
    if any(key not in books.windows for key, _ in rows):
        for row in _rows(books, _ended_windows, keys=keys, now=books.now):
            window = window_of(row)
            books.windows.setdefault(window.key, window)
    for key, row in rows:
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
    months = {month_of(allotment.opened_ms) for allotment in books.allotments.values()}
    if ids and months:
        for row in _rows(books, _records, keys=sorted(ids), months=sorted(months)):
            books.records[row.id] = StoredRecord(row.allotment_id, row.digest)
