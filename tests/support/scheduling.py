"""Short ways to say workloads and quotas, and an independent check of what a decision may do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from almoner_core.api.agent import AgentType
from almoner_core.wire import Dimension
from almoner_operator.scheduling.decide import decide
from almoner_operator.scheduling.model import (
    EXECUTION,
    TRAINING_JOB,
    Account,
    Agent,
    Decisions,
    Hard,
    Quota,
    Requests,
    Settings,
    Share,
    Snapshot,
    StopCause,
    Workload,
    WorkloadKey,
    WorkloadState,
)
from almoner_operator.scheduling.selection import selects, subject_of

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
NANOS = 1_000_000_000
AGENT = Agent("agent", AgentType.RESEARCH, {"tier": "gold"})
NAMESPACE = "ns"


def work(
    name: str, *, age: int = 0, kind: str = EXECUTION, cpu: int = 0, memory: int = 0, gpu: int = 0, **fields: Any
) -> Workload:
    """A waiting execution of the owner `team`, with a money limit of its own, created `age` seconds ago."""
    created = NOW - timedelta(seconds=age)
    values: dict[str, Any] = {
        "owner": "team",
        "agent": "agent",
        "created": created,
        "since": created,
        "max_cost": NANOS,
        "requests": Requests(cpu, memory, gpu),
        **fields,
    }
    return Workload(key=WorkloadKey(kind, NAMESPACE, name, f"uid-{name}"), **values)


def running(name: str, *, since: int = 60, **fields: Any) -> Workload:
    """One that holds quota, admitted `since` seconds ago."""
    base = work(name, age=since, **fields)
    return replace(base, state=WorkloadState.RESERVED, admitted=NOW - timedelta(seconds=since))


def training(name: str, **fields: Any) -> Workload:
    """A waiting TrainingJob."""
    return work(name, kind=TRAINING_JOB, **fields)


def quota(name: str = "quota", **fields: Any) -> Quota:
    """A quota; the fields of `hard` may be given directly."""
    hard = {key: fields.pop(key) for key in Hard.__dataclass_fields__ if key in fields}
    return Quota(name=name, hard=Hard(**hard), **fields)


def money(
    limit: int, spent: int = 0, reserved: int = 0, *, subject: str = "", resets_at: datetime | None = None
) -> dict[tuple[str, Dimension], Account]:
    """A budget account as the ledger told it, in nano-dollars."""
    return {(subject, Dimension.USD): Account(limit, spent, reserved, resets_at)}


def snapshot(
    workloads: Iterable[Workload],
    *quotas: Quota,
    agents: Iterable[Agent] = (AGENT,),
    shares: Mapping[str, Share] | None = None,
    ledger_ready: bool = True,
) -> Snapshot:
    """A snapshot of one namespace."""
    return Snapshot.of(
        workloads, {NAMESPACE: quotas}, {NAMESPACE: agents}, {NAMESPACE: shares or {}}, ledger_ready=ledger_ready
    )


def decided(workloads: Iterable[Workload], *quotas: Quota, **options: Any) -> Decisions:
    """Decide at NOW."""
    settings, previous = options.pop("settings", Settings()), options.pop("previous", None)
    return decide(snapshot(workloads, *quotas, **options), NOW, settings, previous)


def admitted(decisions: Decisions) -> list[str]:
    """Names in the order of admission."""
    return [admission.workload.key.name for admission in decisions.admit]


def waits(decisions: Decisions) -> dict[str, str]:
    """Names with reasons."""
    return {key.name: str(wait.reason) for key, wait in decisions.waiting}


def stops(decisions: Decisions) -> dict[str, str]:
    """Names with causes."""
    return {stop.key.name: str(stop.cause) for stop in decisions.stop}


def counted(workload: Workload) -> dict[str, int]:
    """What it takes, by the limit's name."""
    execution = workload.key.kind == EXECUTION
    requests = workload.requests
    return {
        "executions": int(execution),
        "training_jobs": int(not execution),
        "cpu": requests.cpu,
        "memory": requests.memory,
        "gpu": requests.gpu,
    }


def use_of(quota: Quota, workloads: Iterable[Workload], agents: Mapping[str, Agent]) -> dict[tuple[str, str], int]:
    """What is used of a quota by (subject, limit), counted anew and plainly."""
    use: dict[tuple[str, str], int] = {}
    for workload in workloads:
        agent = agents.get(workload.agent) if workload.agent is not None else None
        if selects(quota, workload.owner, agent):
            for name, amount in counted(workload).items():
                key = (subject_of(quota, workload.owner), name)
                use[key] = use.get(key, 0) + amount
    return use


def apply(workloads: Iterable[Workload], decisions: Decisions, *, terminate: bool) -> list[Workload]:
    """Carry decisions out: admit, drop what ended, tell to stop; with `terminate`, those told to stop queue again."""
    admitted_now = {admission.workload.key for admission in decisions.admit}
    ended = {rejection.key for rejection in decisions.reject} | set(decisions.cancel)
    causes = {stop.key: stop.cause for stop in decisions.stop}
    result: list[Workload] = []
    for workload in workloads:
        if workload.key in ended:
            continue
        if workload.key in admitted_now:
            result.append(replace(workload, state=WorkloadState.RESERVED, admitted=NOW))
        elif workload.key in causes:
            result.append(replace(workload, stopping=causes[workload.key]))
        else:
            result.append(workload)
    return [requeued(each) for each in result if not _over(each)] if terminate else result


def _over(workload: Workload) -> bool:
    return workload.stopping is StopCause.CANCELLED


def requeued(workload: Workload) -> Workload:
    """A pod that was told to stop has terminated: the workload waits again."""
    if workload.stopping is None:
        return workload
    return replace(workload, state=WorkloadState.WAITING, stopping=None, admitted=None, since=NOW)
