"""The operator inside the simulation: its real client of the ledger, and its road of an execution, step by step.

Role: takes an epoch, hands over limits, opens, binds, closes and follows the feed, as almoner_operator does it, with
every step repeatable by the next leader from what the cluster has stored. Two may act at once: the old one learns from
the ledger that it leads no more. Boundary: pods, executions and the leader's lease are the world's (the API server's).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.identity import allotment_id, operation_id, pod_name
from almoner_core.wire import Dimension, ErrorCode
from almoner_dev.simulate.machines import Charging, asked
from almoner_dev.simulate.network import Network
from almoner_dev.simulate.oracle import POISONED
from almoner_dev.simulate.pausing import Process
from almoner_operator import last_words, ledger_client
from almoner_operator.errors import LeadershipLostError, LedgerError, LedgerUnavailableError

if TYPE_CHECKING:
    from almoner_dev.simulate.pods import Pod, Work
    from almoner_dev.simulate.world import World

Message = TypeVar("Message", bound=BaseModel)

LEASE_S = 60
LONGEST_CALL_S = 120
MARGIN_S = 10
START_S = 20.0
TRIES_MAX = 6


class OperatorClient(ledger_client.LedgerClient):
    """The operator's own client, over the simulated network in place of HTTP."""

    def __init__(self, network: Network, token: str, chance: random.Random) -> None:
        super().__init__("http://ledger", token_file=None)
        self._network = network
        self._bearer = token
        self._random = chance

    async def _once(
        self,
        method: str,
        path: str,
        answer: type[Message],
        *,
        data: bytes | None,
        query: dict[str, str] | None,
        seconds: float,
    ) -> Message:
        where = path + ("?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else "")
        status, raw = await self._network.ask(method, where, self._bearer, data, seconds=seconds)
        if status >= 300:
            raise ledger_client._answered(status, raw)  # noqa: SLF001 - what the base class does with an answer
        return answer.model_validate_json(raw)


@dataclass
class Run:
    """An execution as the API server has it. `stage`: queued, starting, running, ending, over."""

    uid: str
    name: str
    agent: str
    owner: str
    accounts: tuple[wire.AccountKey, ...]
    limits: dict[Dimension, int]
    need: dict[Dimension, int]
    want: dict[Dimension, int]
    work: Work
    attempts_max: int
    begins_s: float
    stage: str = "queued"
    attempt: int = 1
    tries: int = 0
    cancelled: bool = False
    costs_machine_time: bool = False
    totals: wire.ExecutionTotals | None = None
    pods: list[Pod] = field(default_factory=list)

    @property
    def allotment(self) -> str:
        """The current attempt's allotment."""
        return allotment_id(self.uid, self.attempt)


class Operator:
    """One process of the operator. `lead` until it is killed or learns that another one leads."""

    def __init__(self, world: World, name: str, token: str) -> None:
        self.world, self.name = world, name
        self.client = OperatorClient(world.network, token, random.Random(world.chance.getrandbits(64)))
        self.cursor = 0
        self.totals: dict[str, wire.ExecutionTotals] = {}
        self.charging = Charging(world, self.client)
        self._counter = 0
        self._handed: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self.process = Process()

    def start(self) -> None:
        """Start leading, in the background."""
        self._task = self.process.task(self._lead(), name=f"operator {self.name}")

    @property
    def leads(self) -> bool:
        """Whether the process runs: it leads, or is about to."""
        return self._task is not None and not self._task.done()

    @property
    def standing(self) -> str:
        """Who it is, and what its tasks are at, for people."""
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith(self.name)]
        lines = ", ".join(str(frame.f_lineno) for task in tasks for frame in task.get_stack(limit=1))
        return f"{self.name} (epoch {self.client.epoch}, leader: {self.world.leader is self}, at {lines})"

    async def kill(self) -> None:
        """End the process."""
        if self._task is not None:
            self.process.resume()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _lead(self) -> None:
        identity = operation_id("epoch", self.name)
        while True:
            try:
                await self.client.take_epoch(operation_id=identity, holder=self.name)
                break
            except LedgerUnavailableError:
                await self.world.sleep(1.0)
        if self.world.leader is not None and self.world.leader.client.epoch > self.client.epoch:
            # It took so long that another one leads already.
            return
        self.world.leader = self
        await self.charging.adopt()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.charging.time.run())
                group.create_task(self._hand_over_always())
                group.create_task(self._follow())
                group.create_task(self._reconcile_always())
                for run in self.world.runs:
                    group.create_task(self._drive(run), name=f"{self.name} drives {run.name}")
        except ExceptionGroup as errors:
            lost, others = errors.split(LeadershipLostError)
            if lost is not None:
                self.world.faults.note("leadership_lost")
            if others is not None:
                self.world.oracle.problem(f"operator {self.name}: {others.exceptions[0]!r}")

    def _write(self, run: Run, **changes: Any) -> None:
        """Write an execution's status: the API server lets the leader alone."""
        if self.world.leader is not self:
            raise LeadershipLostError("another operator wrote")
        for name, value in changes.items():
            setattr(run, name, value)

    # -- limits ----------------------------------------------------------------------------------------------

    async def _hand_over_always(self) -> None:
        while True:
            fresh = [quota for quota in self.world.quotas if self._handed.get(quota.name) != quota.version]
            if fresh:
                versions = {quota.name: quota.version for quota in fresh}
                limits = []
                for quota in fresh:
                    self._counter += 1
                    generation = (self.client.epoch << 32) + self._counter
                    limits += [quota.limits(key, generation) for key in quota.keys]
                if self.world.faults.strikes("poisoned_limits"):
                    limits.insert(self._counter % (len(limits) + 1), self._poisoned())
                identity = operation_id("accounts", f"{self.client.epoch}/{self._counter}")
                while True:
                    try:
                        await self.client.update_accounts(limits, operation_id=identity)
                        break
                    except LedgerUnavailableError:
                        await self.world.sleep(0.5)
                self._handed |= versions
            await self.world.sleep(0.5)

    def _poisoned(self) -> wire.AccountLimits:
        """Limits of a quota that nobody can keep: its time zone does not exist."""
        self._counter += 1
        return wire.AccountLimits(
            key=wire.AccountKey(namespace="team", quota=POISONED),
            generation=(self.client.epoch << 32) + self._counter,
            period=BudgetPeriod.DAILY,
            time_zone="Europe/Berlim",
            limits={Dimension.USD: 1},
        )

    async def handed_over(self) -> None:
        """Wait until the ledger has the newest limits."""
        while any(self._handed.get(quota.name) != quota.version for quota in self.world.quotas):
            await self.world.sleep(0.2)

    # -- what changed ------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                changes = await self.client.changes(self.cursor, wait_seconds=0, limit=4)
            except LedgerError:
                await self.world.sleep(1.0)
                continue
            for totals in changes.executions:
                self.totals[totals.uid] = totals
            self.cursor = changes.after
            if not changes.more:
                await self.world.sleep(3.0)

    async def _reconcile_always(self) -> None:
        """Give back what nobody needs: allotments and pods of attempts that are not the current ones."""
        while True:
            try:
                views = [view async for view in self.client.open_allotments()]
            except LedgerError:
                views = []
            current = {run.allotment: run for run in self.world.runs if run.stage != "over"}
            for view in views:
                if allotment_id(view.execution.uid, view.execution.attempt) not in current:
                    await self._give_up(view)
            for pod in self.world.pods:
                run = current.get(pod.attempt.allotment)
                if (run is None or run.stage == "queued") and not pod.ended.is_set():
                    pod.terminate()
            await self.world.sleep(15.0)

    async def _give_up(self, view: wire.AllotmentView) -> None:
        own = allotment_id(view.execution.uid, view.execution.attempt)
        pod = next((pod for pod in self.world.pods if pod.attempt.allotment == own), None)
        if pod is not None and not (pod.ended.is_set() or pod.lost):
            return
        over = pod is None or not pod.lost
        if view.purpose is wire.Purpose.COMPUTE:
            await self.charging.give_up(view, pod)
        elif over or view.seconds_since_exchange > LEASE_S + LONGEST_CALL_S + MARGIN_S:
            await self._close(view.allotment, terminated=over, patient=False, pod=pod)

    # -- an execution's road -----------------------------------------------------------------------------------

    async def _drive(self, run: Run) -> None:
        await self.world.until(run.begins_s)
        await self.handed_over()
        while run.stage != "over":
            if run.cancelled and run.stage == "queued":
                self._write(run, stage="over")
            elif run.stage == "queued":
                await self._open(run)
            elif run.stage == "starting":
                await self._begin_pod(run)
            elif run.stage == "running":
                await self._watch(run)
            else:
                await self._end(run)

    async def _open(self, run: Run) -> None:
        item = wire.OpenAllotment(
            operation_id=operation_id("open", run.allotment, self.client.epoch),
            allotment=run.allotment,
            execution=wire.ExecutionRef(
                namespace="team", name=run.name, uid=run.uid, attempt=run.attempt, agent=run.agent, owner=run.owner
            ),
            pod=pod_name(run.name, run.uid, run.attempt),
            accounts=list(run.accounts),
            limits=run.limits,
            need=run.need,
            want=run.want,
            **(asked() if run.costs_machine_time else {}),
        )
        try:
            await self.client.open(item)
            if run.costs_machine_time:
                self.charging.time.opened(run.allotment)
        except LedgerUnavailableError:
            await self.world.sleep(1.0)
        except LedgerError as error:
            if error.code == ErrorCode.WRONG_STATE:
                # An earlier leader opened it and wrote nothing: that number is never used again.
                self._write(run, attempt=run.attempt + 1)
            elif error.code == ErrorCode.INSUFFICIENT and run.tries < TRIES_MAX:
                self._write(run, tries=run.tries + 1)
                await self.world.sleep(5.0)
            elif error.code == ErrorCode.INSUFFICIENT:
                self._write(run, stage="over")
            else:
                raise
        else:
            self._write(run, stage="starting")

    async def _begin_pod(self, run: Run) -> None:
        pod = self.world.pod_of(run)
        item = wire.BindAllotment(
            operation_id=operation_id("bind", run.allotment, pod.uid), allotment=run.allotment, pod_uid=pod.uid
        )
        try:
            await self.client.bind(item)
        except LedgerUnavailableError:
            await self.world.sleep(1.0)
        except LedgerError as error:
            if error.code != ErrorCode.WRONG_STATE:
                raise
            pod.terminate()
            self._write(run, stage="ending")
        else:
            self._write(run, stage="running")

    async def _watch(self, run: Run) -> None:
        """Wait for the pod's end: by itself, by a cancel, never having started, or with its node."""
        pod = self.world.pod_of(run)
        if run.costs_machine_time:
            self.charging.watch(run, pod)
        waited = 0.0
        since_unreachable = 0.0
        while not pod.ended.is_set():
            await self.world.sleep(0.5)
            waited += 0.5
            since_unreachable = since_unreachable + 0.5 if pod.unreachable else 0.0
            if run.cancelled:
                pod.terminate()
            if waited > START_S and not pod.spending and not pod.lost and not pod.attempt.started:
                pod.terminate()
                # Its machine time is charged once it has ended, and before anything is given back.
                if not run.costs_machine_time and await self._close(run.allotment, terminated=False, void=True):
                    break
            if since_unreachable > 30.0:
                # The node does not answer: nobody may spend for it any more once lease and longest call are over.
                await self.world.sleep(LEASE_S + LONGEST_CALL_S + MARGIN_S)
                pod.attempt.given_up = True
                break
        self._write(run, stage="ending")

    async def _end(self, run: Run) -> None:
        pod = self.world.pod_of(run)
        if run.costs_machine_time:
            await self.charging.finish(run, pod)
        if not await self._close(run.allotment, terminated=pod.ended.is_set(), pod=pod):
            await self._close(run.allotment, terminated=False, void=True)
        pod.terminate()
        again = run.attempt < run.attempts_max and not run.cancelled and pod.calls_left > 0
        if again:
            self._write(run, stage="queued", attempt=run.attempt + 1, tries=0)
        else:
            self._write(run, stage="over")

    async def _close(
        self, allotment: str, *, terminated: bool, void: bool = False, patient: bool = True, pod: Pod | None = None
    ) -> bool:
        """Close or void an allotment; gives whether that was done. A patient one tries until it is.

        Where the pod's containers have ended, its meter's last word goes along.
        """
        verb = "void" if void else "close"
        word = last_words.word_of(pod.status, allotment) if terminated and pod is not None else None
        item = wire.CloseAllotment(
            operation_id=operation_id(verb, allotment, f"{int(terminated)}{last_words.digest(word)}"),
            allotment=allotment,
            reason=verb,
            terminated=terminated,
            last_word=None if word is None else last_words.for_ledger(word),
        )
        while True:
            try:
                await (self.client.void(item) if void else self.client.close(item))
                if pod is not None and word is not None:
                    pod.attempt.word_told = True
                return True
            except LedgerUnavailableError:
                await self.world.sleep(2.0)
            except LedgerError as error:
                if error.code == ErrorCode.LEASED and patient:
                    await self.world.sleep(10.0)
                    continue
                return False
            if not patient:
                return False
