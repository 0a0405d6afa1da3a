"""How attempts end, from what a pod's status says; and when they are tried again."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.execution import AttemptOutcome, FailureReason, Retry, RetryReason
from almoner_operator.attempts import (
    NEVER_RETRIED,
    classify,
    has_terminated,
    remaining_seconds,
    retry_at,
    started_at,
)
from almoner_operator.scheduling.model import StopCause

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
FAILED, SUCCEEDED = AttemptOutcome.FAILED, AttemptOutcome.SUCCEEDED


def stamp(seconds: int) -> str:
    """A time so many seconds before NOW, as the API server writes it."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(agent: dict[str, Any] | None = None, meter: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A pod created a minute ago; `agent` and `meter` are container statuses, the rest goes into status or metadata."""
    metadata: dict[str, Any] = {"name": "p", "creationTimestamp": stamp(60)}
    deleted = status.pop("deleted", None)
    if deleted is not None:
        grace = status.pop("grace", 30)
        metadata |= {"deletionTimestamp": stamp(deleted - grace), "deletionGracePeriodSeconds": grace}
    return {
        "metadata": metadata,
        "spec": {
            "initContainers": [{"name": "meter"}],
            "containers": [{"name": "agent", "resources": {"limits": {"memory": "1Gi"}}}],
        },
        "status": {
            "phase": "Running",
            "initContainerStatuses": [{"name": "meter", "started": True, **(meter or {"state": {"running": {}}})}],
            "containerStatuses": [{"name": "agent", **(agent or {})}],
            **status,
        },
    }


def exited(code: int, message: str = "", *, reason: str | None = None, ago: int = 5) -> dict[str, Any]:
    """An agent container that ended `ago` seconds before NOW."""
    return {
        "state": {
            "terminated": {
                "exitCode": code,
                "reason": reason or ("Completed" if code == 0 else "Error"),
                "message": message,
                "startedAt": stamp(50),
                "finishedAt": stamp(ago),
            }
        }
    }


RUNNING: dict[str, Any] = {"state": {"running": {"startedAt": stamp(50)}}}
WAITING: dict[str, Any] = {"state": {"waiting": {"reason": "PodInitializing"}}}
TARGET = {"type": "DisruptionTarget", "status": "True"}


def refusing(code: str | None, *, last: bool = True, count: Any = 3, status: Any = None, **more: Any) -> dict[str, Any]:
    """A meter that ended, and said that calls were refused: by itself (`code`), by the provider (`status`), or both."""
    refused = {"count": count, "code": code, "message": "no room: $0.00 of $1.00 are left", "last": last, **more}
    word: dict[str, Any] = {"version": 1} | ({} if code is None else {"refused": refused})
    if status is not None:
        word["provider_refused"] = {"provider": "main", "status": status}
    return {"state": {"terminated": {"exitCode": 0, "message": json.dumps(word)}}}


