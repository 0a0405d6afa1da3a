"""Runs a group of commands in one transaction: each decided on its own, each once per operation id.

A command either refuses before it changes anything, or succeeds; so a bad one does not fail its neighbours, and no
savepoints are needed. Where that does not hold (a refusal after a change, a row that breaks a constraint, a race with a
replica), the group is rolled back and its commands run one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy.engine import Connection

from almoner_core.wire import ErrorCode, WireModel
from almoner_ledger.errors import LedgerError
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.store import accounts, accruing, allotments, configuration, corrections, leases, records
from almoner_ledger.store.books import Books, StoredOperation
from almoner_ledger.store.commands import ANSWERS, Command, Verb
from almoner_ledger.store.flushing import flush
from almoner_ledger.store.loading import load
from almoner_ledger.usage_metrics import Posted

Answer = WireModel | LedgerError

DECIDERS: Final[dict[Verb, Callable[[Books, Command], Any]]] = {
    Verb.TAKE_EPOCH: accounts.take_epoch,
    Verb.UPDATE_ACCOUNTS: accounts.update_accounts,
    Verb.OPEN: allotments.open_allotment,
    Verb.BIND: allotments.bind,
    Verb.VOID: allotments.void,
    Verb.CLOSE: allotments.close,
    Verb.ACCRUE: accruing.accrue,
    Verb.ACTIVATE: allotments.activate,
    Verb.EXTEND: allotments.extend,
    Verb.POST: records.post,
    Verb.RETURN: allotments.give_back,
    Verb.OUTPUT: records.put_output,
    Verb.PROGRESS: records.post_progress,
    Verb.EXPIRE: leases.expire,
    Verb.COVER: accruing.cover,
    Verb.CORRECT: corrections.correct,
    Verb.SETTLE: corrections.settle,
    Verb.OBSERVE: configuration.observe,
}
OF_METERS: Final = frozenset({Verb.ACTIVATE, Verb.EXTEND, Verb.POST, Verb.RETURN, Verb.OUTPUT, Verb.PROGRESS})


class PoisonedError(Exception):
    """A command refused after it had changed the books in hand: the group has to be run one by one."""


class Ran(NamedTuple):
    """The answers to commands, in order, and the entries that they wrote."""

    answers: list[Answer]
    posted: list[Posted]


def run(connection: Connection, commands: Sequence[Command], now_ms: int, lease: LeasePolicy) -> Ran:
    """Decide the commands in order and write what they changed. Raises PoisonedError; the caller rolls back."""
    books = load(connection, commands, now_ms)
    books.lease = lease
    answers = [_decide(books, each) for each in commands]
    flush(books)
    return Ran(answers, [_posted(books, row) for row in books.new_records])


def _posted(books: Books, row: Mapping[str, Any]) -> Posted:
    ref = books.allotments[row["allotment_id"]].execution
    return Posted(ref.namespace, ref.agent, row)


def _decide(books: Books, command: Command) -> Answer:
    before = books.mutations
    books.moment = None
    try:
        if command.verb in OF_METERS:
            # Before a stored answer is given again: it is not for another pod's eyes.
            allotments.speaking_for(books, command)
        stored = _stored(books, command)
        if stored is not None:
            return stored
        accounts.check_epoch(books, command)
        answer: WireModel = DECIDERS[command.verb](books, command)
    except LedgerError as error:
        if books.mutations != before:
            raise PoisonedError from error
        return error
    if command.operation_id is not None:
        text = answer.model_dump_json()
        books.operations[command.operation_id] = StoredOperation(command.verb.value, command.digest, text)
        books.new_operations.append(
            {
                "id": command.operation_id,
                "verb": command.verb.value,
                "digest": command.digest,
                "answer": text,
                "created_ms": books.now_ms,
            }
        )
    return answer


def _stored(books: Books, command: Command) -> WireModel | None:
    if command.operation_id is None:
        return None
    stored = books.operations.get(command.operation_id)
    if stored is None:
        return None
    if stored.verb != command.verb or stored.digest != command.digest:
        raise LedgerError(
            ErrorCode.OPERATION_CONFLICT,
            f"operation_id: {command.operation_id} was used for a {stored.verb} with other content",
            field="operation_id",
        )
    return ANSWERS[command.verb].model_validate_json(stored.answer)
