"""The meter's books: its allotment, its spool, and all exchanges with the ledger about them.

Exchanges that move amounts go one at a time under a lock, so that after each one the ledger's word about what is held
can be compared with ours, and is believed. Posting, returning what is idle and listening for signals happen in the
background. What the ledger has committed renews the lease, counted from before it was asked; past the lease no call
starts, because from then the ledger may charge the rest off and let another attempt begin. Under a recall nothing is
kept but what the next call needs: others were refused what is idle here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final

from almoner_core.allotment import Allotment, Hold
from almoner_core.environment import LEASE_SECONDS
from almoner_runner.meter import waits
from almoner_runner.meter.ids import uuid7
from almoner_runner.meter.ledger import LedgerClient, LedgerError, LedgerUnreachableError
from almoner_runner.meter.machine import MachineTime
from almoner_runner.meter.rates import Debit, Rates
from almoner_runner.meter.spool import Recovered, Spool, Totals

logger = logging.getLogger(__name__)

POST_RECORDS_MAX: Final = 200
# How many records an activation asks about, as the ledger takes them.
UNSETTLED_MAX: Final = 512
# Long enough for a busy run's records to go in one exchange, short enough for status within a second.
POST_DELAY_S: Final = 0.2
IDLE_SECONDS: Final = 1.0
IDLE_LOOK_S: Final = 0.25
# How long a recall holds; whoever is still refused then recalls again.
RECALL_SECONDS: Final = 5.0
FLUSH_SECONDS: Final = 0.2
FOREVER: Final = float("inf")
# Errors after which this meter starts no call; and those of them after which it has nothing more to say either.
FATAL_CODES: Final = ("wrong_state", "not_found", "forbidden")
# Errors of the moment: the same exchange may be done a little later.
PASSING_CODES: Final = ("unauthenticated", "unavailable", "not_bound")
# At the end no wait between two tries is longer: every one may be the last.
LAST_RETRY_SECONDS: Final = 0.5
MUTE_CODES: Final = ("not_found", "forbidden")


_Call = Callable[[], Awaitable[dict[str, Any]]]
_Insist = Callable[[_Call], Awaitable[tuple[float, dict[str, Any]]]]


class BooksClosedError(RuntimeError):
    """The ledger does not let this meter have its allotment (any more); the message says why."""


class Books:
    """One allotment's books. `activate` first, then `run` in the background; `close` gives the last word.

    first_need: what admission promised for the first call, kept for it; None: all that admission granted. end_seconds:
    what it takes to end the pod, where its machine time costs something.
    """

    def __init__(
        self,
        client: LedgerClient,
        spool: Spool,
        first_need: Mapping[str, int] | None = None,
        end_seconds: int | None = None,
    ) -> None:
        self.client = client
        self.spool = spool
        self.machine = MachineTime(end_seconds, spool.path.parent, lambda: self.now)
        self.allotment = Allotment((), {})
        self.rates = Rates()
        self.active = False
        self.cancelled = False
        self.stopped: str | None = None
        self.lacking = "it could not reach the ledger"  # why it is not active yet
        self._mute = False
        self.max_per_request: dict[str, int] = {}
        self.remaining: dict[str, int] = {}
        self.lease_until = 0.0
        self.window_until = FOREVER
        self.waiting = 0  # calls that wait for room
        self.waiting_for_rates = 0  # ... and those to whom no room would help now: nothing is kept for them
        self.corrections = 0
        self.rejected = 0
        self.posts_failed = 0
        self._lock = asyncio.Lock()
        self._settled = asyncio.Event()
        self._to_post = asyncio.Event()
        self._to_return = asyncio.Event()
        self._last_use = 0.0
        self._used = False
        self._tight = False
        self._recalled_until = 0.0
        self._first_need = first_need
        self._lease_seconds = LEASE_SECONDS
        self._topping_up: asyncio.Task[None] | None = None
        self._unanswered: dict[str, Any] | None = None  # records that were posted, with no answer yet
        self._returning: dict[str, Any] | None = None  # what was returned, with no answer yet
        self._activation = 0

    @property
    def now(self) -> float:
        """The monotonic clock that leases and windows are kept by, in seconds."""
        return asyncio.get_running_loop().time()

    @property
    def recalled(self) -> bool:
        """Whether others were refused what is idle here, a moment ago."""
        return self.now < self._recalled_until

    # --- activation ---------------------------------------------------------------------------------------------------

    async def activate(self, recovered: Recovered) -> None:
        """Take the allotment, trying until the operator has bound this pod. Raises BooksClosedError."""
        sent, answer, known = await self._take(
            [record["id"] for record in recovered.unsettled], lambda call: self._insist(call, "activate")
        )
        for record in recovered.unsettled:
            if record["id"] in (known or ()):
                # It was settled and posted while the disk was full: only the spool does not know.
                self.spool.drop(record["id"])
            else:
                self.spool.settle(record)
        self._lease_seconds = answer["lease_seconds"]
        self.max_per_request = answer.get("max_per_request", {})
        self.remaining = answer.get("remaining", {})
        self.allotment = Allotment(answer["limited"], {})
        held = {d: max(0, answer["held"].get(d, 0) - self.spool.unposted.get(d, 0)) for d in answer["limited"]}
        self.allotment.grant(held)
        self.rates.learn(answer.get("rates"))
        self._renew(sent, answer)
        self.machine.told(sent, answer.get("paid_seconds"), answer.get("paid_span"))
        self._last_use = self.now
        self.active = True
        if self.spool.pending:
            self._to_post.set()

    async def _take(self, unsettled: list[str], insist: _Insist) -> tuple[float, dict[str, Any], set[str] | None]:
        """Activate, and go on where the ledger is; gives when it was asked, its answer, and what it has of ours.

        It is asked again about records that stand where it has records: what an earlier life of this meter posted may
        have come late, and in another order.
        """
        asked, told = list(unsettled), set[str]()
        known: set[str] | None = None
        while True:
            # A fresh id for every try: a meter wants to learn what is left and to renew its lease, not what was.
            sent, answer = await insist(partial(self._activate, asked))
            if "known" in answer:
                known = (known or set()) | set(answer["known"])
            told |= set(asked)
            doubtful = [each for each in self.spool.doubtful(answer["next_sequence"]) if each not in told]
            if not doubtful or known is None:
                break
            asked = doubtful[:UNSETTLED_MAX]
        settled = answer.get("settled", {})
        before = Totals(
            cost_nanos=settled.get("usd", 0),
            input_tokens=settled.get("tokens", 0),
            requests=settled.get("requests", 0),
            tool_calls=settled.get("tool_calls", 0),
        )
        self.spool.begin(answer["next_sequence"], before, known)
        self._activation = answer.get("activation", 0)
        return sent, answer, known

    async def _once(self, call: _Call) -> tuple[float, dict[str, Any]]:
        sent = self.now
        return sent, await call()

    async def _activate(self, unsettled: list[str]) -> dict[str, Any]:
        return await self.client.exchange("POST", "activate", {"operation_id": uuid7(), "unsettled": unsettled})

    async def _insist(self, call: _Call, what: str) -> tuple[float, dict[str, Any]]:
        """Repeat an exchange until it is answered for good; gives when it was sent, and the answer."""
        for wait in waits.backoff():
            sent = self.now
            try:
                return sent, await call()
            except LedgerUnreachableError as error:
                self.lacking = f"it could not reach the ledger: {error}"
                logger.warning("%s: %s; trying again", what, error)
            except LedgerError as error:
                if error.code not in ("not_bound", "unauthenticated", "unavailable"):
                    raise BooksClosedError(f"the ledger refused to {what}: {error}") from error
                self.lacking = f"the ledger has not handed its allotment over: {error}"
                logger.info("%s: %s; trying again", what, error.code)
            await asyncio.sleep(min(wait, 1.0))
        raise AssertionError("unreachable: the backoff has no end")

    def _renew(self, sent: float, answer: dict[str, Any]) -> None:
        """Take the lease and, where it is told, the window from an answer; counted from when it was asked."""
        self.lease_until = max(self.lease_until, sent + self._lease_seconds)
        if "window_ends_in_seconds" in answer:
            ends = answer["window_ends_in_seconds"]
            self.window_until = FOREVER if ends is None else sent + ends

    def _believe(self, answer: dict[str, Any]) -> None:
        if "held" in answer and (differences := self.allotment.reconcile(answer["held"], self.spool.unposted)):
            self.corrections += 1
            logger.info("what is held differs from the ledger's word by %s: the ledger is believed", differences)
        if "rates" in answer:
            self.rates.learn(answer["rates"])
        if answer.get("state", "active") != "active":
            self.stopped = "the ledger has closed the allotment"

    # --- calls --------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """Note that a call was made, and ask for more ahead of need."""
        self._used = True
        self._last_use = self.now
        busy = self._topping_up is not None and not self._topping_up.done()
        if not busy and not self._tight and not self.recalled and (want := self.allotment.top_up()):
            self._topping_up = asyncio.create_task(self._top_up(want))

    async def _top_up(self, want: dict[str, int]) -> None:
        try:
            await self._leave_old_window()
            async with self._lock:
                await self._extend({}, want)
        except LedgerError:
            self._tight = True
        except LedgerUnreachableError as error:
            logger.info("top-up: %s", error)

    def settled(self) -> None:
        """Note that a call was settled: wake those who wait for room, post, and give back what was for it alone."""
        self._last_use = self.now
        self._settled.set()
        self._settled = asyncio.Event()
        self._to_post.set()
        if self._tight or self.recalled:
            self._to_return.set()

    def next_settlement(self) -> asyncio.Event:
        """Give the event of the next settlement; take it before looking at what is free."""
        return self._settled

    def hold(self, bound: dict[str, int], provider: str) -> Hold | None:
        """Hold a call's bound of what is here, asking nobody; None where that does not do."""
        asked = self.rates.counted(provider, bound) if self.rates.in_force else None
        if not asked:
            return self.allotment.hold(bound)
        debit = self.rates.take(provider, asked, self.now)
        return None if debit is None else self._hold_debited(bound, debit)

    def _hold_debited(self, bound: dict[str, int], debit: Debit) -> Hold | None:
        hold = self.allotment.hold(bound)
        if hold is None:
            self.rates.settle(debit, {}, self.now)
        else:
            hold.debit = debit
        return hold

    def settle(self, hold: Hold, used: dict[str, int]) -> None:
        """Settle a hold, and what was debited for it; nothing used: the call was never made."""
        self.allotment.settle(hold, used)
        if hold.debit is not None:
            self.rates.settle(hold.debit, used, self.now)

    async def cover(self, bound: dict[str, int], provider: str, *, comfort: bool = True) -> Hold | None:
        """Hold a call's bound, with more from the ledger where it does not fit; None: the allotment is frozen.

        What rates count of it is debited in the same exchange. comfort: ask for a few calls like it, too. What others
        freed or fetched while this one waited for its turn is looked at first. Raises LedgerError (`insufficient`),
        LedgerUnreachableError.
        """
        await self._leave_old_window()
        async with self._lock:
            hold = self.hold(bound, provider)
            if hold is not None or self.allotment.frozen:
                return hold
            need = self.allotment.deficit(bound)
            want = self.allotment.comfort(bound) if comfort and need and not self.recalled else need
            asked = self.rates.counted(provider, bound) if self.rates.in_force else None
            if not asked:
                await self._extend(need, want)
                return self.allotment.hold(bound)
            debit = self.rates.take(provider, asked, self.now)
            if debit is None:
                sent, answer = await self._extend(need, want, {"debit": asked, "provider": provider})
                debit = self.rates.debited(provider, asked, answer, sent)
                return self._hold_debited(bound, debit)
            try:
                await self._extend(need, want)
            except (LedgerError, LedgerUnreachableError):
                self.rates.settle(debit, {}, self.now)
                raise
            return self._hold_debited(bound, debit)

    async def _leave_old_window(self) -> None:
        if self.window_until <= self.now:
            await self.roll_window()

    async def _extend(
        self, need: dict[str, int], want: dict[str, int], debit: dict[str, Any] | None = None
    ) -> tuple[float, dict[str, Any]]:
        """Ask for more than is held, and for debits from rates; the lock is the caller's."""
        body = {"operation_id": uuid7(), "need": need, "want": {**need, **want}, **(debit or {})}
        sent, answer = await self._exchange_twice("extend", body)
        granted = answer["granted"]
        self.allotment.grant(granted)
        self._renew(sent, answer)
        self._believe(answer)
        if want:
            self._tight = any(granted.get(d, 0) <= need.get(d, 0) < amount for d, amount in want.items())
        return sent, answer

    async def _exchange_twice(self, verb: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Do a mutation, once more under the same operation id where the first answer was lost.

        It may have been done at the first try: all that its answer says counts from then.
        """
        if self._returning is not None:
            # It may still come to pass, and would then take what was believed to be held, and spent again.
            with contextlib.suppress(LedgerError):
                await self._exchange("POST", "return", self._returning)
            self._returning = None
        sent = self.now
        try:
            return sent, await self._exchange("POST", verb, body)
        except LedgerUnreachableError:
            return sent, await self._exchange("POST", verb, body)

    async def _exchange(self, method: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self.client.exchange(method, verb, body)
        except LedgerError as error:
            if error.code in FATAL_CODES:
                self.stopped = f"the ledger: {error}"
                self._mute = error.code in MUTE_CODES
                logger.error("%s", self.stopped)  # noqa: TRY400 - the ledger's message says it all
            raise

    async def ping(self) -> None:
        """Renew the lease by the shortest exchange there is. Raises LedgerError, LedgerUnreachableError."""
        self._heed(self.now, await self.client.signals(0, paid=self.machine.costs))

    async def roll_window(self) -> None:
        """Give back what was granted in a window that has ended; calls in flight settle in theirs."""
        await self.give_back()
        if self.window_until <= self.now:
            self.window_until = FOREVER  # until the next grant says otherwise: nothing is free now

    # --- background ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Post, return, listen and flush until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._post_always())
            group.create_task(self._return_idle())
            group.create_task(self._listen())
            group.create_task(self._flush_always())

    async def _flush_always(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            if self.spool.dirty:
                try:
                    await asyncio.to_thread(self.spool.flush)
                except OSError as error:
                    logger.warning("spool: flushing failed: %s", error.strerror)

    async def _post_always(self) -> None:
        backoff = waits.backoff()
        while True:
            await self._to_post.wait()
            await asyncio.sleep(POST_DELAY_S)
            self._to_post.clear()
            try:
                await self.post_pending()
                backoff = waits.backoff()
            except (LedgerError, LedgerUnreachableError) as error:
                self.posts_failed += 1
                logger.warning("posting records: %s; they stay in the spool", error)
                self._to_post.set()
                await asyncio.sleep(next(backoff))

    async def post_pending(self) -> None:
        """Post what the ledger lacks, oldest first. Raises LedgerError, LedgerUnreachableError."""
        most = POST_RECORDS_MAX
        while self.spool.pending:
            async with self._lock:
                again = self._unanswered is not None
                body = self._post_body(most)
                batch = body["records"]
                if not batch:
                    return
                try:
                    sent, answer = await self._exchange_twice("records", body)
                except LedgerError as error:
                    self._unanswered = None
                    self.rates.keep(body.get("refunds", {}))
                    if error.code not in ("invalid", "record_conflict", "too_large"):
                        raise
                    most = await self._isolate(batch, error)
                    continue
                except LedgerUnreachableError:
                    # It may have been done: asked again as it is, a refund is not given twice.
                    self._unanswered = body
                    raise
                self._unanswered = None
                here = batch[-1]["sequence"]
                self.spool.mark_posted(min(answer["last_sequence"], here))
                if not again:
                    # It may have been done before later exchanges: its lease runs from then, its `held` was so then.
                    self._renew(sent, answer)
                    self._believe(answer)
                if answer.get("frozen"):
                    self.allotment.frozen = True
                if answer["last_sequence"] < here:
                    raise LedgerUnreachableError("the ledger took the records and does not have them all yet")
                if answer["last_sequence"] > here:
                    # What an earlier life of this meter posted has come late: what has it of what is still here?
                    await self._go_on()

    def _post_body(self, most: int) -> dict[str, Any]:
        if self._unanswered is not None:
            return self._unanswered
        body: dict[str, Any] = {
            "operation_id": uuid7(),
            "records": self.spool.batch(most),
        }
        if self.rates.refunds and body["records"]:
            body["refunds"] = self.rates.due()
        return body

    async def _isolate(self, batch: list[dict[str, Any]], error: LedgerError) -> int:
        """Halve a batch that was refused; a single record that is refused is set aside, and said.

        What an earlier life of this meter posted may arrive after the present one was told what the ledger has. What
        came first stands: the ledger is asked anew what it has, and this meter goes on from there.
        """
        if len(batch) > 1:
            return len(batch) // 2
        record = batch[0]
        if error.code == "record_conflict" and error.field.endswith((".id", ".sequence")):
            logger.warning("record %s (sequence %d): %s", record["id"], record["sequence"], error)
            sequence = record["sequence"]
            if not await self._go_on(record) or self.spool.pending.get(sequence) is record:
                taken = error.field.endswith(".sequence")
                self.spool.withdraw(sequence, free=not taken)
                if taken:
                    self.spool.settle(record)
            return POST_RECORDS_MAX
        self.rejected += 1
        logger.error("the ledger refused record %s (sequence %d): %s", record["id"], record["sequence"], error)
        self.spool.mark_posted(record["sequence"])
        return POST_RECORDS_MAX

    async def _go_on(self, *refused: dict[str, Any]) -> bool:
        """Ask anew what the ledger has, and go on behind that. Gives whether it could be asked: not of what is over."""
        try:
            sent, answer, _ = await self._take([record["id"] for record in refused], self._once)
        except LedgerError as error:
            if error.code not in FATAL_CODES:
                raise
            return False
        self._renew(sent, answer)
        self._believe(answer)
        return True

    async def _return_idle(self) -> None:
        while True:
            try:
                # Not wait_for: in Python 3.11 it forgets a cancellation that comes together with the event.
                async with asyncio.timeout(IDLE_LOOK_S):
                    await self._to_return.wait()
            except TimeoutError:
                idle = self.now - self._last_use >= IDLE_SECONDS and not any(self.allotment.in_flight.values())
                if not idle:
                    continue
            self._to_return.clear()
            keep = self._promised()
            if self.waiting or keep is None or not self._spare(keep):
                continue
            try:
                await self.give_back(keep)
            except (LedgerError, LedgerUnreachableError) as error:
                logger.info("returning what is idle: %s", error)
                await asyncio.sleep(IDLE_SECONDS)
                self._to_return.set()

    def _promised(self) -> Mapping[str, int] | None:
        """What is kept of what is free: before its first call a run keeps what its admission promised it.

        None: all of it. Under a recall that is the first call's need alone.
        """
        if self._used:
            return {}
        return self._first_need if self.recalled else None

    def _spare(self, keep: Mapping[str, int]) -> dict[str, int]:
        return {d: free - keep.get(d, 0) for d, free in self.allotment.free_amounts().items() if free > keep.get(d, 0)}

    async def give_back(self, keep: Mapping[str, int] | None = None) -> None:
        """Return what is free beyond `keep`. Raises LedgerError, LedgerUnreachableError."""
        await self.post_pending()
        async with self._lock:
            idle = self._spare(keep or {})
            if not idle:
                return
            body = self._return_body(idle, final=False)
            # Gone from here first: while the answer is under way nobody may spend it.
            self.allotment.take_back(idle)
            try:
                sent, answer = await self._exchange_twice("return", body)
            except LedgerError:
                self.allotment.grant(idle)
                raise
            except LedgerUnreachableError:
                self._returning = body
                raise
            # Where no answer came it stays gone: the next exchange's `held` brings back what the ledger did not take.
            self._renew(sent, answer)
            self._believe(answer)

    def _return_body(self, amounts: dict[str, int], *, final: bool) -> dict[str, Any]:
        return {
            "operation_id": uuid7(),
            "last_sequence": self.spool.sequence,
            "settled": self.spool.totals.amounts(),
            "amounts": amounts,
            "final": final,
            "activation": self._activation,
        }

    async def _listen(self) -> None:
        backoff = waits.backoff()
        while True:
            sent = self.now
            try:
                signals = await self.client.signals(max(1.0, self.machine.look_seconds), paid=self.machine.costs)
            except LedgerUnreachableError:
                self.machine.unanswered()
                await asyncio.sleep(next(backoff))
            except LedgerError as error:
                self.machine.unanswered()
                if error.code in FATAL_CODES:
                    self.stopped = f"the ledger: {error}"
                await asyncio.sleep(next(backoff))
            else:
                backoff = waits.backoff()
                self._heed(sent, signals)
                if signals.get("cancel") or signals.get("recall"):
                    # The ledger may answer at once for as long as the signal stands.
                    await asyncio.sleep(IDLE_SECONDS if signals.get("cancel") else IDLE_LOOK_S)

    def _heed(self, sent: float, signals: dict[str, Any]) -> None:
        lease = signals.get("lease_seconds")
        if lease is not None:
            self.lease_until = max(self.lease_until, sent + lease)
        self.machine.told(sent, signals.get("paid_seconds"), signals.get("paid_span"))
        if signals.get("cancel") and not self.cancelled:
            self.cancelled = True
            logger.info("the ledger asks to stop: no further call is started")
        if signals.get("recall"):
            self._recalled_until = self.now + RECALL_SECONDS
            self._to_return.set()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self, seconds: float) -> bool:
        """Post what is left and return everything, for good. Gives whether the ledger has it all."""
        # Also of an allotment that the ledger has ended: its charge is settled by what is reported late.
        if not self.active or self._mute:
            return False
        try:
            async with asyncio.timeout(seconds):
                for wait in waits.backoff():
                    try:
                        await self.post_pending()
                        async with self._lock:
                            body = self._return_body(self.allotment.free_amounts(), final=True)
                            await self._exchange_twice("return", body)
                        return True
                    except LedgerUnreachableError as error:
                        logger.warning("the last return: %s; trying again", error)
                    except LedgerError as error:
                        if error.code not in PASSING_CODES:
                            raise
                        logger.warning("the last return: %s; trying again", error)
                    await asyncio.sleep(min(wait, LAST_RETRY_SECONDS))
        except (TimeoutError, LedgerError) as error:
            logger.error("the last return: %s; the operator closes the allotment", error or "no time left")  # noqa: TRY400
        return False
