"""What `decide` admits and why the rest waits: tables with named cases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from almoner_core.api.agent import AgentReason, AgentType
from almoner_core.api.execution import WaitReason
from almoner_core.api.resource_quota import OnLimitAction, QueueingStrategy, ResourceQuotaSpec, StopPolicy
from almoner_core.api.runner import Runner
from almoner_core.wire import AccountKey, Dimension
from almoner_operator.scheduling.decide import decide
from almoner_operator.scheduling.model import (
    Account,
    Agent,
    Decisions,
    Hold,
    Quota,
    Requests,
    RequireBudget,
    Settings,
    Share,
    Snapshot,
    Wait,
    requests_of,
)
from tests.support.scheduling import (
    AGENT,
    NAMESPACE,
    NANOS,
    NOW,
    admitted,
    decided,
    money,
    quota,
    running,
    snapshot,
    stops,
    training,
    waits,
    work,
)

GIB = 1024**3
STRICT = QueueingStrategy.STRICT_FIFO


def wait_of(decisions: Decisions, name: str) -> Wait:
    return next(wait for key, wait in decisions.waiting if key.name == name)


# Each case: what waits (one workload `a`), what runs, the quota; whether it is admitted, else part of the message.
FITS: dict[str, tuple[Any, list[Any], Quota | None, str | None]] = {
    "no quota, own maxCost": (work("a"), [], None, None),
    "room left": (work("a"), [running("r")], quota(executions=2), None),
    "executions in use": (
        work("a"),
        [running("r")],
        quota(executions=1),
        "waiting for 1 execution in ResourceQuota quota: 1 of 1 in use",
    ),
    "none allowed": (work("a"), [], quota(executions=0), "more than ResourceQuota quota ever allows (0)"),
    "jobs do not count as executions": (training("a"), [running("r")], quota(executions=1), None),
    "jobs in use": (
        training("a"),
        [replace(running("r"), key=training("r").key)],
        quota(training_jobs=1),
        "waiting for 1 TrainingJob in ResourceQuota quota: 1 of 1 in use",
    ),
    "gpus in use": (
        work("a", gpu=2),
        [running("r", gpu=4)],
        quota(gpu=4),
        "waiting for 2 GPUs in ResourceQuota quota: 4 of 4 in use",
    ),
    "cpu in use": (
        work("a", cpu=600),
        [running("r", cpu=1500)],
        quota(cpu=2000),
        "waiting for 600m cpu in ResourceQuota quota: 1500m of 2 in use",
    ),
    "memory in use": (
        work("a", memory=GIB),
        [running("r", memory=4 * GIB)],
        quota(memory=4 * GIB),
        "waiting for 1Gi memory in ResourceQuota quota: 4Gi of 4Gi in use",
    ),
    "exactly fits": (work("a", cpu=500), [running("r", cpu=1500)], quota(cpu=2000), None),
    "asks for none of what is over": (work("a", cpu=1), [running("r", gpu=4)], quota(gpu=1), None),
    "larger than the quota": (
        work("a", gpu=8),
        [],
        quota(gpu=4),
        "asks for 8 GPUs, more than ResourceQuota quota ever allows (4)",
    ),
    "only watched": (work("a"), [running("r")], quota(executions=1, enforced=False), None),
    "other owner's quota": (work("a"), [running("r")], quota(executions=1, owners=frozenset({"other"})), None),
    "own account of its owner": (
        work("a"),
        [running("r", owner="other")],
        quota(executions=1, per_owner=True),
        None,
    ),
    "its owner's account is full": (
        work("a"),
        [running("r")],
        quota(executions=1, per_owner=True),
        "in ResourceQuota quota (owner team): 1 of 1 in use",
    ),
    "agent's labels do not match": (
        work("a"),
        [running("r")],
        quota(executions=0, agent_selector=(("tier", "x"),)),
        None,
    ),
    "agent's labels match": (work("a"), [], quota(executions=0, agent_selector=(("tier", "gold"),)), "ever allows"),
    "agent's type does not match": (
        work("a"),
        [],
        quota(executions=0, agent_types=frozenset({AgentType.SIMULATION})),
        None,
    ),
    "agent's type matches": (
        work("a"),
        [],
        quota(executions=0, agent_types=frozenset({AgentType.RESEARCH})),
        "ever allows",
    ),
    "a job without an agent matches no agent's scope": (
        training("a", agent=None),
        [],
        quota(training_jobs=0, agent_types=frozenset({AgentType.RESEARCH})),
        None,
    ),
    "pods that are being stopped still hold quota": (
        work("a"),
        [replace(running("r"), suspend=True)],
        quota(executions=1),
        "1 of 1 in use",
    ),
    "what governed it at admission still counts it": (
        work("a"),
        [replace(running("r", agent=None), quotas=("quota",))],
        quota(executions=1, agent_types=frozenset({AgentType.RESEARCH})),
        "1 of 1 in use",
    ),
    "budget exhausted": (
        work("a"),
        [],
        quota(budget=NANOS, accounts=money(NANOS, 980_000_000, 20_000_000)),
        "budget of ResourceQuota quota has no room: 0.98 spent and 0.02 reserved of 1.00 USD",
    ),
    "first allotment does not fit the budget": (
        work("a", need=50_000_000),
        [],
        quota(budget=NANOS, accounts=money(NANOS, 980_000_000)),
        "its start needs 0.05",
    ),
    "budget not known yet: the ledger's open is the gate": (work("a"), [], quota(budget=NANOS), None),
    "another owner's budget is exhausted": (
        work("a"),
        [],
        quota(budget=NANOS, per_owner=True, accounts=money(NANOS, NANOS, subject="other")),
        None,
    ),
    "tokens exhausted": (
        work("a"),
        [],
        quota(accounts={("", Dimension.TOKENS): Account(1000, 900, 100)}),
        "900 used and 100 reserved of 1000 tokens",
    ),
    "budget that is only watched": (
        work("a"),
        [],
        quota(budget=NANOS, enforced=False, accounts=money(NANOS, 2 * NANOS)),
        None,
    ),
    "quota not in force": (work("a"), [], quota(ready=False, message="storage is not enforced"), "storage is not"),
    "watched quota not in force": (work("a"), [], quota(ready=False, enforced=False), None),
    "held queue": (work("a"), [], quota(stop_policy=StopPolicy.HOLD), "holds its queue (stopPolicy Hold)"),
}


@pytest.mark.parametrize("case", FITS)
def test_one_fits_or_says_why_not(case: str) -> None:
    waiting, holding, governing, message = FITS[case]
    decisions = decided([waiting, *holding], *([governing] if governing else []))
    if message is None:
        assert admitted(decisions) == ["a"]
        assert waits(decisions) == {}
    else:
        assert admitted(decisions) == []
        assert message in wait_of(decisions, "a").message


# Each case: the workload, options of the snapshot, the reason why it waits.
GATES: dict[str, tuple[Any, dict[str, Any], WaitReason]] = {
    "suspended": (work("a", suspend=True), {}, WaitReason.SUSPENDED),
    "agent missing": (work("a", agent="nobody"), {}, WaitReason.AGENT_NOT_FOUND),
    "agent not ready": (
        work("a"),
        {"agents": [replace(AGENT, ready=False, reason=AgentReason.MODEL_UNPRICED)]},
        WaitReason.AGENT_NOT_READY,
    ),
    "provider missing": (
        work("a"),
        {"agents": [replace(AGENT, ready=False, reason=AgentReason.PROVIDER_NOT_FOUND)]},
        WaitReason.PROVIDER_NOT_READY,
    ),
    "backoff": (work("a", backoff_until=NOW + timedelta(seconds=1)), {}, WaitReason.BACKOFF),
    "held by the shell": (
        work("a", hold=Hold(WaitReason.INPUT_NOT_FOUND, "ConfigMap x")),
        {},
        WaitReason.INPUT_NOT_FOUND,
    ),
    "held for a while": (
        work("a", hold=Hold(WaitReason.BUDGET_EXHAUSTED, "refused", NOW + timedelta(seconds=9))),
        {},
        WaitReason.BUDGET_EXHAUSTED,
    ),
    "ledger silent": (work("a"), {"ledger_ready": False}, WaitReason.LEDGER_UNAVAILABLE),
    "no money limit at all": (work("a", max_cost=None), {}, WaitReason.NO_BUDGET),
    "a quota's budget is asked for": (
        work("a"),
        {"settings": Settings(require_budget=RequireBudget.QUOTA)},
        WaitReason.NO_BUDGET,
    ),
}


@pytest.mark.parametrize("case", GATES)
def test_what_holds_one_back(case: str) -> None:
    workload, options, reason = GATES[case]
    decisions = decided([workload], **options)
    assert admitted(decisions) == []
    wait = wait_of(decisions, "a")
    assert wait.reason is reason
    assert wait.position is None


@pytest.mark.parametrize(
    ("budget", "enforced", "require", "expected"),
    [
        (NANOS, True, RequireBudget.ANY, ["a"]),
        (NANOS, True, RequireBudget.QUOTA, ["a"]),
        (NANOS, False, RequireBudget.ANY, []),
        (None, True, RequireBudget.ANY, []),
    ],
)
def test_only_an_enforced_budget_is_a_money_limit(
    budget: int | None, enforced: bool, require: RequireBudget, expected: list[str]
) -> None:
    decisions = decided(
        [work("a", max_cost=None)], quota(budget=budget, enforced=enforced), settings=Settings(require_budget=require)
    )
    assert admitted(decisions) == expected


def test_backoffs_and_holds_end_by_themselves() -> None:
    ended = NOW - timedelta(seconds=1)
    both = [work("a", backoff_until=ended), work("b", hold=Hold(WaitReason.BUDGET_EXHAUSTED, "refused", ended))]
    assert admitted(decided(both)) == ["a", "b"]


def test_a_cancelled_one_that_waits_is_ended_and_one_that_runs_is_stopped() -> None:
    decisions = decided([work("a", cancel=True), running("b", cancel=True), running("c", suspend=True)])
    assert [key.name for key in decisions.cancel] == ["a"]
    assert stops(decisions) == {"b": "Cancelled", "c": "Suspended"}
    assert waits(decisions) == {}


def test_hold_and_drain_stops_what_runs() -> None:
    decisions = decided([work("a"), running("b")], quota(stop_policy=StopPolicy.HOLD_AND_DRAIN))
    assert stops(decisions) == {"b": "Drained"}
    assert waits(decisions) == {"a": "OnHold"}


def test_stopping_is_said_once() -> None:
    first = running("b", cancel=True)
    decisions = decided([replace(first, stopping=decided([first]).stop[0].cause)])
    assert stops(decisions) == {}


def test_an_admission_names_quotas_and_accounts() -> None:
    decisions = decided([work("a")], quota("one", per_owner=True), quota("two", enforced=False))
    admission = decisions.admit[0]
    assert admission.quotas == ("one", "two")
    assert admission.accounts == (
        AccountKey(namespace=NAMESPACE, quota="one", subject="team"),
        AccountKey(namespace=NAMESPACE, quota="two"),
    )


def test_priority_comes_first_then_age() -> None:
    several = [
        work("old", age=90),
        work("older", age=100),
        work("urgent", priority=9),
        work("idle", priority=1, age=9999),
    ]
    assert admitted(decided(several)) == ["urgent", "older", "old", "idle"]


def test_owners_take_turns_within_a_priority() -> None:
    burst = [work(f"a{i}", owner="ann", age=100) for i in range(4)]
    late = [work(f"b{i}", owner="bob", age=10) for i in range(2)]
    order = admitted(decided([*burst, *late]))
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_what_runs_and_what_was_used_lately_counts_against_an_owner() -> None:
    several = [work("a", owner="ann", age=50), work("b", owner="bob", age=10)]
    assert admitted(decided([*several, running("r", owner="ann")])) == ["b", "a"]
    assert admitted(decided(several, shares={"ann": Share(use=5000)})) == ["b", "a"]
    assert admitted(decided(several, shares={"ann": Share(use=5000), "bob": Share(use=6000)})) == ["a", "b"]


def test_a_heavier_owner_gets_more_turns() -> None:
    ann = [work(f"a{i}", owner="ann") for i in range(4)]
    bob = [work(f"b{i}", owner="bob") for i in range(4)]
    order = admitted(decided([*ann, *bob], shares={"ann": Share(weight=3)}))
    assert sum(name.startswith("a") for name in order[:4]) == 3


def test_a_long_wait_outweighs_some_share() -> None:
    several = [work("a", owner="ann", age=7200), work("b", owner="bob")]
    shares = {"ann": Share(use=1000)}
    assert admitted(decided(several, shares=shares, settings=Settings(ageing_seconds=3600))) == ["a", "b"]
    assert admitted(decided(several, shares=shares, settings=Settings(ageing_seconds=36000))) == ["b", "a"]


def test_best_effort_lets_a_small_one_overtake_and_strict_fifo_does_not() -> None:
    waiting = [work("large", age=20, gpu=4), work("small", age=10, gpu=1)]
    assert admitted(decided([*waiting, running("r", gpu=2)], quota(gpu=4))) == ["small"]
    strict = decided([*waiting, running("r", gpu=2)], quota(gpu=4, strategy=STRICT))
    assert admitted(strict) == []
    assert wait_of(strict, "small").message == "waiting behind large in ResourceQuota quota (StrictFIFO)"


def test_what_can_never_fit_does_not_block_a_strict_queue() -> None:
    decisions = decided([work("huge", age=20, gpu=9), work("small", gpu=1)], quota(gpu=4, strategy=STRICT))
    assert admitted(decisions) == ["small"]


def test_a_refused_allotment_blocks_a_strict_queue_of_that_quota() -> None:
    held = work("a", age=20, hold=Hold(WaitReason.BUDGET_EXHAUSTED, "refused", quota="quota"))
    assert admitted(decided([held, work("b")], quota(strategy=STRICT))) == []
    assert admitted(decided([held, work("b")], quota())) == ["b"]


def test_the_head_of_a_best_effort_queue_keeps_room_after_a_while() -> None:
    waiting = [work("large", age=400, gpu=4), work("small", age=10, gpu=1)]
    decisions = decided([*waiting, running("r", gpu=2)], quota(gpu=4), settings=Settings(reserve_after_seconds=300))
    assert admitted(decisions) == []
    assert wait_of(decisions, "small").message.endswith("2 of 4 in use, the rest is kept for large")
    patient = Settings(reserve_after_seconds=500)
    decisions = decided([*waiting, running("r", gpu=2)], quota(gpu=4), settings=patient)
    assert admitted(decisions) == ["small"]
    assert decisions.next_change == NOW + timedelta(seconds=100)


def test_every_selecting_quota_must_fit() -> None:
    decisions = decided([work("a", gpu=1), running("r", gpu=1)], quota("wide", gpu=4), quota("narrow", gpu=1))
    assert wait_of(decisions, "a").quota == "narrow"


def test_a_full_queue_takes_no_more() -> None:
    waiting = [work(f"w{i}", age=100 - i) for i in range(4)]
    decisions = decided([*waiting, running("r")], quota(executions=1, pending=2))
    assert waits(decisions) == {
        "w0": "WaitingForQuota",
        "w1": "WaitingForQuota",
        "w2": "QueueFull",
        "w3": "QueueFull",
    }
    assert "2 may wait" in wait_of(decisions, "w2").message


def test_reject_ends_what_does_not_fit_and_blocks_nobody() -> None:
    waiting = [work("large", age=20, gpu=4), work("small", gpu=1)]
    governing = quota(gpu=4, on_limit=OnLimitAction.REJECT, strategy=STRICT)
    decisions = decided([*waiting, running("r", gpu=2)], governing)
    assert [(each.key.name, each.quota) for each in decisions.reject] == [("large", "quota")]
    assert "rejects what does not fit" in decisions.reject[0].message
    assert admitted(decisions) == ["small"]


def test_waiting_ends_after_the_quotas_timeout() -> None:
    waiting = [work("old", age=61), work("young", age=10)]
    decisions = decided([*waiting, running("r")], quota(executions=1, wait_timeout_seconds=60))
    assert [each.key.name for each in decisions.reject] == ["old"]
    assert "longer than ResourceQuota quota allows (60 s)" in decisions.reject[0].message
    assert wait_of(decisions, "young").next_change == NOW + timedelta(seconds=50)
    assert decisions.next_change == NOW + timedelta(seconds=50)


def test_a_budgets_reset_is_when_things_can_change() -> None:
    reset = NOW + timedelta(hours=3)
    decisions = decided([work("a")], quota(budget=NANOS, accounts=money(NANOS, NANOS, resets_at=reset)))
    assert wait_of(decisions, "a").next_change == reset
    assert "resets at 2026-06-01T15:00:00Z" in wait_of(decisions, "a").message


def test_what_is_admitted_in_one_decision_shares_the_budget() -> None:
    waiting = [work(f"w{i}", need=400_000_000) for i in range(4)]
    decisions = decided(waiting, quota(budget=NANOS, accounts=money(NANOS)))
    assert admitted(decisions) == ["w0", "w1"]


def test_positions_are_exact_up_to_a_hundred_and_bucketed_beyond() -> None:
    waiting = [work(f"w{i:03}", age=1000 - i) for i in range(305)]
    decisions = decided([*waiting, running("r")], quota(executions=1))
    positions = [wait_of(decisions, f"w{i:03}").position for i in range(305)]
    assert positions[:100] == list(range(1, 101))
    assert set(positions[100:200]) == {200}
    assert set(positions[200:300]) == {300}
    assert set(positions[300:]) == {400}


def test_use_tells_what_is_held_and_pending_by_subject() -> None:
    several = [
        running("r", owner="ann", cpu=100, gpu=1),
        replace(running("j", owner="ann"), key=training("j").key),
        work("w", owner="bob"),
        work("s", owner="bob", suspend=True),
    ]
    decisions = decided(several, quota(per_owner=True, executions=1))
    use = {entry.subject: entry for entry in decisions.namespaces[NAMESPACE].use["quota"]}
    assert (use["ann"].executions, use["ann"].training_jobs, use["ann"].cpu, use["ann"].gpu) == (1, 1, 100, 1)
    assert (use["bob"].executions, use["bob"].pending) == (0, 1)


def test_an_unchanged_namespace_keeps_its_decision_until_its_time_comes() -> None:
    first = snapshot([work("a", backoff_until=NOW + timedelta(seconds=10))])
    before = decide(first, NOW)
    again = decide(first, NOW + timedelta(seconds=5), previous=before)
    assert again.changed == frozenset()
    assert again.namespaces[NAMESPACE] is before.namespaces[NAMESPACE]
    later = decide(first, NOW + timedelta(seconds=10), previous=again)
    assert later.changed == {NAMESPACE}
    assert admitted(later) == ["a"]


def test_a_silent_ledger_makes_all_be_decided_anew() -> None:
    first = snapshot([work("a")])
    before = decide(first, NOW)
    silent = Snapshot(first.namespaces, ledger_ready=False)
    assert waits(decide(silent, NOW, previous=before)) == {"a": "LedgerUnavailable"}


def test_namespaces_do_not_share_quotas_and_take_turns() -> None:
    one = [work(f"a{i}") for i in range(2)]
    two = [replace(each, key=each.key._replace(namespace="other", uid=f"o{each.key.uid}")) for each in one]
    snap = Snapshot.of(
        [*one, *two],
        {NAMESPACE: [quota(executions=2)], "other": [quota(executions=2)]},
        {NAMESPACE: [AGENT], "other": [AGENT]},
    )
    order = [admission.workload.key[1:3] for admission in decide(snap, NOW).admit]
    assert order == [("ns", "a0"), ("other", "a0"), ("ns", "a1"), ("other", "a1")]


def test_a_quota_is_read_from_its_spec() -> None:
    spec = ResourceQuotaSpec.model_validate(
        {
            "scope": {"owners": ["ann"], "agentSelector": {"b": "2", "a": "1"}, "perOwner": True},
            "hard": {"executions": 2, "cpu": "1500m", "memory": "1Gi", "gpu": 3},
            "budget": {"amount": "2.50"},
            "enforcement": "Monitor",
            "onLimit": {"action": "Reject"},
            "queueingStrategy": "StrictFIFO",
        }
    )
    read = Quota.of("q", spec)
    assert (read.hard.executions, read.hard.cpu, read.hard.memory, read.hard.gpu) == (2, 1500, GIB, 3)
    assert read.budget == 2_500_000_000
    assert read.agent_selector == (("a", "1"), ("b", "2"))
    assert (read.enforced, read.per_owner, read.strategy, read.on_limit) == (False, True, STRICT, OnLimitAction.REJECT)


def test_a_pods_requests_are_the_agents_and_the_meters() -> None:
    runner = Runner.model_validate({"resources": {"requests": {"cpu": "1", "gpu": 1}, "limits": {"memory": "1Gi"}}})
    assert requests_of(runner, Requests(cpu=50, memory=100)) == Requests(1050, GIB + 100, 1)


def test_an_agent_that_is_not_ready_says_why() -> None:
    broken = Agent("agent", AgentType.RESEARCH, ready=False, reason=AgentReason.MODEL_UNPRICED, message="no price")
    assert wait_of(decided([work("a")], agents=[broken]), "a").message == (
        "Agent agent is not ready (ModelUnpriced): no price"
    )
