"""`almoner ledger correct` and `settle`: a person's word on what was spent, as new entries. Run on the database."""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any, Final

from almoner_core import wire
from almoner_core.money import Money
from almoner_core.wire import WireModel
from almoner_ledger.errors import LedgerError
from almoner_ledger.store import Store, Verb, command
from almoner_ledger.store.entries import read

_NAMESPACE: Final = uuid.UUID("f3a5b2f4-5c0e-5a4b-a7a6-3f4a5c1d2e6b")


def operation_id(*content: Any) -> str:
    """Derive an operation's id from its content: done again, it is the same operation."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True)))


def refused(error: LedgerError) -> int:
    """Say why a command was refused; gives the exit code."""
    sys.stderr.write(f"almoner ledger: {error.code.value}: {error.message}\n")
    return 1


def do(store: Store, verb: Verb, body: WireModel, allotment: str) -> Any:
    """Run one command; gives its answer, or the LedgerError."""
    return store.execute([command(verb, body, allotment=allotment)])[0]


def correct(store: Store, record: str, cost: Money, reason: str) -> int:
    """Let an entry cost `cost`; writes what changed to standard output, and gives the exit code."""
    entry = store.read(lambda connection: read(connection, [record])).get(record)
    if entry is None:
        sys.stderr.write(f"almoner ledger: not_found: there is no entry {record}\n")
        return 1
    wanted = wire.NewCost(record=record, cost_nanos=cost.nanos, revision=entry.corrections)
    body = wire.CorrectEntries(
        operation_id=operation_id("correct", wanted.model_dump(), reason), corrections=[wanted], reason=reason
    )
    answer = do(store, Verb.CORRECT, body, entry.row["allotment_id"])
    if isinstance(answer, LedgerError):
        return refused(answer)
    (done,) = answer.corrected
    before = "unknown" if done.before is None else str(Money(done.before))
    if done.entry is None:
        sys.stdout.write(f"{record}: costs {before} already\n")
    else:
        sys.stdout.write(f"{record}: {before} -> {Money(done.after)} (entry {done.entry})\n")
    return 0


def settle(
    store: Store,
    allotment: str,
    cost: Money,
    reason: str,
    *,
    tokens: int | None = None,
    requests: int | None = None,
    tool_calls: int | None = None,
) -> int:
    """Settle what an attempt that vanished was charged; writes it to standard output, and gives the exit code."""
    said = {"cost_nanos": cost.nanos, "tokens": tokens, "requests": requests, "tool_calls": tool_calls}
    body = wire.SettleCharge(operation_id=operation_id("settle", allotment, said, reason), reason=reason, **said)
    answer = do(store, Verb.SETTLE, body, allotment)
    if isinstance(answer, LedgerError):
        return refused(answer)
    sys.stdout.write(
        f"{allotment}: {Money(answer.charged_nanos)} unaccounted -> {Money(answer.cost_nanos)} spent "
        f"(entry {answer.entry})\n"
    )
    return 0
