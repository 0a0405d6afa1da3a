"""The store against a simple model of it: random histories on both databases, checked after every step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from almoner_core import wire
from almoner_core.usage import UsageRecord
from almoner_core.wire import Dimension, ErrorCode
from almoner_ledger.errors import LedgerError
from almoner_ledger.store import Verb
from tests.support.books import TOKENS, USD, Books, code, key, new_id, record, tokens

AMOUNT = st.integers(0, 60)
LIMIT = st.integers(0, 600)


@dataclass
class Attempt:
    """What the model knows of one allotment: `held` and `spent` are the same on all of its accounts."""

    id: str
    execution: str
    number: int
    state: str = "offered"
    bound: bool = False
    frozen: bool = False
    held: dict[Dimension, int] = field(default_factory=dict)
    spent: dict[Dimension, int] = field(default_factory=dict)
    posted: dict[Dimension, int] = field(default_factory=dict)
    charged: dict[Dimension, int] = field(default_factory=dict)
    records: list[UsageRecord] = field(default_factory=list)
    final: bool = False


@dataclass
class Done:
    """An operation that was done: how to ask again, how to misuse its id, and its answer."""

    again: Callable[[], Any]
    otherwise: Callable[[], Any]
    answer: Any


def any_in(*states: str) -> Callable[[Any], bool]:
    """A precondition: some attempt is in one of the states."""
    return lambda machine: any(each.state in states for each in getattr(machine, "attempts", []))


class LedgerMachine(RuleBasedStateMachine):
    """One quota with money, one with money and tokens, executions with limits of their own, and many attempts."""

    books: ClassVar[Books]

    @initialize(narrow=LIMIT, wide=LIMIT, token_limit=LIMIT, own=LIMIT)
    def begin(self, narrow: int, wide: int, token_limit: int, own: int) -> None:
        self.run = new_id()
        self.generation = 0
        self.own = own
        self.limits: dict[str, dict[Dimension, int]] = {}
        self.attempts: list[Attempt] = []
        self.executions = [f"{self.run}/{number}" for number in range(2)]
        self.done: list[Done] = []
        self.stale: int | None = None
        self.set_limits(narrow, wide, token_limit)

    # -- the model -------------------------------------------------------------------------------------

    def used(self, dimension: Dimension, execution: str | None = None) -> int:
        mine = [each for each in self.attempts if execution in (None, each.execution)]
        return sum(each.held.get(dimension, 0) + each.spent.get(dimension, 0) for each in mine)

    def room(self, execution: str, dimension: Dimension, freed: int = 0) -> int:
        rooms = [limits[dimension] - self.used(dimension) for limits in self.limits.values() if dimension in limits]
        if dimension is USD:
            rooms.append(self.own - self.used(USD, execution))
        return min(max(0, each + freed) for each in rooms)

    def some(self, data: Any, *states: str) -> Attempt:
        found = [each for each in self.attempts if each.state in states]
        return data.draw(st.sampled_from(found))  # type: ignore[no-any-return]

    def check_grant(self, attempt: Attempt, need: dict[Dimension, int], want: int, answer: Any, freed: int = 0) -> bool:
        """Compare a grant or refusal with the model's rooms; gives whether it was granted."""
        freed_of = {USD: freed, TOKENS: 0}
        fits = all(amount <= self.room(attempt.execution, d, freed_of[d]) for d, amount in need.items())
        if not fits:
            assert code(answer) is ErrorCode.INSUFFICIENT
            refusal = answer.refusal
            assert refusal.needed > refusal.limit - refusal.spent - refusal.reserved
            return False
        assert not isinstance(answer, LedgerError), answer.message
        for dimension, amount in need.items():
            most = max(amount, want if dimension is USD else 0)
            assert amount <= answer.granted[dimension] <= most
            attempt.held[dimension] = attempt.held.get(dimension, 0) + answer.granted[dimension]
        return True

    # -- rules -----------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.attempts) % 3 == 2)
    @rule(narrow=LIMIT, wide=LIMIT, token_limit=LIMIT)
    def set_limits(self, narrow: int, wide: int, token_limit: int) -> None:
        self.generation += 1
        self.limits = {"narrow": {USD: narrow}, "wide": {USD: wide, TOKENS: token_limit}}
        for quota, limits in self.limits.items():
            answer = self.books.limits(self.quota(quota), limits=limits, generation=self.generation)
            assert isinstance(answer, wire.AccountsAnswer)

    def quota(self, name: str) -> str:
        return f"{self.run}-{name}"

    @rule(data=st.data(), need=AMOUNT, need_tokens=AMOUNT, want=st.integers(0, 10**6))
    def open(self, data: Any, need: int, need_tokens: int, want: int) -> None:
        self.open_one(data.draw(st.sampled_from(self.executions)), need, need_tokens, want)

    @rule(data=st.data(), need=AMOUNT, need_tokens=AMOUNT, want=st.integers(0, 10**6))
    def open_and_activate(self, data: Any, need: int, need_tokens: int, want: int) -> None:
        attempt = self.open_one(data.draw(st.sampled_from(self.executions)), need, need_tokens, want)
        if attempt is not None:
            self.books.bind(attempt.id)
            attempt.bound = True
            assert isinstance(self.books.activate(attempt.id), wire.Activated)
            attempt.state = "active"

    def open_one(self, execution: str, need: int, need_tokens: int, want: int) -> Attempt | None:
        mine = [each for each in self.attempts if each.execution == execution]
        attempt = Attempt(new_id(), execution, len(mine) + 1)
        superseded = [each for each in mine if each.state == "offered"]
        amounts = {USD: need, TOKENS: need_tokens}
        freed = {d: sum(each.held.get(d, 0) for each in superseded) for d in (USD, TOKENS)}
        made = self.books.open_command(
            uid=execution,
            attempt=attempt.number,
            allotment=attempt.id,
            accounts=[key(self.quota("wide")), key(self.quota("narrow"))],
            limits={USD: self.own},
            need=amounts,
            want={USD: want},
        )
        answer = self.books.run_all([made])[0]
        if any(each.state == "active" for each in mine):
            assert code(answer) is ErrorCode.LEASED, "two attempts of one execution never spend at once"
            return None
        before = [(each, dict(each.held), each.state) for each in superseded]
        for each in superseded:
            each.held.clear()
            each.state = "void"
        assert all(amount >= 0 for amount in freed.values())
        if self.check_grant(attempt, amounts, want, answer):
            self.attempts.append(attempt)
            other = dataclasses.replace(made, digest="0" * 64)
            self.done.append(
                Done(lambda: self.books.run_all([made])[0], lambda: self.books.run_all([other])[0], answer)
            )
            return attempt
        for each, held, state in before:
            each.held, each.state = held, state
        return None

    @precondition(any_in("offered", "active"))
    @rule(data=st.data())
    def bind(self, data: Any) -> None:
        attempt = self.some(data, "offered", "active")
        operation = new_id()
        answer = self.books.bind(attempt.id, operation_id=operation)
        assert answer.state == attempt.state
        attempt.bound = True
        self.done.append(
            Done(
                lambda: self.books.bind(attempt.id, operation_id=operation),
                lambda: self.books.bind(attempt.id, "another-pod", operation_id=operation),
                answer,
            )
        )

    @precondition(any_in("offered", "active", "void", "closed"))
    @rule(data=st.data())
    def activate(self, data: Any) -> None:
        attempt = self.some(data, "offered", "active", "void", "closed")
        answer = self.books.activate(attempt.id)
        if attempt.state in ("void", "closed"):
            assert code(answer) is ErrorCode.WRONG_STATE
        elif not attempt.bound:
            assert code(answer) is ErrorCode.NOT_BOUND
        else:
            attempt.state = "active"
            assert answer.held == {d: attempt.held.get(d, 0) for d in (USD, TOKENS)}
            assert answer.next_sequence == len(attempt.records) + 1

    @precondition(any_in("active"))
    @rule(data=st.data(), need=AMOUNT, need_tokens=AMOUNT, want=st.integers(0, 10**6))
    def extend(self, data: Any, need: int, need_tokens: int, want: int) -> None:
        attempt = self.some(data, "active")
        amounts = {USD: need, TOKENS: need_tokens}
        operation = new_id()
        answer = self.books.extend(attempt.id, amounts, {USD: want}, operation_id=operation)
        if attempt.frozen:
            assert code(answer) is ErrorCode.WRONG_STATE
        elif self.check_grant(attempt, amounts, want, answer):
            self.done.append(
                Done(
                    lambda: self.books.extend(attempt.id, amounts, {USD: want}, operation_id=operation),
                    lambda: self.books.extend(attempt.id, amounts, {USD: want + 1}, operation_id=operation),
                    answer,
                )
            )

    @precondition(any_in("active", "closed"))
    @rule(data=st.data(), cost=AMOUNT, count=AMOUNT)
    def post(self, data: Any, cost: int, count: int) -> None:
        attempt = self.some(data, "active", "closed")
        if attempt.final:
            return
        amounts = {USD: cost, TOKENS: count}
        sent = record(len(attempt.records) + 1, cost, tokens=tokens(count))
        operation = new_id()
        answer = self.books.post(attempt.id, [sent], operation_id=operation)
        assert isinstance(answer, wire.Posted)
        attempt.records.append(sent)
        for dimension, amount in amounts.items():
            explained = min(amount, attempt.charged.get(dimension, 0))
            attempt.charged[dimension] = attempt.charged.get(dimension, 0) - explained
            held = min(amount - explained, attempt.held.get(dimension, 0))
            attempt.held[dimension] = attempt.held.get(dimension, 0) - held
            attempt.spent[dimension] = attempt.spent.get(dimension, 0) + amount - explained
            attempt.posted[dimension] = attempt.posted.get(dimension, 0) + amount
            attempt.frozen = attempt.frozen or amount > held + explained
        assert answer.frozen == (attempt.frozen or attempt.state == "closed"), "its meter asks for no more"
        other = record(99, cost)
        self.done.append(
            Done(
                lambda: self.books.post(attempt.id, [sent], operation_id=operation),
                lambda: self.books.post(attempt.id, [other], operation_id=operation),
                answer,
            )
        )

    @precondition(any_in("active", "closed"))
    @rule(data=st.data())
    def post_again_or_otherwise(self, data: Any) -> None:
        attempt = self.some(data, "active", "closed")
        if attempt.records:
            old = data.draw(st.sampled_from(attempt.records))
            assert isinstance(self.books.post(attempt.id, [old]), wire.Posted)
            changed = old.model_copy(update={"duration_ms": old.duration_ms + 1})
            assert code(self.books.post(attempt.id, [changed])) is ErrorCode.RECORD_CONFLICT

    @precondition(any_in("active"))
    @rule(data=st.data(), part=st.integers(0, 100))
    def give_back_some(self, data: Any, part: int) -> None:
        attempt = self.some(data, "active")
        amounts = {d: held * part // 100 for d, held in attempt.held.items()}
        answer = self.books.give_back(attempt.id, len(attempt.records), attempt.posted, amounts)
        for dimension, amount in amounts.items():
            attempt.held[dimension] -= amount
        assert answer.held == {d: attempt.held.get(d, 0) for d in (USD, TOKENS)}

    @precondition(any_in("active", "closed"))
    @rule(data=st.data())
    def give_back_all(self, data: Any) -> None:
        attempt = self.some(data, "active", "closed")
        if attempt.final:
            return
        answer = self.books.give_back(attempt.id, len(attempt.records), attempt.posted, final=True)
        assert answer.state == "closed"
        attempt.final = True
        attempt.state = "closed"
        attempt.held.clear()
        for dimension, amount in attempt.charged.items():
            attempt.spent[dimension] -= amount
        attempt.charged.clear()

    @precondition(any_in("active"))
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        attempt = self.some(data, "active")
        assert self.books.end(attempt.id).state == "closed"
        attempt.state = "closed"
        for dimension, amount in attempt.held.items():
            attempt.charged[dimension] = amount
            attempt.spent[dimension] = attempt.spent.get(dimension, 0) + amount
        attempt.held.clear()

    @precondition(any_in("offered", "active"))
    @rule(data=st.data())
    def void(self, data: Any) -> None:
        attempt = self.some(data, "offered", "active")
        answer = self.books.end(attempt.id, Verb.VOID)
        if attempt.state == "active":
            assert code(answer) is ErrorCode.WRONG_STATE
        else:
            assert answer.state == "void"
            attempt.state = "void"
            attempt.held.clear()

    @precondition(any_in("active"))
    @rule(data=st.data(), costs=st.lists(AMOUNT, min_size=1, max_size=3), backwards=st.booleans())
    def give_back_all_before_the_records(self, data: Any, costs: list[int], backwards: bool) -> None:
        """The last word overtakes the records that it speaks of; what they need stays held, and they close it."""
        attempt = self.some(data, "active")
        first = len(attempt.records) + 1
        sent = [record(first + number, cost) for number, cost in enumerate(costs)]
        stated = {d: attempt.posted.get(d, 0) + (sum(costs) if d is USD else 0) for d in (USD, TOKENS)}
        answer = self.books.give_back(attempt.id, len(attempt.records) + len(sent), stated, final=True)
        assert answer.state == "active"
        for dimension, held in attempt.held.items():
            attempt.held[dimension] = min(held, stated[dimension] - attempt.posted.get(dimension, 0))
        attempt.final = True
        self.the_accounts_are_what_the_model_says()
        for each in reversed(sent) if backwards else sent:
            assert isinstance(self.books.post(attempt.id, [each]), wire.Posted)
            cost = each.cost_nanos or 0
            attempt.held[USD] = max(0, attempt.held.get(USD, 0) - cost)
            attempt.spent[USD] = attempt.spent.get(USD, 0) + cost
            attempt.posted[USD] = attempt.posted.get(USD, 0) + cost
            attempt.records.append(each)
        attempt.state = "closed"
        attempt.held.clear()

    @precondition(lambda self: bool(getattr(self, "done", [])))
    @rule(data=st.data())
    def retry(self, data: Any) -> None:
        """However late a retry comes, and whatever has happened since: the same answer, and nothing done again."""
        done = data.draw(st.sampled_from(self.done))
        assert done.again() == done.answer

    @precondition(lambda self: bool(getattr(self, "done", [])))
    @rule(data=st.data())
    def use_an_operation_id_for_something_else(self, data: Any) -> None:
        done = data.draw(st.sampled_from(self.done))
        assert code(done.otherwise()) is ErrorCode.OPERATION_CONFLICT

    @rule()
    def another_operator_leads(self) -> None:
        self.stale = self.books.epoch
        self.books.epoch = self.books.take_epoch()
        assert self.books.epoch > self.stale

    @precondition(lambda self: any_in("offered", "active")(self) and getattr(self, "stale", None) is not None)
    @rule(data=st.data(), verb=st.sampled_from((Verb.CLOSE, Verb.VOID)))
    def the_old_operator_goes_on(self, data: Any, verb: Verb) -> None:
        attempt = self.some(data, "offered", "active")
        current = self.books.epoch
        assert self.stale is not None
        self.books.epoch = self.stale
        try:
            assert code(self.books.end(attempt.id, verb)) is ErrorCode.STALE_EPOCH
            assert code(self.books.limits(self.quota("wide"), limits={}, generation=10**9)) is ErrorCode.STALE_EPOCH
        finally:
            self.books.epoch = current

    # -- what always holds -----------------------------------------------------------------------------

    @invariant()
    def the_accounts_are_what_the_model_says(self) -> None:
        if not hasattr(self, "attempts"):
            return
        for quota, limits in self.limits.items():
            for dimension in limits:
                state = self.books.state(self.quota(quota), dimension)
                spent = sum(each.spent.get(dimension, 0) for each in self.attempts)
                reserved = sum(each.held.get(dimension, 0) for each in self.attempts)
                assert (state.limit, state.spent, state.reserved) == (limits[dimension], spent, reserved)

    def teardown(self) -> None:
        assert self.books.violations() == []


@pytest.fixture
def real_time_books(ledger_url: str) -> Iterator[Books]:
    opened = Books(ledger_url)
    yield opened
    opened.close()


def test_random_histories_agree_with_the_model(real_time_books: Books) -> None:
    machine = type("Machine", (LedgerMachine,), {"books": real_time_books})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
