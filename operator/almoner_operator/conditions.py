"""Conditions of every kind: one truth table from phases to conditions, as data that docs and tests read.

kstatus reads Ready, Reconciling and Stalled: queued and running work is Reconciling (InProgress), Succeeded is Ready
(Current), Failed is Stalled (Failed), Cancelled is Ready with reason Cancelled; suspended work is at rest, not Ready.

Pure: no I/O, no clock. `previous` is read only for the times of the last transitions, and for conditions of other
controllers, which are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple

from almoner_core.api.agent import AgentReason
from almoner_core.api.base import Condition, ConditionStatus, KStatusCondition
from almoner_core.api.execution import (
    ExecutionCondition,
    ExecutionPhase,
    ExecutionReason,
    FailureReason,
    WaitReason,
)
from almoner_core.api.model_provider import ProviderReason
from almoner_core.api.resource_quota import BudgetAlertReason, QuotaReason
from almoner_core.api.tool_provider import ToolProviderReason
from almoner_core.text import short

MESSAGE_CHARS_MAX: Final = 1024
BYPASSABLE: Final = "Bypassable"
BUDGET_ALERT: Final = "BudgetAlert"


class Row(StrEnum):
    """A line of the truth table: a phase, told apart further where conditions differ."""

    PENDING = "Pending"
    """Seen, not yet looked at."""
    QUEUED = "Queued"
    SUSPENDED = "Suspended"
    """Phase Queued (or Pending) with spec.suspend."""
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    REJECTED = "Failed before admission"
    INVALID = "Failed, invalid spec"
    CANCELLED = "Cancelled"
    CANCELLED_BEFORE = "Cancelled before admission"


class Source(StrEnum):
    """Where a cell's reason comes from, if it is not fixed."""

    WAIT = "the wait reason"
    FAILURE = "the failure reason"
    ADMITTED = "what keeps the pod, else Admitted"
    RUNNING = "what became of the pod, else Running"


class Cell(NamedTuple):
    """One condition in one row. `said`: whether it carries the standing's message."""

    status: ConditionStatus
    reason: ExecutionReason | FailureReason | Source
    said: bool = False


_TRUE, _FALSE, _UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_R = ExecutionReason
_A, _AD, _C, _F, _S = (
    ExecutionCondition.ACCEPTED,
    ExecutionCondition.ADMITTED,
    ExecutionCondition.COMPLETE,
    ExecutionCondition.FAILED,
    ExecutionCondition.SUSPENDED,
)
_READY, _REC, _ST = KStatusCondition.READY, KStatusCondition.RECONCILING, KStatusCondition.STALLED
COLUMNS: Final[tuple[ExecutionCondition | KStatusCondition, ...]] = (_A, _AD, _C, _F, _S, _READY, _REC, _ST)


def _row(*cells: Cell | None) -> Mapping[str, Cell]:
    """Name a row's cells by the columns' order; a column without a cell is absent."""
    return {str(column): cell for column, cell in zip(COLUMNS, cells, strict=True) if cell is not None}


_ACCEPTED: Final = Cell(_TRUE, _R.ACCEPTED)
_WAS_ADMITTED: Final = Cell(_TRUE, _R.ADMITTED)
_NEVER_ADMITTED: Final = Cell(_FALSE, _R.NOT_ADMITTED)
_OPEN: Final = Cell(_FALSE, _R.NOT_FINISHED)

