"""What can never start is ended, by name and with the numbers; what an edit or a window may let in waits."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from almoner_core.api.agent import AgentSpec
from almoner_core.api.execution import ExecutionStatus, FailureReason, RetryReason, WaitReason
from almoner_core.api.resource_quota import OnLimitAction, StopPolicy
from almoner_core.api.usage import TokenUsage, Usage
from almoner_core.money import Money
from almoner_core.wire import Error, ErrorCode, Refusal
from almoner_operator import admit, demand, outcome
from almoner_operator.admitted import Admitted
from almoner_operator.attempts import NEVER_RETRIED
from almoner_operator.cache import Cache
from almoner_operator.errors import LedgerError
from almoner_operator.records import Run, parse_run
from almoner_operator.scheduling.decide import NEVER_SECONDS, decide
from almoner_operator.scheduling.model import EXECUTION, TRAINING_JOB, Hold, Quota, Rejection, Requests, Wait, Workload
from tests.support.scheduling import NANOS, NOW, admitted, decided, money, quota, running, snapshot, work

LATER = NEVER_SECONDS + 1
WAIT, REJECT = OnLimitAction.WAIT, OnLimitAction.REJECT


def ends(workload: Workload, *quotas: Quota, others: tuple[Workload, ...] = ()) -> Rejection | None:
    found = decided([workload, *others], *quotas).reject
    return next((each for each in found if each.key == workload.key), None)


# Each: what waits, the quota, part of the message.
NEVER: dict[str, tuple[Workload, Quota, str]] = {
    "gpu": (
        work("a", age=LATER, gpu=8),
        quota(gpu=4),
        "asks for 8 GPUs, more than ResourceQuota quota ever allows (4)",
    ),
    "no gpu at all": (
        work("a", age=LATER, gpu=1),
        quota(gpu=0),
        "1 GPU, more than ResourceQuota quota ever allows (0)",
    ),
    "cpu": (work("a", age=LATER, cpu=3000), quota(cpu=2000), "asks for 3 cpu"),
    "memory": (work("a", age=LATER, memory=2**31), quota(memory=2**30), "asks for 2Gi memory"),
    "budget": (work("a", age=LATER, need=6), quota(budget=5, accounts=money(5)), "its start needs 0.000000006"),
    "a daily budget is as small tomorrow": (
        work("a", age=LATER, need=6),
        quota(budget=5, accounts=money(5, resets_at=NOW + timedelta(hours=3))),
        "of 0.000000005 USD",
    ),
    "maxPerExecution": (
        work("a", age=LATER, need=6),
        quota(budget=100, max_per_execution=5, accounts=money(100)),
        "ResourceQuota quota allows 0.000000005 USD for one execution (maxPerExecution)",
    ),
}


@pytest.mark.parametrize("action", [WAIT, REJECT])
@pytest.mark.parametrize("case", NEVER)
def test_what_can_never_start_is_ended_with_the_numbers(case: str, action: OnLimitAction) -> None:
    workload, limit, words = NEVER[case]
    rejection = ends(workload, replace(limit, on_limit=action))
    assert rejection is not None
    assert words in rejection.message
    assert rejection.quota == "quota"
    assert rejection.reason is FailureReason.REJECTED


@pytest.mark.parametrize("case", NEVER)
def test_an_edit_in_flight_is_waited_for(case: str) -> None:
    """Of manifests that are applied together some are seen later: the wait says until when, and then it ends."""
    workload, limit, words = NEVER[case]
    just_now = replace(workload, created=NOW, since=NOW)
    edited = replace(limit, changed=NOW)
    for each, rule in ((just_now, limit), (workload, edited)):
        decisions = decided([each], rule)
        assert not decisions.reject
        (wait,) = [wait for _, wait in decisions.waiting]
        assert words in wait.message
        assert wait.next_change == NOW + timedelta(seconds=NEVER_SECONDS)
        assert decisions.next_change == wait.next_change
        again = decide(snapshot([each], rule), wait.next_change, previous=decisions)
        assert [rejection.key.name for rejection in again.reject] == ["a"]


# What waits although it does not fit now: something other than an edit of its own may let it in.
MAY_START: dict[str, tuple[Workload, Quota]] = {
    "in use": (work("a", age=LATER, gpu=4), quota(gpu=4)),
    "closed for a while": (work("a", age=LATER), quota(executions=0)),
    "no money for a while": (work("a", age=LATER, need=5), quota(budget=0, accounts=money(0))),
    "spent": (work("a", age=LATER, need=5), quota(budget=9, accounts=money(9, spent=8))),
    "the ledger has the former amount": (work("a", age=LATER, need=6), quota(budget=9, accounts=money(5))),
    "not in force": (work("a", age=LATER, gpu=8), quota(gpu=4, ready=False)),
    "its queue is held": (work("a", age=LATER, gpu=8), quota(gpu=4, stop_policy=StopPolicy.HOLD)),
}


@pytest.mark.parametrize("case", MAY_START)
def test_what_may_start_later_waits(case: str) -> None:
    workload, limit = MAY_START[case]
    others = (running("r", gpu=4),) if case == "in use" else ()
    assert ends(workload, limit, others=others) is None


def test_one_that_ends_stands_in_nobodys_way() -> None:
    decisions = decided([work("huge", age=LATER + 60, gpu=8), work("small", age=LATER, gpu=1)], quota(gpu=4))
    assert admitted(decisions) == ["small"]
    assert [each.key.name for each in decisions.reject] == ["huge"]


def test_one_whose_own_limit_is_used_up_ends_at_once_even_in_backoff() -> None:
    spent = work("a", spent=9, need=2, used_up="limits.maxCost has no room", backoff_until=NOW + timedelta(hours=1))
    rejection = ends(spent)
    assert rejection is not None
    assert rejection.reason is FailureReason.BUDGET_EXHAUSTED
    assert "limits.maxCost has no room" in rejection.message


def test_what_earlier_attempts_spent_counts_for_the_quotas_cap() -> None:
    cap = quota(budget=100, max_per_execution=10, accounts=money(100))
    assert ends(work("a", spent=5, need=5), cap) is None
    rejection = ends(work("a", spent=6, need=5), cap)
    assert rejection is not None
    assert rejection.reason is FailureReason.BUDGET_EXHAUSTED
    assert "0.000000006 spent, its start needs 0.000000005" in rejection.message


def test_a_suspended_one_is_not_ended() -> None:
    assert ends(work("a", age=LATER, suspend=True, spent=9, used_up="limits.maxCost")) is None
    assert ends(work("a", age=LATER, suspend=True, gpu=8), quota(gpu=4)) is None


def run_of(limits: dict[str, Any], **used: Any) -> Run:
    spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, "limits": limits}
    raw = {"metadata": {"name": "one", "namespace": "ns", "uid": "u", "generation": 1}, "spec": spec}
    run = parse_run(EXECUTION, raw)
    assert isinstance(run, Run)
    run.status = ExecutionStatus(usage=Usage(**used))
    return run


def test_a_failed_attempt_that_spent_all_ends_the_run_in_spite_of_retries() -> None:
    """It went back to Queued for ever: the ledger refused every further attempt."""
    cache = Cache(meter=Requests(), wake=lambda: None)
    cache.set_ledger_ready(True)
    metadata = {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1}
    attempt = {"number": 1, "pod": "p", "outcome": "Failed", "reason": "AgentFailed", "finishTime": NOW.isoformat()}
    raw = {
        "metadata": metadata,
        "spec": {
            "runner": {"image": "trainer"},
            "limits": {"maxCost": "0.10"},
            "retry": {"limit": 2, "backoffSeconds": 600, "backoffMaxSeconds": 600},
        },
        "status": {"phase": "Queued", "attempts": [attempt], "usage": {"cost": "0.10"}},
    }
    cache.observe_run(TRAINING_JOB, None, raw)
    assert cache.runs["u"].backoff_until is not None, "it would be tried again"
    (rejection,) = decide(cache.snapshot(), NOW).reject
    assert rejection.reason is FailureReason.BUDGET_EXHAUSTED
    assert "0.10 of 0.10 USD spent" in rejection.message
    ended = outcome.rejected(cache.runs["u"], rejection.message, NOW, rejection.reason)
    assert ended.phase == "Failed"
    assert "0.10 of 0.10 USD spent" in (ended.message or "")


AGENT = AgentSpec.model_validate({"type": "Simulation", "model": {"provider": "local", "name": "small"}})


@pytest.mark.parametrize(
    ("limits", "used", "need", "words"),
    [
        ({"maxCost": "1.00"}, {"cost": Money(NANOS)}, 0, "1.00 of 1.00 USD spent"),
        ({"maxCost": "1.00"}, {"cost": Money(NANOS - 4)}, 5, "its start needs 0.000000005"),
        ({"maxCost": "1.00"}, {"cost": Money(NANOS - 5)}, 5, ""),
        ({"maxCost": "0.00"}, {}, 0, ""),
        ({"maxCost": "0.01"}, {}, 20_000_000, "0.00 of 0.01 USD spent"),
        ({"maxTokens": 100}, {"tokens": TokenUsage(total=100)}, 0, "limits.maxTokens is used up: 100 of 100"),
        ({"maxTokens": 100}, {"tokens": TokenUsage(total=99)}, 0, ""),
        ({"maxToolCalls": 3}, {"tool_calls": 3}, 0, "limits.maxToolCalls is used up: 3 of 3"),
        ({}, {"cost": Money(NANOS)}, 5, ""),
    ],
)
def test_which_of_its_own_limits_is_used_up(
    limits: dict[str, Any], used: dict[str, Any], need: int, words: str
) -> None:
    said = demand.used_up(run_of(limits, **used), AGENT, need)
    assert (words in said) if words else said == ""


def test_the_ledgers_refusal_of_an_executions_own_limit_is_final() -> None:
    """With retry.limit 2 one whose money was spent went back to Queued for ever."""

    def refusal(account: str, **more: Any) -> LedgerError:
        numbers = {"limit": 10, "spent": 8, "reserved": 0, "needed": 3, **more}
        told = Refusal.model_validate({"account": account, "dimension": "usd", **numbers})
        error = Error(code=ErrorCode.INSUFFICIENT, message="no", refusal=told)
        return LedgerError(error.code, error.message, refusal=error.refusal)

    assert isinstance(admit._refused(refusal("execution")), admit._NeverError)
    assert not isinstance(admit._refused(refusal("execution", spent=5)), admit._NeverError)
    assert not isinstance(admit._refused(refusal("ns/quota")), admit._NeverError)


def test_retry_names_only_reasons_that_are_honoured() -> None:
    assert {each.value for each in RetryReason} == {
        # One that no node takes is always tried again: naming it would change nothing.
        each.value
        for each in FailureReason
        if each not in NEVER_RETRIED and each is not FailureReason.UNSCHEDULABLE
    }


# --- queueTimeoutSeconds ----------------------------------------------------------------------------------------------


WAITS: dict[str, tuple[dict[str, Any], tuple[Quota, ...], WaitReason]] = {
    "a full quota": ({}, (quota(executions=1),), WaitReason.WAITING_FOR_QUOTA),
    "no money": ({"need": 2}, (quota(budget=9, accounts=money(9, 8)),), WaitReason.BUDGET_EXHAUSTED),
    "an agent that is not there": ({"agent": "other"}, (), WaitReason.AGENT_NOT_FOUND),
    "a hold": ({"hold": Hold(WaitReason.INPUT_NOT_FOUND, "no ConfigMap")}, (), WaitReason.INPUT_NOT_FOUND),
    "a quota not in force": ({}, (quota(ready=False),), WaitReason.QUOTA_NOT_READY),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_wait_ends_after_the_queue_timeout_with_what_it_waited_for(case: str) -> None:
    fields, quotas, reason = WAITS[case]
    workload = work("a", age=59, queue_timeout=60, **fields)
    decisions = decided([workload, running("r")], *quotas)
    assert not decisions.reject
    assert [wait.reason for _, wait in decisions.waiting] == [reason]
    due = NOW + timedelta(seconds=1)
    assert decisions.next_change == due
    assert [wait.next_change for _, wait in decisions.waiting] == [due]
    later = decide(snapshot([workload, running("r")], *quotas), due, previous=decisions)
    (rejection,) = later.reject
    assert rejection.reason is FailureReason.QUEUE_TIMEOUT
    assert "60 s in the queue (queueTimeoutSeconds)" in rejection.message
    assert str(reason) in rejection.message
    assert not dict(later.waiting)


def test_an_operator_that_starts_lets_in_what_fits_before_it_ends_what_waited_too_long() -> None:
    workload = work("a", age=999, queue_timeout=60)
    starting = quota(executions=1, ready=False, changed=NOW)
    decisions = decided([workload], starting)
    assert not decisions.reject
    assert decisions.next_change == NOW + timedelta(seconds=NEVER_SECONDS)
    assert admitted(decided([workload], replace(starting, ready=True))) == ["a"]


def test_what_is_no_queue_does_not_count_for_the_queue_timeout() -> None:
    backoff = work("b", age=999, queue_timeout=60, backoff_until=NOW + timedelta(seconds=9))
    asleep = work("s", age=999, queue_timeout=60, suspend=True)
    tried = work("t", age=999, queue_timeout=60, queued=NOW - timedelta(seconds=59))
    decisions = decided([backoff, asleep, tried, running("r")], quota(executions=1))
    assert not decisions.reject
    assert len(dict(decisions.waiting)) == 3


SUSPENDED = {"type": "Suspended", "status": "True", "reason": "Suspended", "message": ""}


def test_the_wait_of_a_resumed_one_begins_anew_after_a_restart_too() -> None:
    status = {
        "phase": "Queued",
        "conditions": [{**SUSPENDED, "lastTransitionTime": "2020-01-01T00:00:00Z"}],
        "queue": {"since": "2020-01-01T00:00:00Z"},
    }
    spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, "suspend": True, "queueTimeoutSeconds": 60}
    metadata = {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1}
    for restart in (False, True):
        cache = Cache(meter=Requests(), wake=lambda: None)
        if not restart:
            cache.observe_run(EXECUTION, None, {"metadata": metadata, "spec": spec, "status": status})
            (workload,) = cache.snapshot().namespaces["ns"].workloads
            assert workload.since.year == 2020
        resumed = {**spec, "suspend": False}
        changed = {**metadata, "resourceVersion": "2", "generation": 2}
        cache.observe_run(EXECUTION, "MODIFIED", {"metadata": changed, "spec": resumed, "status": status})
        (workload,) = cache.snapshot().namespaces["ns"].workloads
        assert workload.queue_timeout == 60
        assert workload.queued_since.year > 2020


def test_an_admission_that_came_to_nothing_does_not_start_the_wait_anew() -> None:
    run = run_of({})
    began = NOW - timedelta(seconds=50)
    run.admitted = Admitted(queued_since=began)
    status = outcome.unadmitted(run, Wait(WaitReason.WAITING_FOR_QUOTA, "refused"), NOW)
    assert status.queue is not None
    assert status.queue.since == began
