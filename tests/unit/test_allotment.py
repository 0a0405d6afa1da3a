"""The meter's arithmetic under any order of calls: never negative, never beyond what is held, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from almoner_core.allotment import DIMENSIONS, Allotment, Hold

AMOUNT = st.integers(min_value=0, max_value=1000)
AMOUNTS = st.dictionaries(st.sampled_from(DIMENSIONS), AMOUNT)


class Spending(RuleBasedStateMachine):
    """Random holds, settlements, grants and returns; a model beside them counts with plain sums."""

    holds: Bundle[Hold] = Bundle("holds")

    @initialize(limited=st.sets(st.sampled_from(DIMENSIONS)), held=AMOUNTS)
    def start(self, limited: set[str], held: dict[str, int]) -> None:
        self.allotment = Allotment(sorted(limited), held)
        self.open: list[Hold] = []
        self.given = {d: held.get(d, 0) for d in limited}
        self.spent = dict.fromkeys(limited, 0)

    @rule(target=holds, bound=AMOUNTS)
    def hold(self, bound: dict[str, int]) -> Hold:
        allotment = self.allotment
        fits = all(bound.get(d, 0) <= allotment.free(d) for d in allotment.limited) and not allotment.frozen
        deficit = allotment.deficit(bound)
        before = dict(allotment.in_flight)
        hold = allotment.hold(bound)
        assert (hold is not None) == fits
        if hold is None:
            assert allotment.in_flight == before, "all or nothing"
            assert deficit or allotment.frozen
            return allotment.hold({}) or Hold({})  # nothing: settled below without effect
        assert not deficit
        self.open.append(hold)
        return hold

    @rule(hold=consumes(holds), share=st.fractions(min_value=0, max_value=2))
    def settle(self, hold: Hold, share: float) -> None:
        if hold not in self.open:
            return
        self.open.remove(hold)
        used = {d: int(amount * share) for d, amount in hold.amounts.items()}
        excess = self.allotment.settle(hold, used)
        for dimension, amount in used.items():
            self.spent[dimension] += amount
        if share <= 1:
            assert not excess, "a call within its hold never makes excess"
        with pytest.raises(ValueError, match="settled already"):
            self.allotment.settle(hold, {})

    @rule(amounts=AMOUNTS)
    def grant(self, amounts: dict[str, int]) -> None:
        self.allotment.grant(amounts)
        for dimension in self.given:
            self.given[dimension] += amounts.get(dimension, 0)

    @rule()
    def return_idle(self) -> None:
        idle = self.allotment.free_amounts()
        self.allotment.take_back(idle)
        for dimension, amount in idle.items():
            self.given[dimension] -= amount
        assert self.allotment.free_amounts() == {}

    @rule(told=AMOUNTS, unposted=AMOUNTS)
    def believe_the_ledger(self, told: dict[str, int], unposted: dict[str, int]) -> None:
        differences = self.allotment.reconcile(told, unposted)
        for d in self.allotment.limited:
            self.given[d] += differences.get(d, 0)
            believed = told.get(d, 0) - unposted.get(d, 0)
            assert self.allotment.held[d] == max(believed, self.allotment.in_flight[d])
        assert self.allotment.reconcile(told, unposted) == {}, "once believed, nothing differs"

    @rule(bound=AMOUNTS)
    def ask_for_what_lacks(self, bound: dict[str, int]) -> None:
        need, want = self.allotment.deficit(bound), self.allotment.comfort(bound)
        assert all(want.get(d, 0) >= amount > 0 for d, amount in need.items())
        self.allotment.grant(need)
        for d, amount in need.items():
            self.given[d] += amount
        assert self.allotment.deficit(bound) == {}

    @rule(more=st.integers(min_value=1, max_value=50))
    def return_too_much(self, more: int) -> None:
        for dimension in self.allotment.limited:
            with pytest.raises(ValueError, match="only"):
                self.allotment.take_back({dimension: self.allotment.free(dimension) + more})

    @rule()
    def top_up(self) -> None:
        wanted = self.allotment.top_up()
        assert all(amount > 0 for amount in wanted.values())
        self.allotment.grant(wanted)
        for dimension, amount in wanted.items():
            self.given[dimension] += amount
        assert self.allotment.top_up() == {}

    @invariant()
    def never_negative_never_beyond(self) -> None:
        allotment = self.allotment
        for d in allotment.limited:
            assert 0 <= allotment.in_flight[d] <= allotment.held[d]
            assert allotment.in_flight[d] == sum(h.amounts[d] for h in self.open)
            assert allotment.settled[d] == self.spent[d]
            assert allotment.settled[d] - allotment.excess[d] <= self.given[d]
            assert allotment.granted[d] + allotment.corrections[d] == (
                allotment.held[d] + allotment.settled[d] + allotment.returned[d] - allotment.excess[d]
            )
        assert allotment.frozen == any(allotment.excess.values())


TestSpending = Spending.TestCase


def test_only_limited_dimensions_are_checked() -> None:
    allotment = Allotment(["usd"], {"usd": 10, "tokens": 5})
    hold = allotment.hold({"usd": 10, "tokens": 1_000_000})
    assert hold is not None
    assert allotment.hold({"usd": 1}) is None
    assert allotment.hold({"tokens": 1}) is not None


def test_no_limit_at_all_holds_everything() -> None:
    allotment = Allotment([], {})
    hold = allotment.hold({"usd": 10**15})
    assert hold is not None
    assert allotment.settle(hold, {"usd": 10**15}) == {}


def test_a_call_billed_above_its_hold_takes_what_is_free_then_freezes() -> None:
    allotment = Allotment(["usd"], {"usd": 100})
    first, second = allotment.hold({"usd": 40}), allotment.hold({"usd": 40})
    assert first is not None
    assert second is not None
    assert allotment.settle(first, {"usd": 55}) == {}
    assert (allotment.free("usd"), allotment.frozen) == (5, False)
    # 40 held and 5 free cover 45 of 50: the rest is excess, and nothing else is started.
    assert allotment.settle(second, {"usd": 50}) == {"usd": 5}
    assert allotment.frozen
    allotment.grant({"usd": 1000})
    assert allotment.hold({"usd": 1}) is None


def test_the_ledger_is_believed_but_calls_in_flight_keep_what_they_hold() -> None:
    allotment = Allotment(["usd"], {"usd": 100})
    hold = allotment.hold({"usd": 60})
    assert hold is not None
    assert allotment.reconcile({"usd": 90}, {"usd": 10}) == {"usd": -20}
    assert allotment.free("usd") == 20
    assert allotment.reconcile({"usd": 5}, {}) == {"usd": -20}
    assert (allotment.free("usd"), allotment.held["usd"]) == (0, 60)
    assert allotment.reconcile({"usd": 60}, {}) == {}


def test_extension_needs_what_lacks_and_wants_a_few_calls_more() -> None:
    allotment = Allotment(["usd", "requests"], {"usd": 30, "requests": 10})
    bound = {"usd": 50, "requests": 1}
    assert allotment.deficit(bound) == {"usd": 20}
    assert allotment.comfort(bound) == {"usd": 170}
    assert allotment.deficit({"usd": 30}) == {}


def test_negative_amounts_are_refused() -> None:
    allotment = Allotment(["usd"], {"usd": 30})
    with pytest.raises(ValueError, match="negative"):
        allotment.hold({"usd": -1})
    with pytest.raises(ValueError, match="negative"):
        allotment.grant({"usd": -1})
    with pytest.raises(ValueError, match="unknown dimension"):
        Allotment(["dollars"], {})
