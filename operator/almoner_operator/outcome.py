"""What a run's status says at each step of its life: pure functions from a record and a fact to the next status.

Boundary: no I/O, no clock; `now` is an argument. Conditions come from conditions.py's truth table.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from almoner_core.api.base import ConditionStatus, KStatusCondition
from almoner_core.api.execution import (
    TERMINAL_PHASES,
    Attempt,
    AttemptOutcome,
    ExecutionCondition,
    ExecutionPhase,
    ExecutionReason,
    FailureReason,
    PinnedAgent,
    QueueStatus,
    WaitReason,
)
from almoner_core.api.training_job import Metric, Progress, TrainingJobSpec, TrainingJobStatus
from almoner_core.api.usage import ComputeUsage, TokenUsage, Usage
from almoner_core.contract import STATUS_OUTPUT_CHARS_MAX
from almoner_core.money import Money
from almoner_core.text import short
from almoner_core.wire import ExecutionTotals, UsageTotals
from almoner_operator.attempts import AttemptEnd, retry_at
from almoner_operator.conditions import OURS, Standing, conditions_for
from almoner_operator.last_words import Told
from almoner_operator.records import Finished, Run, RunSpec, RunStatus
from almoner_operator.scheduling.model import StopCause, Wait

MESSAGE_CHARS_MAX: Final = 1024
PROGRESS_CHARS_MAX: Final = 256
ATTEMPTS_MAX: Final = 101
LOG_TAILS_MAX: Final = 5
"""Attempts whose log's end is kept: an object in etcd has its bound."""
START_BACKOFF_SECONDS: Final = 15
START_BACKOFF_SECONDS_MAX: Final = 600
NOTHING_TOLD: Final = Told()


