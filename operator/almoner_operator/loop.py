"""The scheduling loop: woken by change, debounced; decides on a snapshot, and has the decisions carried out at once.

Role: one loop for one operator. A round takes what changed, decides (purely), marks what is admitted as assumed, and
starts the work without waiting for it; the next round sees the assumption. Why the rest waits is written at most once a
second and paced, because 15,000 positions at every admission would drown the API server.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime, timedelta
from typing import Final

from almoner_core.api.execution import WaitReason
from almoner_core.text import short
from almoner_operator import apart, metrics, milestones, outcome
from almoner_operator.accounts import Accounts
from almoner_operator.admit import Admitter
from almoner_operator.admitted import Admitted
from almoner_operator.context import Context, now, run_target
from almoner_operator.lifecycle import Lifecycle
from almoner_operator.limiter import Rank
from almoner_operator.records import Run
from almoner_operator.scheduling.decide import decide
from almoner_operator.scheduling.model import Decisions, Wait

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS: Final = 0.02
IDLE_SECONDS: Final = 30.0
ADMISSIONS_MAX: Final = 128
"""Admissions under way at once; the rest is decided again in the next round."""
SWEEP_FIRST_SECONDS: Final = 0.15
SWEEP_SECONDS: Final = 0.85
POSITION_SECONDS: Final = 30.0
SWEEP_SLICE: Final = 500


class Loop:
    """Decides and carries out, for ever."""

    def __init__(self, context: Context, admitter: Admitter, lifecycle: Lifecycle, accounts: Accounts) -> None:
        self._context = context
        self._admitter = admitter
        self._lifecycle = lifecycle
        self._accounts = accounts
        self._wake = asyncio.Event()
        self._decisions: Decisions | None = None
        self._admitting = 0
        self._swept: set[str] = set()
        self._sweep_wake = asyncio.Event()
        self.decided_at: float | None = None

    def wake(self) -> None:
        """Decide soon."""
        self._wake.set()

    async def run(self) -> None:
        """Decide whenever something changed or comes due."""
        while True:
            try:
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
                    await asyncio.sleep(DEBOUNCE_SECONDS)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                self.round()
            except Exception:
                log.exception("a round of scheduling failed")
                await asyncio.sleep(1)

    def _pause(self) -> float:
        due = self._decisions.next_change if self._decisions is not None else None
        if due is None:
            return IDLE_SECONDS
        return max(DEBOUNCE_SECONDS, min(IDLE_SECONDS, (due - now()) / timedelta(seconds=1)))

    def round(self) -> None:
        """Look at what was noted, decide once, and start what was decided."""
        started = time.perf_counter()
        cache = self._context.cache
        self._lifecycle.review_all()
        moment = now()
        cache.holds_expired(moment)
        snapshot = cache.snapshot()
        before = time.perf_counter()
        decisions = decide(snapshot, moment, self._context.settings.scheduling, self._decisions)
        metrics.DECIDE_SECONDS.observe(time.perf_counter() - before)
        self._decisions = decisions
        self.decided_at = time.monotonic()
        self._carry_out(decisions)
        self._accounts.take_decisions(decisions)
        self._swept |= decisions.changed
        if decisions.changed:
            self._sweep_wake.set()
        metrics.ROUND_SECONDS.observe(time.perf_counter() - started)

    def _carry_out(self, decisions: Decisions) -> None:
        cache = self._context.cache
        for name in decisions.changed:
            decided = decisions.namespaces[name]
            if decided.problem:
                log.error("namespace %s cannot be decided on: %s", name, decided.problem)
            for key in decided.cancel:
                apart.each("cancelling", f"{name}/{key.name}", self._lifecycle.cancel, key)
            for rejection in decided.reject:
                apart.each("rejecting", f"{name}/{rejection.key.name}", self._lifecycle.reject, rejection)
            for stop in decided.stop:
                apart.each("stopping", f"{name}/{stop.key.name}", self._lifecycle.stop, stop)
        for admission in decisions.admit:
            if self._admitting >= ADMISSIONS_MAX:
                break
            run = cache.runs.get(admission.workload.key.uid)
            if run is None or run.admitting or run.settling or run.attempt is not None or run.spec is None:
                continue
            run.admitting = True
            run.admitted = Admitted.assumed(admission)
            cache.touch(run)
            self._admitting += 1
            task = self._context.spawn(
                self._admitter.admit(run, admission), f"admit {run.key.namespace}/{run.key.name}"
            )
            task.add_done_callback(self._admitted)

    def _admitted(self, _: object) -> None:
        self._admitting -= 1
        self.wake()

    # -- why the rest waits --------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Write why things wait, for ever: at most once a second, a slice at a time."""
        while True:
            await self._sweep_wake.wait()
            await asyncio.sleep(SWEEP_FIRST_SECONDS)  # What is admitted at once never says that it waited.
            self._sweep_wake.clear()
            try:
                await self._sweep()
            except Exception:
                log.exception("saying why things wait failed")
            await asyncio.sleep(SWEEP_SECONDS)

    async def _sweep(self) -> None:
        names, self._swept = self._swept, set()
        count = 0
        for name in names:
            decisions = self._decisions
            decided = decisions.namespaces.get(name) if decisions is not None else None
            if decided is None:
                continue
            moment = now()
            for key, wait in decided.waiting.items():
                run = self._context.cache.runs.get(key.uid)
                if run is not None:
                    quotas = decided.quotas.get(key, ())
                    apart.each("saying why it waits", f"{name}/{key.name}", self._say, run, wait, quotas, moment)
                count += 1
                if count % SWEEP_SLICE == 0:
                    await asyncio.sleep(0)

    def _say(self, run: Run, wait: Wait, quotas: tuple[str, ...], moment: datetime) -> None:
        """Bring a waiting run's status up to date where what a person needs to know changed."""
        if run.admitting or run.settling or run.attempt is not None or run.spec is None:
            return
        queue = run.status.queue
        first = queue is None or run.status.phase is None
        same = (
            queue is not None
            and queue.waiting_for == (short(wait.message, outcome.MESSAGE_CHARS_MAX) or None)
            and queue.next_change_time == wait.next_change
            and self._reason_said(run) == wait.reason
            and run.status.observed_generation == run.generation
        )
        tick = time.monotonic()
        if same:
            assert queue is not None
            if queue.position == wait.position or tick - run.position_at < POSITION_SECONDS:
                return
        elif not first and self._reason_said(run) == wait.reason and tick - run.position_at < SWEEP_SECONDS * 5:
            # The same reason with other numbers: soon, but not at every change.
            self._swept.add(run.key.namespace)
            asyncio.get_running_loop().call_later(SWEEP_SECONDS * 5, self._sweep_wake.set)
            return
        if wait.reason is WaitReason.BACKOFF and queue is not None and self._reason_said(run) == wait.reason:
            return  # Said at the end of the attempt, with the time.
        run.position_at = tick
        if first or self._reason_said(run) != wait.reason:
            milestones.waits(run, wait)
        run.status = outcome.waiting(run, wait, quotas, moment)
        self._context.cache.count_run(run)
        self._context.writer.mark(run_target(run), Rank.BACKGROUND)
        if wait.reason not in (WaitReason.QUEUED, WaitReason.BACKOFF, WaitReason.SUSPENDED):
            self._context.events.tell(*run.key, reason=str(wait.reason), note=wait.message)

    @staticmethod
    def _reason_said(run: Run) -> str | None:
        return next((each.reason for each in run.status.conditions if each.type == "Admitted"), None)