TOLD = "3 calls were refused, the last: no room: $0.00 of $1.00 are left"
# Each case: the pod, options of classify, the outcome, the reason, part of the message.
ENDS: dict[str, tuple[Any, dict[str, Any], AttemptOutcome, FailureReason | None, str]] = {
    "exit code 0": (pod(exited(0)), {}, SUCCEEDED, None, ""),
    "exit code 0, and the meter still runs": (pod(exited(0), {"state": {"running": {}}}), {}, SUCCEEDED, None, ""),
    "exit code 0, and the meter crashed": (
        pod(exited(0), {"state": {"terminated": {"exitCode": 1}}}),
        {},
        SUCCEEDED,
        None,
        "",
    ),
    "exit code 0 before the deletion that was asked for later": (
        pod(exited(0, ago=20), deleted=10),
        {"intent": StopCause.PREEMPTED},
        SUCCEEDED,
        None,
        "",
    ),
    "exit code 1 with a log": (
        pod(exited(1, "Traceback\n  File\nValueError: boom\n\n")),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "exit code 1: ValueError: boom",
    ),
    "exit code 1 without a word": (pod(exited(1)), {}, FAILED, FailureReason.AGENT_FAILED, "exit code 1"),
    "killed": (pod(exited(137)), {}, FAILED, FailureReason.AGENT_FAILED, "killed by signal 9"),
    "out of memory": (
        pod(exited(137, reason="OOMKilled")),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "exceeded its memory limit of 1Gi",
    ),
    "invalid input": (pod(exited(64, "no such field")), {}, FAILED, FailureReason.INVALID_INPUT, "no such field"),
    "guardrail": (pod(exited(65)), {}, FAILED, FailureReason.GUARDRAIL_TRIPPED, "exit code 65"),
    "invalid output": (pod(exited(66)), {}, FAILED, FailureReason.INVALID_OUTPUT, ""),
    "limit": (pod(exited(67)), {}, FAILED, FailureReason.LIMIT_EXCEEDED, ""),
    "budget": (pod(exited(68)), {}, FAILED, FailureReason.BUDGET_EXHAUSTED, ""),
    "calls refused for want of money": (
        pod(exited(1, "Node.js v20"), refusing("insufficient_quota")),
        {},
        FAILED,
        FailureReason.BUDGET_EXHAUSTED,
        f"{TOLD} (exit code 1: Node.js v20)",
    ),
    "one call refused, as others hold the room": (
        pod(exited(3), refusing("budget_in_use", count=1)),
        {},
        FAILED,
        FailureReason.BUDGET_EXHAUSTED,
        "a call was refused: no room",
    ),
    "calls refused by a rate": (
        pod(exited(1), refusing("rate_limit_exceeded")),
        {},
        FAILED,
        FailureReason.RATE_LIMITED,
        TOLD,
    ),
    "a call above what a rate ever has": (
        pod(exited(1), refusing("request_exceeds_rate")),
        {},
        FAILED,
        FailureReason.RATE_LIMITED,
        TOLD,
    ),
    "calls refused for want of tokens that the run itself may use": (
        pod(exited(1), refusing("insufficient_quota", message="no room in execution: of tokens it could")),
        {},
        FAILED,
        FailureReason.LIMIT_EXCEEDED,
        "in execution: of tokens",
    ),
    "calls refused as they may cost what is not bounded": (
        pod(exited(1, "boom"), refusing("unsupported_parameter")),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        f"exit code 1: boom; {TOLD}",
    ),
    "calls refused, and others made after": (
        pod(exited(1, "boom"), refusing("insufficient_quota", last=False)),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        f"exit code 1: boom; {TOLD}",
    ),
    "calls refused, and out of memory": (
        pod(exited(137, reason="OOMKilled"), refusing("insufficient_quota")),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "out of memory",
    ),
    "calls refused, and it slept until its timeout": (
        pod(exited(143), refusing("insufficient_quota"), deleted=6),
        {"timed_out": True},
        FAILED,
        FailureReason.TIMEOUT,
        f"timeoutSeconds ran out; {TOLD}",
    ),
    "calls refused, and it made do": (pod(exited(0), refusing("insufficient_quota")), {}, SUCCEEDED, None, TOLD),
    "the loop says itself that the budget is spent": (
        pod(exited(68, "budget spent"), refusing("insufficient_quota")),
        {},
        FAILED,
        FailureReason.BUDGET_EXHAUSTED,
        "budget spent",
    ),
    "calls refused, and an exit code of a byte's end, which is no signal's": (
        pod(exited(255), refusing("insufficient_quota")),
        {},
        FAILED,
        FailureReason.BUDGET_EXHAUSTED,
        f"{TOLD} (exit code 255)",
    ),
    "the provider refuses the key": (
        pod(exited(1, "boom"), refusing(None, status=401)),
        {},
        FAILED,
        FailureReason.PROVIDER_REFUSED,
        "provider main refused the last call (HTTP 401): exit code 1: boom",
    ),
    "the provider refuses the request, and the loop says itself that it failed": (
        pod(exited(69, "no such model"), refusing(None, status=404)),
        {},
        FAILED,
        FailureReason.PROVIDER_REFUSED,
        "provider main refused the last call (HTTP 404): no such model",
    ),
    "the provider refuses the last call, where there was no room for the others": (
        pod(exited(1, "boom"), refusing("insufficient_quota", status=404)),
        {},
        FAILED,
        FailureReason.BUDGET_EXHAUSTED,
        f"{TOLD} (exit code 1: boom)",
    ),
    "the provider refuses a call, and the meter fields of others": (
        pod(exited(1, "boom"), refusing("unsupported_parameter", status=400)),
        {},
        FAILED,
        FailureReason.PROVIDER_REFUSED,
        "(HTTP 400): exit code 1: boom",
    ),
    "the provider refuses a call, and the agent made do": (
        pod(exited(0), refusing(None, status=400)),
        {},
        SUCCEEDED,
        None,
        "",
    ),
    "the provider refuses a call, and the loop says that the input is at fault": (
        pod(exited(64, "too long"), refusing(None, status=400)),
        {},
        FAILED,
        FailureReason.INVALID_INPUT,
        "too long",
    ),
    "the provider refuses a call, and out of memory": (
        pod(exited(137, reason="OOMKilled"), refusing(None, status=400)),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "out of memory",
    ),
    "the provider is busy: that passes": (
        pod(exited(1, "boom"), refusing(None, status=529)),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "exit code 1: boom",
    ),
    "the meter's word is odd": (
        pod(exited(1, "boom"), refusing("insufficient_quota", count="many")),
        {},
        FAILED,
        FailureReason.AGENT_FAILED,
        "exit code 1: boom",
    ),
    "provider": (pod(exited(69)), {}, FAILED, FailureReason.PROVIDER_FAILED, ""),
    "rate": (pod(exited(70)), {}, FAILED, FailureReason.RATE_LIMITED, ""),
    "no such command": (
        pod(exited(128, "exec: no such file", reason="StartError")),
        {},
        FAILED,
        FailureReason.RUNNER_FAILED,
        "could not start: exec: no such file",
    ),
    "the node lost track of it": (
        pod(exited(137, reason="ContainerStatusUnknown")),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "lost track",
    ),
    "evicted": (
        pod(exited(137), phase="Failed", reason="Evicted", message="low on memory"),
        {},
        FAILED,
        FailureReason.EVICTED,
        "low on memory",
    ),
    "evicted before it started": (
        pod(WAITING, phase="Failed", reason="Evicted", message="low on disk"),
        {},
        FAILED,
        FailureReason.EVICTED,
        "low on disk",
    ),
    "drained by a person": (
        pod(exited(143), deleted=10, conditions=[{**TARGET, "reason": "EvictionByEvictionAPI"}]),
        {},
        FAILED,
        FailureReason.EVICTED,
        "EvictionByEvictionAPI",
    ),
    "its node went away": (
        pod(exited(143), deleted=10, conditions=[{**TARGET, "reason": "DeletionByTaintManager", "message": "gone"}]),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "gone",
    ),
    "the node shut down": (
        pod(exited(0), phase="Failed", reason="Terminated"),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "",
    ),
    "the deadline": (
        pod(exited(143), phase="Failed", reason="DeadlineExceeded"),
        {},
        FAILED,
        FailureReason.TIMEOUT,
        "timeoutSeconds ran out",
    ),
    "the deadline, and it exited with 0 when told": (
        pod(exited(0), phase="Failed", reason="DeadlineExceeded"),
        {},
        FAILED,
        FailureReason.TIMEOUT,
        "",
    ),
    "timed out by the operator": (
        pod(exited(143), deleted=10),
        {"timed_out": True},
        FAILED,
        FailureReason.TIMEOUT,
        "ran out",
    ),
    "cancelled after the timeout": (
        pod(exited(143), deleted=10),
        {"timed_out": True, "intent": StopCause.CANCELLED},
        AttemptOutcome.CANCELLED,
        None,
        "stopped: cancelled",
    ),
    "cancelled": (
        pod(exited(143), deleted=10),
        {"intent": StopCause.CANCELLED},
        AttemptOutcome.CANCELLED,
        None,
        "cancelled",
    ),
    # The kubelet's last deletion, without grace, overwrites when the first was asked for.
    "cancelled, and only the pod's last moment was seen": (
        pod(exited(143), deleted=0, grace=0),
        {"intent": StopCause.CANCELLED},
        AttemptOutcome.CANCELLED,
        None,
        "cancelled",
    ),
    "out of time, and only the pod's last moment was seen": (
        pod(exited(143), deleted=0, grace=0),
        {"timed_out": True},
        FAILED,
        FailureReason.TIMEOUT,
        "ran out",
    ),
    "suspended, and it exited with 0 when told": (
        pod(exited(0), deleted=10),
        {"intent": StopCause.SUSPENDED},
        AttemptOutcome.SUSPENDED,
        None,
        "",
    ),
    "preempted": (
        pod(exited(143), deleted=10),
        {"intent": StopCause.PREEMPTED},
        AttemptOutcome.PREEMPTED,
        None,
        "",
    ),
    "drained": (pod(exited(143), deleted=10), {"intent": StopCause.DRAINED}, AttemptOutcome.PREEMPTED, None, ""),
    "deleted by somebody": (
        pod(exited(143), deleted=10),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "the pod was deleted",
    ),
    "deleted by somebody, and it exited with 0 when told": (
        pod(exited(0), deleted=10),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "the pod was deleted",
    ),
    "vanished": (None, {}, FAILED, FailureReason.NODE_LOST, "vanished"),
    "vanished when told to stop": (None, {"intent": StopCause.PREEMPTED}, AttemptOutcome.PREEMPTED, None, ""),
    "vanished when timed out": (None, {"timed_out": True}, FAILED, FailureReason.TIMEOUT, ""),
    "its node does not answer": (
        pod(RUNNING, deleted=500),
        {},
        FAILED,
        FailureReason.NODE_LOST,
        "does not answer",
    ),
    "its node does not answer, and it was preempted": (
        pod(RUNNING, deleted=500),
        {"intent": StopCause.PREEMPTED},
        AttemptOutcome.PREEMPTED,
        None,
        "",
    ),
    "never scheduled": (
        pod(
            WAITING,
            phase="Pending",
            conditions=[
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: cpu"}
            ],
        ),
        {"start_deadline_seconds": 30},
        FAILED,
        FailureReason.UNSCHEDULABLE,
        "no node took the pod within 30 s: Unschedulable: 0/1 nodes: cpu",
    ),
    "no such image": (
        pod({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}, phase="Pending"),
        {"start_deadline_seconds": 30},
        FAILED,
        FailureReason.START_TIMEOUT,
        "agent: ImagePullBackOff: not found",
    ),
    "the meter cannot start": (
        pod(
            WAITING,
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 3, "message": "ledger refused: wrong_state"}},
            },
            phase="Pending",
        ),
        {"start_deadline_seconds": 30},
        FAILED,
        FailureReason.START_TIMEOUT,
        "the meter exited with code 3: ledger refused: wrong_state",
    ),
    "the meter was killed while it waited for the ledger": (
        pod(
            WAITING,
            {
                "state": {"running": {}},
                "started": False,
                "lastState": {
                    "terminated": {
                        "exitCode": 0,
                        "message": '{"allotment":"a","error":"the meter did not start: it could not reach the ledger"}',
                    }
                },
            },
            phase="Pending",
        ),
        {"start_deadline_seconds": 30},
        FAILED,
        FailureReason.START_TIMEOUT,
        "could not reach the ledger (does the network let the pod reach it before its main containers run?",
    ),
    "the meter was killed and said nothing": (
        pod(WAITING, {"state": {}, "lastState": {"terminated": {"exitCode": 137}}}, phase="Pending"),
        {"start_deadline_seconds": 30},
        FAILED,
        FailureReason.START_TIMEOUT,
        "the meter exited with code 137: it could not reach the ledger",
    ),
    "the pod failed before the agent started": (
        pod(WAITING, phase="Failed"),
        {},
        FAILED,
        FailureReason.RUNNER_FAILED,
        "before the agent started",
    ),
}


