"""What happens to a run besides its admission: pods watched to their end, stops, timeouts, TTL, what was left behind.

Role: `review` looks at one run and starts what is due; it may be called any number of times, so every event and every
tick simply asks for it. `reconcile` compares the ledger's open allotments with runs and pods after a start, both ways.

Boundary: decides only what follows from one run and its pod; what depends on others is the scheduler's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from almoner_core import wire
from almoner_core.api.execution import (
    TERMINAL_PHASES,
    Attempt,
    AttemptOutcome,
    ExecutionPhase,
    ExecutionReason,
    FailureReason,
    WaitReason,
)
from almoner_core.identity import allotment_id, pod_name
from almoner_operator import apart, demand, milestones, outcome, windows
from almoner_operator.admit import Admitter
from almoner_operator.attempts import (
    REASONS,
    AttemptEnd,
    agent_ended_at,
    classify,
    has_agent_ended,
    has_terminated,
    outlived,
    started_at,
    trouble,
)
from almoner_operator.compute import MachineTime
from almoner_operator.context import Context, now, run_target
from almoner_operator.errors import ApiError
from almoner_operator.kubernetes import BY_KIND, PODS
from almoner_operator.limiter import Rank
from almoner_operator.machines import pod_time
from almoner_operator.records import Finished, Pod, Run, Stuck, parse_time
from almoner_operator.runner_pods import known_uid, place_of
from almoner_operator.scheduling.model import Rejection, Stop, StopCause, Wait, WorkloadKey
from almoner_operator.settle import FAULT_RETRY_SECONDS, Settler
from almoner_operator.trouble import say_trouble
from almoner_operator.writer import COALESCE_SECONDS, difference

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
MISSING_SECONDS: Final = 3.0
RESUME_SECONDS: Final = 3.0
STOP_AGAIN_SECONDS: Final = 30.0
OVERWRITES_SECONDS_MAX: Final = 60.0
LINGER_SECONDS: Final = 5
"""So long an injected container may go on after the agent's end; then its pod is deleted, and has what is left of its
grace period: the meter needs that to settle."""
_OUTCOMES: Final = {
    StopCause.CANCELLED: AttemptOutcome.CANCELLED,
    StopCause.SUSPENDED: AttemptOutcome.SUSPENDED,
    StopCause.PREEMPTED: AttemptOutcome.PREEMPTED,
    StopCause.DRAINED: AttemptOutcome.PREEMPTED,
    StopCause.EXHAUSTED: AttemptOutcome.FAILED,
}


@dataclass(slots=True)
class Orphan:
    """An open allotment of an attempt that nobody speaks for any more."""

    allotment: str
    namespace: str
    uid: str
    attempt: int
    pod: str
    pod_uid: str | None
    since: float
    closing: bool = False


class Lifecycle:
    """Watches over runs, their pods and what they leave behind."""

    def __init__(self, context: Context, admitter: Admitter, settler: Settler, machines: MachineTime) -> None:
        self._context = context
        self._machines = machines
        self._admitter = admitter
        self._settler = settler
        self._orphans: dict[str, Orphan] = {}
        self._expiry: dict[str, datetime] = {}
        self._tried: dict[str, float] = {}
        self.reviewed = asyncio.Event()

    # -- one run -------------------------------------------------------------------------------------

    def review_all(self) -> None:
        """Look at every run about which something was noted."""
        cache = self._context.cache
        uids, cache.review = cache.review, set()
        for uid in uids:
            run = cache.runs.get(uid)
            if run is not None:
                apart.each("looking at", f"{run.key.namespace}/{run.key.name}", self.review, run)
            elif uid not in cache.finished and uid in cache.pods:
                apart.each("looking at what is left", uid, self._review_left_pods, uid)
        self._tell_strangers()
        self._latch_ends()
        gone, cache.gone = cache.gone, []
        for run in gone:
            apart.each("giving back", f"{run.key.namespace}/{run.key.name}", self._adopt_gone, run)
        done, cache.finished_changed = cache.finished_changed, set()
        for uid in done:
            apart.each("noting the end", uid, self._note_expiry, uid)
        if gone:
            self._review_orphans()

    def review(self, run: Run) -> None:
        """Start what is due for one run."""
        if run.admitting or run.settling:
            return
        self._put_right(run)
        if run.problem and run.attempt is None:
            self._say_problem(run)
        if run.status.phase in TERMINAL_PHASES:
            run.settling = True
            self._context.spawn(self._finish(run), f"finish {run.key.namespace}/{run.key.name}")
            return
        if run.spec is None:
            self._review_invalid(run)
            return
        attempt = run.attempt
        if attempt is None:
            return
        if run.end is None:
            pod = self._context.cache.pods.of(run)
            if pod is None:
                self._review_missing(run)
            else:
                self._review_pod(run, pod)
        if run.end is not None and not run.settling:
            pod = self._context.cache.pods.of(run)
            if pod is not None and attempt.pod_uid is None:
                attempts = outcome.changed_attempt(run, pod_uid=pod.uid, pod_proof=None)
                run.status = run.status.model_copy(update={"attempts": attempts})
            self._settler.start(run)

    def _put_right(self, run: Run) -> None:
        """Write what is meant over what somebody else made of a status, ever more slowly where they go on."""
        over = outcome.over_already(run, now())
        if over is not None:
            log.warning("%s/%s has ended, whatever its phase said", run.key.namespace, run.key.name)
            run.status = over
            self._context.cache.count_run(run)
        overwritten, run.overwritten = run.overwritten, False
        if overwritten and difference(run.written, run.status):
            log.warning("somebody else changed the status of %s/%s", run.key.namespace, run.key.name)
            note = "somebody else changed the status: what Almoner knows is written again"
            self._context.events.tell(*run.key, reason="StatusOverwritten", note=note, warning=True)
            delay = min(OVERWRITES_SECONDS_MAX, COALESCE_SECONDS * 2 ** min(run.overwrites, 16))
            run.overwrites += 1
            self._context.writer.mark(run_target(run), Rank.STATUS, delay=delay)

    def _say_problem(self, run: Run) -> None:
        """Say why a run that waits cannot be decided on: something in it that nobody reckoned with."""
        text = f"it cannot be decided on: {run.problem}"
        if run.status.message != text:
            run.status = outcome.waiting(run, Wait(WaitReason.QUEUED, text), (), now())
            self._context.cache.count_run(run)
            self._context.writer.mark(run_target(run), Rank.STATUS)

    def _latch_ends(self) -> None:
        """Write the ends of runs again that somebody overwrote, and those whose spec was changed since."""
        cache = self._context.cache
        uids, cache.overwritten = cache.overwritten, set()
        for uid in uids:
            done = cache.finished.get(uid)
            if done is not None:
                self._context.spawn(self._settler.latch(done), f"finish {done.key.namespace}/{done.key.name}")
        uids, cache.unobserved = cache.unobserved, set()
        for uid in uids:
            done = cache.finished.get(uid)
            if done is not None:
                self._context.spawn(self._settler.observe(done), f"observe {done.key.namespace}/{done.key.name}")

    def _tell_strangers(self) -> None:
        """Say once for a run that somebody's pod takes its name: it counts for nothing."""
        strangers, self._context.cache.strangers = self._context.cache.strangers, []
        for run, pod in strangers:
            log.warning("pod %s/%s is not that of %s/%s", pod.namespace, pod.name, run.key.namespace, run.key.name)
            note = f"pod {pod.namespace}/{pod.name} says that it is this one's, but Almoner did not create it: ignored"
            self._context.events.tell(*run.key, reason="StrangePod", note=note, warning=True, once="strange pod")

    async def _finish(self, run: Run) -> None:
        try:
            await self._settler.finish(run)
        finally:
            run.settling = False

    def _review_invalid(self, run: Run) -> None:
        """A stored object that this version cannot read: said once, and its pod, if any, is stopped."""
        context = self._context
        if run.attempt is not None:
            run.end = AttemptEnd(AttemptOutcome.FAILED, FailureReason.INVALID_SPEC, run.invalid, finished=now())
            pod = context.cache.pods.of(run)
            if pod is not None and not has_terminated(pod.raw) and not pod.raw.get("gone"):
                self._delete_pod(pod)
                run.end = None
                return
            self._settler.start(run)
            return
        run.status = outcome.invalid(run, now())
        context.events.tell(*run.key, reason="InvalidSpec", note=run.invalid, warning=True)
        context.cache.count_run(run)
        context.cache.review.add(run.key.uid)
        context.cache.wake()

    def _review_missing(self, run: Run) -> None:
        """No pod is known for the attempt: it was never created, or it vanished."""
        attempt = run.attempt
        assert attempt is not None
        if attempt.pod_uid is None:
            if run.stop is not None:
                reason = REASONS.get(run.stop)
                run.end = AttemptEnd(_OUTCOMES[run.stop], reason, "stopped before its pod existed", finished=now())
                return
            self._resume(run)
            return
        self._vanished(run)

    def _resume(self, run: Run) -> None:
        moment = time.monotonic()
        if moment - self._tried.get(run.key.uid, -RESUME_SECONDS) >= RESUME_SECONDS:
            self._tried[run.key.uid] = moment
            self._context.spawn(self._admitter.resume(run), f"resume {run.key.namespace}/{run.key.name}")

    def _long_past(self, pod: Pod, moment: datetime) -> bool:
        """Whether a pod's node has not ended it long after its grace period: its meter can spend no more."""
        deletion = parse_time((pod.raw.get("metadata") or {}).get("deletionTimestamp"))
        lost = timedelta(seconds=self._context.settings.lost_seconds)
        return deletion is not None and moment >= deletion + lost

    def _vanished(self, run: Run, end: AttemptEnd | None = None) -> None:
        """The pod is gone without a last word: wait until its meter can surely spend no more."""
        attempt = run.attempt
        assert attempt is not None
        moment = time.monotonic()
        if run.pod_missing_since is None:
            run.pod_missing_since = moment
        self._say_missing(run, moment - run.pod_missing_since)
        over = run.allotment_state(attempt.number) in (wire.AllotmentState.CLOSED, wire.AllotmentState.VOID)
        if over or moment - run.pod_missing_since >= self._context.settings.lost_seconds:
            run.end = run.early or end or classify(None, now=now(), intent=run.stop, timed_out=run.timed_out)

    def _review_pod(self, run: Run, pod: Pod) -> None:
        moment = now()
        started = started_at(pod.raw)
        attempt = run.attempt
        assert attempt is not None
        timed_out = run.timed_out or (
            pod.deleting and self._overdue(run, _started(run, pod), agent_ended_at(pod.raw) or moment)
        )
        gone = bool(pod.raw.get("gone"))
        ended = gone or has_terminated(pod.raw)
        end = classify(
            pod.raw,
            now=moment,
            intent=run.stop,
            timed_out=timed_out,
            start_deadline_seconds=self._context.settings.start_deadline_seconds,
            stuck_since=self._look_for_trouble(run, pod, moment) if started is None and not ended else None,
        )
        if ended and (not gone or has_terminated(pod.raw) or not pod.raw["spec"].get("nodeName")):
            run.end = run.early or end or classify(None, now=moment, intent=run.stop, timed_out=timed_out)
            return
        if gone:
            self._vanished(run, end)
            return
        if end is not None and end.exit_code is None and not pod.deleting:
            # It never started, or its node is lost: nobody but us ends it.
            run.early = end
            self._delete_pod(pod)
            return
        if pod.deleting and self._long_past(pod, moment):
            run.end = run.early or end or classify(None, now=moment, intent=run.stop, timed_out=timed_out)
            return
        run.pod_missing_since = None
        if pod.deleting:
            self._keep_log(pod)
        if run.bound != attempt.number and started is None and end is None and not pod.deleting:
            # Its meter waits to be known to the ledger.
            self._resume(run)
        if started is not None and run.status.phase is not ExecutionPhase.RUNNING and run.stop is None:
            run.status = outcome.running(run, pod.uid, started, moment)
            milestones.started(self._context.events, run, started)
            self._context.cache.count_run(run)
            self._context.writer.mark(run_target(run), Rank.STATUS, delay=COALESCE_SECONDS / 3)
        elif started is not None and end is None and run.stop is None:
            say_trouble(self._context, run, None, "")  # A pod that was missing is there after all.
        over = run.stop is not None or (run.timed_out and not has_agent_ended(pod.raw))
        if not pod.deleting and (over or self._lingers(pod, moment)):
            self._delete_pod(pod)

    def _lingers(self, pod: Pod, moment: datetime) -> bool:
        """Whether an injected container keeps a pod alive whose agent has ended, and had its time to end too."""
        ended = agent_ended_at(pod.raw)
        return outlived(pod.raw) and (ended is None or moment >= ended + timedelta(seconds=LINGER_SECONDS))

    # -- why it does not go on -----------------------------------------------------------------------

    def _look_for_trouble(self, run: Run, pod: Pod, moment: datetime) -> datetime | None:
        """Say what keeps a pod from starting; gives since when that has been what ends the attempt if it lasts."""
        attempt = run.attempt
        assert attempt is not None
        if pod.deleting:
            return None
        found = trouble(pod.raw)
        if found is not None:
            say_trouble(self._context, run, found.reason, found.message)
        elif run.bound == attempt.number:
            say_trouble(self._context, run, None, "")
        if found is None or found.failure is None:
            return None
        if run.stuck is None or (run.stuck.attempt, run.stuck.failure) != (attempt.number, found.failure):
            run.stuck = Stuck(attempt.number, found.failure, moment)
        return run.stuck.since

    def _say_missing(self, run: Run, seconds: float) -> None:
        if seconds < MISSING_SECONDS or run.stop is not None:
            return  # A pod that was just created is not seen at once either.
        said = outcome.trouble_said(run)
        if said is None or said[0] != ExecutionReason.POD_MISSING:
            at = now() + timedelta(seconds=self._context.settings.lost_seconds - seconds)
            text = f"its pod is gone without a last word; it counts as lost at {at:%H:%M:%S} UTC"
            say_trouble(self._context, run, ExecutionReason.POD_MISSING, text)

    # -- stopping ------------------------------------------------------------------------------------

    def stop(self, decided: Stop) -> None:
        """Tell a run's pod to stop, with its grace period; why is written first, so that a crash cannot forget it."""
        run = self._context.cache.runs.get(decided.key.uid)
        if run is None or run.stop is not None or run.attempt is None or run.settling or run.admitting:
            return
        pod = self._context.cache.pods.of(run)
        if pod is not None and has_agent_ended(pod.raw):
            return  # How it ended stands; its pod is about to end.
        run.stop = decided.cause
        run.status = outcome.stopping(run, decided.cause, decided.message, now())
        milestones.stopping(run, decided.cause, decided.message)
        self._context.events.tell(*run.key, reason=decided.cause.value, note=decided.message)
        self._context.cache.touch(run)
        self._context.spawn(self._stop(run), f"stop {run.key.namespace}/{run.key.name}")

    async def _stop(self, run: Run) -> None:
        try:
            await self._context.writer.flush(run_target(run), Rank.ADMIT)
        except ApiError as error:
            log.warning("why %s/%s is stopped is not written yet: %s", run.key.namespace, run.key.name, error)
            self._context.writer.mark(run_target(run), Rank.STATUS, delay=1.0)
        self._context.cache.review.add(run.key.uid)
        self._context.cache.wake()

    def _delete_pod(self, pod: Pod) -> None:
        moment = time.monotonic()
        if moment - self._tried.get(pod.uid, -STOP_AGAIN_SECONDS) < STOP_AGAIN_SECONDS:
            return
        self._tried[pod.uid] = moment
        self._context.spawn(self._delete(pod), f"delete pod {pod.namespace}/{pod.name}")

    def _keep_log(self, pod: Pod) -> None:
        """Read the log of a pod that is deleted, by whomever, while the kubelet has it: until its containers ended."""
        key, moment = f"log {pod.uid}", time.monotonic()
        if moment - self._tried.get(key, -STOP_AGAIN_SECONDS) >= STOP_AGAIN_SECONDS:
            self._tried[key] = moment
            self._context.spawn(self._context.log_tails.read(pod), f"read the log of pod {pod.namespace}/{pod.name}")

    async def _delete(self, pod: Pod) -> None:
        self._keep_log(pod)  # Beside the deletion.
        grace = None
        if has_agent_ended(pod.raw):
            # All that is left of its grace period: it is over so long after the agent has ended.
            grace = max(1, pod_time(pod.raw).grace_seconds - LINGER_SECONDS)
        try:
            if not await self._context.client.delete(PODS, pod.namespace, pod.name, uid=pod.uid, grace_seconds=grace):
                pod.raw["gone"] = True
                self._context.cache.review.add(pod.run_uid)
                self._context.cache.wake()
        except ApiError as error:
            self._tried.pop(pod.uid, None)
            log.warning("pod %s/%s is not deleted yet: %s", pod.namespace, pod.name, error)

    def cancel(self, key: WorkloadKey) -> None:
        """End a waiting run that was cancelled."""
        run = self._context.cache.runs.get(key.uid)
        if run is None or run.admitting or run.settling or run.attempt is not None:
            return
        run.status = outcome.cancelled_before(run, now())
        self._ended(run)

    def reject(self, decided: Rejection) -> None:
        """End a waiting run that can never start, or has waited too long."""
        run = self._context.cache.runs.get(decided.key.uid)
        if run is None or run.admitting or run.settling or run.attempt is not None:
            return
        run.status = outcome.rejected(run, decided.message, now(), decided.reason)
        milestones.refused(run, decided.reason, decided.message)
        self._context.events.tell(*run.key, reason=str(decided.reason), note=decided.message, warning=True)
        self._ended(run)

    def _ended(self, run: Run) -> None:
        self._context.cache.count_run(run)
        self._context.cache.touch(run, review=True)

    # -- time ----------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Look at the clock once a second, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._tick()
            except Exception:
                log.exception("a tick failed")

    def _tick(self) -> None:
        cache, moment = self._context.cache, now()
        cache.holds_expired(moment)
        cache.forget_additions()
        windows.ask_again(cache, moment)
        for run in list(cache.runs.values()):
            if run.attempt is not None and not run.settling:
                apart.each("timing", f"{run.key.namespace}/{run.key.name}", self._check_timeout, run, moment)
                cache.review.add(run.key.uid)
        self.review_all()
        self._review_orphans()
        self._expire(moment)
        if len(self._tried) > 4096:
            cutoff = time.monotonic() - STOP_AGAIN_SECONDS
            self._tried = {key: at for key, at in self._tried.items() if at > cutoff}

    def _check_timeout(self, run: Run, moment: datetime) -> None:
        pod = self._context.cache.pods.of(run)
        if pod is None or run.timed_out or pod.raw.get("gone"):
            return
        if not has_agent_ended(pod.raw) and self._overdue(run, _started(run, pod), moment):
            run.timed_out = True
            log.info("%s/%s ran out of time", run.key.namespace, run.key.name)
            self._delete_pod(pod)

    def _overdue(self, run: Run, started: datetime | None, until: datetime) -> bool:
        """Whether the seconds of running over all attempts had run out."""
        admitted = run.admitted
        # An attempt of an older version: the run's own limit, which cannot change; the pod has a deadline besides.
        timeout = admitted.timeout_seconds if admitted is not None else demand.limits_of(run, None).timeout_seconds
        if timeout is None or started is None:
            return False
        used = sum(
            (earlier.finish_time - earlier.start_time).total_seconds()
            for earlier in run.status.attempts[:-1]
            if earlier.start_time is not None and earlier.finish_time is not None
        )
        return used + (until - started).total_seconds() >= timeout

    def _note_expiry(self, uid: str) -> None:
        done = self._context.cache.finished.get(uid)
        if done is None or done.ttl_seconds is None or done.completed is None or done.tracked:
            return
        self._expiry[uid] = done.completed + timedelta(seconds=done.ttl_seconds)

    def _expire(self, moment: datetime) -> None:
        for uid, due in list(self._expiry.items()):
            if due <= moment:
                del self._expiry[uid]
                done = self._context.cache.finished.get(uid)
                if done is not None:
                    self._context.spawn(self._delete_finished(done), f"expire {done.key.namespace}/{done.key.name}")

    async def _delete_finished(self, done: Finished) -> None:
        try:
            await self._context.client.delete(
                BY_KIND[done.key.kind], done.key.namespace, done.key.name, uid=done.key.uid, rank=Rank.BACKGROUND
            )
        except ApiError as error:
            log.warning("%s/%s is not deleted yet: %s", done.key.namespace, done.key.name, error)
            self._expiry[done.key.uid] = now() + timedelta(seconds=30)

    # -- what was left behind ------------------------------------------------------------------------

    def _adopt_gone(self, run: Run) -> None:
        """An Execution was deleted while its attempt ran: its owner reference removes the pod; its money comes back."""
        attempt = run.attempt
        if attempt is None or attempt.allotment is None:
            return
        self._orphans[attempt.allotment] = Orphan(
            attempt.allotment,
            run.key.namespace,
            run.key.uid,
            attempt.number,
            place_of(run.key, attempt.number)[1],
            known_uid(run, attempt),
            time.monotonic(),
        )

    async def reconcile(self) -> None:
        """Compare the ledger's open allotments with runs, after a start. Raises LedgerError."""
        before = len(self._orphans)
        async for view in self._context.ledger.open_allotments():
            apart.each("reconciling", view.allotment, self._reconcile, view)
        if count := len(self._orphans) - before:
            log.info("%d open allotments belong to nothing that runs; they are given back", count)
        self._review_orphans()

    def _reconcile(self, view: wire.AllotmentView) -> None:
        run = self._context.cache.runs.get(view.execution.uid)
        if run is not None and run.attempt is None and self._is_lost(run, view):
            self._take_back(run, view)
        attempt = run.attempt if run is not None else None
        allotment = self._machines.adopt(view) if view.purpose is wire.Purpose.COMPUTE else view.allotment
        if run is not None and attempt is not None and attempt.allotment == allotment:
            if view.pod_uid is not None:
                run.bound = attempt.number
            if view.pod_uid is not None and attempt.pod_uid != view.pod_uid:
                # Its pod existed: if it is not there now it vanished, and must not be created again.
                run.status = run.status.model_copy(
                    update={"attempts": outcome.changed_attempt(run, pod_uid=view.pod_uid)}
                )
            return
        if view.purpose is wire.Purpose.COMPUTE and allotment in self._orphans:
            return
        self._orphans[allotment] = Orphan(
            allotment,
            view.execution.namespace,
            view.execution.uid,
            view.execution.attempt,
            pod_name(view.execution.name, view.execution.uid, view.execution.attempt),
            view.pod_uid,
            time.monotonic() - view.seconds_since_exchange,
        )

    @staticmethod
    def _is_lost(run: Run, view: wire.AllotmentView) -> bool:
        """Whether the ledger knows an attempt with a pod that the status has lost: somebody overwrote it."""
        known = max((attempt.number for attempt in run.status.attempts), default=0)
        return view.pod_uid is not None and view.execution.attempt > known and not run.restored

    def _take_back(self, run: Run, view: wire.AllotmentView) -> None:
        """Give the status back the attempt that is under way, as the ledger knows it."""
        number = view.execution.attempt
        log.warning("the status of %s/%s has lost attempt %d", run.key.namespace, run.key.name, number)
        attempt = Attempt(
            number=number,
            pod=place_of(run.key, number)[1],
            pod_uid=view.pod_uid,
            allotment=allotment_id(run.key.uid, number),
            admitted_time=outcome.moment(now()),
        )
        run.status = outcome.admitted(run, attempt, run.status.agent, run.status.quotas, now())
        run.next_attempt = number + 1
        run.hold = run.backoff_until = None
        self._context.cache.count_run(run)
        self._context.cache.touch(run, review=True)
        self._context.writer.mark(run_target(run), Rank.STATUS)

    def _review_orphans(self) -> None:
        for orphan in list(self._orphans.values()):
            apart.each("giving back", orphan.allotment, self._review_orphan, orphan)

    def _review_orphan(self, orphan: Orphan) -> None:
        if not orphan.closing and self._may_close(orphan):
            orphan.closing = True
            self._context.spawn(self._close_orphan(orphan), f"close {orphan.allotment}")

    def _may_close(self, orphan: Orphan) -> bool:
        """Whether the attempt's pod surely runs no more."""
        pod = self._orphans_pod(orphan)
        if pod is not None:
            if has_terminated(pod.raw) or (pod.raw.get("gone") and not pod.raw["spec"].get("nodeName")):
                return True
            if not pod.raw.get("gone"):
                # The garbage collector does this too, where there is one.
                if not pod.deleting:
                    self._delete_pod(pod)
                orphan.since = time.monotonic()
                return False
        elif orphan.pod_uid is None:
            return True
        return time.monotonic() - orphan.since >= self._context.settings.lost_seconds

    def _orphans_pod(self, orphan: Orphan) -> Pod | None:
        cache, place = self._context.cache, (orphan.namespace, orphan.pod)
        if orphan.pod_uid is not None:
            return cache.pods.at(place, orphan.pod_uid)
        if orphan.uid in cache.runs:
            return None  # It was never bound: whatever is there is not the operator's, or can spend nothing.
        # Its owner is no more, so it is to be collected, whoever made it.
        return next((pod for pod in cache.pods.left_by(orphan.uid) if (pod.namespace, pod.name) == place), None)

    async def _close_orphan(self, orphan: Orphan) -> None:
        try:
            await self._machines.finish(orphan.allotment, self._orphans_pod(orphan))
            await self._settler.close(orphan.allotment, "its execution is gone", lambda: self._orphans_pod(orphan))
        except Exception:
            # Its money would be held until somebody restarts the operator; but not at once and for ever, either.
            await asyncio.sleep(FAULT_RETRY_SECONDS)
            orphan.closing = False
            raise
        self._orphans.pop(orphan.allotment, None)
        if orphan.uid not in self._context.cache.runs:
            self._context.cache.drop_pods(orphan.uid)

    def _review_left_pods(self, uid: str) -> None:
        """Pods of a run that is not known: being collected, or a leftover of a superseded attempt."""
        if any(orphan.uid == uid for orphan in self._orphans.values()):
            self._review_orphans()
        elif all(pod.raw.get("gone") for pod in self._context.cache.pods.left_by(uid)):
            self._context.cache.drop_pods(uid)


def _started(run: Run, pod: Pod) -> datetime | None:
    """When the agent started: what was written when that was seen holds for whoever takes over."""
    return run.status.attempts[-1].start_time or started_at(pod.raw)
