"""How an attempt ended, and what follows: pure functions over the pod's status.

The agent container decides, by name: the meter's exit code does not count. What the kubelet, the node controller and
the operator itself did to the pod comes before what the container made of it: a process that was killed for lack of
memory on its node did not fail by itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from almoner_core.api.execution import AttemptOutcome, ExecutionReason, FailureReason, Retry
from almoner_core.contract import AGENT_CONTAINER, METER_CONTAINER, AgentExitCode
from almoner_core.refusals import (
    BUDGET_CODES,
    RATE_CODES,
    ProviderRefused,
    Refused,
    is_own_limit,
    read_provider_refused,
    read_refused,
)
from almoner_core.text import short
from almoner_operator.clocks import LATENCY_SECONDS
from almoner_operator.scheduling.model import StopCause

MESSAGE_CHARS_MAX: Final = 1024
NO_LEDGER: Final = "it could not reach the ledger"
MESH_HINT: Final = (
    "does the network let the pod reach it before its main containers run? A service mesh's sidecar starts after them"
)
LOST_AFTER_SECONDS: Final = 120
"""So long after its grace period a pod that does not end counts as lost: more than a lease and the longest call."""

DEFAULT_RETRIED: Final = frozenset(
    {
        FailureReason.AGENT_FAILED,
        FailureReason.RUNNER_FAILED,
        FailureReason.START_TIMEOUT,
        FailureReason.IMAGE_PULL_FAILED,
        FailureReason.CONTAINER_NOT_CREATED,
        FailureReason.EVICTED,
        FailureReason.NODE_LOST,
        FailureReason.PROVIDER_FAILED,
        FailureReason.RATE_LIMITED,
    }
)
# Another attempt would end the same way, or is no retry at all: the API refuses them in `retry.reasons`.
NEVER_RETRIED: Final = frozenset(
    {
        FailureReason.TIMEOUT,
        FailureReason.PREEMPTED,
        FailureReason.REJECTED,
        FailureReason.INVALID_SPEC,
        FailureReason.QUEUE_TIMEOUT,
        FailureReason.STATUS_LOST,
    }
)

EXIT_CODES: Final[Mapping[int, FailureReason]] = {
    AgentExitCode.INVALID_INPUT: FailureReason.INVALID_INPUT,
    AgentExitCode.GUARDRAIL_TRIPPED: FailureReason.GUARDRAIL_TRIPPED,
    AgentExitCode.INVALID_OUTPUT: FailureReason.INVALID_OUTPUT,
    AgentExitCode.LIMIT_EXCEEDED: FailureReason.LIMIT_EXCEEDED,
    AgentExitCode.BUDGET_EXHAUSTED: FailureReason.BUDGET_EXHAUSTED,
    AgentExitCode.PROVIDER_FAILED: FailureReason.PROVIDER_FAILED,
    AgentExitCode.RATE_LIMITED: FailureReason.RATE_LIMITED,
}
SIGNALS: Final = range(129, 160)
"""Exit codes of what a signal killed."""
# Why an agent failed whose calls were refused, by the codes of refusals.
REFUSALS: Final[Mapping[frozenset[str], FailureReason]] = {
    BUDGET_CODES: FailureReason.BUDGET_EXHAUSTED,
    RATE_CODES: FailureReason.RATE_LIMITED,
}
# status.reason of a pod that the kubelet or a controller ended.
POD_REASONS: Final[Mapping[str, FailureReason]] = {
    "Evicted": FailureReason.EVICTED,
    "Preempting": FailureReason.EVICTED,
    "DeadlineExceeded": FailureReason.TIMEOUT,
    "NodeLost": FailureReason.NODE_LOST,
    "NodeShutdown": FailureReason.NODE_LOST,
    "Shutdown": FailureReason.NODE_LOST,
    "Terminated": FailureReason.NODE_LOST,
    "NodeAffinity": FailureReason.RUNNER_FAILED,
    "UnexpectedAdmissionError": FailureReason.RUNNER_FAILED,
}
# Reasons of the condition DisruptionTarget.
DISRUPTIONS: Final[Mapping[str, FailureReason]] = {
    "PreemptionByScheduler": FailureReason.EVICTED,
    "EvictionByEvictionAPI": FailureReason.EVICTED,
    "TerminationByKubelet": FailureReason.EVICTED,
    "DeletionByTaintManager": FailureReason.NODE_LOST,
    "DeletionByPodGC": FailureReason.NODE_LOST,
}
# Reasons of a terminated container that never ran its program.
_NOT_STARTED: Final = frozenset({"StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"})
_UNKNOWN_END: Final = "ContainerStatusUnknown"
_OUTCOMES: Final[Mapping[StopCause, AttemptOutcome]] = {
    StopCause.CANCELLED: AttemptOutcome.CANCELLED,
    StopCause.SUSPENDED: AttemptOutcome.SUSPENDED,
    StopCause.PREEMPTED: AttemptOutcome.PREEMPTED,
    StopCause.DRAINED: AttemptOutcome.PREEMPTED,
    StopCause.EXHAUSTED: AttemptOutcome.FAILED,
}
REASONS: Final[Mapping[StopCause, FailureReason]] = {StopCause.EXHAUSTED: FailureReason.BUDGET_EXHAUSTED}
"""Why it failed that was stopped; what was stopped on somebody's wish did not fail."""


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended. `reason` is None where it succeeded or was stopped on purpose."""

    outcome: AttemptOutcome
    reason: FailureReason | None = None
    message: str = ""
    exit_code: int | None = None
    started: datetime | None = None
    finished: datetime | None = None
    refused: int = 0
    """Calls that its meter refused."""


def started_at(pod: Mapping[str, Any]) -> datetime | None:
    """When the agent container started; None while it has not."""
    state = _container(pod, AGENT_CONTAINER).get("state") or {}
    part = state.get("running") or state.get("terminated") or {}
    if part.get("reason") in _NOT_STARTED:
        return None
    return _time(part.get("startedAt"))


def has_agent_ended(pod: Mapping[str, Any]) -> bool:
    """Whether the agent container has terminated: how the attempt ends is decided, though its pod may go on."""
    return "terminated" in (_container(pod, AGENT_CONTAINER).get("state") or {})


def agent_ended_at(pod: Mapping[str, Any]) -> datetime | None:
    """When the agent container ended; None while it has not, or where the node does not say when."""
    ended = (_container(pod, AGENT_CONTAINER).get("state") or {}).get("terminated") or {}
    return _time(ended.get("finishedAt"))


def outlived(pod: Mapping[str, Any]) -> bool:
    """Whether the agent has ended and another main container has not: one that something injected into the pod.

    The kubelet ends sidecars of its own kind by itself, the meter among them, but waits for every main container.
    """
    others = [
        each for each in _statuses(pod.get("status") or {}, "containerStatuses") if each["name"] != AGENT_CONTAINER
    ]
    return has_agent_ended(pod) and any("terminated" not in (each.get("state") or {}) for each in others)


def has_terminated(pod: Mapping[str, Any] | None) -> bool:
    """Whether the pod holds nothing any more: gone, in a final phase, or all its containers have terminated."""
    if pod is None:
        return True
    status = pod.get("status") or {}
    if status.get("phase") in ("Succeeded", "Failed"):
        return True
    containers = [*_statuses(status, "initContainerStatuses"), *_statuses(status, "containerStatuses")]
    wanted = len((pod.get("spec") or {}).get("initContainers") or []) + len(
        (pod.get("spec") or {}).get("containers") or []
    )
    return 0 < wanted <= len(containers) and all("terminated" in (c.get("state") or {}) for c in containers)


def seen_to_end(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet saw every container end that it started, or none was ever started: nothing spends any more.

    More than `has_terminated`: a control plane that gives a node up writes a final phase too, and knows nothing.
    """
    status = pod.get("status") or {}
    containers = [*_statuses(status, "initContainerStatuses"), *_statuses(status, "containerStatuses")]
    if any("running" in (container.get("state") or {}) for container in containers):
        return False
    if containers and all("terminated" in (container.get("state") or {}) for container in containers):
        return has_terminated(pod)
    if not (pod.get("spec") or {}).get("nodeName"):
        return bool(pod.get("gone")) or has_terminated(pod)
    given_up = any(
        condition.get("type") == "DisruptionTarget"
        and DISRUPTIONS.get(condition.get("reason", "")) is FailureReason.NODE_LOST
        for condition in status.get("conditions") or []
    )
    return has_terminated(pod) and not given_up and status.get("reason") != "NodeLost"