def moment(now: datetime) -> datetime:
    """Give a time as statuses carry it: to the millisecond."""
    return now.replace(microsecond=now.microsecond // 1000 * 1000)


def stand(run: Run, standing: Standing, now: datetime, **changes: Any) -> RunStatus:
    """Give the run's status in a standing, with other changed fields."""
    return run.status.model_copy(
        update={
            "observed_generation": run.generation,
            "phase": standing.phase,
            "owner": run.owner,
            "message": short(standing.message, MESSAGE_CHARS_MAX) or None,
            "conditions": conditions_for(
                standing, generation=run.generation, previous=run.status.conditions, now=now.replace(microsecond=0)
            ),
            **changes,
        }
    )


def waiting(run: Run, wait: Wait, quotas: Sequence[str], now: datetime) -> RunStatus:
    """It waits, and this is why."""
    standing = Standing(
        phase=ExecutionPhase.QUEUED,
        message=wait.message,
        suspended=wait.reason in (WaitReason.SUSPENDED, WaitReason.RESTORED),
        wait=wait.reason,
        admitted=bool(run.status.attempts),
    )
    since = run.status.queue.since if run.status.queue and run.status.queue.since else moment(now)
    queue = QueueStatus(
        position=wait.position,
        waiting_for=short(wait.message, MESSAGE_CHARS_MAX) or None,
        since=since,
        next_change_time=wait.next_change,
    )
    return stand(run, standing, now, queue=queue, quotas=list(quotas)[:64])


def resumed(run: Run, now: datetime) -> RunStatus:
    """Give its status with the wait beginning now where it was suspended and is no longer: that time does not count."""
    queue = run.status.queue
    suspended = any(
        each.type == ExecutionCondition.SUSPENDED and each.status == ConditionStatus.TRUE
        for each in run.status.conditions
    )
    if not suspended or queue is None or run.spec is None or run.spec.suspend:
        return run.status
    return run.status.model_copy(update={"queue": queue.model_copy(update={"since": moment(now)})})


def admitted(run: Run, attempt: Attempt, pinned: PinnedAgent | None, quotas: Sequence[str], now: datetime) -> RunStatus:
    """An attempt is admitted; its pod is yet to be created."""
    standing = Standing(ExecutionPhase.ADMITTED, message=f"attempt {attempt.number} admitted", admitted=True)
    return stand(
        run,
        standing,
        now,
        attempts=[*run.status.attempts, attempt][-ATTEMPTS_MAX:],
        agent=pinned,
        quotas=list(quotas)[:64],
        queue=None,
        admitted_time=run.status.admitted_time or attempt.admitted_time,
    )


def changed_attempt(run: Run, **changes: Any) -> list[Attempt]:
    """Give the attempts with the last one changed."""
    return [*run.status.attempts[:-1], run.status.attempts[-1].model_copy(update=changes)]


def running(run: Run, pod_uid: str, started: datetime, now: datetime) -> RunStatus:
    """The agent container runs."""
    number = run.status.attempts[-1].number
    standing = Standing(ExecutionPhase.RUNNING, message=f"attempt {number} runs", admitted=True)
    return stand(
        run,
        standing,
        now,
        attempts=changed_attempt(run, pod_uid=pod_uid, start_time=started),
        start_time=run.status.start_time or started,
    )


def troubled(run: Run, reason: ExecutionReason | None, message: str, now: datetime) -> RunStatus:
    """What keeps the attempt under way from going on; None where nothing does any more."""
    phase = run.status.phase or ExecutionPhase.ADMITTED
    number = run.status.attempts[-1].number
    plain = f"attempt {number} {'runs' if phase is ExecutionPhase.RUNNING else 'admitted'}"
    return stand(run, Standing(phase, message if reason else plain, admitted=True, trouble=reason), now)


def trouble_said(run: Run) -> tuple[str, str] | None:
    """What its status says of an attempt that does not go on, reason and message; None where it says nothing such."""
    ready = next((each for each in run.status.conditions if each.type == KStatusCondition.READY), None)
    if ready is None or ready.reason in (ExecutionReason.ADMITTED, ExecutionReason.RUNNING):
        return None
    return ready.reason, ready.message


def ended(
    run: Run, end: AttemptEnd, now: datetime, told: Told = NOTHING_TOLD, log_tail: str | None = None
) -> RunStatus:
    """The attempt ended: the run is over, or waits for another attempt.

    `told`: what its meter said last; `log_tail`: the end of its agent's log.
    """
    status = _ended(run, end, now, told)
    attempts = list(status.attempts)
    if end.outcome is not AttemptOutcome.SUCCEEDED:
        attempts[-1] = attempts[-1].model_copy(update={"log_tail": log_tail})
    if len(attempts) > LOG_TAILS_MAX and attempts[-LOG_TAILS_MAX - 1].log_tail is not None:
        attempts[-LOG_TAILS_MAX - 1] = attempts[-LOG_TAILS_MAX - 1].model_copy(update={"log_tail": None})
    refused = ((run.status.refused_calls or 0) + end.refused) or None
    return status.model_copy(update={"output_issue": told.issue, "attempts": attempts, "refused_calls": refused})


def _ended(run: Run, end: AttemptEnd, now: datetime, told: Told) -> RunStatus:
    finished = end.finished or now
    attempts = changed_attempt(
        run,
        outcome=end.outcome,
        reason=str(end.reason) if end.reason else _stop_reason(run, end),
        message=short("; ".join(part for part in (_said(run, end), told.note) if part), MESSAGE_CHARS_MAX) or None,
        exit_code=end.exit_code,
        refused_calls=end.refused or None,
        admission=None,
        # Who saw it start knows best when that was.
        start_time=run.status.attempts[-1].start_time or end.started,
        finish_time=moment(finished),
    )
    start = run.status.start_time or end.started
    if end.outcome is AttemptOutcome.SUCCEEDED:
        return _terminal(
            run, Standing(ExecutionPhase.SUCCEEDED, end.message or told.note, admitted=True), now, attempts, start
        )
    if end.outcome is AttemptOutcome.CANCELLED:
        message = end.message or "cancelled"
        return _terminal(run, Standing(ExecutionPhase.CANCELLED, message, admitted=True), now, attempts, start)
    if end.outcome is AttemptOutcome.FAILED:
        reason = end.reason or FailureReason.RUNNER_FAILED
        again = next_try(run, attempts, reason, finished)
        if again is None:
            standing = Standing(ExecutionPhase.FAILED, _said(run, end), admitted=True, failure=reason)
            return _terminal(run, standing, now, attempts, start)
        message = f"attempt {attempts[-1].number} failed ({reason}: {end.message}); tried again at {_clock(again)}"
        wait = Wait(WaitReason.BACKOFF, message, next_change=again)
    else:
        wait = Wait(WaitReason.QUEUED, end.message or f"attempt {attempts[-1].number} was stopped; it queues again")
    standing = Standing(ExecutionPhase.QUEUED, wait.message, wait=wait.reason, admitted=True)
    queue = QueueStatus(
        waiting_for=short(wait.message, MESSAGE_CHARS_MAX), since=moment(now), next_change_time=wait.next_change
    )
    return stand(run, standing, now, attempts=attempts, queue=queue, start_time=start)


def next_try(run: Run, attempts: Sequence[Attempt], reason: FailureReason, finished: datetime) -> datetime | None:
    """Give when a failed run may be tried again; None where it may not."""
    if run.spec is None or run.spec.cancel:
        return None
    failed = [attempt for attempt in attempts if attempt.outcome is AttemptOutcome.FAILED]
    homeless = sum(1 for attempt in failed if attempt.reason == FailureReason.UNSCHEDULABLE)
    if reason is FailureReason.UNSCHEDULABLE:
        # Not its fault: there was no place for the pod. It gave its quota back and tries again, ever less often.
        return finished + timedelta(
            seconds=min(START_BACKOFF_SECONDS_MAX, START_BACKOFF_SECONDS * 2 ** min(homeless, 8))
        )
    failures = len(failed) - homeless
    return retry_at(run.key.uid, attempts[-1].number, reason, run.spec.retry, failures=failures, finished=finished)


def backoff_of(run: Run) -> datetime | None:
    """Give until when a run that was read anew still waits after a failed attempt."""
    last = run.status.attempts[-1] if run.status.attempts else None
    if last is None or last.outcome is not AttemptOutcome.FAILED or last.finish_time is None:
        return None
    return next_try(run, run.status.attempts, reason_of(last.reason), last.finish_time)


def over_already(run: Run, now: datetime) -> RunStatus | None:
    """Give the end of a run whose attempts say that it has ended, though its phase does not; None where it goes on.

    Somebody overwrote the phase, or took a retry back that was due: no attempt follows without a reason.
    """
    last = run.status.attempts[-1] if run.status.attempts else None
    if last is None or run.status.phase in TERMINAL_PHASES:
        return None
    if last.outcome is AttemptOutcome.SUCCEEDED:
        standing = Standing(ExecutionPhase.SUCCEEDED, last.message or "", admitted=True)
    elif last.outcome is AttemptOutcome.CANCELLED:
        standing = Standing(ExecutionPhase.CANCELLED, last.message or "cancelled", admitted=True)
    elif last.outcome is AttemptOutcome.FAILED and not (run.spec is None or run.spec.cancel):
        reason = reason_of(last.reason)
        if next_try(run, run.status.attempts, reason, last.finish_time or now) is not None:
            return None
        standing = Standing(ExecutionPhase.FAILED, last.message or "", admitted=True, failure=reason)
    else:
        return None
    status = _terminal(run, standing, now, run.status.attempts, run.status.start_time)
    return status.model_copy(update={"completion_time": moment(last.finish_time or now)})


def reason_of(text: str | None) -> FailureReason:
    """Read why an attempt failed."""
    return next((each for each in FailureReason if each.value == text), FailureReason.RUNNER_FAILED)


def written_again(done: Finished, found: RunStatus, generation: int, now: datetime) -> RunStatus:
    """Give the end of a run again over what somebody else made of its status; what else that says is left."""
    phase = ExecutionPhase(done.phase)
    standing = Standing(
        phase,
        "its status was overwritten after its end; the end is written again",
        admitted=bool(found.attempts),
        failure=reason_of(done.failure) if phase is ExecutionPhase.FAILED else None,
    )
    attempts = list(found.attempts)
    if attempts and attempts[-1].outcome is AttemptOutcome.RUNNING:
        attempts[-1] = attempts[-1].model_copy(update={"outcome": AttemptOutcome(done.phase), "reason": done.failure})
    conditions = conditions_for(
        standing, generation=generation, previous=found.conditions, now=now.replace(microsecond=0)
    )
    return found.model_copy(
        update={
            "phase": phase,
            "conditions": conditions,
            "message": standing.message,
            "attempts": attempts,
            "queue": None,
            "completion_time": done.completed or moment(now),
        }
    )


def seen_again(status: RunStatus, generation: int) -> RunStatus:
    """Give the end of a run, said of another generation of its spec, which changes nothing of it."""
    conditions = [
        each.model_copy(update={"observed_generation": generation}) if each.type in OURS else each
        for each in status.conditions
    ]
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})


