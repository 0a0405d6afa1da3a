"""What is used of every quota while a decision is being made, and whether one more piece of work fits.

The book is mutable and lives for one decision of one namespace. Use only grows while deciding, so what did not fit once
does not fit later in the same decision: verdicts are remembered by shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from almoner_core.api.agent import AgentReason
from almoner_core.api.execution import WaitReason
from almoner_core.api.resource_quota import QueueingStrategy, StopPolicy
from almoner_core.money import Money
from almoner_core.quantity import format_bytes, format_millicores
from almoner_core.wire import Dimension
from almoner_operator.scheduling.model import (
    EXECUTION,
    Account,
    Agent,
    Namespace,
    Quota,
    RequireBudget,
    SubjectUse,
    Wait,
    Workload,
)
from almoner_operator.scheduling.selection import QuotaIndex, subject_of

# Order of the counted dimensions in every vector below.
EXECUTIONS: Final = 0
TRAINING_JOBS: Final = 1
CPU: Final = 2
MEMORY: Final = 3
GPU: Final = 4
DIMENSIONS: Final = 5
_COUNTS: Final = (EXECUTIONS, TRAINING_JOBS)
_UNLIMITED: Final = 1 << 62
_SAME_REASONS: Final = frozenset({AgentReason.SECRET_NOT_FOUND, AgentReason.PROVIDER_NOT_ALLOWED})
_PROVIDER_REASONS: Final = frozenset({AgentReason.PROVIDER_NOT_FOUND, AgentReason.PROVIDER_NOT_READY})

Vector = tuple[int, int, int, int, int]


def ask_of(workload: Workload) -> Vector:
    """What a workload takes of a quota, in the order of the dimensions."""
    execution = workload.key.kind == EXECUTION
    requests = workload.requests
    return (int(execution), int(not execution), requests.cpu, requests.memory, requests.gpu)


class Line:
    """One subject's use of one quota, and its queue, while a decision is made."""

    __slots__ = (
        "enforced",
        "freeing",
        "head",
        "keeper",
        "kept",
        "limits",
        "money",
        "preemptible",
        "preempting",
        "promised",
        "quota",
        "rank",
        "sought",
        "strict",
        "subject",
        "used",
        "waiting",
    )

    def __init__(self, quota: Quota, subject: str) -> None:
        hard = quota.hard
        limits = (hard.executions, hard.training_jobs, hard.cpu, hard.memory, hard.gpu)
        self.quota = quota
        self.subject = subject
        self.enforced = quota.enforced
        self.strict = quota.strategy is QueueingStrategy.STRICT_FIFO
        self.limits = [_UNLIMITED if limit is None else limit for limit in limits]
        self.used = [0] * DIMENSIONS
        self.kept = [0] * DIMENSIONS  # for those that wait for what is being freed, or have waited long
        self.freeing = [0] * DIMENSIONS  # of `used`, what was told to stop
        self.preemptible: list[Workload] = []
        self.preempting = False  # something in `freeing` was preempted
        self.money = [
            (dimension, quota.accounts[subject, dimension])
            for dimension in Dimension
            if (subject, dimension) in quota.accounts
        ]
        self.promised = 0
        self.waiting = 0
        self.rank = 0
        self.sought = False  # its first in line for machines was seen
        self.head: str | None = None  # StrictFIFO: who did not fit
        self.keeper: str | None = None

    def label(self) -> str:
        """How messages call it."""
        name = f"ResourceQuota {self.quota.name}"
        return f"{name} (owner {self.subject})" if self.subject else name

    def shortage(self, ask: Vector) -> int | None:
        """The first dimension that does not fit, None where all do. What asks for nothing always fits."""
        used, kept, limits = self.used, self.kept, self.limits
        for index, amount in enumerate(ask):
            if amount and used[index] + kept[index] + amount > limits[index]:
                return index
        return None

    def hopeless(self, ask: Vector) -> int | None:
        """The first dimension in which it would not even fit if nothing ran."""
        for index, amount in enumerate(ask):
            if amount > self.limits[index]:
                return index
        return None

    def dry(self, need: int) -> tuple[Dimension, Account] | None:
        """The account that has no room for the first allotment, as the ledger last told."""
        for dimension, account in self.money:
            remaining = account.remaining
            if remaining is None:
                continue
            if dimension is Dimension.USD:
                remaining -= self.promised
                if remaining <= 0 or remaining < need:
                    return dimension, account
            elif remaining <= 0:
                return dimension, account
        return None

    def use(self) -> SubjectUse:
        """What is used at this moment."""
        executions, jobs, cpu, memory, gpu = self.used
        return SubjectUse(self.subject, executions, jobs, self.waiting, cpu, memory, gpu)


def add(vector: list[int], ask: Vector) -> None:
    """Add in place."""
    for index, amount in enumerate(ask):
        vector[index] += amount