def classify(
    pod: Mapping[str, Any] | None,
    *,
    now: datetime,
    intent: StopCause | None = None,
    timed_out: bool = False,
    start_deadline_seconds: int = 600,
    stuck_since: datetime | None = None,
) -> AttemptEnd | None:
    """Classify a pod (JSON form; None: it vanished). None while the agent may still end by itself.

    `intent` is why the operator told it to stop, `timed_out` that it did so because the timeout ran out. A pod that is
    classified while it still runs (it cannot start, or its node is lost) is the caller's to delete. `stuck_since` is
    since when `trouble` has found what ends it if it lasts.
    """
    if pod is None:
        return _stopped(intent, timed_out=timed_out, finished=now) or AttemptEnd(
            AttemptOutcome.FAILED, FailureReason.NODE_LOST, "the pod vanished before it ended", finished=now
        )
    ended = (_container(pod, AGENT_CONTAINER).get("state") or {}).get("terminated")
    if ended is not None:
        end = _agent_ended(pod, ended, now=now, intent=intent, timed_out=timed_out)
        word = _meter_word(pod)
        return _after_refusals(end, read_refused(word), read_provider_refused(word))
    started = started_at(pod)
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        stopped = _stopped(intent, timed_out=timed_out, finished=now, started=started)
        if stopped is not None:
            return stopped
        reason, message = _disruption(pod) or (FailureReason.RUNNER_FAILED, "")
        text = message or _startup_message(pod) or "the pod failed before the agent started"
        return AttemptEnd(AttemptOutcome.FAILED, reason, short(text, MESSAGE_CHARS_MAX), started=started, finished=now)
    deletion = _time(_metadata(pod).get("deletionTimestamp"))
    if deletion is not None:
        if now < deletion + timedelta(seconds=LOST_AFTER_SECONDS):
            return None
        text = "the pod did not end within its grace period, nor long after: its node does not answer"
        return _stopped(intent, timed_out=timed_out, finished=now, started=started) or AttemptEnd(
            AttemptOutcome.FAILED, FailureReason.NODE_LOST, text, started=started, finished=now
        )
    return None if started is not None else _not_started(pod, now, start_deadline_seconds, stuck_since)