@pytest.mark.parametrize("case", ENDS)
def test_how_it_ended(case: str) -> None:
    given_pod, options, outcome, reason, message = ENDS[case]
    end = classify(given_pod, now=NOW, **options)
    assert end is not None
    assert (end.outcome, end.reason) == (outcome, reason)
    assert message in end.message


NOT_YET: dict[str, tuple[Any, dict[str, Any]]] = {
    "running": (pod(RUNNING), {}),
    "starting": (pod(WAITING, phase="Pending"), {}),
    "told to stop, within its grace period": (pod(RUNNING, deleted=10), {"intent": StopCause.CANCELLED}),
    "told to stop before it started": (pod(WAITING, deleted=10), {"intent": StopCause.CANCELLED}),
    "to be stopped, not told yet": (pod(RUNNING), {"intent": StopCause.SUSPENDED}),
    "the meter restarted": (pod(RUNNING, {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}), {}),
    "without any status": ({"metadata": {}, "spec": {}}, {}),
}


@pytest.mark.parametrize("case", NOT_YET)
def test_not_ended_yet(case: str) -> None:
    given_pod, options = NOT_YET[case]
    assert classify(given_pod, now=NOW, **options) is None


def test_times_and_exit_code_are_the_agents() -> None:
    end = classify(pod(exited(3)), now=NOW)
    assert end is not None
    assert (end.exit_code, end.started, end.finished) == (3, NOW - timedelta(seconds=50), NOW - timedelta(seconds=5))
    assert started_at(pod(RUNNING)) == NOW - timedelta(seconds=50)
    assert started_at(pod(WAITING)) is None
    assert started_at(pod(exited(128, reason="StartError"))) is None


