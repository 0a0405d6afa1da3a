"""Speaks to the ledger's store as operator and meters do, in short words, for tests of the books."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.last_word import WordTotals
from almoner_core.usage import Outcome, Tokens, UsageRecord
from almoner_core.wire import AccountKey, Dimension, ErrorCode
from almoner_ledger.errors import LedgerError
from almoner_ledger.history import asking, reading, usage
from almoner_ledger.store import Answer, Database, Store, Verb, command, queries
from almoner_ledger.store.state import quota_account_id
from almoner_ledger.verify import Violation, audit

USD, TOKENS, TOOL_CALLS, REQUESTS = Dimension.USD, Dimension.TOKENS, Dimension.TOOL_CALLS, Dimension.REQUESTS
DOLLAR = 1_000_000_000
NAMESPACE = "team"

EVERYTHING = asking.Question()

T = TypeVar("T")
Amounts = Mapping[Dimension, int]


def new_id() -> str:
    return str(uuid.uuid4())


def key(quota: str = "quota", subject: str = "") -> AccountKey:
    return AccountKey(namespace=NAMESPACE, quota=quota, subject=subject)


def record(sequence: int, cost: int | None = 0, **changes: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "id": new_id(),
        "sequence": sequence,
        "provider": "provider",
        "model": "model",
        "operation": "chat",
        "cost_nanos": cost,
        "started_unix_ms": 0,
        "duration_ms": 1,
        "outcome": Outcome.OK,
        "requests": 1,
        "price_version": "test" if cost else None,
    }
    return UsageRecord(**{**values, **changes})


def tokens(given: int, taken: int = 0) -> Tokens:
    return Tokens(input=given, output=taken)


def word_of(records: Sequence[UsageRecord], output: wire.LastOutput | None = None, **changes: int) -> wire.LastWord:
    """The last word of a meter that had these records, ready to be changed."""
    totals = {
        "cost_nanos": sum(each.cost_nanos or 0 for each in records),
        "unpriced": sum(each.cost_nanos is None for each in records),
        "requests": sum(each.requests for each in records),
        "tool_calls": sum(each.tool_calls for each in records),
        **{
            f"{kind}_tokens": sum(getattr(each.tokens, kind) for each in records)
            for kind in ("input", "cached_input", "cache_write", "output", "reasoning")
        },
    }
    last = changes.pop("last_sequence", max((each.sequence for each in records), default=0))
    return wire.LastWord(last_sequence=last, totals=WordTotals(**{**totals, **changes}), output=output)


class Clock:
    """A clock that tests turn; the database's own may have jumped."""

    def __init__(self, now: int = 1_800_000_000) -> None:
        self.now = now
        self.jumped = 0

    def __call__(self) -> int:
        return (self.now + self.jumped) * 1000


def refused(answer: Any) -> LedgerError:
    assert isinstance(answer, LedgerError), answer
    return answer


def code(answer: Any) -> ErrorCode:
    return refused(answer).code