def unadmitted(run: Run, wait: Wait, now: datetime) -> RunStatus:
    """The attempt came to nothing before a pod existed: as if it had not been admitted."""
    attempts = run.status.attempts[:-1]
    standing = Standing(ExecutionPhase.QUEUED, wait.message, wait=wait.reason, admitted=bool(attempts))
    since = run.admitted.queued_since if run.admitted is not None else None
    queue = QueueStatus(
        waiting_for=short(wait.message, MESSAGE_CHARS_MAX),
        since=moment(since or now),
        next_change_time=wait.next_change,
    )
    # What was pinned for an attempt that never was is pinned anew: its Agent may have to change first.
    return stand(run, standing, now, attempts=attempts, queue=queue, agent=run.status.agent if attempts else None)


def stopping(run: Run, cause: StopCause, message: str, now: datetime) -> RunStatus:
    """The pod is about to be told to stop: the reason is kept, so that a crash does not make a failure of it."""
    standing = Standing(
        run.status.phase or ExecutionPhase.RUNNING, message or f"stopping: {cause.value}", admitted=True
    )
    return stand(
        run,
        standing,
        now,
        attempts=changed_attempt(run, reason=cause.value, message=short(message, MESSAGE_CHARS_MAX) or None),
    )


def cancelled_before(run: Run, now: datetime) -> RunStatus:
    """It waited and was cancelled."""
    standing = Standing(ExecutionPhase.CANCELLED, "cancelled while it waited", admitted=bool(run.status.attempts))
    return _terminal(run, standing, now, run.status.attempts, run.status.start_time)