@dataclass(slots=True, eq=False)
class Group:
    """All work of one owner with one agent: the same quotas select it, and the same gates hold it back."""

    lines: tuple[Line, ...]
    enforced: tuple[Line, ...]
    names: tuple[str, ...]
    gate: Wait | None
    budgeted: bool
    pending: tuple[Line, ...]
    number: int
    """The same for groups under the same enforced lines: what fits one of them fits the other."""


class Book:
    """The lines of one namespace, found by owner and agent."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._index = QuotaIndex(namespace.quotas)
        self._quotas = {quota.name: quota for quota in namespace.quotas}
        self._lines: dict[tuple[str, str], Line] = {}
        self._groups: dict[tuple[str, str | None], Group] = {}
        self._numbers: dict[tuple[Line, ...], int] = {}

    def group_of(self, workload: Workload) -> Group:
        """The group that a workload belongs to."""
        key = (workload.owner, workload.agent)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._make(*key)
        return group

    def held_lines(self, workload: Workload) -> tuple[Line, ...]:
        """The lines that count a reserved workload: those that select it now, and those that did at admission."""
        group = self.group_of(workload)
        more = [self._quotas[name] for name in workload.quotas if name not in group.names and name in self._quotas]
        return (*group.lines, *(self._line(quota, workload.owner) for quota in more)) if more else group.lines

    def lines(self) -> Iterator[Line]:
        """All lines that anything stands in."""
        yield from self._lines.values()

    def _line(self, quota: Quota, owner: str) -> Line:
        key = (quota.name, subject_of(quota, owner))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(quota, key[1])
        return line

    def _make(self, owner: str, agent_name: str | None) -> Group:
        agent = self._namespace.agents.get(agent_name) if agent_name is not None else None
        lines = tuple(self._line(quota, owner) for quota in self._index.selecting(owner, agent))
        enforced = tuple(line for line in lines if line.enforced)
        return Group(
            lines=lines,
            enforced=enforced,
            names=tuple(line.quota.name for line in lines),
            gate=_gate(agent_name, agent, enforced),
            budgeted=any(line.quota.budget is not None for line in enforced),
            pending=tuple(line for line in enforced if line.quota.hard.pending is not None),
            number=self._numbers.setdefault(enforced, len(self._numbers)),
        )


def _gate(agent_name: str | None, agent: Agent | None, enforced: tuple[Line, ...]) -> Wait | None:
    """What holds back all work of a group, whatever its size."""
    if agent_name is not None:
        if agent is None:
            return Wait(WaitReason.AGENT_NOT_FOUND, f"Agent {agent_name} does not exist in this namespace")
        if not agent.ready:
            provider = agent.reason in _PROVIDER_REASONS
            reason = WaitReason.PROVIDER_NOT_READY if provider else WaitReason.AGENT_NOT_READY
            if agent.reason in _SAME_REASONS:
                reason = WaitReason(agent.reason.value)
            return Wait(reason, f"Agent {agent_name} is not ready ({agent.reason}): {agent.message}")
    for line in enforced:
        if not line.quota.ready:
            text = (
                f"ResourceQuota {line.quota.name} is not in force: {line.quota.message or 'the ledger has it not yet'}"
            )
            return Wait(WaitReason.QUOTA_NOT_READY, text, quota=line.quota.name)
    for line in enforced:
        if line.quota.stop_policy is not StopPolicy.NONE:
            text = f"ResourceQuota {line.quota.name} holds its queue (stopPolicy {line.quota.stop_policy})"
            return Wait(WaitReason.ON_HOLD, text, quota=line.quota.name)
    return None


def own_money(group: Group, workload: Workload) -> tuple[str, str] | None:
    """Say which cap on one execution has no room for another attempt, and which quota's it is; None where all have."""
    for line in group.enforced:
        cap = line.quota.max_per_execution
        if cap is not None and workload.spent + workload.need > cap:
            text = f"{line.label()} allows {Money(cap)} USD for one execution (maxPerExecution)"
            return f"{text}: {Money(workload.spent)} spent, its start needs {Money(workload.need)}", line.quota.name
    return None


def money_gate(group: Group, workload: Workload, require: RequireBudget) -> Wait | None:
    """Limits fail closed: no enforced money limit, no admission."""
    if group.budgeted or (require is RequireBudget.ANY and workload.max_cost is not None):
        return None
    if require is RequireBudget.QUOTA:
        text = "no ResourceQuota with an enforced budget governs it: create one (this cluster asks for it)"
    else:
        text = "no enforced money limit governs it: set limits.maxCost, or create a ResourceQuota with a budget"
    return Wait(WaitReason.NO_BUDGET, text)


