"""What became of the demo's objects: one picture of all of them, as the API server has them.

Role: raw objects to a Picture. Boundary: reads statuses through the API's own models, so that a status that does not
fit them is noticed here; fetching is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from almoner_core.api.execution import TERMINAL_PHASES, ExecutionPhase, ExecutionSpec, ExecutionStatus
from almoner_core.api.resource_quota import LimitStatus, ResourceQuotaStatus
from almoner_core.api.training_job import Progress, TrainingJobSpec, TrainingJobStatus
from almoner_core.money import Money


@dataclass(frozen=True, slots=True)
class Work:
    """One Execution or TrainingJob."""

    kind: str
    name: str
    uid: str
    agent: str
    owner: str
    priority: int
    status: ExecutionStatus | TrainingJobStatus

    @property
    def phase(self) -> ExecutionPhase:
        """Its phase; Pending where the operator has not seen it yet."""
        return self.status.phase or ExecutionPhase.PENDING

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.phase in TERMINAL_PHASES

    @property
    def cost(self) -> Money:
        """What it cost so far."""
        return self.status.usage.cost

    @property
    def failure(self) -> tuple[str, str]:
        """Reason and message of its failure; empty where there is none."""
        for condition in self.status.conditions:
            if condition.type == "Failed" and condition.status == "True":
                return condition.reason, condition.message
        return "", ""

    @property
    def note(self) -> str:
        """What a person wants to know about it now, in a word or a line."""
        if self.phase is ExecutionPhase.SUCCEEDED:
            return self.status.output or ""
        if self.phase is ExecutionPhase.FAILED:
            return ": ".join(part for part in self.failure if part)
        queue = self.status.queue
        if queue is not None and queue.waiting_for:
            return queue.waiting_for
        return self.status.message or ""

    @property
    def began(self) -> datetime | None:
        """When its first attempt started, or was admitted."""
        return self.status.start_time or self.status.admitted_time

    @property
    def seconds(self) -> float | None:
        """Seconds from its start to its end."""
        if self.began is None or self.status.completion_time is None:
            return None
        return (self.status.completion_time - self.began).total_seconds()

    @property
    def progress(self) -> Progress | None:
        """How far it is, where it tells."""
        return self.status.progress if isinstance(self.status, TrainingJobStatus) else None


@dataclass(frozen=True, slots=True)
class Quota:
    """One ResourceQuota."""

    namespace: str
    name: str
    limits: tuple[LimitStatus, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment."""

    work: tuple[Work, ...]
    quotas: tuple[Quota, ...]

    @property
    def done(self) -> bool:
        """Whether all work has ended."""
        return bool(self.work) and all(item.done for item in self.work)

    @property
    def spent(self) -> Money:
        """What all work has cost."""
        return sum((item.cost for item in self.work), Money.zero())

    def count(self, *phases: ExecutionPhase) -> int:
        """How much work is in these phases."""
        return sum(item.phase in phases for item in self.work)


def picture(
    executions: Iterable[Mapping[str, Any]],
    training_jobs: Iterable[Mapping[str, Any]],
    quotas: Iterable[Mapping[str, Any]],
) -> Picture:
    """Read raw objects. Raises pydantic's ValidationError where one does not fit the API's types."""
    work = [_execution(item) for item in executions] + [_training_job(item) for item in training_jobs]
    return Picture(
        tuple(sorted(work, key=lambda item: (-item.priority, item.name))),
        tuple(
            Quota(
                item["metadata"]["namespace"],
                item["metadata"]["name"],
                tuple(ResourceQuotaStatus.model_validate(item.get("status") or {}).limits),
            )
            for item in sorted(quotas, key=lambda item: str(item["metadata"]["name"]))
        ),
    )


def _execution(item: Mapping[str, Any]) -> Work:
    spec = ExecutionSpec.model_validate(item["spec"])
    status = ExecutionStatus.model_validate(item.get("status") or {})
    return _work(
        item,
        kind="Execution",
        agent=spec.agent_ref.name,
        owner=spec.owner,
        priority=spec.priority,
        status=status,
    )


def _training_job(item: Mapping[str, Any]) -> Work:
    spec = TrainingJobSpec.model_validate(item["spec"])
    status = TrainingJobStatus.model_validate(item.get("status") or {})
    agent = spec.agent_ref.name if spec.agent_ref is not None else "(trainer)"
    return _work(item, kind="TrainingJob", agent=agent, owner=spec.owner, priority=spec.priority, status=status)


def _work(
    item: Mapping[str, Any],
    *,
    kind: str,
    agent: str,
    owner: str | None,
    priority: int,
    status: ExecutionStatus | TrainingJobStatus,
) -> Work:
    meta = item["metadata"]
    return Work(kind, meta["name"], meta["uid"], agent, owner or meta["namespace"], priority, status)