def rejected(run: Run, message: str, now: datetime, reason: FailureReason = FailureReason.REJECTED) -> RunStatus:
    """It ends without another attempt."""
    standing = Standing(ExecutionPhase.FAILED, message, admitted=bool(run.status.attempts), failure=reason)
    return _terminal(run, standing, now, run.status.attempts, run.status.start_time)


def invalid(run: Run, now: datetime) -> RunStatus:
    """The stored object does not fit this version's schema."""
    standing = Standing(
        ExecutionPhase.FAILED,
        run.invalid,
        accepted=False,
        admitted=bool(run.status.attempts),
        failure=FailureReason.INVALID_SPEC,
    )
    return _terminal(run, standing, now, run.status.attempts, run.status.start_time)


def _terminal(
    run: Run, standing: Standing, now: datetime, attempts: Sequence[Attempt], started: datetime | None
) -> RunStatus:
    return stand(
        run,
        standing,
        now,
        attempts=list(attempts),
        queue=None,
        start_time=started,
        completion_time=moment(now),
    )


def _said(run: Run, end: AttemptEnd) -> str:
    """What is said of an end: who preempts it, which budget had no room, was written when the pod was told to stop."""
    exhausted = run.stop is StopCause.EXHAUSTED and end.reason is FailureReason.BUDGET_EXHAUSTED
    if exhausted or (run.stop is not None and end.outcome is AttemptOutcome.PREEMPTED):
        return run.status.attempts[-1].message or end.message
    return end.message


def _stop_reason(run: Run, end: AttemptEnd) -> str | None:
    if end.outcome is AttemptOutcome.SUCCEEDED:
        return None
    return run.stop.value if run.stop is not None else None


def _clock(when: datetime) -> str:
    return when.strftime("%H:%M:%S UTC")


# --- what the ledger tells ----------------------------------------------------------------------------------------


_NOTHING: Final = Usage()


