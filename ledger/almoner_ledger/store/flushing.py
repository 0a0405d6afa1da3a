"""Writes what a group of commands changed, in the fixed order that Books describes."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from almoner_ledger import schema
from almoner_ledger.schema import USAGE_COLUMNS
from almoner_ledger.store import alerts, bulk, configuration, rates
from almoner_ledger.store.books import Books
from almoner_ledger.store.state import Account, Allotment, Hold, Window, usage_values

CHANGES = "changes"
ENTRIES = "entries"


def flush(books: Books) -> None:
    """Write all changes; the last statements take the numbers of changes and entries, and write what bears them."""
    writer = bulk.writer(books.connection)
    _flush_epoch(books)
    writer.insert(schema.executions, books.new_executions)
    _flush_accounts(books, writer)
    _flush_windows(books, writer)
    alerts.flush(books, writer)
    rates.flush(books, writer)
    _flush_allotments(books, writer)
    _flush_holds(books, writer)
    writer.insert(schema.operations, books.new_operations)
    writer.upsert(schema.outputs, [books.outputs[key] for key in sorted(books.outputs)])
    # From last words: what the meter itself put is better.
    writer.insert_missing(schema.outputs, [books.last_outputs[key] for key in sorted(books.last_outputs)])
    _flush_sums(books, writer)
    configuration.flush(books, writer)
    changed = writer.take(CHANGES, len(books.changed))
    entries = writer.take(ENTRIES, len(books.new_records))
    _flush_records(books, writer, entries)
    _flush_feed(books, writer, changed)
    configuration.flush_changes(books, writer)
    writer.send()


# Made once: json.dumps with settings of its own makes an encoder a call.
_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def _flush_epoch(books: Books) -> None:
    if books.epoch_dirty:
        books.connection.execute(sa.update(schema.epochs).values(epoch=books.epoch, holder=books.epoch_holder))


def _flush_accounts(books: Books, writer: bulk.Writer) -> None:
    accounts = [books.accounts[key] for key in sorted(books.accounts)]
    writer.insert(schema.accounts, [_account_row(each) for each in accounts if each.new])
    writer.update(schema.accounts, [_account_row(each) for each in accounts if each.dirty and not each.new])


def _account_row(account: Account) -> dict[str, Any]:
    return {
        "id": account.id,
        "kind": account.kind.value,
        "namespace": account.namespace,
        "name": account.name,
        "subject": account.subject,
        "generation": account.generation,
        "enforced": account.enforced,
        "period": account.period.value,
        "time_zone": account.time_zone,
        "limits": _json(account.limits),
        "max_per_execution": _json(account.max_per_execution),
        "max_per_request": _json(account.max_per_request),
        "holders": account.holders,
        "rates": _json([each.model_dump(mode="json") for each in account.rates]),
        "alert_thresholds": _json(list(account.alert_thresholds)),
        "recall_ms": account.recall_ms,
        "period_since": account.period_since,
    }


def _flush_windows(books: Books, writer: bulk.Writer) -> None:
    windows = [books.windows[key] for key in sorted(books.windows)]
    for window in windows:
        if window.new or window.dirty:
            window.settle_floor()
            account = books.accounts[window.account_id]
            if account.kind == "quota":
                books.changed.add(("account", account.id))
    writer.insert(schema.windows, [_window_row(each) for each in windows if each.new])
    writer.update(schema.windows, [_window_row(each) for each in windows if each.dirty and not each.new])


def _window_row(window: Window) -> dict[str, Any]:
    return {
        "account_id": window.account_id,
        "dimension": window.dimension.value,
        "period": window.period.value,
        "starts_at": window.starts_at,
        "ends_at": window.ends_at,
        "enforced": window.enforced,
        "limit": window.limit,
        "spent": window.spent,
        "reserved": window.reserved,
        "excess": window.excess,
        "floor": window.floor,
        "carried": window.carried,
    }


def _flush_allotments(books: Books, writer: bulk.Writer) -> None:
    allotments = [books.allotments[key] for key in sorted(books.allotments)]
    writer.insert(schema.allotments, [_allotment_row(each) for each in allotments if each.new])
    # Extensions and returns change no sums: rows of their own, with fewer columns.
    changed = [each for each in allotments if each.dirty and not each.new]
    summed = [each for each in changed if usage_values(each.usage) != each.stored[-len(USAGE_COLUMNS) :]]
    spared = {each.id for each in summed}
    writer.update(schema.allotments, [_life_of(each) for each in changed if each.id not in spared])
    writer.update(schema.allotments, [{**_life_of(each), **each.usage.to_row()} for each in summed])
    for each in allotments:
        if each.new or (each.dirty and each.shown() != each.stored):
            books.changed.add(("execution", each.execution.uid))
    for allotment in (*books.outputs, *books.last_outputs):
        books.changed.add(("execution", books.allotments[allotment].execution.uid))


def _allotment_row(allotment: Allotment) -> dict[str, Any]:
    execution = allotment.execution
    return {
        "execution_uid": execution.uid,
        "attempt": execution.attempt,
        "kind": execution.kind,
        "namespace": execution.namespace,
        "name": execution.name,
        "agent": execution.agent,
        "owner": execution.owner,
        "pod": allotment.pod,
        "tracked": _json(allotment.tracked),
        "opened_ms": allotment.opened_ms,
        "purpose": allotment.purpose.value,
        "provider_keys": _json([each.model_dump() for each in allotment.keys]) if allotment.keys else None,
        **_life_of(allotment),
        **allotment.usage.to_row(),
    }


def _life_of(allotment: Allotment) -> dict[str, Any]:
    """The columns that may change, sums apart, and the key."""
    return {
        "id": allotment.id,
        "pod_uid": allotment.pod_uid,
        "state": allotment.state.value,
        "frozen": allotment.frozen,
        "limited": _json(allotment.limited),
        "activated_ms": allotment.activated_ms,
        "exchanged_ms": allotment.exchanged_ms,
        "closed_ms": allotment.closed_ms,
        "close_reason": allotment.close_reason,
        "contiguous": allotment.sequences.contiguous,
        "ahead": _json(allotment.sequences.ahead) if allotment.sequences.ahead else "[]",
        "final_sequence": allotment.final_sequence,
        "final_settled": None if allotment.final_settled is None else _json(allotment.final_settled),
        "progress": allotment.progress,
        "debits": _json(allotment.debits) if allotment.debits else "{}",
        "corrected_nanos": allotment.corrected_nanos,
        "last_word": None if allotment.word is None else allotment.word.to_json(),
        "machine": allotment.machine.model_dump_json() if allotment.machine is not None else None,
        "charged_ms": allotment.charged_ms,
    }


def _flush_holds(books: Books, writer: bulk.Writer) -> None:
    holds = sorted(books.dirty_holds(), key=lambda hold: (hold.allotment_id, hold.window.key))
    writer.insert(schema.holds, [_hold_row(each) for each in holds if each.new])
    writer.update(schema.holds, [_hold_row(each) for each in holds if not each.new])


def _hold_row(hold: Hold) -> dict[str, Any]:
    account, dimension, period, starts_at = hold.window.key
    return {
        "allotment_id": hold.allotment_id,
        "account_id": account,
        "dimension": dimension.value,
        "period": period.value,
        "starts_at": starts_at,
        "granted": hold.granted,
        "used": hold.used,
        "charged": hold.charged,
        "excess": hold.excess,
        "excess_corrected": hold.excess_corrected,
    }


def _flush_sums(books: Books, writer: bulk.Writer) -> None:
    rollups = [
        {**dict(zip(schema.ROLLUP_KEY, key, strict=True)), "records": rollup.records, **rollup.usage.to_row()}
        for key, rollup in sorted(books.rollups.items())
    ]
    writer.upsert(schema.rollups, rollups, add=frozenset({"records", *USAGE_COLUMNS}))
    agents = [
        {"namespace": namespace, "name": name, **usage.to_row()}
        for (namespace, name), usage in sorted(books.agents.items())
    ]
    writer.upsert(schema.agents, agents, add=frozenset(USAGE_COLUMNS))


def _flush_records(books: Books, writer: bulk.Writer, first: int) -> None:
    rows = [{**row, "number": first + index} for index, row in enumerate(books.new_records)]
    writer.insert(schema.records, rows, numbered=("number", ENTRIES))


def _flush_feed(books: Books, writer: bulk.Writer, first: int) -> None:
    rows = [
        {"kind": kind, "key": key, "changed": first + index, "changed_ms": books.now_ms}
        for index, (kind, key) in enumerate(sorted(books.changed))
    ]
    writer.upsert(schema.feed, rows, numbered=("changed", CHANGES))
