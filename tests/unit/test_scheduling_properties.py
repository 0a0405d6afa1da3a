"""What must hold for every decision, whatever waits and whatever the quotas are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from almoner_core.api.agent import AgentType
from almoner_core.api.execution import WaitReason
from almoner_core.api.resource_quota import OnLimitAction, QueueingStrategy, StopPolicy
from almoner_operator.scheduling.decide import decide
from almoner_operator.scheduling.model import (
    EXECUTION,
    TRAINING_JOB,
    Agent,
    Decisions,
    Hard,
    Quota,
    Requests,
    Settings,
    Share,
    Snapshot,
    StopCause,
    Workload,
    WorkloadKey,
    WorkloadState,
)
from almoner_operator.scheduling.selection import selects
from tests.support.scheduling import NAMESPACE, NANOS, NOW, apply, counted, money, use_of

OWNERS = ("ann", "bob", "cat")
AGENTS = (
    Agent("plain", AgentType.RESEARCH),
    Agent("gold", AgentType.EVALUATION, {"tier": "gold"}),
    Agent("broken", AgentType.RESEARCH, ready=False),
)
BY_NAME = {agent.name: agent for agent in AGENTS}
SETTINGS = Settings(reserve_after_seconds=300)
MACHINE_REASONS = {WaitReason.WAITING_FOR_QUOTA, WaitReason.WAITING_FOR_PREEMPTION, WaitReason.QUEUE_FULL}


@st.composite
def workloads(draw: st.DrawFn, index: int, *, plain: bool = False) -> Workload:
    reserved = draw(st.booleans())
    kind = draw(st.sampled_from((EXECUTION, EXECUTION, TRAINING_JOB)))
    created = NOW - timedelta(seconds=draw(st.integers(0, 1000)))
    workload = Workload(
        key=WorkloadKey(kind, NAMESPACE, f"w{index}", f"uid-{index:03}"),
        owner=draw(st.sampled_from(OWNERS)),
        agent=draw(st.sampled_from(("plain", "gold"))),
        created=created,
        since=created,
        priority=draw(st.integers(1, 10)),
        preemptible=draw(st.booleans()),
        requests=Requests(draw(st.integers(0, 4)) * 500, draw(st.integers(0, 4)), draw(st.integers(0, 3))),
        max_cost=NANOS,
        need=draw(st.sampled_from((0, 1, NANOS // 4))),
        state=WorkloadState.RESERVED if reserved else WorkloadState.WAITING,
        admitted=created if reserved else None,
    )
    if plain:
        return workload
    return replace(
        workload,
        agent=draw(st.sampled_from(("plain", "gold", "broken", "missing", None))),
        suspend=draw(st.integers(0, 9)) == 0,
        cancel=draw(st.integers(0, 9)) == 0,
        max_cost=draw(st.sampled_from((NANOS, NANOS, None))),
        backoff_until=NOW + timedelta(seconds=draw(st.integers(-5, 5))) if draw(st.integers(0, 5)) == 0 else None,
        stopping=draw(st.sampled_from((None, None, StopCause.PREEMPTED, StopCause.CANCELLED))) if reserved else None,
    )


amounts = st.none() | st.integers(0, 6)


@st.composite
def quotas(draw: st.DrawFn, index: int, *, plain: bool = False) -> Quota:
    per_owner = draw(st.booleans())
    limit = draw(st.none() | st.integers(0, 2))
    accounts: dict[Any, Any] = {}
    if limit is not None:
        for subject in OWNERS if per_owner else ("",):
            accounts |= money(limit * NANOS, draw(st.integers(0, NANOS)), subject=subject)
    cpu = draw(amounts)
    hard = Hard(
        draw(amounts),
        draw(amounts),
        None if plain else draw(amounts),
        None if cpu is None else cpu * 500,
        *draw(st.tuples(amounts, amounts)),
    )
    quota = Quota(
        name=f"q{index}",
        owners=frozenset(draw(st.sets(st.sampled_from(OWNERS)))),
        agent_selector=draw(st.sampled_from(((), (), (("tier", "gold"),)))),
        agent_types=frozenset(draw(st.sampled_from(((), (), (AgentType.RESEARCH,))))),
        per_owner=per_owner,
        hard=hard,
        budget=None if limit is None else limit * NANOS,
        strategy=draw(st.sampled_from(QueueingStrategy)),
        accounts=accounts,
    )
    if plain:
        return quota
    return replace(
        quota,
        enforced=draw(st.integers(0, 4)) > 0,
        stop_policy=draw(st.sampled_from((StopPolicy.NONE,) * 8 + (StopPolicy.HOLD, StopPolicy.HOLD_AND_DRAIN))),
        on_limit=draw(st.sampled_from((OnLimitAction.WAIT, OnLimitAction.WAIT, OnLimitAction.REJECT))),
        wait_timeout_seconds=draw(st.none() | st.integers(1, 1000)),
        ready=draw(st.integers(0, 9)) > 0,
    )


@st.composite
def worlds(draw: st.DrawFn, *, plain: bool = False) -> tuple[list[Workload], list[Quota]]:
    count, governing = draw(st.integers(0, 14)), draw(st.integers(0, 3))
    return (
        [draw(workloads(index, plain=plain)) for index in range(count)],
        [draw(quotas(index, plain=plain)) for index in range(governing)],
    )


@st.composite
def crowded(draw: st.DrawFn) -> tuple[list[Workload], list[Quota]]:
    """Preemptible work fills one or two quotas, and more important work waits: somebody has to make room."""
    items: list[Workload] = []
    for index in range(draw(st.integers(2, 12))):
        one = draw(workloads(index, plain=True))
        reserved = one.state is WorkloadState.RESERVED
        priority = draw(st.integers(1, 4) if reserved else st.integers(3, 10))
        items.append(replace(one, need=0, preemptible=reserved and draw(st.integers(0, 3)) > 0, priority=priority))
    held = [item for item in items if item.state is WorkloadState.RESERVED]
    strategy = draw(st.sampled_from(QueueingStrategy))
    full = Hard(
        executions=sum(counted(item)["executions"] for item in held) + draw(st.integers(0, 1)),
        gpu=sum(item.requests.gpu for item in held) + draw(st.integers(0, 1)),
    )
    governing = [Quota(name="q0", hard=full, strategy=strategy)]
    if draw(st.booleans()):
        governing.append(Quota(name="q1", hard=Hard(cpu=draw(st.integers(0, 12)) * 500), per_owner=draw(st.booleans())))
    return items, governing


def decided(items: Sequence[Workload], governing: Sequence[Quota], previous: Decisions | None = None) -> Decisions:
    return decide(
        Snapshot.of(items, {NAMESPACE: governing}, {NAMESPACE: AGENTS}, {NAMESPACE: {"ann": Share(weight=2)}}),
        NOW,
        SETTINGS,
        previous,
    )


def seen(decisions: Decisions) -> tuple[object, ...]:
    """All that a decision says, in its order."""
    return (decisions.admit, list(decisions.waiting), decisions.reject, decisions.stop, decisions.cancel)


def limits_of(quota: Quota) -> dict[str, int]:
    return {
        field.name: value
        for field in fields(Hard)
        if field.name != "pending" and (value := getattr(quota.hard, field.name)) is not None
    }


@given(worlds() | crowded())
@settings(max_examples=120, deadline=None)
def test_no_quota_is_ever_exceeded_by_what_is_admitted(world: tuple[list[Workload], list[Quota]]) -> None:
    items, governing = world
    decisions = decided(items, governing)
    let_in = [admission.workload for admission in decisions.admit]
    held = [item for item in items if item.state is WorkloadState.RESERVED]
    for quota in (each for each in governing if each.enforced):
        before, after = use_of(quota, held, BY_NAME), use_of(quota, [*held, *let_in], BY_NAME)
        for (subject, name), amount in after.items():
            limit = limits_of(quota).get(name)
            if limit is not None and amount > before.get((subject, name), 0):
                assert amount <= limit, (quota.name, subject, name)


@given(worlds())
@settings(max_examples=80, deadline=None)
def test_every_one_that_waits_has_exactly_one_verdict(world: tuple[list[Workload], list[Quota]]) -> None:
    items, governing = world
    decisions = decided(items, governing)
    verdicts = [admission.workload.key for admission in decisions.admit]
    verdicts += [key for key, _ in decisions.waiting]
    verdicts += [rejection.key for rejection in decisions.reject]
    verdicts += decisions.cancel
    assert sorted(verdicts) == sorted(item.key for item in items if item.state is WorkloadState.WAITING)
    assert all(wait.message for _, wait in decisions.waiting)
    reserved = {item.key for item in items if item.state is WorkloadState.RESERVED}
    stopped = [stop.key for stop in decisions.stop]
    assert len(stopped) == len(set(stopped))
    assert set(stopped) <= reserved


@given(worlds(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_in_which_things_are_listed_changes_nothing(
    world: tuple[list[Workload], list[Quota]], random: Any
) -> None:
    items, governing = world
    shuffled = items.copy()
    random.shuffle(shuffled)
    first, second = decided(items, governing), decided(shuffled, governing)
    assert seen(first) == seen(decided(items, governing))
    assert first.admit == second.admit
    assert dict(first.waiting) == dict(second.waiting)
    assert set(first.reject) == set(second.reject)
    assert {stop.key for stop in first.stop} == {stop.key for stop in second.stop}


@given(worlds(plain=True) | crowded())
@settings(max_examples=80, deadline=None)
def test_priority_is_never_inverted_in_a_strict_quota(world: tuple[list[Workload], list[Quota]]) -> None:
    items, governing = world
    strict = [replace(each, strategy=QueueingStrategy.STRICT_FIFO) for each in governing]
    decisions = decided(items, strict)
    for key, wait in decisions.waiting:
        if wait.quota is None or "ever allows" in wait.message:
            continue
        blocked = next(item for item in items if item.key == key)
        quota = next(each for each in strict if each.name == wait.quota)
        if blocked.need and quota.budget is not None and blocked.need > quota.budget:
            continue  # it can never run under this budget, so it stops nobody
        for admission in decisions.admit:
            other = admission.workload
            same = not quota.per_owner or other.owner == blocked.owner
            if same and quota.name in admission.quotas:
                assert other.priority >= blocked.priority


@given(worlds())
@settings(max_examples=80, deadline=None)
def test_positions_count_up_in_each_queue(world: tuple[list[Workload], list[Quota]]) -> None:
    items, governing = world
    decisions = decided(items, governing)
    by_key = {item.key: item for item in items}
    queues: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for key, wait in decisions.waiting:
        if wait.position is None:
            continue
        quota = next(each for each in governing if each.name == wait.quota)
        subject = by_key[key].owner if quota.per_owner else ""
        queues.setdefault((quota.name, subject), []).append((wait.position, by_key[key].priority))
    for line in queues.values():
        line.sort()
        assert [position for position, _ in line] == list(range(1, len(line) + 1))
        assert [-priority for _, priority in line] == sorted(-priority for _, priority in line)


@given(worlds() | crowded())
@settings(max_examples=80, deadline=None)
def test_only_the_less_important_and_preemptible_make_room_and_never_for_money(
    world: tuple[list[Workload], list[Quota]],
) -> None:
    items, governing = world
    decisions = decided(items, governing)
    by_key = {item.key: item for item in items}
    for stop in decisions.stop:
        if stop.cause is not StopCause.PREEMPTED:
            continue
        victim = by_key[stop.key]
        assert stop.preemptor is not None
        winner = by_key[stop.preemptor]
        assert victim.preemptible
        assert victim.priority < winner.priority
        wait = decisions.wait_of(winner.key)
        assert wait is not None
        assert wait.reason is WaitReason.WAITING_FOR_PREEMPTION


@given(worlds(plain=True) | crowded())
@settings(max_examples=60, deadline=None)
def test_who_makes_room_is_enough_and_none_too_many(world: tuple[list[Workload], list[Quota]]) -> None:
    """Once the victims are gone their preemptors are admitted, all of them, in the very next decision."""
    items, governing = world
    decisions = decided(items, governing)
    winners = {stop.preemptor for stop in decisions.stop if stop.preemptor is not None}
    later = decided(apply(items, decisions, terminate=True), governing, decisions)
    let_in = {admission.workload.key for admission in later.admit}
    for winner in winners - let_in:
        wait = later.wait_of(winner)
        assert wait is not None
        # Money is promised anew in every decision, so it may be short where machines are not.
        assert wait.reason is WaitReason.BUDGET_EXHAUSTED


@given(worlds(plain=True) | crowded(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_deciding_again_and_again_comes_to_rest(world: tuple[list[Workload], list[Quota]], terminate: bool) -> None:
    items, governing = world
    decisions = decided(items, governing)
    for _ in range(2 * len(items) + 4):
        if not (decisions.admit or decisions.stop or decisions.reject or decisions.cancel):
            break
        items = apply(items, decisions, terminate=terminate)
        decisions = decided(items, governing, decisions)
    assert seen(decisions)[0] == ()
    assert (decisions.reject, decisions.stop, decisions.cancel) == ((), (), ())


@given(worlds())
@settings(max_examples=60, deadline=None)
def test_use_is_what_a_plain_count_gives(world: tuple[list[Workload], list[Quota]]) -> None:
    items, governing = world
    told = decided(items, governing).namespaces.get(NAMESPACE)
    held = [item for item in items if item.state is WorkloadState.RESERVED]
    for quota in governing:
        plain = use_of(quota, held, BY_NAME)
        for entry in told.use.get(quota.name, ()) if told else ():
            for name in counted(items[0]):
                assert getattr(entry, name) == plain.get((entry.subject, name), 0)


@given(worlds())
@settings(max_examples=50, deadline=None)
def test_what_waits_for_nothing_that_is_short_would_have_been_admitted(
    world: tuple[list[Workload], list[Quota]],
) -> None:
    """Nobody waits for machines in a quota that does not select it."""
    items, governing = world
    decisions = decided(items, governing)
    by_key = {item.key: item for item in items}
    for key, wait in decisions.waiting:
        if wait.reason in MACHINE_REASONS:
            quota = next(each for each in governing if each.name == wait.quota)
            item = by_key[key]
            assert quota.enforced
            assert selects(quota, item.owner, BY_NAME.get(item.agent or ""))