class Books:
    """One ledger database with an operator that leads it."""

    def __init__(self, url: str, clock: Clock | None = None, *, migrate: bool = True) -> None:
        self.url = url
        self.database = Database(url, patience_seconds=20)
        self.clock = clock
        self.store = Store(self.database, clock=clock)
        if migrate:
            self.store.migrate()
        self.epoch = self.take_epoch()

    def close(self) -> None:
        self.database.dispose()

    def run(self, verb: Verb, body: wire.WireModel, **more: Any) -> Any:
        return self.store.execute([command(verb, body, **more)])[0]

    def run_all(self, commands: Sequence[Any]) -> list[Answer]:
        return self.store.execute(commands)

    def take_epoch(self) -> int:
        answer = self.run(Verb.TAKE_EPOCH, wire.TakeEpoch(operation_id=new_id(), holder="operator"))
        assert isinstance(answer, wire.Epoch)
        return answer.epoch

    def limits(self, quota: str = "quota", *, limits: Amounts, generation: int = 1, **more: Any) -> Any:
        """Put limits in force; `subject`, `period`, `time_zone`, `enforced`, `max_per_execution` as named."""
        subject = more.pop("subject", "")
        more.setdefault("period", BudgetPeriod.TOTAL)
        account = wire.AccountLimits(key=key(quota, subject), generation=generation, limits=dict(limits), **more)
        return self.update_account(account)

    def update_account(self, account: wire.AccountLimits) -> Any:
        """Put one account's limits in force; where they are refused, the refusal as an error."""
        body = wire.UpdateAccounts(epoch=self.epoch, operation_id=new_id(), accounts=[account])
        answer = self.run(Verb.UPDATE_ACCOUNTS, body, epoch=self.epoch)
        if isinstance(answer, wire.AccountsAnswer) and answer.refused:
            error = answer.refused[0].error
            return LedgerError(error.code, error.message, field=error.field)
        return answer

    def open_command(self, **changes: Any) -> Any:
        uid = changes.pop("uid", None) or new_id()
        execution = wire.ExecutionRef(
            namespace=NAMESPACE,
            name=changes.pop("name", "run"),
            uid=uid,
            attempt=changes.pop("attempt", 1),
            agent=changes.pop("agent", "agent"),
            owner=changes.pop("owner", "owner"),
        )
        body = wire.OpenAllotment(
            operation_id=changes.pop("operation_id", None) or new_id(),
            allotment=changes.pop("allotment", None) or new_id(),
            execution=execution,
            pod="pod",
            accounts=changes.pop("accounts", [key()]),
            **changes,
        )
        return command(Verb.OPEN, body, epoch=self.epoch)

    def open(self, **changes: Any) -> Any:
        return self.run_all([self.open_command(**changes)])[0]

    def bind(self, allotment: str, pod_uid: str = "pod-uid", operation_id: str | None = None) -> Any:
        body = wire.BindAllotment(operation_id=operation_id or new_id(), allotment=allotment, pod_uid=pod_uid)
        return self.run(Verb.BIND, body, epoch=self.epoch)

    def end(
        self,
        allotment: str,
        verb: Verb = Verb.CLOSE,
        operation_id: str | None = None,
        *,
        terminated: bool = True,
        last_word: wire.LastWord | None = None,
    ) -> Any:
        body = wire.CloseAllotment(
            operation_id=operation_id or new_id(),
            allotment=allotment,
            reason="test",
            terminated=terminated,
            last_word=last_word,
        )
        return self.run(verb, body, epoch=self.epoch)

    def activate(
        self,
        allotment: str,
        pod_uid: str = "pod-uid",
        operation_id: str | None = None,
        unsettled: Sequence[str] = (),
    ) -> Any:
        body = wire.Activate(operation_id=operation_id or new_id(), unsettled=list(unsettled))
        return self.run(Verb.ACTIVATE, body, allotment=allotment, pod_uid=pod_uid)

    def extend(
        self,
        allotment: str,
        need: Amounts,
        want: Amounts | None = None,
        pod_uid: str = "pod-uid",
        operation_id: str | None = None,
    ) -> Any:
        body = wire.Extend(operation_id=operation_id or new_id(), need=dict(need), want=dict(want or {}))
        return self.run(Verb.EXTEND, body, allotment=allotment, pod_uid=pod_uid)

    def post(
        self,
        allotment: str,
        records: Sequence[UsageRecord],
        pod_uid: str = "pod-uid",
        operation_id: str | None = None,
    ) -> Any:
        body = wire.PostRecords(operation_id=operation_id or new_id(), records=list(records))
        return self.run(Verb.POST, body, allotment=allotment, pod_uid=pod_uid)

    def give_back(
        self,
        allotment: str,
        last_sequence: int,
        settled: Amounts,
        amounts: Amounts | None = None,
        *,
        final: bool = False,
        pod_uid: str = "pod-uid",
    ) -> Any:
        body = wire.Return(
            operation_id=new_id(),
            last_sequence=last_sequence,
            settled=dict(settled),
            amounts=dict(amounts or {}),
            final=final,
        )
        return self.run(Verb.RETURN, body, allotment=allotment, pod_uid=pod_uid)

    def active(self, **changes: Any) -> str:
        """Open, bind and activate; gives the allotment's id."""
        answer = self.open(**changes)
        assert isinstance(answer, wire.OpenAnswer), answer
        assert isinstance(self.bind(answer.allotment), wire.ItemAnswer)
        assert isinstance(self.activate(answer.allotment), wire.Activated)
        return answer.allotment

    def execute(self, statement: sa.Executable) -> None:
        """Meddle with the database directly."""
        self.database.write(lambda connection: connection.execute(statement))

    def changes(self, after: int = 0, limit: int = 500) -> wire.Changes:
        return self.store.read(lambda c: queries.changes(c, self.store.now_ms(c), after, limit))

    def usage(self, by: str, question: asking.Question = EVERYTHING, **more: Any) -> wire.UsagePage:
        """Sums by dimensions such as `day,agent`."""
        grouping = usage.Grouping(asking.read_by(by), **{"limit": 100, **more})
        return reading.read(self.database, lambda c: usage.usage(c, question, grouping))

    def state(self, quota: str = "quota", dimension: Dimension = USD, subject: str = "") -> wire.AccountState:
        """The account's current window."""
        account = quota_account_id(key(quota, subject))
        states = self.store.read(lambda c: queries.account_states(c, [account], self.store.now_ms(c) // 1000))
        return next(state for state in states if state.dimension is dimension)

    def totals(self, uid: str) -> wire.ExecutionTotals:
        return self.store.read(lambda c: queries.execution_totals(c, [uid]))[0]

    def violations(self) -> list[Violation]:
        return self.store.read(audit).violations


def replica(books: Books) -> Books:
    """A second ledger on the same database, led by the same operator."""
    other = Books(books.url, books.clock, migrate=False)
    books.epoch = other.epoch
    return other