def _agent_ended(
    pod: Mapping[str, Any], ended: Mapping[str, Any], *, now: datetime, intent: StopCause | None, timed_out: bool
) -> AttemptEnd:
    """The agent container has terminated: by itself, or because something stopped its pod."""
    exit_code = int(ended.get("exitCode", 0))
    started, finished = started_at(pod), _time(ended.get("finishedAt")) or now
    asked = _asked_to_stop(pod)
    natural = asked is None or finished < asked
    if (intent is not None or timed_out) and asked is not None:
        # We did ask. The last deletion overwrites when; and two clocks never quite agree on what came first.
        close = exit_code != 0 and finished >= asked - timedelta(seconds=LATENCY_SECONDS)
        natural = natural and not close and not _finally_deleted(pod)
    if not natural:
        stopped = _stopped(intent, timed_out=timed_out, finished=finished, started=started, exit_code=exit_code)
        if stopped is not None:
            return stopped
    unpaid = _unpaid(pod) if exit_code != 0 else ""
    disrupted = _disruption(pod, conditions=not natural or exit_code != 0)
    if exit_code == 0 and natural and disrupted is None:
        return AttemptEnd(AttemptOutcome.SUCCEEDED, None, "", 0, started, finished)
    if unpaid:
        reason, message = FailureReason.BUDGET_EXHAUSTED, unpaid
    elif disrupted is not None:
        reason, message = disrupted
    elif not natural:
        reason, message = FailureReason.NODE_LOST, "the pod was deleted before the agent ended"
    else:
        reason, message = _own_failure(pod, ended, exit_code)
    return AttemptEnd(AttemptOutcome.FAILED, reason, short(message, MESSAGE_CHARS_MAX), exit_code, started, finished)