# Columns: Accepted, Admitted, Complete, Failed, Suspended, Ready, Reconciling, Stalled. Suspended is absent where it
# never was True; where it was, it turns False with reason Resumed.
TRUTH_TABLE: Final[Mapping[Row, Mapping[str, Cell]]] = {
    Row.PENDING: _row(
        Cell(_UNKNOWN, _R.QUEUED),
        Cell(_FALSE, _R.QUEUED),
        _OPEN,
        _OPEN,
        None,
        Cell(_FALSE, _R.QUEUED, said=True),
        Cell(_TRUE, _R.QUEUED),
        _OPEN,
    ),
    Row.QUEUED: _row(
        _ACCEPTED,
        Cell(_FALSE, Source.WAIT, said=True),
        _OPEN,
        _OPEN,
        None,
        Cell(_FALSE, Source.WAIT, said=True),
        Cell(_TRUE, _R.QUEUED),
        _OPEN,
    ),
    Row.SUSPENDED: _row(
        _ACCEPTED,
        Cell(_FALSE, Source.WAIT),
        _OPEN,
        _OPEN,
        Cell(_TRUE, Source.WAIT, said=True),
        Cell(_FALSE, Source.WAIT, said=True),
        Cell(_FALSE, _R.SUSPENDED),
        _OPEN,
    ),
    Row.ADMITTED: _row(
        _ACCEPTED,
        _WAS_ADMITTED,
        _OPEN,
        _OPEN,
        None,
        Cell(_FALSE, Source.ADMITTED, said=True),
        Cell(_TRUE, _R.ADMITTED),
        _OPEN,
    ),
    Row.RUNNING: _row(
        _ACCEPTED,
        _WAS_ADMITTED,
        _OPEN,
        _OPEN,
        None,
        Cell(_FALSE, Source.RUNNING, said=True),
        Cell(_TRUE, _R.RUNNING),
        _OPEN,
    ),
    Row.SUCCEEDED: _row(
        _ACCEPTED,
        _WAS_ADMITTED,
        Cell(_TRUE, _R.SUCCEEDED, said=True),
        Cell(_FALSE, _R.SUCCEEDED),
        None,
        Cell(_TRUE, _R.SUCCEEDED, said=True),
        Cell(_FALSE, _R.SUCCEEDED),
        Cell(_FALSE, _R.SUCCEEDED),
    ),
    Row.FAILED: _row(
        _ACCEPTED,
        _WAS_ADMITTED,
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, Source.FAILURE, said=True),
        None,
        Cell(_FALSE, Source.FAILURE, said=True),
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, Source.FAILURE, said=True),
    ),
    Row.REJECTED: _row(
        _ACCEPTED,
        _NEVER_ADMITTED,
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, Source.FAILURE, said=True),
        None,
        Cell(_FALSE, Source.FAILURE, said=True),
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, Source.FAILURE, said=True),
    ),
    Row.INVALID: _row(
        Cell(_FALSE, FailureReason.INVALID_SPEC, said=True),
        _NEVER_ADMITTED,
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, FailureReason.INVALID_SPEC, said=True),
        None,
        Cell(_FALSE, FailureReason.INVALID_SPEC, said=True),
        Cell(_FALSE, _R.FAILED),
        Cell(_TRUE, FailureReason.INVALID_SPEC, said=True),
    ),
    Row.CANCELLED: _row(
        _ACCEPTED,
        _WAS_ADMITTED,
        Cell(_FALSE, _R.CANCELLED),
        Cell(_FALSE, _R.CANCELLED),
        None,
        Cell(_TRUE, _R.CANCELLED, said=True),
        Cell(_FALSE, _R.CANCELLED),
        Cell(_FALSE, _R.CANCELLED),
    ),
    Row.CANCELLED_BEFORE: _row(
        _ACCEPTED,
        _NEVER_ADMITTED,
        Cell(_FALSE, _R.CANCELLED),
        Cell(_FALSE, _R.CANCELLED),
        None,
        Cell(_TRUE, _R.CANCELLED, said=True),
        Cell(_FALSE, _R.CANCELLED),
        Cell(_FALSE, _R.CANCELLED),
    ),
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an Execution or TrainingJob stands.

    `admitted`: whether an attempt was ever admitted (for the Admitted condition of what has ended). `accepted`: False
    where the stored object does not fit the schema. `wait`, `failure` and `trouble` (of what is under way) give the
    reasons, `message` the words.
    """

    phase: ExecutionPhase
    message: str = ""
    suspended: bool = False
    admitted: bool = False
    accepted: bool = True
    wait: WaitReason | None = None
    failure: FailureReason | None = None
    trouble: ExecutionReason | None = None

    @property
    def row(self) -> Row:
        """The line of the truth table that applies."""
        phase = self.phase
        if not self.accepted and phase not in (ExecutionPhase.SUCCEEDED, ExecutionPhase.CANCELLED):
            return Row.INVALID
        if phase is ExecutionPhase.FAILED:
            return Row.FAILED if self.admitted else Row.REJECTED
        if phase is ExecutionPhase.CANCELLED:
            return Row.CANCELLED if self.admitted else Row.CANCELLED_BEFORE
        if self.suspended and phase in (ExecutionPhase.PENDING, ExecutionPhase.QUEUED):
            return Row.SUSPENDED
        return Row(phase.value)


class _Wanted(NamedTuple):
    status: ConditionStatus
    reason: str
    message: str


def conditions_for(
    standing: Standing, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give all conditions of an Execution or TrainingJob; lastTransitionTime stays where a status did not change."""
    wanted: dict[str, _Wanted] = {}
    for column, cell in TRUTH_TABLE[standing.row].items():
        message = standing.message if cell.said else ""
        wanted[column] = _Wanted(cell.status, _reason(cell, standing), message)
    suspended = str(ExecutionCondition.SUSPENDED)
    if suspended not in wanted and any(condition.type == suspended for condition in previous):
        wanted[suspended] = _Wanted(_FALSE, str(_R.RESUMED), "")
    return _carry(wanted, _ALL_EXECUTION, generation, previous, now)


