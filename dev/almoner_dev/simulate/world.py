"""One schedule: a small world drawn from a seed, lived through with faults, left to settle without, and judged.

Role: draws quotas, executions and their work; breaks meters, replicas, the database, clocks and leadership; then stops
breaking and waits until everything has ended. Boundary: what is right is the oracle's and the audit's to say.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.identity import pod_name
from almoner_core.wire import AccountKey, Dimension
from almoner_dev.simulate.clockwork import Ids
from almoner_dev.simulate.faults import Faults
from almoner_dev.simulate.network import Network
from almoner_dev.simulate.operators import Operator, Run
from almoner_dev.simulate.oracle import UNLIMITED, Attempt, Oracle, account_of
from almoner_dev.simulate.pods import Pod, Work
from almoner_ledger.auth import Caller, Role
from almoner_ledger.store.state import AccountKind, account_id

USD, TOKENS, TOOL_CALLS, REQUESTS = Dimension.USD, Dimension.TOKENS, Dimension.TOOL_CALLS, Dimension.REQUESTS
NAMESPACE: Final = "team"
OPERATOR_TOKEN: Final = "operator"
OWNERS: Final = ("ann", "bob")
AGENTS: Final = ("greeter", "coder")
SETTLES_S: Final = 1800.0
PAUSES_S: Final = (1.0, 8.0, 45.0, 200.0)
LEADER_LEASE_S: Final = 15.0
CALL_NANOS: Final = 500_000
"""About what one call costs here."""


@dataclass
class Quota:
    """A ResourceQuota: its policy may change; `version` says how often it has."""

    name: str
    keys: tuple[AccountKey, ...]
    enforced: bool
    period: BudgetPeriod
    time_zone: str
    amounts: dict[Dimension, int]
    max_per_execution: dict[Dimension, int]
    max_per_request: dict[Dimension, int]
    version: int = 0

    def limits(self, key: AccountKey, generation: int) -> wire.AccountLimits:
        """Give the policy of one of its accounts as the ledger takes it."""
        return wire.AccountLimits(
            key=key,
            generation=generation,
            enforced=self.enforced,
            period=self.period,
            time_zone=self.time_zone,
            limits=dict(self.amounts),
            max_per_execution=dict(self.max_per_execution),
            max_per_request=dict(self.max_per_request),
        )


@dataclass
class World:
    """Everything in one schedule. `pace` scales virtual seconds: 1 in virtual time, less where time is real.

    `nodes_known`: a node that vanishes is known to be gone, so that nobody waits for its leases.
    """

    chance: random.Random
    faults: Faults
    network: Network
    ids: Ids
    folder: Path
    tokens: dict[str, Caller]
    jump: Callable[[int], None]
    kill_replica: Callable[[], Awaitable[None]]
    kill_database: Callable[[], Awaitable[None]]
    fill_database: Callable[[], Awaitable[None]]
    mend: Callable[[], Awaitable[None]]
    pause_replica: Callable[[float], Awaitable[None]]
    ledger_away: Callable[[float], Awaitable[None]]
    now_s: Callable[[], float]
    pace: float = 1.0
    nodes_known: bool = False
    oracle: Oracle = field(default_factory=Oracle)
    quotas: list[Quota] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    pods: list[Pod] = field(default_factory=list)
    leader: Operator | None = None
    operators: list[Operator] = field(default_factory=list)
    _began: float = 0.0
    _no_operator_until: float = 0.0

    async def sleep(self, seconds: float) -> None:
        """Sleep so many seconds of the world's time."""
        await asyncio.sleep(seconds * self.pace)

    async def until(self, second: float) -> None:
        """Sleep until so many seconds after the beginning."""
        passed = (asyncio.get_running_loop().time() - self._began) / self.pace
        if second > passed:
            await self.sleep(second - passed)

    # -- what the cluster has ----------------------------------------------------------------------------------

    def pod_of(self, run: Run) -> Pod:
        """Give the pod of a run's current attempt, made where there is none: its name lets only one be."""
        name = pod_name(run.name, run.uid, run.attempt)
        found = next((pod for pod in self.pods if pod.name == name), None)
        if found is not None:
            return found
        uid = self.ids()
        self.tokens[f"meter-{uid}"] = Caller(f"pod {name}", frozenset({Role.METER}), uid)
        accounts = tuple(account_of(key.model_dump()) for key in run.accounts)
        attempt = Attempt(run.allotment, NAMESPACE, run.uid, accounts, costs_machine_time=run.costs_machine_time)
        self.oracle.attempts[run.allotment] = attempt
        chance = self.chance
        start_s = chance.uniform(15.0, 40.0) if self.faults.strikes("pod_never_starts") else chance.uniform(0.1, 3.0)
        work = run.work
        if run.pods:
            work = dataclasses.replace(work, calls=run.pods[-1].calls_left)
        pod = Pod(self, name, uid, attempt, work=work, start_s=start_s, costs_machine_time=run.costs_machine_time)
        self.pods.append(pod)
        run.pods.append(pod)
        if self.faults.strikes("pod_vanishes"):
            asyncio.get_running_loop().call_later(chance.uniform(1.0, 40.0) * self.pace, pod.vanish)
        return pod

    # -- drawing -----------------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Draw quotas and executions."""
        chance = self.chance
        runs = chance.randint(2, 5)
        work_nanos = 0
        works = []
        for _ in range(runs):
            work = Work(
                calls=chance.randint(3, 25),
                at_once=chance.choice((1, 1, 2, 4)),
                tools=chance.choice((0.0, 0.0, 0.3)),
                input_most=chance.choice((50, 400)),
                output_most=chance.choice((32, 300)),
                call_longest_s=chance.choice((2.0, 10.0, 30.0, 110.0)),
                pause_longest_s=chance.choice((0.5, 4.0, 20.0)),
            )
            works.append(work)
            work_nanos += work.calls * CALL_NANOS
        self.quotas = self._draw_quotas(work_nanos)
        for number, work in enumerate(works):
            self.runs.append(self._draw_run(number, work))
        self._note_caps()

    def _draw_quotas(self, work_nanos: int) -> list[Quota]:
        chance = self.chance
        kinds: list[tuple[str, tuple[AccountKey, ...]]] = [
            ("namespace", (AccountKey(namespace=NAMESPACE, quota="namespace"),)),
            ("owner", tuple(AccountKey(namespace=NAMESPACE, quota="owner", subject=owner) for owner in OWNERS)),
            ("agent", (AccountKey(namespace=NAMESPACE, quota="agent"),)),
        ]
        quotas = []
        for name, keys in chance.sample(kinds, chance.randint(1, 3)):
            period = chance.choice((BudgetPeriod.TOTAL, BudgetPeriod.TOTAL, BudgetPeriod.HOURLY, BudgetPeriod.DAILY))
            amounts = {USD: int(work_nanos * chance.uniform(0.1, 1.5))}
            if chance.random() < 0.4:
                amounts[TOKENS] = int(amounts[USD] / 1500 * chance.uniform(0.5, 2.0))
            if chance.random() < 0.4:
                amounts[REQUESTS] = chance.randint(3, 60)
            if chance.random() < 0.3:
                amounts[TOOL_CALLS] = chance.randint(0, 20)
            quota = Quota(
                name=name,
                keys=keys,
                enforced=chance.random() < 0.85,
                period=period,
                time_zone=chance.choice(("UTC", "Europe/Berlin", "Asia/Kolkata")),
                amounts=amounts,
                max_per_execution={USD: int(work_nanos * 0.3)} if chance.random() < 0.3 else {},
                max_per_request={TOKENS: 500} if chance.random() < 0.2 else {},
            )
            if period is not BudgetPeriod.TOTAL:
                self.oracle.periodic.update(account_of(key.model_dump()) for key in keys)
            quotas.append(quota)
        return quotas

    def _draw_run(self, number: int, work: Work) -> Run:
        chance = self.chance
        owner, agent = chance.choice(OWNERS), chance.choice(AGENTS)
        accounts = tuple(
            key
            for quota in self.quotas
            for key in quota.keys
            if key.subject in ("", owner) and (quota.name != "agent" or agent == AGENTS[0])
        )
        limits: dict[Dimension, int] = {}
        if chance.random() < 0.6:
            limits[USD] = int(work.calls * CALL_NANOS * chance.uniform(0.2, 1.5))
        if chance.random() < 0.2:
            limits[TOKENS] = work.calls * 300
        if chance.random() < 0.3:
            limits[TOOL_CALLS] = chance.randint(0, 6)
        need = chance.choice((0, CALL_NANOS))
        return Run(
            uid=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            name=f"run-{number}",
            agent=agent,
            owner=owner,
            accounts=accounts,
            limits=limits,
            need={USD: need} if need else {},
            want={USD: chance.choice((need, 3 * CALL_NANOS))},
            work=work,
            attempts_max=chance.choice((1, 2, 3)),
            begins_s=chance.uniform(0.0, 20.0),
            # The meter's seconds are real ones: not where the world is quickened.
            costs_machine_time=self.pace == 1.0 and chance.random() < 0.4,
        )

    def _note_caps(self) -> None:
        """Tell the oracle what each execution may use, as its own limits and the quotas' caps are now."""
        for run in self.runs:
            caps = self.oracle.execution_caps[account_id(AccountKind.EXECUTION, NAMESPACE, run.uid)]
            governing = [quota for quota in self.quotas if quota.enforced and set(quota.keys) & set(run.accounts)]
            for dimension in Dimension:
                parts = [quota.max_per_execution.get(dimension, UNLIMITED) for quota in governing]
                least = min([run.limits.get(dimension, UNLIMITED), *parts])
                caps[dimension.value] = max(least, caps.get(dimension.value, 0))

    # -- living ------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Live through the schedule with faults, then without, until everything has ended."""
        self._began = asyncio.get_running_loop().time()
        self.tokens[OPERATOR_TOKEN] = Caller("operator", frozenset({Role.OPERATOR, Role.READER}), reads_all=True)
        self.network.heard.append(self.oracle.heard)
        self.draw()
        self._lead()
        breaking = [asyncio.create_task(each) for each in self._breaking()]
        try:
            await asyncio.wait(
                [asyncio.create_task(self._over())], timeout=self.chance.uniform(60.0, 240.0) * self.pace
            )
        finally:
            for task in breaking:
                task.cancel()
            await asyncio.gather(*breaking, return_exceptions=True)
        self.faults.active = False
        self._no_operator_until = 0.0
        await self.mend()
        await self._settle()

    async def _over(self) -> None:
        while any(run.stage != "over" for run in self.runs):
            await self.sleep(1.0)
            absent = asyncio.get_running_loop().time() < self._no_operator_until
            if not absent and not any(operator.leads for operator in self.operators):
                # Its Deployment starts another one.
                self._lead()

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(SETTLES_S * self.pace):
                await self._over()
                for pod in self.pods:
                    pod.terminate()
                await asyncio.gather(*(pod.gone() for pod in self.pods))
                await self.network.quiet()
                await self._close_all()
        except TimeoutError:
            stages = ", ".join(f"{run.name} {run.stage}" for run in self.runs if run.stage != "over")
            pods = ", ".join(pod.name for pod in self.pods if not (pod.ended.is_set() or pod.lost))
            leads = ", ".join(each.standing for each in self.operators if each.leads)
            self.oracle.problem(
                f"it does not settle in {SETTLES_S:g} s: {stages or 'all runs over'}; pods: {pods}; leading: {leads}"
            )
        for operator in self.operators:
            await operator.kill()

    async def _close_all(self) -> None:
        """Wait until the leader has given back what nobody needs."""
        assert self.leader is not None
        while [view async for view in self.leader.client.open_allotments()]:
            await self.sleep(5.0)
        # A last look at the feed, even where an answer was waited for that was lost.
        await self.sleep(40.0)

    def _lead_too(self) -> None:
        """Have another operator lead, unless none can start for a while."""
        if asyncio.get_running_loop().time() >= self._no_operator_until:
            self._lead()

    def _lead(self) -> Operator:
        operator = Operator(self, f"operator-{len(self.operators)}-{self.chance.getrandbits(64):x}", OPERATOR_TOKEN)
        self.operators.append(operator)
        operator.start()
        return operator

    # -- breaking ----------------------------------------------------------------------------------------------

    def _breaking(self) -> list[Any]:
        return [
            self._now_and_then("meter_killed_every_s", self._kill_meter),
            self._now_and_then("meter_cut_off_every_s", self._cut_off),
            self._now_and_then("replica_killed_every_s", self.kill_replica),
            self._now_and_then("database_killed_every_s", self.kill_database),
            self._now_and_then("database_full_every_s", self.fill_database),
            self._now_and_then("process_paused_every_s", self._pause),
            self._now_and_then("replica_paused_every_s", self._pause_replica),
            self._now_and_then("disk_full_every_s", self._fill_disk),
            self._now_and_then("ledger_away_every_s", self._ledger_away),
            self._now_and_then("clock_jumps_every_s", self._jump),
            self._now_and_then("leader_changes_every_s", self._change_leader),
            self._now_and_then("operators_away_every_s", self._operators_away),
            self._now_and_then("limits_change_every_s", self._change_limits),
            self._now_and_then("limits_change_every_s", self._cancel_one, often=0.1),
        ]

    async def _now_and_then(self, kind: str, strike: Callable[[], Awaitable[None]], often: float = 1.0) -> None:
        while True:
            pause = self.faults.pause(kind)
            if pause is None:
                return
            await self.sleep(pause / often)
            await strike()

    async def _kill_meter(self) -> None:
        spending = [pod for pod in self.pods if pod.spending]
        if spending:
            self.chance.choice(spending).kill_meter()

    async def _cut_off(self) -> None:
        spending = [pod for pod in self.pods if pod.spending]
        if not spending:
            return
        pod = self.chance.choice(spending)
        seconds = self.chance.choice((5.0, 70.0, 250.0)) * self.pace
        pod.cut_off(seconds)
        if self.chance.random() < 0.5:
            # The node does not answer the API server either; it may come back when it is given up.
            pod.unreachable = True
            asyncio.get_running_loop().call_later(seconds, pod.answer_again)

    async def _pause(self) -> None:
        """Have a process stand still for a while: a meter with its agent, or the leader."""
        chance = self.chance
        seconds = chance.choice(PAUSES_S)
        pods = [pod.process for pod in self.pods if pod.spending]
        leaders = [operator.process for operator in self.operators if operator.leads]
        kind = chance.choice(("meter", "meter", "leader"))
        among = [each for each in (pods if kind == "meter" else leaders) if not each.paused]
        if not among:
            return
        process = chance.choice(among)
        self.faults.note(f"{kind}_paused")
        process.pause()
        asyncio.get_running_loop().call_later(seconds * self.pace, process.resume)
        if kind == "leader" and seconds > LEADER_LEASE_S:
            # Its Lease runs out, and another one leads before it wakes up.
            asyncio.get_running_loop().call_later(LEADER_LEASE_S * self.pace, self._lead_too)

    async def _pause_replica(self) -> None:
        self.faults.note("replica_paused")
        await self.pause_replica(self.chance.choice(PAUSES_S) * self.pace)

    async def _fill_disk(self) -> None:
        """Leave no room on the disk that a meter's spool is on, for a while."""
        spending = [pod.process for pod in self.pods if pod.spending]
        if not spending:
            return
        self.faults.note("disk_full")
        process = self.chance.choice(spending)
        process.disk_full = True
        seconds = self.chance.choice((2.0, 20.0, 90.0)) * self.pace
        asyncio.get_running_loop().call_later(seconds, process.free_disk)

    async def _ledger_away(self) -> None:
        self.faults.note("ledger_away")
        await self.ledger_away(self.chance.choice((15.0, 60.0, 240.0)) * self.pace)

    async def _jump(self) -> None:
        self.faults.note("clock_jumped")
        self.jump(self.chance.choice((-7200, -61, -5, 5, 61, 1800, 3600, 86400)))

    async def _change_leader(self) -> None:
        self.faults.note("leader_changed")
        old = self.operators[-1]
        if self.chance.random() < 0.5:
            await old.kill()
        self._lead_too()

    async def _operators_away(self) -> None:
        """Have nobody act for a while: every operator is gone, and none starts."""
        self.faults.note("operators_away")
        seconds = self.chance.choice((20.0, 120.0, 600.0)) * self.pace
        self._no_operator_until = asyncio.get_running_loop().time() + seconds
        for operator in self.operators:
            await operator.kill()

    async def _change_limits(self) -> None:
        self.faults.note("limits_changed")
        chance = self.chance
        quota = chance.choice(self.quotas)
        if chance.random() < 0.3:
            quota.enforced = not quota.enforced
        else:
            dimension = chance.choice(sorted(quota.amounts))
            quota.amounts[dimension] = int(quota.amounts[dimension] * chance.choice((0.0, 0.3, 0.7, 1.5, 3.0))) + 1
        quota.version += 1
        self._note_caps()

    async def _cancel_one(self) -> None:
        run = self.chance.choice(self.runs)
        if run.stage in ("queued", "running"):
            self.faults.note("run_cancelled")
            run.cancelled = True
