"""The operator's cache, statuses and limiter: what events make of the snapshot, and what is written of a change."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from almoner_core.api.execution import (
    AttemptOutcome,
    ExecutionPhase,
    ExecutionStatus,
    FailureReason,
    QueueStatus,
    WaitReason,
)
from almoner_core.api.training_job import TrainingJobSpec, TrainingJobStatus
from almoner_core.money import Money
from almoner_core.wire import AccountKey, AccountState, AllotmentState, Dimension, ExecutionTotals, UsageTotals
from almoner_operator import outcome
from almoner_operator.accounts import limit_statuses, unsupported
from almoner_operator.attempts import AttemptEnd
from almoner_operator.cache import Cache
from almoner_operator.limiter import Limiter, Rank, TokenBucket
from almoner_operator.news import DELETED
from almoner_operator.records import Finished, Run, parse_pod, parse_quota, parse_run
from almoner_operator.scheduling.model import EXECUTION, Account, Requests, StopCause, SubjectUse, WorkloadState
from almoner_operator.writer import difference

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Json = dict[str, Any]


def meta(name: str, version: int = 1, **more: Any) -> Json:
    return {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "generation": 1,
        "creationTimestamp": "2026-01-02T03:00:00Z",
        **more,
    }


def execution(name: str, version: int = 1, status: Json | None = None, spec: Json | None = None, **more: Any) -> Json:
    return {
        "metadata": meta(name, version, **more),
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, **(spec or {})},
        "status": status or {},
    }


def agent(version: int = 1, **more: Any) -> Json:
    return {
        "metadata": meta("agent", version, **more),
        "spec": {"type": "Simulation", "model": {"provider": "local", "name": "small"}},
    }


def running(outcome_: str = "Running", **more: Any) -> Json:
    return {
        "phase": "Running",
        "attempts": [{"number": 1, "pod": "p", "podUID": "u", "allotment": "a", "outcome": outcome_, **more}],
    }


@pytest.fixture
def cache() -> Cache:
    return Cache(meter=Requests(cpu=50, memory=100), wake=lambda: None)


def run_of(cache: Cache, name: str) -> Run:
    return cache.runs[f"uid-{name}"]


def test_a_snapshot_keeps_a_namespace_as_the_same_object_until_it_changes(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, execution("one"))
    first = cache.snapshot().namespaces["ns"]
    assert cache.snapshot().namespaces["ns"] is first
    cache.observe_run(EXECUTION, "MODIFIED", execution("one", 1))
    assert cache.snapshot().namespaces["ns"] is first, "an old event changes nothing"
    cache.observe_run(EXECUTION, "MODIFIED", execution("one", 2, status={"phase": "Queued"}))
    assert cache.snapshot().namespaces["ns"] is first, "a status that we wrote changes nothing"
    cache.observe_run(EXECUTION, "MODIFIED", execution("one", 3, generation=2, spec={"priority": 9}))
    second = cache.snapshot().namespaces["ns"]
    assert second is not first
    assert second.workloads[0].priority == 9


def test_a_run_with_an_open_attempt_holds_quota_and_one_without_waits(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, execution("runs", status=running()))
    cache.observe_run(EXECUTION, None, execution("waits"))
    states = {each.key.name: each.state for each in cache.snapshot().namespaces["ns"].workloads}
    assert states == {"runs": WorkloadState.RESERVED, "waits": WorkloadState.WAITING}
    run_of(cache, "waits").admitting = True
    cache.touch(run_of(cache, "waits"))
    states = {each.key.name: each.state for each in cache.snapshot().namespaces["ns"].workloads}
    assert states["waits"] is WorkloadState.RESERVED, "what is assumed counts"


def test_finished_ones_leave_the_snapshot_and_are_counted(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, execution("done", status={"phase": "Succeeded"}))
    assert cache.snapshot().namespaces.get("ns") is None or not cache.snapshot().namespaces["ns"].workloads
    assert cache.counts.of("ns", "agent")["Succeeded"] == 1
    cache.observe_run(EXECUTION, DELETED, execution("done", 2))
    assert cache.counts.of("ns", "agent")["Succeeded"] == 0


def test_a_deleted_run_with_an_attempt_is_kept_for_its_allotment(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, execution("one", status=running()))
    cache.observe_run(EXECUTION, DELETED, execution("one", 2))
    assert [run.key.name for run in cache.gone] == ["one"]
    assert not cache.snapshot().namespaces["ns"].workloads


def test_an_object_of_the_same_name_made_again_is_another(cache: Cache) -> None:
    cache.observe_agent(None, agent())
    cache.observe_agent("ADDED", agent(5, uid="uid-other"))
    assert cache.spaces["ns"].agents["agent"].uid == "uid-other"
    cache.observe_agent(DELETED, agent(6))
    assert "agent" in cache.spaces["ns"].agents, "the late deletion of the former one"


def test_what_an_agent_changes_makes_its_runs_be_built_again(cache: Cache) -> None:
    cache.observe_agent(None, agent())
    cache.observe_run(EXECUTION, None, execution("one"))
    before = cache.snapshot().namespaces["ns"]
    assert not before.agents["agent"].ready, "not judged yet"
    changed = agent(2, generation=2)
    changed["spec"]["runner"] = {"resources": {"requests": {"cpu": 2}}}
    cache.observe_agent("MODIFIED", changed)
    assert cache.snapshot().namespaces["ns"].workloads[0].requests.cpu == 2050


def test_an_invalid_stored_object_is_a_record_and_no_error(cache: Cache) -> None:
    raw = execution("odd", spec={"priority": "very"})
    cache.observe_run(EXECUTION, None, raw)
    assert run_of(cache, "odd").spec is None
    assert "priority" in run_of(cache, "odd").invalid
    assert not cache.snapshot().namespaces["ns"].workloads
    cache.observe_quota(None, {"metadata": meta("q"), "spec": {"budget": {"amount": 1.5}}})
    (quota,) = cache.snapshot().namespaces["ns"].quotas
    assert not quota.ready, "limits that cannot be read admit nothing"


def test_money_coming_back_lets_the_refused_try_again(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, execution("one"))
    run = run_of(cache, "one")
    cache.hold(run, WaitReason.BUDGET_EXHAUSTED, "empty", seconds=900, quota="money")
    key = AccountKey(namespace="ns", quota="money")
    state = AccountState(
        key=key, dimension=Dimension.USD, generation=1, enforced=True, limit=100, spent=100, reserved=0
    )
    cache.snapshot()
    cache.take_account(state.model_copy(update={"limit": 0, "spent": 5}), NOW)
    assert run.hold is not None
    cache.take_account(state.model_copy(update={"spent": 10}), NOW)
    assert run.hold is None


def test_the_reset_of_a_window_does_not_wander_with_rounding(cache: Cache) -> None:
    state = AccountState(
        key=AccountKey(namespace="ns", quota="q"),
        dimension=Dimension.USD,
        generation=1,
        enforced=True,
        limit=1,
        spent=0,
        reserved=0,
        resets_in_seconds=60,
    )
    cache.take_account(state, NOW)
    first = cache.spaces["ns"].accounts["q", "", Dimension.USD].resets_at
    cache.take_account(state, NOW + timedelta(milliseconds=900))
    assert cache.spaces["ns"].accounts["q", "", Dimension.USD].resets_at == first


def test_a_pod_keeps_what_tells_its_end_and_no_environment() -> None:
    labels = {"almoner.dev/execution-uid": "u", "almoner.dev/attempt": "2"}
    raw = {
        "metadata": meta("p", labels=labels, managedFields=[{}]),
        "spec": {"nodeName": "n", "containers": [{"name": "agent", "env": [{"name": "SECRET", "value": "x"}]}]},
        "status": {"phase": "Running"},
    }
    pod = parse_pod(raw)
    assert pod is not None
    assert (pod.run_uid, pod.attempt) == ("u", 2)
    assert "SECRET" not in str(pod.raw)
    assert parse_pod({"metadata": meta("p", labels={})}) is None
    assert parse_pod({"metadata": meta("p", labels={**labels, "almoner.dev/attempt": "x"})}) is None


def test_why_a_pod_was_stopped_survives_a_restart() -> None:
    run = parse_run(EXECUTION, execution("one", status=running(reason="Preempted")))
    assert isinstance(run, Run)
    assert run.stop is StopCause.PREEMPTED
    ended = parse_run(EXECUTION, execution("one", status=running("Preempted", reason="Preempted")))
    assert isinstance(ended, Run)
    assert ended.stop is None
    assert ended.next_attempt == 2


@pytest.mark.parametrize(
    ("end", "retry", "phase", "reason"),
    [
        (AttemptEnd(AttemptOutcome.SUCCEEDED), {}, "Succeeded", None),
        (AttemptEnd(AttemptOutcome.CANCELLED), {}, "Cancelled", None),
        (AttemptEnd(AttemptOutcome.PREEMPTED), {}, "Queued", None),
        (AttemptEnd(AttemptOutcome.SUSPENDED), {}, "Queued", None),
        (AttemptEnd(AttemptOutcome.FAILED, FailureReason.AGENT_FAILED), {}, "Failed", "AgentFailed"),
        (AttemptEnd(AttemptOutcome.FAILED, FailureReason.AGENT_FAILED), {"limit": 1}, "Queued", "AgentFailed"),
        (AttemptEnd(AttemptOutcome.FAILED, FailureReason.START_TIMEOUT), {}, "Failed", "StartTimeout"),
        (AttemptEnd(AttemptOutcome.FAILED, FailureReason.UNSCHEDULABLE), {}, "Queued", "Unschedulable"),
        (AttemptEnd(AttemptOutcome.FAILED, FailureReason.IMAGE_PULL_FAILED), {}, "Failed", "ImagePullFailed"),
        (
            AttemptEnd(AttemptOutcome.FAILED, FailureReason.GUARDRAIL_TRIPPED),
            {"limit": 5},
            "Failed",
            "GuardrailTripped",
        ),
    ],
)
def test_the_end_of_an_attempt_is_the_end_or_another_try(
    end: AttemptEnd, retry: Json, phase: str, reason: str | None
) -> None:
    run = parse_run(EXECUTION, execution("one", status=running(), spec={"retry": retry}))
    assert isinstance(run, Run)
    status = outcome.ended(run, end, NOW)
    assert status.phase == phase
    assert status.attempts[-1].reason == reason
    assert status.attempts[-1].outcome is end.outcome
    assert (status.completion_time is not None) == (phase in ("Succeeded", "Failed", "Cancelled"))


def test_only_what_changed_is_written_and_lists_are_whole() -> None:
    old = ExecutionStatus(phase=ExecutionPhase.QUEUED, queue=QueueStatus(position=3, waiting_for="x"))
    new = old.model_copy(update={"queue": QueueStatus(waiting_for="x")})
    assert difference(old, old) == {}
    assert difference(old, new) == {
        "queue": {"position": None, "waitingFor": "x", "since": None, "nextChangeTime": None}
    }
    gone = old.model_copy(update={"queue": None, "phase": ExecutionPhase.ADMITTED})
    assert difference(old, gone) == {"queue": None, "phase": "Admitted"}


def test_totals_become_usage_and_nothing_used_is_nothing_new() -> None:
    run = parse_run(EXECUTION, execution("one", status=running()))
    assert isinstance(run, Run)
    nothing = ExecutionTotals(
        kind="Execution",
        namespace="ns",
        name="one",
        uid="u",
        totals=UsageTotals(),
        attempts={1: UsageTotals()},
        states={1: AllotmentState.OFFERED},
    )
    assert outcome.with_totals(run.status, nothing, NOW) is run.status
    used = UsageTotals(cost_nanos=5, input_tokens=3, output_tokens=2, requests=1)
    status = outcome.with_totals(
        run.status, nothing.model_copy(update={"totals": used, "attempts": {1: used}, "output": "4"}), NOW
    )
    assert status.usage.cost == Money(5)
    assert status.usage.tokens.total == 5
    assert status.attempts[0].usage == status.usage
    assert status.output == "4"


@pytest.mark.parametrize(
    ("told", "spec", "percent"),
    [
        ({"step": 5, "total": 10, "metrics": {"loss": "0.5"}}, {}, 50),
        ({"step": 20, "total": 10}, {}, 100),
        ({"step": "x"}, {}, None),
        ({"step": 3}, {}, None),
        ({}, {}, None),
        ({"step": 5}, {"steps": 20}, 25),
        ({"step": 5}, {"episodes": 10}, 50),
        ({"step": 5, "total": 10}, {"steps": 20}, 50),
        ({"step": 30}, {"steps": 20}, 100),
        ({"step": "x"}, {"steps": 20}, None),
    ],
)
def test_progress_is_somebody_elses_data(told: Json, spec: Json, percent: int | None) -> None:
    job = TrainingJobSpec.model_validate({"agentRef": {"name": "a"}, **spec})
    totals = ExecutionTotals(
        kind="TrainingJob",
        namespace="ns",
        name="j",
        uid="u",
        totals=UsageTotals(),
        attempts={},
        states={},
        progress=told,
    )
    status = outcome.with_totals(TrainingJobStatus(), totals, NOW, planned=outcome.planned_steps(job))
    assert isinstance(status, TrainingJobStatus)
    assert (status.progress.percent if status.progress else None) == percent


def test_a_quotas_status_tells_every_limit_with_its_use() -> None:
    record = parse_quota(
        {"metadata": meta("q"), "spec": {"hard": {"executions": 2, "cpu": "4"}, "budget": {"amount": "1.00"}}}
    )
    use = SubjectUse("", executions=1, training_jobs=0, pending=3, cpu=1500, memory=0, gpu=0)
    account = Account(limit=10**9, spent=25 * 10**7, reserved=10**7)
    rows = {each.name: each for each in limit_statuses(record, [use], {"": account})}
    assert (rows["executions"].used, rows["executions"].remaining, rows["executions"].percent) == ("1", "1", 50)
    assert (rows["cpu"].limit, rows["cpu"].used, rows["cpu"].remaining) == ("4", "1500m", "2500m")
    assert (rows["budget"].used, rows["budget"].reserved, rows["budget"].remaining) == ("0.25", "0.01", "0.74")
    assert rows["budget"].percent == 26


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"rates": {"tokensPerMinute": 5}}, ""),
        ({"hard": {"storage": "1Gi"}}, "storage"),
        ({"hard": {"storage": "1Gi"}, "enforcement": "Monitor"}, "storage"),
        ({"rates": {"tokensPerMinute": 5}, "enforcement": "Monitor"}, ""),
        ({"hard": {"executions": 1}}, ""),
    ],
)
def test_what_cannot_be_enforced_is_said(spec: Json, field: str) -> None:
    record = parse_quota({"metadata": meta("q"), "spec": spec})
    assert record.spec is not None
    assert (field in unsupported(record.spec)) if field else not unsupported(record.spec)


def test_a_finished_one_is_a_few_words() -> None:
    done = parse_run(
        EXECUTION,
        execution(
            "d",
            status={"phase": "Failed", "completionTime": "2026-01-02T03:04:05Z", "usage": {"cost": "0.5"}},
            spec={"ttlSecondsAfterFinished": 7},
            annotations={"argocd.argoproj.io/tracking-id": "x"},
        ),
    )
    assert isinstance(done, Finished)
    assert (done.ttl_seconds, done.tracked, done.cost) == (7, True, "0.5/0")


async def test_slots_go_to_the_most_important_first() -> None:
    limiter = Limiter(concurrent_max=1, rate=10_000, burst=10_000)
    order: list[str] = []
    gate = asyncio.Event()

    async def use(name: str, rank: Rank) -> None:
        async with limiter.slot(rank):
            order.append(name)
            if name == "first":
                await gate.wait()

    tasks = [asyncio.create_task(use("first", Rank.STATUS))]
    await asyncio.sleep(0)
    for name, rank in (("background", Rank.BACKGROUND), ("status", Rank.STATUS), ("admit", Rank.ADMIT)):
        tasks.append(asyncio.create_task(use(name, rank)))
        await asyncio.sleep(0)
    tasks[2].cancel()
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["first", "admit", "background"]
    assert limiter.waiting == 0


def test_a_token_bucket_keeps_its_pace() -> None:
    bucket = TokenBucket(rate=10, burst=2)
    assert [round(bucket.take(1.0), 3) for _ in range(4)] == [0.0, 0.0, 0.1, 0.2]
    assert bucket.take(2.0) == 0.0