def test_a_flood_of_words_is_cut() -> None:
    end = classify(pod(exited(1, "x" * 100_000)), now=NOW)
    assert end is not None
    assert len(end.message) == 1024


@pytest.mark.parametrize(
    ("given_pod", "expected"),
    [
        (None, True),
        (pod(exited(0), phase="Succeeded"), True),
        (pod(exited(0)), False),
        (pod(exited(0), {"state": {"terminated": {"exitCode": 0}}}), True),
        (pod(RUNNING, deleted=10), False),
        ({"metadata": {}, "spec": {"containers": [{"name": "agent"}]}, "status": {}}, False),
    ],
)
def test_quota_is_held_until_all_has_terminated(given_pod: Any, expected: bool) -> None:
    assert has_terminated(given_pod) is expected


@given(st.sampled_from(["startedAt", "finishedAt", "reason", "message"]), st.none() | st.text(max_size=30))
def test_garbage_from_a_node_makes_no_crash(field: str, value: str | None) -> None:
    spoiled = deepcopy(pod(exited(1)))
    spoiled["status"]["containerStatuses"][0]["state"]["terminated"][field] = value
    end = classify(spoiled, now=NOW)
    assert end is not None
    assert end.outcome is FAILED


# --- retries ----------------------------------------------------------------------------------------------------------