def _after_refusals(end: AttemptEnd, refused: Refused | None, provider: ProviderRefused | None = None) -> AttemptEnd:
    """What refused calls make of an end: the reason of a failure that nothing else explains, and a word in any case.

    An agent of any framework dies of a refusal by an exit code of its own. It is the refusal's where no call that
    began after it succeeded: an agent that went on failed of something else. Want of room comes before what a provider
    refused, since that may have been asked only for want of room elsewhere.
    """
    reason, said = end.reason, refused.told() if refused is not None else ""
    by_itself = end.exit_code is not None and end.exit_code > 0 and end.exit_code not in SIGNALS
    if reason is FailureReason.AGENT_FAILED and by_itself:
        reason = _reason_of_refusals(refused, provider)
    elif reason is FailureReason.PROVIDER_FAILED and provider is not None:
        reason = FailureReason.PROVIDER_REFUSED
    if reason is end.reason:
        agents_own = reason in (*REFUSALS.values(), FailureReason.LIMIT_EXCEEDED)
        message = end.message if agents_own else "; ".join(part for part in (end.message, said) if part)
    elif reason is FailureReason.PROVIDER_REFUSED and provider is not None:
        message = f"{provider.told()}: {end.message}"
    else:
        message = f"{said} ({end.message})"
    count = refused.count if refused is not None else 0
    return replace(end, reason=reason, message=short(message, MESSAGE_CHARS_MAX), refused=count)


def _reason_of_refusals(refused: Refused | None, provider: ProviderRefused | None) -> FailureReason:
    """Why an agent failed that ended by itself, by the calls that were refused."""
    if refused is not None and refused.last:
        reason = next((why for codes, why in REFUSALS.items() if refused.code in codes), None)
        if reason is FailureReason.BUDGET_EXHAUSTED and is_own_limit(refused.message):
            return FailureReason.LIMIT_EXCEEDED
        if reason is not None:
            return reason
    return FailureReason.AGENT_FAILED if provider is None else FailureReason.PROVIDER_REFUSED


def _own_failure(pod: Mapping[str, Any], ended: Mapping[str, Any], exit_code: int) -> tuple[FailureReason, str]:
    """What the agent container itself did."""
    why = ended.get("reason")
    said = _last_line(ended.get("message"))
    if why == _UNKNOWN_END:
        return FailureReason.NODE_LOST, said or "the node lost track of the container"
    if why in _NOT_STARTED:
        return FailureReason.RUNNER_FAILED, f"the agent container could not start: {said or why}"
    if why == "OOMKilled":
        limit = _memory_limit(pod)
        of = f" of {limit}" if limit else ""
        return FailureReason.AGENT_FAILED, f"out of memory: the agent container exceeded its memory limit{of}"
    reason = EXIT_CODES.get(exit_code, FailureReason.AGENT_FAILED)
    what = f"killed by signal {exit_code - 128}" if 128 < exit_code < 160 else f"exit code {exit_code}"
    if reason is not FailureReason.AGENT_FAILED and said:
        return reason, said
    return reason, f"{what}: {said}" if said else what


def _stopped(
    intent: StopCause | None,
    *,
    timed_out: bool,
    finished: datetime,
    started: datetime | None = None,
    exit_code: int | None = None,
) -> AttemptEnd | None:
    """The end that the operator itself asked for; cancelling outranks a timeout."""
    if timed_out and intent is not StopCause.CANCELLED:
        text = "timeoutSeconds ran out"
        return AttemptEnd(AttemptOutcome.FAILED, FailureReason.TIMEOUT, text, exit_code, started, finished)
    if intent is None:
        return None
    text = f"stopped: {intent.value.lower()}"
    return AttemptEnd(_OUTCOMES[intent], REASONS.get(intent), text, exit_code, started, finished)


def _finally_deleted(pod: Mapping[str, Any]) -> bool:
    """Whether what is seen of the pod is its last moment: the kubelet deletes it without grace once it has ended."""
    metadata = _metadata(pod)
    return "deletionTimestamp" in metadata and not metadata.get("deletionGracePeriodSeconds")


def _asked_to_stop(pod: Mapping[str, Any]) -> datetime | None:
    """When the pod's deletion was asked for: the API server adds the grace period to the time it records."""
    metadata = _metadata(pod)
    deletion = _time(metadata.get("deletionTimestamp"))
    if deletion is None:
        return None
    return deletion - timedelta(seconds=int(metadata.get("deletionGracePeriodSeconds") or 0))


