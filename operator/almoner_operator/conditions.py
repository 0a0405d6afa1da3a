"""Conditions of every kind: one truth table from phases to conditions, as data that docs and tests read.

kstatus reads Ready, Reconciling and Stalled: queued and running work is Reconciling (InProgress), Succeeded is Ready
(Current), Failed is Stalled (Failed), Cancelled is Ready with reason Cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from almoner_core.api.agent import AgentReason
from almoner_core.api.base import Condition
from almoner_core.api.execution import ExecutionPhase, FailureReason, WaitReason
from almoner_core.api.model_provider import ProviderReason
from almoner_core.api.resource_quota import QuotaReason


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an Execution or TrainingJob stands.

    `admitted`: whether an attempt was ever admitted (for the Admitted condition of what has ended). `accepted`: False
    where the stored object does not fit the schema. `wait` and `failure` give the reasons, `message` the words.
    """

    phase: ExecutionPhase
    message: str = ""
    suspended: bool = False
    admitted: bool = False
    accepted: bool = True
    wait: WaitReason | None = None
    failure: FailureReason | None = None


def conditions_for(
    standing: Standing, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give all conditions of an Execution or TrainingJob; lastTransitionTime stays where a status did not change."""
    raise NotImplementedError


def agent_conditions(
    reason: AgentReason, message: str, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give Ready, Reconciling and Stalled of an Agent; `reason` READY is the good one."""
    raise NotImplementedError


def quota_conditions(
    reason: QuotaReason, message: str, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give Ready, Reconciling and Stalled of a ResourceQuota; `reason` IN_FORCE is the good one."""
    raise NotImplementedError


def provider_conditions(
    reason: ProviderReason,
    message: str,
    *,
    bypassable: bool,
    generation: int,
    previous: Sequence[Condition],
    now: datetime,
) -> list[Condition]:
    """Give Ready, Reconciling, Stalled and Bypassable of a ModelProvider; `reason` READY is the good one."""
    raise NotImplementedError
