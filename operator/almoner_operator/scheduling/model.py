"""What the scheduler looks at, and what it decides: immutable values, no I/O, no clock.

The cache builds a Snapshot out of what it observed and what it assumed; `decide` reads nothing else. Quotas never cross
a namespace, so the snapshot is a map of namespaces, each decided on its own: the cache keeps the same Namespace object
while nothing in it changed, and `decide` then keeps the decisions that it made for it.

Units: cpu in millicores, memory in bytes, gpu in devices, money in nano-dollars, times as aware datetimes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from almoner_core.api.agent import AgentReason, AgentType
from almoner_core.api.execution import FailureReason, WaitReason
from almoner_core.api.resource_quota import OnLimitAction, QueueingStrategy, ResourceQuotaSpec, StopPolicy
from almoner_core.api.runner import Runner
from almoner_core.quantity import millicores, whole
from almoner_core.wire import AccountKey, Dimension

EXECUTION: Final = "Execution"
TRAINING_JOB: Final = "TrainingJob"


class WorkloadKey(NamedTuple):
    """What an Execution or TrainingJob is known by."""

    kind: str
    namespace: str
    name: str
    uid: str


class Requests(NamedTuple):
    """Machine resources of a whole pod, the meter's included."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0


NO_REQUESTS: Final = Requests()


class WorkloadState(StrEnum):
    """Whether a workload holds quota."""

    WAITING = "Waiting"
    """It has no pod and holds nothing."""
    RESERVED = "Reserved"
    """It was admitted (or assumed so) and its pod has not terminated: it holds quota."""


class StopCause(StrEnum):
    """Why a pod was told to stop."""

    CANCELLED = "Cancelled"
    SUSPENDED = "Suspended"
    PREEMPTED = "Preempted"
    DRAINED = "Drained"
    """A quota's stopPolicy is HoldAndDrain; it queues again."""
    EXHAUSTED = "BudgetExhausted"
    """Its machine time cannot be paid for any longer; it fails."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a waiting workload may not be admitted that the scheduler cannot see itself, such as a refused allotment.

    `until` None: until the cache takes it away. `quota`: the ResourceQuota in whose queue it then stands.
    """

    reason: WaitReason
    message: str
    until: datetime | None = None
    quota: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """An Execution or a TrainingJob that has not ended.

    `owner` is never empty (the namespace where the spec names none). `agent` is None for a TrainingJob with a runner of
    its own. `since` is when it began to wait this time (for timeouts and ageing), or was created. `max_cost` is the
    effective limit in nano-dollars (its own and its agent's, the smaller), None where neither has one. `need` is what
    the first allotment must be able to hold, in nano-dollars; 0 where unknown.
    """

    key: WorkloadKey
    owner: str
    agent: str | None
    created: datetime
    since: datetime
    priority: int = 5
    preemptible: bool = False
    requests: Requests = NO_REQUESTS
    max_cost: int | None = None
    need: int = 0
    state: WorkloadState = WorkloadState.WAITING
    suspend: bool = False
    cancel: bool = False
    backoff_until: datetime | None = None
    hold: Hold | None = None
    admitted: datetime | None = None
    """When the present attempt was admitted; of reserved ones."""
    stopping: StopCause | None = None
    """Its pod was told to stop already; of reserved ones."""
    quotas: tuple[str, ...] = ()
    """Quotas that governed it at admission (status.quotas); of reserved ones. They count it whatever changed since."""
    spent: int = 0
    """What its earlier attempts spent, in nano-dollars; of waiting ones."""
    used_up: str = ""
    """Which of its own limits has no room for another attempt, with the numbers; empty where none; of waiting ones."""
    queue_timeout: int | None = None
    """Seconds that it may wait in the queue, from `queued_since` on."""
    queued: datetime | None = None
    """When its wait began to count, where that is later than `since`: once its backoff is over."""

    @property
    def queued_since(self) -> datetime:
        """When its wait in the queue began to count for timeouts."""
        return self.queued if self.queued is not None else self.since


@dataclass(frozen=True, slots=True)
class Agent:
    """What the scheduler needs to know of an Agent. An agent that is not in the snapshot does not exist."""

    name: str
    type: AgentType
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    reason: AgentReason = AgentReason.READY
    message: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """One account of a quota as the ledger last told: one subject, one dimension, the current window.

    `limit` None: not limited. `resets_at` None: never. `alerts`: thresholds that fired in it (percent, Unix
    milliseconds); they decide nothing.
    """

    limit: int | None
    spent: int
    reserved: int
    resets_at: datetime | None = None
    alerts: tuple[tuple[int, int], ...] = ()

    @property
    def remaining(self) -> int | None:
        """What is left to be held; below 0 where more was billed than allowed; None where not limited."""
        return None if self.limit is None else self.limit - self.spent - self.reserved