def _disruption(pod: Mapping[str, Any], *, conditions: bool = True) -> tuple[FailureReason, str] | None:
    """What the kubelet, the scheduler or a controller did to the pod; None where they did nothing.

    The pod's own reason is only ever set on one that had not ended; a condition may come after the end.
    """
    status = pod.get("status") or {}
    why = str(status.get("reason") or "")
    if why in POD_REASONS:
        reason = POD_REASONS[why]
        text = "timeoutSeconds ran out" if reason is FailureReason.TIMEOUT else status.get("message") or why
        return reason, str(text)
    for condition in (status.get("conditions") or []) if conditions else ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = DISRUPTIONS.get(condition.get("reason", ""), FailureReason.EVICTED)
            return reason, str(condition.get("message") or condition.get("reason") or "disrupted")
    return None


def _not_started(
    pod: Mapping[str, Any], now: datetime, deadline_seconds: int, stuck_since: datetime | None
) -> AttemptEnd | None:
    """The agent container has not started: that has a deadline, since the pod holds quota all the while."""
    found = trouble(pod)
    if found is not None and found.failure is not None:
        at_once = found.gives_up_after == 0
        since = now if at_once else stuck_since
        if since is not None and now >= since + timedelta(seconds=found.gives_up_after):
            return AttemptEnd(
                AttemptOutcome.FAILED, found.failure, short(found.message, MESSAGE_CHARS_MAX), finished=now
            )
    created = _time(_metadata(pod).get("creationTimestamp"))
    if created is None or now < created + timedelta(seconds=deadline_seconds):
        return None
    why = _startup_message(pod)
    taken = (pod.get("spec") or {}).get("nodeName") or [*_statuses(pod.get("status") or {}, "containerStatuses")]
    if taken and not (found is not None and found.reason is ExecutionReason.UNSCHEDULABLE):
        reason, text = FailureReason.START_TIMEOUT, f"the agent did not start within {deadline_seconds} s"
    else:
        reason, text = FailureReason.UNSCHEDULABLE, f"no node took the pod within {deadline_seconds} s"
    return AttemptEnd(
        AttemptOutcome.FAILED, reason, short(text + (f": {why}" if why else ""), MESSAGE_CHARS_MAX), finished=now
    )


class Trouble(NamedTuple):
    """What keeps a pod from starting, in the cluster's words, and what it ends as where that lasts."""

    reason: ExecutionReason
    message: str
    failure: FailureReason | None = None
    gives_up_after: int = 0
    """Seconds; meaningless without `failure`."""


STUCK_SECONDS: Final = 60
"""So long a container may not come to be before the attempt fails; the kubelet tries again after 10, 20 and 40 s."""
_IMAGE: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_INVALID_IMAGE: Final = "InvalidImageName"
_CREATION: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
    }
)


def trouble(pod: Mapping[str, Any]) -> Trouble | None:
    """What the cluster says about a pod whose agent has not started; None where nothing is wrong yet."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            said = _join(condition.get("reason"), condition.get("message"))
            return Trouble(ExecutionReason.UNSCHEDULABLE, f"no node takes the pod: {said}")
    for container in (*_statuses(status, "initContainerStatuses"), *_statuses(status, "containerStatuses")):
        name, state = str(container.get("name")), container.get("state") or {}
        waiting = state.get("waiting") or {}
        why = str(waiting.get("reason") or "")
        said = f"{name}: {_join(why, waiting.get('message'))}"
        if why in _IMAGE:
            seconds = 0 if why == _INVALID_IMAGE else STUCK_SECONDS
            return Trouble(ExecutionReason.IMAGE_PULL_FAILED, said, FailureReason.IMAGE_PULL_FAILED, seconds)
        if why in _CREATION:
            failure = FailureReason.CONTAINER_NOT_CREATED
            return Trouble(ExecutionReason.CONTAINER_NOT_CREATED, said, failure, STUCK_SECONDS)
        if name == METER_CONTAINER and (container.get("lastState") or {}).get("terminated") is not None:
            return Trouble(ExecutionReason.METER_NOT_READY, _startup_message(pod) or said)
    return None


def _startup_message(pod: Mapping[str, Any]) -> str:
    """The most telling word about why a pod does not start: scheduling, an image, the meter."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _join(condition.get("reason"), condition.get("message"))
    for name in (METER_CONTAINER, AGENT_CONTAINER):
        container = _container(pod, name)
        last = (container.get("lastState") or {}).get("terminated")
        if name == METER_CONTAINER and last is not None:
            return f"the meter exited with code {last.get('exitCode')}: {_meter_error(last.get('message'))}"
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return f"{name}: {_join(waiting.get('reason'), waiting.get('message'))}"
        if name == METER_CONTAINER and container.get("state", {}).get("running") and not container.get("started"):
            return f"the meter has not loaded its allotment from the ledger: {MESH_HINT}"
    return ""


