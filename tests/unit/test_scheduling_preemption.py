"""Who makes room for whom, and that it comes to rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from almoner_core.api.resource_quota import OnLimitAction, QueueingStrategy
from almoner_operator.scheduling.model import Quota, Settings, StopCause, Workload
from tests.support.scheduling import (
    NANOS,
    admitted,
    apply,
    decided,
    money,
    quota,
    running,
    stops,
    waits,
    work,
)


def low(name: str, **fields: Any) -> Workload:
    return running(name, **{"preemptible": True, "priority": 3, **fields})


# Each case: who waits, who runs, the quotas, who is to be stopped.
CASES: dict[str, tuple[list[Workload], list[Workload], list[Quota], set[str]]] = {
    "the less important one": ([work("a", priority=9)], [low("x")], [quota(executions=1)], {"x"}),
    "nobody where there is room": ([work("a", priority=9)], [low("x")], [quota(executions=2)], set()),
    "not one as important": ([work("a", priority=3)], [low("x")], [quota(executions=1)], set()),
    "not one that is not preemptible": (
        [work("a", priority=9)],
        [running("x", priority=1)],
        [quota(executions=1)],
        set(),
    ),
    "not one of another quota": (
        [work("a", priority=9)],
        [running("x", priority=9), low("y", owner="other")],
        [quota("one", executions=1, owners=frozenset({"team"})), quota("two", owners=frozenset({"other"}))],
        set(),
    ),
    "the least important": (
        [work("a", priority=9)],
        [low("x", priority=4), low("y", priority=2)],
        [quota(executions=2)],
        {"y"},
    ),
    "the one with the least work to lose": (
        [work("a", priority=9)],
        [low("x", since=500), low("y", since=5)],
        [quota(executions=2)],
        {"y"},
    ),
    "as many as needed": (
        [work("a", priority=9, gpu=3)],
        [low("x", gpu=1), low("y", gpu=1), low("z", gpu=1), low("w", gpu=1)],
        [quota(gpu=4)],
        {"w", "x", "y"},
    ),
    "not the small ones where one large is enough": (
        [work("a", priority=9, gpu=4)],
        [low("s", gpu=1, priority=1), low("l", gpu=4, priority=2)],
        [quota(gpu=5)],
        {"l"},
    ),
    "nobody in vain": (
        [work("a", priority=9, gpu=4)],
        [low("x", gpu=1), running("y", gpu=3, priority=9)],
        [quota(gpu=4)],
        set(),
    ),
    "nobody for what can never fit": ([work("a", priority=9, gpu=9)], [low("x", gpu=4)], [quota(gpu=4)], set()),
    "in every quota that is short": (
        [work("a", priority=9, gpu=1, cpu=1000)],
        [low("x", gpu=1), low("y", cpu=1000), low("z")],
        [quota("one", gpu=1), quota("two", cpu=1000)],
        {"x", "y"},
    ),
    "never for money": (
        [work("a", priority=10, need=NANOS)],
        [low("x", priority=1)],
        [quota(budget=NANOS, accounts=money(NANOS, 0, NANOS))],
        set(),
    ),
    "never for money, even where machines are short too": (
        [work("a", priority=10, need=NANOS)],
        [low("x", priority=1)],
        [quota(executions=1, budget=NANOS, accounts=money(NANOS, 0, NANOS))],
        set(),
    ),
    "one for each that outranks": (
        [work("a", priority=9), work("b", priority=8), work("c", priority=2)],
        [low("x"), low("y")],
        [quota(executions=2)],
        {"x", "y"},
    ),
    "not for a watched quota": ([work("a", priority=9)], [low("x")], [quota(executions=1, enforced=False)], set()),
    "the head of a strict queue": (
        [work("a", priority=9), work("b", priority=8)],
        [low("x")],
        [quota(executions=1, strategy=QueueingStrategy.STRICT_FIFO)],
        {"x"},
    ),
    "rather than be rejected": (
        [work("a", priority=9)],
        [low("x")],
        [quota(executions=1, on_limit=OnLimitAction.REJECT)],
        {"x"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_who_makes_room(case: str) -> None:
    waiting, holding, quotas, victims = CASES[case]
    assert set(stops(decided([*waiting, *holding], *quotas))) == victims


def test_it_waits_for_the_preempted_and_says_so() -> None:
    decisions = decided([work("a", priority=9), low("x")], quota(executions=1))
    assert waits(decisions) == {"a": "WaitingForPreemption"}
    assert decisions.stop[0].preemptor is not None
    assert decisions.stop[0].preemptor.name == "a"
    assert decisions.stop[0].message == "makes room for a (priority 9 over 3)"
    assert "1 of 1 in use; stopping 1 less important" in next(wait.message for _, wait in decisions.waiting)


def test_nobody_else_takes_the_room_that_is_being_made() -> None:
    stopping = [replace(low(name, gpu=1), stopping=StopCause.PREEMPTED) for name in ("x", "y")]
    several = [work("large", priority=9, gpu=2), work("small", priority=5, gpu=1), stopping[1]]
    decisions = decided(several, quota(gpu=2))
    assert waits(decisions) == {"large": "WaitingForPreemption", "small": "WaitingForQuota"}
    assert admitted(decisions) == []
    assert stops(decisions) == {}


def test_no_second_victim_while_the_first_is_ending() -> None:
    stopping = replace(low("x"), stopping=StopCause.PREEMPTED)
    decisions = decided([work("a", priority=9), stopping, low("y")], quota(executions=2))
    assert stops(decisions) == {}


def test_the_victim_queues_again_behind_its_preemptor_and_all_comes_to_rest() -> None:
    governing = quota(executions=1)
    workloads = [work("a", priority=9), low("x", since=900)]
    seen: list[list[str]] = []
    for _ in range(6):
        decisions = decided(workloads, governing)
        seen.append(admitted(decisions) + [f"-{name}" for name in stops(decisions)])
        workloads = apply(workloads, decisions, terminate=True)
    assert seen == [["-x"], ["a"], [], [], [], []]


def test_room_is_made_for_so_many_at_once_only() -> None:
    waiting = [work(f"a{i}", priority=9) for i in range(5)]
    holding = [low(f"x{i}") for i in range(5)]
    settings = Settings(preemptions_max=2)
    assert len(stops(decided([*waiting, *holding], quota(executions=5), settings=settings))) == 2


def test_a_preemptor_keeps_its_turn_when_shares_change() -> None:
    """Once his victim is gone Bob has the smaller share for his age; but the room was made for Ann."""
    governing = quota(executions=1)
    workloads = [
        work("bob", priority=9, owner="bob", age=10),
        work("ann", priority=9, owner="ann"),
        low("x", owner="bob"),
    ]
    first = decided(workloads, governing)
    assert [stop.preemptor.name for stop in first.stop if stop.preemptor] == ["ann"]
    later = apply(workloads, first, terminate=True)
    assert admitted(decided(later, governing)) == ["bob"]
    assert admitted(decided(later, governing, previous=first)) == ["ann"]


def test_nobody_is_stopped_for_one_whose_room_the_head_of_the_queue_will_keep() -> None:
    # `first` takes the GPU of `x`; then `head`, which has waited long for it, keeps the third place for itself.
    items = [
        work("first", priority=5, gpu=1),
        work("head", priority=4, gpu=1, age=400),
        work("late", priority=3),
        running("r", priority=1),
        low("x", priority=1, gpu=1),
        low("y", priority=1),
    ]
    settings = Settings(reserve_after_seconds=300)
    limits = quota(executions=3, gpu=1)
    decisions = decided(items, limits, settings=settings)
    assert set(stops(decisions)) == {"x"}
    later = decided(apply(items, decisions, terminate=True), limits, settings=settings)
    assert admitted(later) == ["first"]