@dataclass(frozen=True, slots=True)
class Hard:
    """Counts and machines that a quota allows at once, for each subject; None: not limited."""

    executions: int | None = None
    training_jobs: int | None = None
    pending: int | None = None
    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Quota:
    """A ResourceQuota in force. `accounts` are keyed by subject (owner, or "" where not perOwner) and dimension.

    `budget` is the amount of money in nano-dollars that a period has, None where the quota has no budget. `ready`
    False: the ledger does not have its limits yet, or it asks for what cannot be enforced; then nothing is admitted
    under it.
    """

    name: str
    owners: frozenset[str] = frozenset()
    agent_selector: tuple[tuple[str, str], ...] = ()
    agent_types: frozenset[AgentType] = frozenset()
    per_owner: bool = False
    hard: Hard = Hard()
    budget: int | None = None
    enforced: bool = True
    strategy: QueueingStrategy = QueueingStrategy.BEST_EFFORT
    stop_policy: StopPolicy = StopPolicy.NONE
    on_limit: OnLimitAction = OnLimitAction.WAIT
    wait_timeout_seconds: int | None = None
    accounts: Mapping[tuple[str, Dimension], Account] = field(default_factory=dict)
    ready: bool = True
    message: str = ""
    """Why it is not ready."""
    max_per_execution: int | None = None
    """Most nano-dollars of one execution."""
    changed: datetime | None = None
    """When this spec of it was first seen: what it rules out for ever may be an edit that is still on its way."""

    @classmethod
    def of(
        cls,
        name: str,
        spec: ResourceQuotaSpec,
        *,
        accounts: Mapping[tuple[str, Dimension], Account] | None = None,
        ready: bool = True,
        message: str = "",
        changed: datetime | None = None,
    ) -> Quota:
        """Read a quota's spec. Raises ValueError for a quantity that is none."""
        scope, hard, budget = spec.scope, spec.hard, spec.budget
        cap = budget.max_per_execution if budget is not None else None
        return cls(
            name=name,
            owners=frozenset(scope.owners) if scope else frozenset(),
            agent_selector=tuple(sorted(scope.agent_selector.items())) if scope else (),
            agent_types=frozenset(scope.agent_types) if scope else frozenset(),
            per_owner=bool(scope and scope.per_owner),
            hard=Hard(
                executions=hard.executions,
                training_jobs=hard.training_jobs,
                pending=hard.pending,
                cpu=None if hard.cpu is None else millicores(hard.cpu),
                memory=None if hard.memory is None else whole(hard.memory),
                gpu=hard.gpu,
            ),
            budget=None if budget is None else budget.amount.nanos,
            max_per_execution=None if cap is None else cap.nanos,
            enforced=spec.enforcement == "Enforce",
            strategy=spec.queueing_strategy,
            stop_policy=spec.stop_policy,
            on_limit=spec.on_limit.action,
            wait_timeout_seconds=spec.on_limit.timeout_seconds,
            accounts=accounts or {},
            ready=ready,
            message=message,
            changed=changed,
        )