RETRY = Retry(limit=3, backoff_seconds=10, backoff_max_seconds=60)


def wait(
    reason: FailureReason = FailureReason.AGENT_FAILED, *, failures: int = 1, retry: Retry = RETRY
) -> float | None:
    at = retry_at("uid", failures, reason, retry, failures=failures, finished=NOW)
    return None if at is None else (at - NOW).total_seconds()


@pytest.mark.parametrize(("failures", "least", "most"), [(1, 7.5, 10), (2, 15, 20), (3, 30, 40)])
def test_the_wait_doubles_with_jitter(failures: int, least: float, most: float) -> None:
    seconds = wait(failures=failures)
    assert seconds is not None
    assert least <= seconds <= most


def test_the_wait_is_capped_and_the_same_again() -> None:
    retry = Retry(limit=100, backoff_seconds=10, backoff_max_seconds=60)
    seconds = wait(failures=100, retry=retry)
    assert seconds is not None
    assert 45 <= seconds <= 60
    assert wait(failures=100, retry=retry) == seconds


def test_jitter_differs_between_executions() -> None:
    moments = {retry_at(f"uid{i}", 1, FailureReason.EVICTED, RETRY, failures=1, finished=NOW) for i in range(20)}
    assert len(moments) > 10


@pytest.mark.parametrize(
    ("reason", "retry", "failures", "again"),
    [
        (FailureReason.AGENT_FAILED, RETRY, 3, True),
        (FailureReason.AGENT_FAILED, RETRY, 4, False),
        (FailureReason.AGENT_FAILED, Retry(), 1, False),
        (FailureReason.INVALID_INPUT, RETRY, 1, False),
        (FailureReason.BUDGET_EXHAUSTED, RETRY, 1, False),
        (FailureReason.GUARDRAIL_TRIPPED, RETRY, 1, False),
        (FailureReason.GUARDRAIL_TRIPPED, Retry(limit=1, reasons=[RetryReason.GUARDRAIL_TRIPPED]), 1, True),
        (FailureReason.AGENT_FAILED, Retry(limit=1, reasons=[RetryReason.EVICTED]), 1, False),
        (FailureReason.NODE_LOST, RETRY, 1, True),
        (FailureReason.PROVIDER_FAILED, RETRY, 1, True),
        (FailureReason.PROVIDER_REFUSED, RETRY, 1, False),
        (FailureReason.PROVIDER_REFUSED, Retry(limit=1, reasons=[RetryReason.PROVIDER_REFUSED]), 1, True),
        (FailureReason.RATE_LIMITED, RETRY, 1, True),
        *((reason, Retry(limit=9), 1, False) for reason in sorted(NEVER_RETRIED)),
    ],
)
def test_what_is_retried(reason: FailureReason, retry: Retry, failures: int, again: bool) -> None:
    assert (wait(reason, failures=failures, retry=retry) is not None) is again


@pytest.mark.parametrize(("timeout", "used", "left"), [(None, 5, None), (10, 4, 6), (10, 10, 0), (10, 99, 0)])
def test_a_timeout_counts_over_all_attempts(timeout: int | None, used: int, left: int | None) -> None:
    assert remaining_seconds(timeout, used) == left
