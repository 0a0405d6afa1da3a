"""What happens to a run, told three ways at one place: one log line, an event where people look for one, and metrics.

Role: the decision log. Every step of a run (waits, refused, admitted, pod created, started, stopping, attempt ended,
ended with its cost) is one line with the same fields everywhere: namespace, run, kind, attempt, allotment,
trace_id, and `step`, which programs select by. Lines hold no content of a user's beyond messages that the status shows.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from almoner_core.api.execution import Attempt, ExecutionPhase, FailureReason
from almoner_core.log_lines import trace_id
from almoner_operator import metrics
from almoner_operator.attempts import AttemptEnd
from almoner_operator.events import EventRecorder
from almoner_operator.records import Run
from almoner_operator.scheduling.model import StopCause, Wait

log = logging.getLogger(__name__)

_SECOND: Final = timedelta(seconds=1)


def fields(run: Run, attempt: Attempt | None, step: str) -> dict[str, str | int]:
    """Give what every line about a run has."""
    known: dict[str, str | int] = {
        "step": step,
        "kind": run.key.kind,
        "namespace": run.key.namespace,
        "run": run.key.name,
        "uid": run.key.uid,
        "agent": run.agent_name or "",
        "owner": run.owner,
    }
    if attempt is not None:
        known |= {
            "attempt": attempt.number,
            "pod": attempt.pod,
            "allotment": attempt.allotment or "",
            "trace_id": trace_id(attempt.allotment),
        }
    return known


def waits(run: Run, wait: Wait) -> None:
    """Its status says that it waits, for a reason that it did not say before."""
    about = fields(run, None, "waits") | {"reason": str(wait.reason), "position": wait.position or 0}
    log.info("waits: %s", wait.message, extra=about)


def put_off(run: Run, reason: str, message: str) -> None:
    """It was admitted, and its pod may not run: it gives back what it was given, and waits on."""
    log.info("not admitted: %s", message, extra=fields(run, None, "put-off") | {"reason": reason})


def refused(run: Run, reason: FailureReason, message: str) -> None:
    """It can never run: it ends without an attempt."""
    log.info("refused: %s", message, extra=fields(run, None, "refused") | {"reason": str(reason)})


def admitted(events: EventRecorder, run: Run, attempt: Attempt, quotas: tuple[str, ...], moment: datetime) -> None:
    """Its allotment is open and its status says so."""
    first = attempt.number == 1
    waited = max(0.0, (moment - run.created) / _SECOND)
    about = fields(run, attempt, "admitted") | {"quotas": ",".join(quotas)}
    if first:
        metrics.ADMISSION_WAIT_SECONDS.labels(metrics.bounded(run.key.namespace)).observe(waited)
        about["waited_seconds"] = round(waited)
    log.info("admitted", extra=about)
    metrics.ADMITTED.labels(metrics.bounded(run.key.namespace)).inc()
    note = f"attempt {attempt.number} is admitted" + (f" after {waited:.0f} s" if first else "")
    events.tell(*run.key, reason="Admitted", note=note, once=f"admitted/{attempt.number}", milestone=True)


def pod_created(run: Run, attempt: Attempt, pod_uid: str) -> None:
    """The attempt's pod exists."""
    log.info("pod created", extra=fields(run, attempt, "pod-created") | {"pod_uid": pod_uid})


def started(events: EventRecorder, run: Run, at: datetime) -> None:
    """The agent's container runs."""
    attempt = run.attempt
    if attempt is None:
        return
    log.info("started", extra=fields(run, attempt, "started") | {"started": at.isoformat()})
    note = f"attempt {attempt.number} runs in pod {attempt.pod}"
    events.tell(*run.key, reason="Started", note=note, once=f"started/{attempt.number}", milestone=True)


def stopping(run: Run, cause: StopCause, message: str) -> None:
    """Its pod is told to stop."""
    log.info("stopping: %s", message, extra=fields(run, run.attempt, "stopping") | {"reason": cause.value})


def attempt_ended(run: Run, attempt: Attempt, end: AttemptEnd) -> None:
    """An attempt is over, and its allotment closed; `run.status` has its usage."""
    last = run.status.attempts[-1] if run.status.attempts else attempt
    about = fields(run, attempt, "attempt-ended") | {
        "outcome": end.outcome.value,
        "reason": end.reason.value if end.reason else "",
        "cost": str(last.usage.cost) if last.usage is not None else "unknown",
    }
    if end.exit_code is not None:
        about["exit_code"] = end.exit_code
    log.info("attempt ended: %s", end.message or end.outcome.value, extra=about)


def ended(events: EventRecorder, run: Run) -> None:
    """It is over, and its status says so, with what it cost in US dollars."""
    status = run.status
    namespace, usage = metrics.bounded(run.key.namespace), status.usage
    reason = next((each.reason for each in status.conditions if each.type == "Failed" and each.status == "True"), "")
    metrics.FINISHED.labels(namespace, str(status.phase), reason).inc()
    about = fields(run, status.attempts[-1] if status.attempts else None, "ended") | {
        "phase": str(status.phase),
        "reason": reason,
        "attempts": len(status.attempts),
        "cost": str(usage.cost),
        "unpriced_records": usage.unpriced_records,
        "tokens": usage.tokens.total,
        "calls": usage.requests,
    }
    if status.start_time is not None and status.completion_time is not None:
        seconds = max(0.0, (status.completion_time - status.start_time) / _SECOND)
        metrics.RUN_SECONDS.labels(namespace, str(status.phase)).observe(seconds)
        about["duration_seconds"] = round(seconds)
    log.info("ended: %s", status.phase, extra=about)
    if status.phase is ExecutionPhase.SUCCEEDED:
        unknown = f" and {usage.unpriced_records} records of unknown cost" if usage.unpriced_records else ""
        note = f"it cost {usage.cost} US dollars{unknown}: {usage.requests} calls, {usage.tokens.total} tokens"
        events.tell(*run.key, reason="Succeeded", note=note, once="succeeded", milestone=True)
