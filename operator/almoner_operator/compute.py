"""Machine time: charged while pods run, held ahead, and the pod stopped when that is refused.

Role: one task looks at all running pods, and accrues in the ledger, in batches, what each used since the last time; the
same exchange renews what is held for the time to come. Until when a pod was charged is what the ledger has, so an
operator that takes over goes on from there. A pod whose hold is refused is stopped while what is held still pays for
its end.

Boundary: the books are the ledger's, the arithmetic almoner_core's, the reading of pods machines.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Final

from almoner_core import wire
from almoner_core.compute import Machine
from almoner_core.environment import PAID_ALWAYS_SECONDS
from almoner_core.identity import allotment_id, compute_allotment_id, operation_id
from almoner_core.money import Money
from almoner_operator import apart, failpoints
from almoner_operator.attempts import has_terminated
from almoner_operator.context import Context
from almoner_operator.errors import LeadershipLostError, LedgerError, LedgerUnavailableError
from almoner_operator.machines import PodTime, pod_time, records_of, unix_seconds
from almoner_operator.records import Pod, Run
from almoner_operator.scheduling.model import Stop, StopCause

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
SEEN_SECONDS: Final = 2
"""So long after it a pod's end is surely seen: nothing younger is charged while the pod runs."""
STOP_SECONDS: Final = 5
"""What must still be paid for, beyond its grace period, when a pod is told to stop."""
REFUSED_SECONDS: Final = 5
"""How often a hold is asked for again of which nobody is known who might free up something."""
STRETCH_SECONDS_MAX: Final = 86_400
RETRY_SECONDS: Final = 2.0


