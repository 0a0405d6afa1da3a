"""What pods and the ledger tell becomes status: the end of an attempt, usage as it grows, late reports.

Role: an attempt is over when its pod has terminated and its allotment is closed; the status that ends a run is written
with the final totals in it, so that the sum of the statuses is the sum of the ledger. Until then changed totals are
written coalesced, within a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError

from almoner_core import wire
from almoner_core.api.execution import TERMINAL_PHASES, AttemptOutcome, ExecutionReason, ExecutionStatus
from almoner_core.api.training_job import TrainingJobStatus
from almoner_core.identity import operation_id
from almoner_core.last_word import MeterWord
from almoner_operator import apart, failpoints, last_words, milestones, outcome, rates
from almoner_operator.attempts import AttemptEnd, seen_to_end
from almoner_operator.compute import MachineTime
from almoner_operator.context import Context, now, run_target
from almoner_operator.errors import (
    ApiError,
    ConflictError,
    InvalidError,
    LeadershipLostError,
    LedgerError,
    LedgerUnavailableError,
    NotFoundError,
    UnavailableError,
)
from almoner_operator.kubernetes import BY_KIND
from almoner_operator.limiter import Rank
from almoner_operator.records import Finished, Pod, Run, RunStatus, cost_mark, generation_of
from almoner_operator.scheduling.model import EXECUTION
from almoner_operator.trouble import say_trouble
from almoner_operator.writer import COALESCE_SECONDS, CONFLICTS_MAX, difference

log = logging.getLogger(__name__)

FEED_WAIT_SECONDS: Final = 20
FEED_RETRY_SECONDS: Final = 1.0
CLOSE_RETRY_SECONDS: Final = 2.0
LEASED_RETRY_SECONDS: Final = 5.0
WRITE_RETRY_SECONDS: Final = 2.0
REFUSED_RETRY_SECONDS_MAX: Final = 300.0
"""An object that the API server will not have, such as one older than its schema, is tried ever less often."""
FAULT_RETRY_SECONDS: Final = 5.0
LATCHES_MAX: Final = 5
"""So often the end of one run is written again over what others write."""


class Settler:
    """Ends attempts and carries the ledger's changes into statuses."""

    def __init__(self, context: Context, machines: MachineTime) -> None:
        self._context = context
        self._machines = machines
        self._told: dict[str, asyncio.Event] = {}
        self.cursor = 0

    # -- the end of an attempt -----------------------------------------------------------------------

    def start(self, run: Run) -> None:
        """Settle the attempt that ended (`run.end` says how), in the background."""
        run.settling = True
        self._context.spawn(self._settle(run), f"settle {run.key.namespace}/{run.key.name}")

    async def _settle(self, run: Run) -> None:
        context, end, attempt = self._context, run.end, run.attempt
        try:
            if end is None or attempt is None:
                return
            failpoints.hit(failpoints.BEFORE_CLOSE)
            told = last_words.Told()
            if attempt.allotment is not None:
                charged = await self._machines.finish_run(run)
                why = end.reason.value if end.reason else end.outcome.value
                answer = await self.close(attempt.allotment, why, lambda: context.cache.pods.of(run), run)
                failpoints.hit(failpoints.AFTER_CLOSE)
                if charged or answer.state != wire.AllotmentState.VOID:  # What was never activated has used nothing.
                    await self._last_totals(run, attempt.number)
                word = _last_word(context.cache.pods.of(run), attempt.allotment)
                told = last_words.told(word, answer, run.totals, attempt.number)
            run.status = outcome.ended(run, end, now(), told, await self._log_tail(run, end))
            if run.totals is not None:
                run.status = outcome.with_totals(run.status, run.totals, now(), planned=outcome.planned_steps(run.spec))
            milestones.attempt_ended(run, attempt, end)
            run.end, run.early, run.stop, run.timed_out = None, None, None, False
            run.pod_missing_since = None
            run.backoff_until = outcome.backoff_of(run)
            context.cache.count_run(run)
            self._tell(run, end, told)
            if run.status.phase in TERMINAL_PHASES:
                await self.finish(run)
            else:
                context.writer.mark(run_target(run), Rank.ADMIT)
        except LeadershipLostError:
            raise
        except Exception:
            await asyncio.sleep(FAULT_RETRY_SECONDS)  # Not at once and for ever, with all that it asks of the ledger.
            raise
        finally:
            run.settling = False
            self._told.pop(run.key.uid, None)
            context.cache.touch(run, review=True)

    def _tell(self, run: Run, end: AttemptEnd, told: last_words.Told) -> None:
        """Tell of an attempt's end as events what somebody may want to know of it."""
        tell = self._context.events.tell
        if told.issue is not None:
            tell(*run.key, reason="OutputNotKept", note=f"{told.issue.reason}: {told.issue.message}", warning=True)
        if end.refused and end.outcome is AttemptOutcome.SUCCEEDED:
            tell(*run.key, reason="CallsRefused", note=end.message, warning=True)
        if end.outcome is AttemptOutcome.FAILED:
            tell(*run.key, reason=end.reason.value if end.reason else "Failed", note=end.message, warning=True)

    async def _log_tail(self, run: Run, end: AttemptEnd) -> str | None:
        pods, tails = self._context.cache.pods, self._context.log_tails
        if end.outcome is not AttemptOutcome.SUCCEEDED:
            await tails.fill(pods.of(run))
        return tails.take(pods.of(run))

    async def close(
        self, allotment: str, reason: str, pod_of: Callable[[], Pod | None], run: Run | None = None
    ) -> wire.ItemAnswer:
        """Close an allotment whose pod is gone, or void it where it was only offered; as long as it takes.

        Where nobody saw the containers of the attempt's pod (`pod_of`) end, that is until the ledger takes the meter's
        silence for its end; the status of the `run` says so. What the meter said last goes along.
        """
        leased = refused = False
        while True:
            pod = pod_of()
            terminated = pod is not None and seen_to_end(pod.raw)
            word = _last_word(pod, allotment) if terminated and not refused else None
            item = wire.CloseAllotment(
                operation_id=operation_id(
                    "close", allotment, f"terminated{last_words.digest(word)}" if terminated else ""
                ),
                allotment=allotment,
                reason=reason[:128],
                terminated=terminated,
                last_word=None if word is None else last_words.for_ledger(word),
            )
            try:
                return await self._context.ledger.close(item)
            except LedgerUnavailableError as error:
                log.warning("allotment %s is not closed yet: %s", allotment, error)
                await asyncio.sleep(CLOSE_RETRY_SECONDS)
            except LedgerError as error:
                if error.code == wire.ErrorCode.LEASED:
                    if not leased:
                        log.info("allotment %s is not closed yet: %s", allotment, error.message)
                        if run is not None:
                            self._say_leased(run, error)
                    leased = True
                    await asyncio.sleep(LEASED_RETRY_SECONDS)
                    continue
                if error.code == wire.ErrorCode.WRONG_STATE:
                    return await self._void(allotment, reason)
                if word is not None and error.code == wire.ErrorCode.INVALID:
                    # Whatever it is that the ledger does not take: the attempt is closed without it.
                    log.warning("the last word about allotment %s is not taken: %s", allotment, error)
                    refused = True
                    continue
                log.warning("allotment %s cannot be closed: %s", allotment, error)
                return wire.ItemAnswer(allotment=allotment)

    def _say_leased(self, run: Run, error: LedgerError) -> None:
        seconds = error.retry_after_seconds
        text = "its pod vanished, and its meter may still be spending until its lease is over"
        if seconds is not None:
            text += f", at {now() + timedelta(seconds=seconds):%H:%M:%S} UTC at the latest"
        say_trouble(self._context, run, ExecutionReason.WAITING_FOR_LEASE, text)

    async def _void(self, allotment: str, reason: str) -> wire.ItemAnswer:
        item = wire.CloseAllotment(
            operation_id=operation_id("void", allotment), allotment=allotment, reason=reason[:128]
        )
        while True:
            try:
                state = await self._context.ledger.void(item)
                return wire.ItemAnswer(allotment=allotment, state=state)
            except LedgerUnavailableError:
                await asyncio.sleep(CLOSE_RETRY_SECONDS)
            except LedgerError as error:
                log.info("allotment %s is over already: %s", allotment, error)
                return wire.ItemAnswer(allotment=allotment)

    async def _last_totals(self, run: Run, attempt: int) -> None:
        """Wait until the feed has told the attempt's final totals, or for so long that a late report must do."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._context.settings.settle_seconds
        while not run.settled(attempt):
            told = self._told.setdefault(run.key.uid, asyncio.Event())
            told.clear()
            try:
                async with asyncio.timeout(max(0.0, deadline - loop.time())):
                    await told.wait()
            except TimeoutError:
                log.warning("no final totals of %s/%s, attempt %d", run.key.namespace, run.key.name, attempt)
                return

    async def finish(self, run: Run) -> None:
        """Write the status of a run that has ended, until that is done, and keep little of it."""
        context = self._context
        failpoints.hit(failpoints.BEFORE_STATUS_FINAL)
        pause = WRITE_RETRY_SECONDS
        while True:
            try:
                written = await context.writer.flush(run_target(run), Rank.END)
                break
            except ApiError as error:
                log.warning("the end of %s/%s is not written yet: %s", run.key.namespace, run.key.name, error)
                # Hundreds that are refused every time would keep all others from being written.
                pause = min(pause * 2, REFUSED_RETRY_SECONDS_MAX) if isinstance(error, InvalidError) else pause
                await asyncio.sleep(pause)
        failpoints.hit(failpoints.AFTER_STATUS_FINAL)
        milestones.ended(context.events, run)
        if written:
            context.cache.finish(run)

    # -- the ledger's changes ------------------------------------------------------------------------

    async def follow(self) -> None:
        """Follow the ledger's feed of changes, for ever."""
        context = self._context
        while True:
            try:
                changes = await context.ledger.changes(self.cursor, wait_seconds=FEED_WAIT_SECONDS)
            except LedgerError as error:
                if context.cache.ledger_ready:
                    log.warning("the ledger's changes cannot be read: %s", error)
                context.cache.set_ledger_ready(False)
                await asyncio.sleep(FEED_RETRY_SECONDS)
                continue
            context.cache.set_ledger_ready(True)
            self.take(changes)

    def take(self, changes: wire.Changes) -> None:
        """Take in one page of changes."""
        context, cache, moment = self._context, self._context.cache, now()
        for totals in changes.executions:
            apart.each("taking totals", f"{totals.namespace}/{totals.name}", self._take_totals, totals)
        for agent in changes.agents:
            apart.each("taking totals", f"{agent.namespace}/{agent.agent}", self._take_agent, agent)
        for account in changes.accounts:
            name = f"{account.key.namespace}/{account.key.quota}"
            apart.each("taking an account", name, rates.take_account, cache, context.rates, account, moment)
        if changes.agents:
            cache.wake()
        self.cursor = changes.after

    def _take_agent(self, agent: wire.AgentTotals) -> None:
        cache = self._context.cache
        record = cache.space(agent.namespace).agents.get(agent.agent)
        if record is not None:
            record.status = record.status.model_copy(update={"usage": outcome.usage_of(agent.totals)})
            cache.agents_changed.add((agent.namespace, agent.agent))

    def _take_totals(self, totals: wire.ExecutionTotals) -> None:
        context = self._context
        run = context.cache.runs.get(totals.uid)
        if run is None:
            done = context.cache.finished.get(totals.uid)
            if done is not None and _mark(totals) != done.cost:
                context.spawn(self._late(done, totals), f"late report {totals.namespace}/{totals.name}")
            return
        run.totals = totals
        told = self._told.get(totals.uid)
        if told is not None:
            told.set()
        if run.settling:
            return
        before = run.status
        run.status = outcome.with_totals(before, totals, now(), planned=outcome.planned_steps(run.spec))
        if run.status is not before:
            context.writer.mark(run_target(run), Rank.STATUS, delay=COALESCE_SECONDS)

    async def _late(self, done: Finished, totals: wire.ExecutionTotals) -> None:
        """Write what was reported about a run after its end."""

        def told(status: RunStatus, raw: Mapping[str, Any]) -> RunStatus:
            spec = raw.get("spec") or {}
            return outcome.with_totals(status, totals, now(), planned=spec.get("steps") or spec.get("episodes"))

        if await self._rewrite(done, told):
            done.cost = _mark(totals)

    async def latch(self, done: Finished) -> None:
        """Write the end of a run again that somebody overwrote; a few times, since they may go on for ever."""
        where = (done.key.namespace, done.key.name)
        if done.latched >= LATCHES_MAX:
            log.error("the end of %s/%s is overwritten again and again: it is left so", *where)
            return
        done.latched += 1
        last = self._context.cache.last_words.get(done.key.uid)

        def again(status: RunStatus, raw: Mapping[str, Any]) -> RunStatus:
            if status.phase == done.phase:
                return status
            log.warning("the end of %s/%s was overwritten by somebody else", *where)
            note = f"somebody else overwrote the status after the end: {done.phase} is written again"
            self._context.events.tell(*done.key, reason="StatusOverwritten", note=note, warning=True)
            return last if last is not None else outcome.written_again(done, status, generation_of(raw), now())

        try:
            await self._rewrite(done, again)
        except UnavailableError as error:
            log.warning("the end of %s/%s is not written again yet: %s", *where, error)
            done.latched -= 1
            self._context.cache.overwritten.add(done.key.uid)  # At the next tick.

    async def observe(self, done: Finished) -> None:
        """Say of the end of a run that it holds for the present generation too: a spec changed after it."""

        def seen(status: RunStatus, raw: Mapping[str, Any]) -> RunStatus:
            return outcome.seen_again(status, generation_of(raw)) if status.phase == done.phase else status

        try:
            if await self._rewrite(done, seen):
                done.observed = done.generation
        except UnavailableError as error:
            log.warning("the end of %s/%s is not written anew yet: %s", done.key.namespace, done.key.name, error)
            self._context.cache.unobserved.add(done.key.uid)  # At the next tick.

    async def _rewrite(self, done: Finished, change: Callable[[RunStatus, Mapping[str, Any]], RunStatus]) -> bool:
        """Change the status of a run that has ended, as it is now; True where it is as wanted. Raises ApiError."""
        client, resource = self._context.client, BY_KIND[done.key.kind]
        status_type: type[RunStatus] = ExecutionStatus if done.key.kind == EXECUTION else TrainingJobStatus
        for _ in range(CONFLICTS_MAX):
            try:
                raw = await client.get(resource, done.key.namespace, done.key.name)
            except NotFoundError:
                return False
            if raw["metadata"]["uid"] != done.key.uid:
                return False
            try:
                status = status_type.model_validate(raw.get("status") or {})
            except ValidationError:
                status = status_type()
            patch = difference(status, change(status, raw))
            if not patch:
                return True
            version = str(raw["metadata"].get("resourceVersion") or "")
            try:
                await client.patch_status(
                    resource,
                    done.key.namespace,
                    done.key.name,
                    uid=done.key.uid,
                    status=patch,
                    resource_version=version or None,
                )
            except ConflictError:
                continue
            return True
        log.warning("the status of %s/%s changes all the time", done.key.namespace, done.key.name)
        return False


def _last_word(pod: Pod | None, allotment: str) -> MeterWord | None:
    return None if pod is None else last_words.word_of(pod.raw, allotment)


def _mark(totals: wire.ExecutionTotals) -> str:
    return cost_mark({"usage": outcome.usage_of(totals.totals).to_wire()})