_ALL_EXECUTION: Final = tuple(str(column) for column in COLUMNS)


def _reason(cell: Cell, standing: Standing) -> str:
    if cell.reason is Source.WAIT:
        return str(standing.wait or (WaitReason.SUSPENDED if standing.suspended else WaitReason.QUEUED))
    if cell.reason is Source.FAILURE:
        return str(standing.failure or FailureReason.RUNNER_FAILED)
    if cell.reason is Source.ADMITTED:
        return str(standing.trouble or _R.ADMITTED)
    if cell.reason is Source.RUNNING:
        return str(standing.trouble or _R.RUNNING)
    return str(cell.reason)


def _carry(
    wanted: Mapping[str, _Wanted],
    order: Iterable[str],
    generation: int,
    previous: Sequence[Condition],
    now: datetime,
) -> list[Condition]:
    """Make the conditions in order, with the times of those whose status stays, and keep those of other controllers."""
    before = {condition.type: condition for condition in previous}
    result: list[Condition] = []
    for kind in order:
        want = wanted.get(kind)
        if want is None:
            continue
        old = before.get(kind)
        kept = old is not None and old.status is want.status
        result.append(
            Condition(
                type=kind,
                status=want.status,
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old is not None and kept else now,
                reason=want.reason,
                message=short(want.message, MESSAGE_CHARS_MAX),
            )
        )
    ours = set(order)
    result.extend(condition for condition in previous if condition.type not in ours)
    return result


_NOT_KNOWN: Final = frozenset(
    {AgentReason.SECRET_UNKNOWN, ProviderReason.SECRET_UNKNOWN, ToolProviderReason.SECRET_UNKNOWN}
)
"""Reasons with which Ready is Unknown."""


def _kstatus(reason: str, message: str, *, good: bool, in_progress: bool) -> dict[str, _Wanted]:
    """Ready, Reconciling, Stalled of a kind that either is in order, will be, or needs a person."""
    stalled = not good and not in_progress
    ready = _TRUE if good else _UNKNOWN if reason in _NOT_KNOWN else _FALSE
    return {
        str(_READY): _Wanted(ready, reason, message),
        str(_REC): _Wanted(_TRUE if in_progress else _FALSE, reason, message if in_progress else ""),
        str(_ST): _Wanted(_TRUE if stalled else _FALSE, reason, message if stalled else ""),
    }