def _meter_error(message: Any) -> str:
    """What a meter said before it had started. Killed by its start-up probe it may say nothing: it wants the ledger."""
    word = _last_word(message)
    said = (str(word.get("error") or "") if word is not None else _last_line(message)) or NO_LEDGER
    return f"{said} ({MESH_HINT})" if NO_LEDGER in said else said


def _meter_word(pod: Mapping[str, Any]) -> dict[str, Any]:
    """The last word of the pod's meter, unchecked; empty where it left none."""
    ended = (_container(pod, METER_CONTAINER).get("state") or {}).get("terminated") or {}
    return _last_word(ended.get("message")) or {}


def _unpaid(pod: Mapping[str, Any]) -> str:
    """What the meter says if it had the kubelet end the pod because its machine time was not paid for; else nothing."""
    return str(_meter_word(pod).get("unpaid") or "")


def _last_word(message: Any) -> dict[str, Any] | None:
    """Read a meter's termination message; None where it is no object of JSON."""
    try:
        word = json.loads(_last_line(message))
    except (ValueError, RecursionError):
        return None
    return word if isinstance(word, dict) else None


# --- what follows -----------------------------------------------------------------------------------------------------


def retry_at(
    uid: str, attempt: int, reason: FailureReason, retry: Retry, *, failures: int, finished: datetime
) -> datetime | None:
    """When the next attempt may start, or None where there is none.

    `failures` counts failed attempts, this one included (preempted, suspended and drained ones are not failures). The
    wait doubles with every failure up to the cap; the jitter (up to a quarter less) comes from uid and attempt, so that
    a restarted operator gets the same moment.
    """
    wanted = frozenset(FailureReason(each.value) for each in retry.reasons) or DEFAULT_RETRIED
    if reason not in wanted or reason in NEVER_RETRIED or failures > retry.limit:
        return None
    exponent = min(max(0, failures - 1), 32)
    milliseconds = min(retry.backoff_seconds << exponent, retry.backoff_max_seconds) * 1000
    digest = hashlib.sha256(f"backoff/{uid}/{attempt}".encode()).digest()
    spread = milliseconds // 4
    jitter = int.from_bytes(digest[:4], "big") % (spread + 1)
    return finished + timedelta(milliseconds=milliseconds - jitter)


def remaining_seconds(timeout_seconds: int | None, used_seconds: int) -> int | None:
    """What is left of a timeout over all attempts; None without one; 0: it has run out."""
    return None if timeout_seconds is None else max(0, timeout_seconds - used_seconds)


# --- reading pods -----------------------------------------------------------------------------------------------------


def _metadata(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata: Mapping[str, Any] = pod.get("metadata") or {}
    return metadata


def _statuses(status: Mapping[str, Any], field: str) -> Iterable[Mapping[str, Any]]:
    return status.get(field) or []


def _container(pod: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    status = pod.get("status") or {}
    for container in (*_statuses(status, "containerStatuses"), *_statuses(status, "initContainerStatuses")):
        if container.get("name") == name:
            return container
    return {}


def _memory_limit(pod: Mapping[str, Any]) -> str:
    for container in (pod.get("spec") or {}).get("containers") or []:
        if container.get("name") == AGENT_CONTAINER:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory", ""))
    return ""


def _time(value: Any) -> datetime | None:
    """Read a Kubernetes timestamp; None for anything else, since a node's word is not to be trusted with a crash."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else None


def _last_line(text: Any) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _join(*parts: Any) -> str:
    return ": ".join(str(part) for part in parts if part)