@dataclass(frozen=True, slots=True)
class Share:
    """An owner's fair share: its weight, and what it used lately in thousandths of an execution (decayed by the cache).

    What runs now is counted by the scheduler itself.
    """

    weight: int = 1
    use: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Namespace:
    """All that is decided together. Compared by identity: keep the object while nothing in it changed."""

    name: str
    workloads: tuple[Workload, ...] = ()
    quotas: tuple[Quota, ...] = ()
    agents: Mapping[str, Agent] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything that decides. `ledger_ready` False: the ledger does not answer, so nothing may be admitted."""

    namespaces: Mapping[str, Namespace]
    ledger_ready: bool = True

    @classmethod
    def of(
        cls,
        workloads: Iterable[Workload] = (),
        quotas: Mapping[str, Iterable[Quota]] | None = None,
        agents: Mapping[str, Iterable[Agent]] | None = None,
        shares: Mapping[str, Mapping[str, Share]] | None = None,
        *,
        ledger_ready: bool = True,
    ) -> Snapshot:
        """Group by namespace; quotas, agents and shares are given by namespace."""
        grouped: dict[str, list[Workload]] = {}
        for workload in workloads:
            grouped.setdefault(workload.key.namespace, []).append(workload)
        quotas, agents, shares = quotas or {}, agents or {}, shares or {}
        names = sorted({*grouped, *quotas, *agents})
        return cls(
            {
                name: Namespace(
                    name=name,
                    workloads=tuple(grouped.get(name, ())),
                    quotas=tuple(quotas.get(name, ())),
                    agents={agent.name: agent for agent in agents.get(name, ())},
                    shares=dict(shares.get(name, {})),
                )
                for name in names
            },
            ledger_ready,
        )


class RequireBudget(StrEnum):
    """What money limit an execution must have to be admitted."""

    ANY = "Any"
    """A quota's budget or a maxCost of its own or its agent's."""
    QUOTA = "Quota"
    """A quota's budget always."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the scheduler behaves, from the operator's configuration.

    `reserve_after_seconds`: after so long the head of a BestEffort queue keeps room for itself. `ageing_seconds`: so
    much waiting is worth one execution of fair share. `preemptions_max`: most workloads for which room is made in one
    decision of a namespace.
    """

    require_budget: RequireBudget = RequireBudget.ANY
    reserve_after_seconds: int = 300
    ageing_seconds: int = 3600
    preemptions_max: int = 64


# --- decisions --------------------------------------------------------------------------------------------------------


class Admission(NamedTuple):
    """Admit it: open an allotment on `accounts`, create the pod. `quotas` are the names of those that select it."""

    workload: Workload
    quotas: tuple[str, ...]
    accounts: tuple[AccountKey, ...]


class Wait(NamedTuple):
    """Why it waits.

    `position` counts from 1 among those that wait for the same quota (and subject): exact up to 100, then rounded up
    to hundreds; None where it stands in no quota's queue. `next_change`: when this can change by itself.
    """

    reason: WaitReason
    message: str
    position: int | None = None
    next_change: datetime | None = None
    quota: str | None = None


class Rejection(NamedTuple):
    """End it as Failed. `quota` is the one that rejects it, "" where none does."""

    key: WorkloadKey
    message: str
    quota: str = ""
    reason: FailureReason = FailureReason.REJECTED


class Stop(NamedTuple):
    """Tell its pod to stop, with its grace period. `preemptor` is for whom, where the cause is Preempted."""

    key: WorkloadKey
    cause: StopCause
    message: str
    preemptor: WorkloadKey | None = None


class SubjectUse(NamedTuple):
    """What is used of a quota by one subject ("" where not perOwner), as reserved workloads hold it; for its status."""

    subject: str
    executions: int
    training_jobs: int
    pending: int
    cpu: int
    memory: int
    gpu: int


@dataclass(frozen=True, slots=True, eq=False)
class NamespaceDecisions:
    """What was decided for one namespace. Holds until `valid_until` (None: until the namespace changes)."""

    source: Namespace
    admit: tuple[Admission, ...] = ()
    waiting: Mapping[WorkloadKey, Wait] = field(default_factory=dict)
    reject: tuple[Rejection, ...] = ()
    stop: tuple[Stop, ...] = ()
    cancel: tuple[WorkloadKey, ...] = ()
    """Waiting ones that were cancelled: end them as Cancelled."""
    use: Mapping[str, tuple[SubjectUse, ...]] = field(default_factory=dict)
    """By quota's name; before this decision's admissions."""
    quotas: Mapping[WorkloadKey, tuple[str, ...]] = field(default_factory=dict)
    """Names of the quotas that select each workload of the namespace (those that are only watched, too)."""
    valid_until: datetime | None = None
    problem: str = ""
    """Why nothing could be decided; whatever waits then waits on."""
    making_room: frozenset[str] = frozenset()
    """Uids of those for whom others are being preempted; the next decision lets them keep their turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """What was decided. `changed` names the namespaces decided anew; the others' decisions are the previous ones."""

    namespaces: Mapping[str, NamespaceDecisions]
    changed: frozenset[str]
    admit: tuple[Admission, ...]
    """Of all namespaces, in the order in which to carry them out."""
    ledger_ready: bool
    settings: Settings
    next_change: datetime | None = None
    """When to decide again even if nothing happens."""

    def wait_of(self, key: WorkloadKey) -> Wait | None:
        """Why a workload waits; None where it does not, or is not known."""
        decided = self.namespaces.get(key.namespace)
        return decided.waiting.get(key) if decided else None

    @property
    def waiting(self) -> Iterator[tuple[WorkloadKey, Wait]]:
        """All that wait, with the reason."""
        for decided in self.namespaces.values():
            yield from decided.waiting.items()

    @property
    def reject(self) -> tuple[Rejection, ...]:
        """All that are to be rejected."""
        return tuple(item for decided in self.namespaces.values() for item in decided.reject)

    @property
    def stop(self) -> tuple[Stop, ...]:
        """All that are to be stopped."""
        return tuple(item for decided in self.namespaces.values() for item in decided.stop)

    @property
    def cancel(self) -> tuple[WorkloadKey, ...]:
        """All that wait and were cancelled."""
        return tuple(item for decided in self.namespaces.values() for item in decided.cancel)


def requests_of(runner: Runner, meter: Requests) -> Requests:
    """Add up what a pod reserves: the agent container's requests and the meter's.

    Where a request is absent its limit counts, as Kubernetes does it. Raises ValueError for a quantity that is none.
    """
    requests, limits = runner.resources.requests, runner.resources.limits
    cpu = requests.cpu if requests.cpu is not None else limits.cpu
    memory = requests.memory if requests.memory is not None else limits.memory
    gpu = max(requests.gpu or 0, limits.gpu or 0)
    return Requests(
        cpu=meter.cpu + (0 if cpu is None else millicores(cpu)),
        memory=meter.memory + (0 if memory is None else whole(memory)),
        gpu=meter.gpu + gpu,
    )