@dataclass(slots=True)
class _Meter:
    """How far an attempt's machine time is charged. Times are Unix seconds."""

    until: int | None = None
    sequence: int = 0
    covered: int = 0
    """Until when what is held pays."""
    bounded: bool = False
    """Whether that is the ledger's word: what was used after it was not paid for, and is not charged."""
    known: bool = False
    """Whether the ledger knows since when the pod runs, and what it costs."""
    asked: int = 0
    asked_at: int = 0
    pending: wire.AccrueAllotment | None = None
    """What was asked and not answered: it is asked again as it is."""
    to: int | None = None
    """Until when `pending` charges."""
    refused: wire.Error | None = None
    answered: bool = False
    """Whether the ledger has said for how long it is paid, or that nothing limits it (`bounded`)."""
    seen: PodTime | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MachineTime:
    """Charges machine time. `stop` is called with what must be stopped for want of money; `clock` gives Unix time."""

    def __init__(self, context: Context, *, clock: Callable[[], float] = time.time) -> None:
        self._context = context
        self._clock = clock
        self._settings = context.settings.compute
        self._meters: dict[str, _Meter] = {}
        self.stop: Callable[[Stop], None] = lambda _: None
        self.retry_seconds = RETRY_SECONDS

    # -- what there is to charge ---------------------------------------------------------------------

    def opened(self, allotment: str) -> None:
        """Note that an attempt's allotment was opened, and its machine time's with it."""
        self._meters[allotment] = _Meter()

    def adopt(self, view: wire.AllotmentView) -> str:
        """Take over what the ledger has of an attempt's machine time; gives the attempt's own allotment."""
        allotment = allotment_id(view.execution.uid, view.execution.attempt)
        until = view.accrued_unix_ms
        meter = self._meters[allotment] = _Meter(
            until=until // 1000 if until is not None else None, sequence=view.last_sequence
        )
        self._note_paid(meter, int(self._clock()), view.paid_seconds, view.paid_span)
        return allotment

    @staticmethod
    def _note_paid(
        meter: _Meter, moment: int, seconds: int | None, span: wire.PaidSpan | None, start: int | None = None
    ) -> None:
        """Take the ledger's word for how long is paid, as it was asked for at `moment`; the pod began at `start`.

        The length of what is held counts from where this operator charges on: the ledger's clock may have jumped.
        """
        meter.bounded, meter.answered = seconds is not None and seconds < PAID_ALWAYS_SECONDS, True
        since = start if meter.until is None else meter.until
        if meter.bounded and span is not None and since is not None:
            meter.covered = since + (span.until_unix_ms - span.since_unix_ms) // 1000
        elif meter.bounded and seconds is not None:
            meter.covered = moment + seconds

    async def reprice(self, allotment: str, machine: Machine, grace_seconds: int) -> wire.Error | None:
        """Hold what a pod costs that asks for more than it was admitted with; the error where there is no room.

        Raises LedgerError.
        """
        meter, terms = self._meters.get(allotment), self._settings.terms(machine, grace_seconds)
        if meter is None or terms is None:
            return None
        compute = compute_allotment_id(allotment)
        hold = self._settings.prices.hold(machine, self._settings.ahead(grace_seconds))
        async with meter.lock:
            meter.asked += 1
            item = wire.AccrueAllotment(
                operation_id=operation_id("accrue", compute, f"{self._context.ledger.epoch}/{meter.asked}"),
                allotment=compute,
                hold={wire.Dimension.USD: hold},
                machine=terms,
            )
            return (await self._context.ledger.accrue(item)).error

    def forget(self, allotment: str) -> None:
        """Charge no more: the allotment is void."""
        self._meters.pop(allotment, None)

    # -- while pods run ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Charge what is due, for ever."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                await self.round()
            except LeadershipLostError:
                raise
            except Exception:
                log.exception("charging machine time failed")

    async def round(self) -> None:
        """Charge every pod that is due; what is asked together travels together."""
        moment = int(self._clock())
        due: list[Coroutine[Any, Any, None]] = []
        for run in self._context.cache.runs.values():
            apart.each("charging", f"{run.key.namespace}/{run.key.name}", self._look, run, moment, due)
        for result in await asyncio.gather(*due, return_exceptions=True):
            if isinstance(result, LeadershipLostError):
                raise result
            if isinstance(result, BaseException):
                log.error("charging machine time failed: %s", result, exc_info=result)

    def _look(self, run: Run, moment: int, due: list[Coroutine[Any, Any, None]]) -> None:
        """See whether a run's pod is to be charged now."""
        attempt = run.attempt
        if attempt is None or attempt.allotment is None or run.end is not None or run.settling:
            return
        meter = self._meters.get(attempt.allotment)
        pod = self._context.cache.pods.of(run) if meter is not None else None
        if meter is None or pod is None or pod.raw.get("gone") or has_terminated(pod.raw):
            return
        meter.seen = seen = _time_of(run, pod)
        if meter.lock.locked() or seen.start is None or not self._due(run, meter, seen, seen.start, moment):
            return
        if not meter.covered:
            since = seen.start if meter.until is None else meter.until
            meter.covered = since + self._settings.ahead(seen.grace_seconds)
        due.append(self._charge(run, attempt.allotment, meter, seen, moment))

    def _due(self, run: Run, meter: _Meter, seen: PodTime, start: int, moment: int) -> bool:
        if meter.pending is not None:
            return True
        if not meter.known and self._settings.terms(seen.machine, seen.grace_seconds) is not None:
            return True  # Until then the ledger takes it to run since it was admitted.
        if meter.refused is not None and run.stop is None:
            soon = meter.refused.refusal is not None and meter.refused.refusal.may_free_up
            late = self._must_stop(meter, seen, moment)
            return soon or late or moment - meter.asked_at >= REFUSED_SECONDS
        since = start if meter.until is None else meter.until
        return moment - SEEN_SECONDS - since >= self._settings.interval_seconds

    async def _charge(self, run: Run, allotment: str, meter: _Meter, seen: PodTime, moment: int) -> None:
        async with meter.lock:
            start = seen.start if meter.until is None else meter.until
            assert start is not None
            end = start
            if moment - SEEN_SECONDS - start >= self._settings.interval_seconds:
                end = min(moment - SEEN_SECONDS, start + STRETCH_SECONDS_MAX)
                if meter.bounded or not meter.answered:
                    # Never above what is held: what ran since is held for first, and charged at the next look.
                    end = max(start, min(end, meter.covered))
            if meter.pending is None:
                self._ask(allotment, meter, seen, start, end, behind=max(0, moment - SEEN_SECONDS - end))
            try:
                answer = await self._send(allotment, meter)
            except LedgerUnavailableError as error:
                log.warning("machine time of %s/%s is not charged yet: %s", run.key.namespace, run.key.name, error)
                return
        if answer is not None:
            self._judge(run, meter, seen, answer, moment)

    def _must_stop(self, meter: _Meter, seen: PodTime, moment: int) -> bool:
        """Whether a pod must be stopped now, so that its end is still paid for."""
        return meter.covered - moment <= self._settings.end_seconds(seen.grace_seconds) + STOP_SECONDS

    def _judge(self, run: Run, meter: _Meter, seen: PodTime, answer: wire.ItemAnswer, moment: int) -> None:
        """See whether what is to come is paid for; stop the pod where it is not, while its end still is.

        Meanwhile meters were asked to return what is idle, this run's own among them, and limits may be raised.
        """
        meter.refused = answer.error
        if answer.error is None and meter.until is not None:
            meter.covered = max(meter.covered, meter.until + self._settings.ahead(seen.grace_seconds))
        self._note_paid(meter, moment, answer.paid_seconds, answer.paid_span, seen.start)
        if answer.error is None or not self._must_stop(meter, seen, moment):
            return
        self.stop(Stop(run.key, StopCause.EXHAUSTED, f"its machine time cannot be paid for any longer: {_why(answer)}"))

    # -- the end -------------------------------------------------------------------------------------

    async def finish_run(self, run: Run) -> bool:
        """Charge what is left of a run's attempt that is over. Gives whether any machine time was charged at all."""
        attempt = run.attempt
        if attempt is None or attempt.allotment is None:
            return False
        pod = self._context.cache.pods.of(run)
        if pod is not None:
            return await self.finish(attempt.allotment, pod, known=_time_of(run, pod))
        if attempt.start_time is None:
            return await self.finish(attempt.allotment, pod)
        # It vanished while no operator looked: it had what it was admitted with.
        admitted = run.admitted
        if admitted is None:  # Of an older version: nothing is known of what it had.
            return await self.finish(attempt.allotment, None)
        asked = admitted.requests
        known = PodTime(
            Machine(asked.cpu, asked.memory, asked.gpu), admitted.grace_seconds, unix_seconds(attempt.start_time)
        )
        return await self.finish(attempt.allotment, None, known=known)

    async def finish(self, allotment: str, pod: Pod | None, *, known: PodTime | None = None) -> bool:
        """Charge what is left of an attempt that is over, and end its compute allotment, as long as it takes.

        `known` is what is known of its pod, or of one that is not there. Where its end is not known, what the pod could
        have used until now is charged; and at most what is held. Gives whether any machine time was charged at all.
        """
        meter = self._meters.get(allotment)
        if meter is None:
            return False
        seen = (known or pod_time(pod.raw)) if pod is not None else meter.seen or known
        async with meter.lock:
            while self._meters.get(allotment) is meter:
                if not await self._caught_up(allotment, meter, seen):
                    await asyncio.sleep(self.retry_seconds)
                    continue
                if meter.pending is None:
                    start, end = self._last_stretch(meter, seen)
                    cut = min(end, start + STRETCH_SECONDS_MAX)
                    self._ask(allotment, meter, seen, start, cut, final=cut == end)
                asked = meter.pending
                try:
                    answer = await self._send(allotment, meter)
                except LedgerUnavailableError as error:
                    log.warning("machine time of allotment %s is not charged yet: %s", allotment, error)
                    await asyncio.sleep(self.retry_seconds)
                    continue
                if answer is not None and asked is not None and asked.final:
                    self._meters.pop(allotment, None)
        return meter.sequence > 0

    async def _caught_up(self, allotment: str, meter: _Meter, seen: PodTime | None) -> bool:
        """See to it that it is known for how long a pod was paid that ran longer than this operator held for it."""
        end = seen.end if seen is not None and seen.end is not None else int(self._clock())
        if meter.pending is not None or not meter.bounded or end <= meter.covered:
            return True
        try:
            async for view in self._context.ledger.open_allotments():
                if view.allotment == compute_allotment_id(allotment):
                    start = seen.start if seen is not None else None
                    self._note_paid(meter, int(self._clock()), view.paid_seconds, view.paid_span, start)
        except LedgerUnavailableError as error:
            log.warning("machine time of allotment %s is not charged yet: %s", allotment, error)
            return False
        return True

    def _last_stretch(self, meter: _Meter, seen: PodTime | None) -> tuple[int, int]:
        since = seen.start if seen is not None and meter.until is None else meter.until
        if seen is None or since is None:
            return 0, 0  # It never started, as far as anybody knows.
        end = seen.end
        if end is None:
            # That much was held, at least: by the ledger's word, or since this was charged last.
            paid = meter.covered if meter.bounded else since + self._settings.ahead(seen.grace_seconds)
            end = min(int(self._clock()), paid)
        elif meter.bounded:
            end = min(end, meter.covered)
        return since, max(since, end)

    # -- the ledger ----------------------------------------------------------------------------------

    def _ask(
        self,
        allotment: str,
        meter: _Meter,
        seen: PodTime | None,
        start: int,
        end: int,
        *,
        final: bool = False,
        behind: int = 0,
    ) -> None:
        """Word what is to be asked: to charge from `start` to `end`, and what is to be held after that.

        `behind`: so many seconds after `end` are past already, and have to be held for too.
        """
        compute = compute_allotment_id(allotment)
        prices = self._settings.prices
        meter.asked += 1
        meter.asked_at = int(self._clock())
        hold, used = 0, []
        terms, charged, now_ms = None, None, self._context.ledger.now_ms()
        if seen is not None:
            terms = self._settings.terms(seen.machine, seen.grace_seconds)
            if now_ms is not None and end:
                charged = max(0, now_ms - int((self._clock() - end) * 1000))
            meter.known = True
            late = max(0, behind - self._settings.interval_seconds)
            hold = prices.hold(seen.machine, self._settings.ahead(seen.grace_seconds) + late)
            used = records_of(compute, seen.machine, start, end, after=meter.sequence, prices=prices)
        meter.pending = wire.AccrueAllotment(
            operation_id=operation_id("accrue", compute, f"{self._context.ledger.epoch}/{meter.asked}"),
            allotment=compute,
            records=used,
            hold={} if final else {wire.Dimension.USD: hold},
            final=final,
            machine=terms,
            charged_unix_ms=charged if terms is not None else None,
        )
        meter.to = end if end > start else None

    async def _send(self, allotment: str, meter: _Meter) -> wire.ItemAnswer | None:
        """Ask what is pending; None where the ledger refused it as such. Raises LedgerUnavailableError."""
        assert meter.pending is not None
        try:
            answer = await self._context.ledger.accrue(meter.pending)
        except LedgerUnavailableError:
            raise
        except LedgerError as error:
            # Void, or charged by somebody else: what the ledger has is true.
            log.warning("machine time of allotment %s is not accrued: %s", allotment, error)
            meter.pending = None
            await self._relearn(allotment, meter)
            return None
        failpoints.hit(failpoints.AFTER_ACCRUE)
        meter.sequence += len(meter.pending.records)
        if meter.to is not None:
            meter.until = meter.to
        meter.pending = meter.to = None
        return answer

    async def _relearn(self, allotment: str, meter: _Meter) -> None:
        """Look up how far the ledger has it. Where it has none that is open, nothing more is charged."""
        compute = compute_allotment_id(allotment)
        async for view in self._context.ledger.open_allotments():
            if view.allotment == compute:
                until = view.accrued_unix_ms
                if view.last_sequence > meter.sequence:
                    meter.sequence = view.last_sequence
                    meter.until = until // 1000 if until is not None else meter.until
                    return
                break
        self._meters.pop(allotment, None)


def _time_of(run: Run, pod: Pod) -> PodTime:
    """Read a pod. It started no later than an operator saw its agent start."""
    seen, attempt = pod_time(pod.raw), run.attempt
    started = unix_seconds(attempt.start_time) if attempt is not None else None
    if seen.start is None or started is None:
        return seen
    return replace(seen, start=min(seen.start, started))


def _why(answer: wire.ItemAnswer) -> str:
    """Say which account has no room, in dollars."""
    error = answer.error
    refusal = error.refusal if error is not None else None
    if refusal is None:
        return error.message if error is not None else ""
    left = Money(max(0, refusal.limit - refusal.spent - refusal.reserved))
    limit, needed = Money(refusal.limit), Money(refusal.needed)
    return f"{refusal.account} has {left} USD of {limit} left, and {needed} must be held ahead"