def usage_of(totals: UsageTotals) -> Usage:
    """Give totals in the form that statuses have."""
    return Usage(
        cost=Money(totals.cost_nanos),
        unpriced_records=totals.unpriced,
        unaccounted=Money(totals.unaccounted_nanos) if totals.unaccounted_nanos else None,
        tokens=TokenUsage(
            input=totals.input_tokens,
            cached_input=totals.cached_input_tokens,
            cache_write=totals.cache_write_tokens,
            output=totals.output_tokens,
            reasoning=totals.reasoning_tokens,
            total=totals.input_tokens + totals.output_tokens,
        ),
        requests=totals.requests,
        tool_calls=totals.tool_calls,
        compute=_compute_of(totals),
    )


def _compute_of(totals: UsageTotals) -> ComputeUsage | None:
    if not (totals.cpu_milli_seconds or totals.memory_mebibyte_seconds or totals.gpu_milli_seconds):
        return None
    return ComputeUsage(
        cpu_milli_seconds=totals.cpu_milli_seconds,
        memory_mebibyte_seconds=totals.memory_mebibyte_seconds,
        gpu_seconds=totals.gpu_milli_seconds // 1000,
    )


def planned_steps(spec: RunSpec | None) -> int | None:
    """Give how many steps (or episodes) the whole run is to have; None where its spec does not say."""
    return (spec.steps or spec.episodes) if isinstance(spec, TrainingJobSpec) else None


def with_totals(status: RunStatus, totals: ExecutionTotals, now: datetime, *, planned: int | None = None) -> RunStatus:
    """Give the status with usage, output and progress as the ledger has them.

    `planned`: the steps of the whole run, for a trainer that reports its step alone.
    """
    changes: dict[str, Any] = {}
    usage = usage_of(totals.totals)
    if usage != status.usage:
        changes["usage"] = usage
    attempts = [_with_usage(attempt, totals) for attempt in status.attempts]
    if attempts != status.attempts:
        changes["attempts"] = attempts
    if totals.output is not None and totals.output != status.output:
        changes["output"] = totals.output[:STATUS_OUTPUT_CHARS_MAX]
        truncated = (totals.output_bytes or 0) > len(totals.output[:STATUS_OUTPUT_CHARS_MAX].encode())
        changes["output_truncated"] = truncated or None
    if isinstance(status, TrainingJobStatus) and totals.progress is not None:
        changes.update(_progress(status, totals.progress, planned, now))
    return status.model_copy(update=changes) if changes else status


def _with_usage(attempt: Attempt, totals: ExecutionTotals) -> Attempt:
    found = totals.attempts.get(attempt.number)
    if found is None:
        return attempt
    usage = usage_of(found)
    if attempt.usage is None and usage == _NOTHING:
        return attempt  # Nothing used yet is nothing to write.
    return attempt if attempt.usage == usage else attempt.model_copy(update={"usage": usage})


def _progress(status: TrainingJobStatus, told: dict[str, Any], planned: int | None, now: datetime) -> dict[str, Any]:
    """Read what the trainer reported. It is somebody else's data: what does not fit is left out."""
    try:
        step = max(0, int(told.get("step") or 0))
        total = int(told["total"]) if told.get("total") else planned
    except (TypeError, ValueError):
        return {}
    before = status.progress
    metrics = [
        Metric(name=str(name)[:128], value=str(value)[:64])
        for name, value in sorted((told.get("metrics") or {}).items())[:32]
        if str(name)
    ]
    message = short(str(told["message"]), PROGRESS_CHARS_MAX) if told.get("message") else None
    if before is not None and (before.step, before.total, before.message) == (step, total, message):
        return {"metrics": metrics} if metrics != status.metrics else {}
    progress = Progress(
        step=step,
        total=total,
        percent=min(100, step * 100 // total) if total else None,
        message=message,
        estimated_completion_time=_estimate(status, step, total, now),
        update_time=moment(now),
    )
    return {"progress": progress, "metrics": metrics}


def _estimate(status: TrainingJobStatus, step: int, total: int | None, now: datetime) -> datetime | None:
    start = status.attempts[-1].start_time if status.attempts else None
    if start is None or not total or step <= 0 or step >= total:
        return None
    elapsed_ms = int((now - start) / timedelta(milliseconds=1))
    return moment(now + timedelta(milliseconds=elapsed_ms * (total - step) // step))