class Shortfall(NamedTuple):
    """What keeps a workload out: `line` is in whose queue it stands. `machine`: only counts and machines are short."""

    reason: WaitReason
    message: str
    line: Line
    lines: tuple[Line, ...]
    machine: bool = False
    hopeless: bool = False
    """It does not fit even if nothing runs and nothing is spent: it must not stop those that fit."""
    never: bool = False
    """Hopeless, and no limit is 0: a limit of 0 on counts or money is how people close a quota for a while."""
    next_change: datetime | None = None


def shortfall_of(group: Group, ask: Vector, need: int) -> Shortfall | None:
    """Say why a workload of a group does not fit, None where it does."""
    out_of_money = _out_of_money(group, need)
    if out_of_money is not None:
        return out_of_money
    for line in group.enforced:
        dimension_index = line.hopeless(ask)
        if dimension_index is not None:
            limit = _amount(dimension_index, line.limits[dimension_index])
            text = f"asks for {_counted(dimension_index, ask)}, more than {line.label()} ever allows ({limit})"
            closed = dimension_index in _COUNTS and not line.limits[dimension_index]
            return Shortfall(
                WaitReason.WAITING_FOR_QUOTA, text, line, (line,), machine=True, hopeless=True, never=not closed
            )
    for line in group.enforced:
        if line.head is not None:
            behind = tuple(other for other in group.enforced if other.head is not None)
            text = f"waiting behind {line.head} in {line.label()} (StrictFIFO)"
            return Shortfall(WaitReason.WAITING_FOR_QUOTA, text, line, behind)
    for line in group.enforced:
        dimension_index = line.shortage(ask)
        if dimension_index is not None:
            short = tuple(other for other in group.enforced if other.shortage(ask) is not None)
            text = _machine_message(line, dimension_index, ask)
            return Shortfall(WaitReason.WAITING_FOR_QUOTA, text, line, short, machine=True)
    return None


def _out_of_money(group: Group, need: int) -> Shortfall | None:
    """Name the tightest of the accounts without room: others may have some before that one does."""
    dry = [(line, found) for line in group.enforced if (found := line.dry(need)) is not None]
    if not dry:
        return None
    line, (dimension, account) = min(dry, key=lambda each: (each[1][1].remaining or 0) - each[0].promised)
    reason = WaitReason.BUDGET_EXHAUSTED if dimension is Dimension.USD else WaitReason.RATE_LIMITED
    hopeless = dimension is Dimension.USD and account.limit is not None and need > account.limit
    # The spec's amount too: the ledger may tell of the account as it was before an edit.
    amount = max(account.limit or 0, line.quota.budget or 0)
    text = _money_message(line, dimension, account, need)
    short = tuple(each for each, _ in dry)
    never = hopeless and 0 < amount < need
    return Shortfall(reason, text, line, short, hopeless=hopeless, never=never, next_change=account.resets_at)


def queue_full(group: Group) -> Shortfall | None:
    """Say which queue has as many waiting as its quota allows."""
    for line in group.pending:
        limit = line.quota.hard.pending
        if limit is not None and line.waiting >= limit:
            text = f"the queue of {line.label()} is full: {limit} may wait"
            return Shortfall(WaitReason.QUEUE_FULL, text, line, (line,))
    return None


_SINGULAR: Final = ("execution", "TrainingJob", "cpu", "memory", "GPU")


def _amount(index: int, amount: int) -> str:
    if index == CPU:
        return format_millicores(amount)
    return format_bytes(amount) if index == MEMORY else str(amount)


def _counted(index: int, ask: Vector) -> str:
    """Write `2 GPUs`, `1 execution`, `500m cpu`."""
    plural = "s" if index not in (CPU, MEMORY) and ask[index] != 1 else ""
    return f"{_amount(index, ask[index])} {_SINGULAR[index]}{plural}"


def _machine_message(line: Line, index: int, ask: Vector) -> str:
    used, limit = _amount(index, line.used[index]), _amount(index, line.limits[index])
    text = f"waiting for {_counted(index, ask)} in {line.label()}: {used} of {limit} in use"
    if line.keeper is not None and line.used[index] + ask[index] <= line.limits[index]:
        text += f", the rest is kept for {line.keeper}"
    return text


def _money_message(line: Line, dimension: Dimension, account: Account, need: int) -> str:
    if dimension is not Dimension.USD:
        numbers = f"{account.spent} used and {account.reserved} reserved of {account.limit} {dimension}"
        text = f"{line.label()} has no room: {numbers}"
    else:
        # What was promised to those admitted a moment ago is as good as reserved: else the numbers would not add up.
        limit, spent = Money(account.limit or 0), Money(account.spent)
        reserved = Money(account.reserved + line.promised)
        text = f"budget of {line.label()} has no room: {spent} spent and {reserved} reserved of {limit} USD"
        if need:
            text += f", its start needs {Money(need)}"
    if account.resets_at is not None:
        return f"{text}; resets at {account.resets_at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return text