_KSTATUS: Final = (str(_READY), str(_REC), str(_ST))
# What others may still bring (another manifest of the same apply): in progress. The rest needs this object changed.
AGENT_IN_PROGRESS: Final = frozenset(
    {
        AgentReason.PROVIDER_NOT_FOUND,
        AgentReason.PROVIDER_NOT_READY,
        AgentReason.TOOL_PROVIDER_NOT_FOUND,
        AgentReason.TOOL_PROVIDER_NOT_READY,
        AgentReason.SECRET_NOT_FOUND,
        AgentReason.SECRET_UNKNOWN,
    }
)
QUOTA_IN_PROGRESS: Final = frozenset({QuotaReason.LEDGER_UNAVAILABLE})
PROVIDER_IN_PROGRESS: Final = frozenset({ProviderReason.SECRET_NOT_FOUND, ProviderReason.SECRET_UNKNOWN})
TOOL_PROVIDER_IN_PROGRESS: Final = frozenset({ToolProviderReason.SECRET_NOT_FOUND, ToolProviderReason.SECRET_UNKNOWN})


def agent_conditions(
    reason: AgentReason, message: str, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give Ready, Reconciling and Stalled of an Agent; `reason` READY is the good one."""
    wanted = _kstatus(str(reason), message, good=reason is AgentReason.READY, in_progress=reason in AGENT_IN_PROGRESS)
    return _carry(wanted, _KSTATUS, generation, previous, now)


def quota_conditions(
    reason: QuotaReason,
    message: str,
    *,
    alert: tuple[bool, BudgetAlertReason, str] | None = None,
    generation: int,
    previous: Sequence[Condition],
    now: datetime,
) -> list[Condition]:
    """Give Ready, Reconciling, Stalled and BudgetAlert of a ResourceQuota; `reason` IN_FORCE is the good one.

    `alert`: whether it holds, reason and message; None: the budget has no thresholds.
    """
    wanted = _kstatus(
        str(reason), message, good=reason is QuotaReason.IN_FORCE, in_progress=reason in QUOTA_IN_PROGRESS
    )
    if alert is not None:
        holds, why, text = alert
        wanted[BUDGET_ALERT] = _Wanted(_TRUE if holds else _FALSE, str(why), text)
    return _carry(wanted, (*_KSTATUS, BUDGET_ALERT), generation, previous, now)


OURS: Final = frozenset({*_ALL_EXECUTION, BUDGET_ALERT, BYPASSABLE})
"""Types of conditions that Almoner sets, of whatever kind; all others are other controllers'."""


def tool_provider_conditions(
    reason: ToolProviderReason, message: str, *, generation: int, previous: Sequence[Condition], now: datetime
) -> list[Condition]:
    """Give Ready, Reconciling and Stalled of a ToolProvider; `reason` READY is the good one."""
    wanted = _kstatus(
        str(reason),
        message,
        good=reason is ToolProviderReason.READY,
        in_progress=reason in TOOL_PROVIDER_IN_PROGRESS,
    )
    return _carry(wanted, _KSTATUS, generation, previous, now)


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
    wanted = _kstatus(
        str(reason), message, good=reason is ProviderReason.READY, in_progress=reason in PROVIDER_IN_PROGRESS
    )
    wanted[BYPASSABLE] = (
        _Wanted(
            _TRUE,
            str(ProviderReason.NO_CREDENTIALS),
            "the model server asks for no credential, so agent code can call it past the meter; only an egress "
            "NetworkPolicy closes that",
        )
        if bypassable
        else _Wanted(_FALSE, str(ProviderReason.CREDENTIALS_HELD), "the meter alone holds the credential")
    )
    return _carry(wanted, (*_KSTATUS, BYPASSABLE), generation, previous, now)
