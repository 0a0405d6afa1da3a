"""Corrections, settlements and late reports against a simple model: random histories on both databases.

The model knows no windows and no holds: an attempt costs what its records cost now, and what is still charged for
records that never came. The audit says whether windows, holds, totals and entries tell the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
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
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import ErrorCode
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError
from almoner_ledger.store import Verb
from almoner_ledger.store.state import quota_account_id
from tests.support.books import USD, Books, Clock, code, key, new_id, record

COST = st.integers(0, 60)
PICK = st.integers(0, 10**6)


@dataclass
class Attempt:
    """What the model knows of one allotment."""

    id: str
    uid: str
    held: int
    state: str = "active"
    final: bool = False
    settled: bool = False
    charge: int = 0
    reported: int = 0
    costs: dict[str, int | None] = field(default_factory=dict)

    @property
    def unknown(self) -> bool:
        return None in self.costs.values()

    @property
    def total(self) -> int:
        return sum(cost or 0 for cost in self.costs.values()) + self.charge


def some(test: Any) -> Any:
    """A precondition: some attempt passes the test."""
    return lambda machine: any(test(each) for each in getattr(machine, "attempts", []))


def reports(attempt: Attempt) -> bool:
    return not attempt.final


def has_records(attempt: Attempt) -> bool:
    return bool(attempt.costs)


class CorrectionsMachine(RuleBasedStateMachine):
    """One quota by the hour, and attempts that end in every way there is."""

    books: ClassVar[Books]
    clock: ClassVar[Clock]

    @initialize(limit=st.integers(50, 600))
    def begin(self, limit: int) -> None:
        self.quota = new_id()
        self.attempts: list[Attempt] = []
        self.books.limits(self.quota, limits={USD: limit}, period=BudgetPeriod.HOURLY)

    def pick(self, number: int, test: Any) -> Attempt:
        found = [each for each in self.attempts if test(each)]
        return found[number % len(found)]

    @rule(need=COST)
    def open(self, need: int) -> None:
        if len(self.attempts) >= 4:
            return
        uid = new_id()
        answer = self.books.open(uid=uid, need={USD: need}, accounts=[key(self.quota)])
        if isinstance(answer, LedgerError):
            assert answer.code is ErrorCode.INSUFFICIENT
            return
        self.books.bind(answer.allotment)
        self.books.activate(answer.allotment)
        self.attempts.append(Attempt(answer.allotment, uid, held=need))

    @rule(seconds=st.integers(1, 5000))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @precondition(some(reports))
    @rule(number=PICK, cost=st.one_of(st.none(), COST))
    def report(self, number: int, cost: int | None) -> None:
        attempt = self.pick(number, reports)
        one = record(len(attempt.costs) + 1, cost, started_unix_ms=self.clock())
        assert isinstance(self.books.post(attempt.id, [one]), wire.Posted)
        attempt.costs[one.id] = cost
        attempt.reported += cost or 0
        if attempt.state == "active":
            attempt.held -= min(attempt.held, cost or 0)
        else:
            attempt.charge -= min(attempt.charge, cost or 0)

    @precondition(some(lambda each: each.state == "active"))
    @rule(number=PICK)
    def vanish(self, number: int) -> None:
        attempt = self.pick(number, lambda each: each.state == "active")
        # Nobody says that its pod has ended, so the ledger waits for the lease and the longest call.
        self.clock.now += 3600
        answer = self.books.end(attempt.id)
        assert isinstance(answer, wire.ItemAnswer), answer
        attempt.state, attempt.charge, attempt.held = "closed", attempt.held, 0

    @precondition(some(reports))
    @rule(number=PICK)
    def last_word(self, number: int) -> None:
        attempt = self.pick(number, reports)
        answer = self.books.give_back(attempt.id, len(attempt.costs), {USD: attempt.reported}, final=True)
        assert isinstance(answer, wire.Returned), answer
        if attempt.state == "active":
            attempt.charge = attempt.held if attempt.unknown else 0
        elif not attempt.unknown:
            attempt.charge = 0
        attempt.state, attempt.final, attempt.held = "closed", True, 0

    @precondition(some(has_records))
    @rule(number=PICK, which=PICK, cost=COST)
    def correct(self, number: int, which: int, cost: int) -> None:
        attempt = self.pick(number, has_records)
        one = sorted(attempt.costs)[which % len(attempt.costs)]
        body = wire.CorrectEntries(
            operation_id=new_id(), corrections=[wire.NewCost(record=one, cost_nanos=cost)], reason="a test"
        )
        answer = self.books.run(Verb.CORRECT, body, allotment=attempt.id)
        assert isinstance(answer, wire.Corrected), answer
        before = attempt.costs[one]
        assert answer.corrected[0].before == before
        attempt.costs[one] = cost
        if before is None:
            attempt.charge -= min(attempt.charge, cost)
        if before != cost and attempt.final and not attempt.unknown:
            attempt.charge = 0

    @precondition(some(lambda each: each.state == "closed"))
    @rule(number=PICK, cost=st.integers(0, 200))
    def settle(self, number: int, cost: int) -> None:
        attempt = self.pick(number, lambda each: each.state == "closed")
        body = wire.SettleCharge(operation_id=new_id(), cost_nanos=cost, reason="a test")
        answer = self.books.run(Verb.SETTLE, body, allotment=attempt.id)
        if attempt.settled:
            assert code(answer) is ErrorCode.RECORD_CONFLICT
        elif not attempt.charge or attempt.unknown:
            assert code(answer) is ErrorCode.WRONG_STATE
        else:
            assert isinstance(answer, wire.ChargeSettled), answer
            assert answer.charged_nanos == attempt.charge
            attempt.settled, attempt.charge = True, cost

    @invariant()
    def the_books_agree(self) -> None:
        if not getattr(self, "attempts", None):
            return
        for attempt in self.attempts:
            totals = self.books.totals(attempt.uid).totals
            assert totals.cost_nanos == attempt.total
            assert totals.unaccounted_nanos == (0 if attempt.settled else attempt.charge)
            assert totals.unpriced == sum(cost is None for cost in attempt.costs.values())
        table = schema.windows
        sums = sa.select(sa.func.sum(table.c.spent), sa.func.sum(table.c.reserved)).where(
            table.c.account_id == quota_account_id(key(self.quota))
        )
        spent, reserved = self.books.store.read(lambda connection: tuple(connection.execute(sums).one()))
        assert (spent, reserved) == (
            sum(each.total for each in self.attempts),
            sum(each.held for each in self.attempts),
        )

    def teardown(self) -> None:
        assert self.books.violations() == []


@pytest.mark.parametrize("steps", [25])
def test_random_histories_of_corrections(books: Books, clock: Clock, ledger_url: str, steps: int) -> None:
    CorrectionsMachine.books, CorrectionsMachine.clock = books, clock
    examples = 20 if ledger_url.startswith("sqlite") else 8
    run_state_machine_as_test(
        CorrectionsMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
