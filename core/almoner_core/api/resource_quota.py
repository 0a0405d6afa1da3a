"""ResourceQuota: what a namespace, an owner or a set of agents may use.

The kind shares its name with core v1: it is group-qualified everywhere (`resourcequotas.almoner.dev`, short name `aq`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from almoner_core.api.agent import AgentType
from almoner_core.api.base import (
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    OBSERVED_TEXT,
    UNSEEN,
    APIModel,
    Condition,
    OwnerName,
    Timestamp,
)
from almoner_core.api.meta import AGE, Column, Kind, Rule, condition_reason, condition_status, not_above, validated
from almoner_core.api.quantities import Quantity
from almoner_core.money import Money


class Enforcement(StrEnum):
    """Whether limits hold or are only watched."""

    ENFORCE = "Enforce"
    MONITOR = "Monitor"


class OnLimitAction(StrEnum):
    """What happens to an execution that does not fit."""

    WAIT = "Wait"
    REJECT = "Reject"


class StopPolicy(StrEnum):
    """Whether the quota's queue stands still."""

    NONE = "None"
    HOLD = "Hold"
    HOLD_AND_DRAIN = "HoldAndDrain"


class QueueingStrategy(StrEnum):
    """Whether a small execution may overtake a large one that does not fit."""

    STRICT_FIFO = "StrictFIFO"
    BEST_EFFORT = "BestEffort"


class BudgetPeriod(StrEnum):
    """Length of a budget's window; windows begin on the calendar of the time zone."""

    HOURLY = "Hourly"
    DAILY = "Daily"
    WEEKLY = "Weekly"
    MONTHLY = "Monthly"
    TOTAL = "Total"


class QuotaReason(StrEnum):
    """Reasons of a ResourceQuota's Ready condition."""

    IN_FORCE = "InForce"
    """The limits are known to the ledger and hold."""
    LEDGER_UNAVAILABLE = "LedgerUnavailable"
    """The ledger does not answer; nothing is admitted under this quota."""
    NOT_SUPPORTED = "NotSupported"
    """The quota asks for a limit that this version cannot enforce; nothing is admitted under it."""
    INVALID_SPEC = "InvalidSpec"
    """The stored object does not fit the schema of this version."""


class BudgetAlertReason(StrEnum):
    """Reasons of a ResourceQuota's BudgetAlert condition, which is there where the budget has thresholds."""

    THRESHOLD_REACHED = "ThresholdReached"
    """So much of the budget is spent that a threshold is reached; the message names the highest, with the numbers as
    they are now."""
    BELOW_THRESHOLDS = "BelowThresholds"
    """No threshold is reached: none fired in this window, or the limit was raised since then, or a cost corrected."""


class Scope(APIModel):
    """What the quota governs: an execution must match every part that is given. At least one part is needed."""

    model_config = validated(
        Rule(
            "(has(self.owners) && size(self.owners) > 0) || "
            "(has(self.agentSelector) && size(self.agentSelector) > 0) || "
            "(has(self.agentTypes) && size(self.agentTypes) > 0) || (has(self.perOwner) && self.perOwner)",
            "an empty scope selects nothing: give owners, agentSelector or agentTypes, or leave scope out for the "
            "whole namespace",
        ),
        Rule(
            "!has(self.perOwner) || !self.perOwner || (has(self.owners) && size(self.owners) > 0)",
            "perOwner needs owners: name those that get an account each, or every owner that somebody invents would "
            "bring a new budget",
            ".perOwner",
        ),
    )

    owners: list[OwnerName] = Field(
        default=[],
        max_length=256,
        description="Owners whose executions count.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    agent_selector: dict[
        Annotated[str, Field(max_length=317, pattern=LABEL_KEY_PATTERN)],
        Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)],
    ] = Field(default={}, max_length=16, description="Labels that the Agent must carry.")
    agent_types: list[AgentType] = Field(
        default=[],
        max_length=4,
        description="Types of agents that count.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    per_owner: bool = Field(
        default=False, description="Open one account for each of owners, every one with the whole amounts."
    )


class HardLimits(APIModel):
    """Counts and machines. Absent means unlimited; 0 means none."""

    executions: int | None = Field(default=None, ge=0, le=1_000_000, description="Executions running at once.")
    training_jobs: int | None = Field(default=None, ge=0, le=1_000_000, description="TrainingJobs running at once.")
    pending: int | None = Field(default=None, ge=0, le=10_000_000, description="Executions waiting at once.")
    cpu: Quantity | None = Field(default=None, description="Processor cores of running pods, the meter's included.")
    memory: Quantity | None = Field(default=None, description="Memory of running pods, the meter's included.")
    gpu: int | None = Field(default=None, ge=0, le=1_000_000, description="GPUs of running pods.")
    storage: Quantity | None = Field(
        default=None, description="Storage of checkpoint volumes. Not supported yet: such a quota is not Ready."
    )


class Budget(APIModel):
    """Money, in US dollars."""

    model_config = validated(
        not_above("maxPerExecution", "amount", "maxPerExecution must not exceed amount"),
        not_above("maxPerRequest", "amount", "maxPerRequest must not exceed amount"),
        not_above("maxPerRequest", "maxPerExecution", "maxPerRequest must not exceed maxPerExecution"),
    )

    amount: Money = Field(description="US dollars a period, such as '25.00'.")
    period: BudgetPeriod = Field(default=BudgetPeriod.TOTAL, description="When the budget resets; Total never does.")
    time_zone: str = Field(
        default="UTC",
        max_length=64,
        pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}$",
        description="IANA time zone of the calendar, such as 'Europe/Berlin'.",
    )
    max_per_execution: Money | None = Field(default=None, description="Most US dollars of one execution.")
    max_per_request: Money | None = Field(
        default=None, description="Most US dollars that one call may cost at its bound."
    )
    alert_thresholds_percent: list[Annotated[int, Field(ge=1, le=100)]] = Field(
        default=[],
        max_length=10,
        description="Percentages at which an alert fires once a window.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class Rates(APIModel):
    """Limits on the pace of use: token buckets, debited before a call by the most it can use, and refunded after it."""

    model_config = validated(
        Rule(
            "!has(self.tokenBurst) || has(self.tokensPerMinute) || has(self.tokensPerHour)",
            "tokenBurst needs tokensPerMinute or tokensPerHour: a burst is refilled at that rate",
            ".tokenBurst",
        )
    )

    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="Tokens a minute.")
    tokens_per_hour: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="Tokens an hour.")
    token_burst: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000_000_000,
        description="Tokens at once: what unused ones add up to, and the most of one call; what a minute or an hour "
        "brings where absent.",
    )
    tool_calls_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Tool calls a minute.")
    tool_calls_per_hour: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Tool calls an hour.")
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000, description="Model calls a minute.")


class OnLimit(APIModel):
    """What happens to an execution that does not fit."""

    model_config = validated(
        Rule(
            "!has(self.timeoutSeconds) || !has(self.action) || self.action == 'Wait'",
            "timeoutSeconds goes with action Wait only: Reject does not wait",
            ".timeoutSeconds",
        )
    )

    action: OnLimitAction = Field(default=OnLimitAction.WAIT, description="Wait in the queue, or be rejected.")
    timeout_seconds: int | None = Field(
        default=None,
        ge=1,
        le=31_536_000,
        description="Seconds of waiting after which it is rejected; no end where absent.",
    )


class ResourceQuotaSpec(APIModel):
    """Desired state of a ResourceQuota."""

    scope: Scope | None = Field(default=None, description="What the quota governs; the whole namespace where absent.")
    hard: HardLimits = Field(default=HardLimits(), description="Counts and machines.")
    budget: Budget | None = Field(default=None, description="Money.")
    rates: Rates | None = Field(default=None, description="Pace.")
    enforcement: Enforcement = Field(default=Enforcement.ENFORCE, description="Enforce the limits, or only watch them.")
    on_limit: OnLimit = Field(default=OnLimit(), description="What happens to an execution that does not fit.")
    stop_policy: StopPolicy = Field(
        default=StopPolicy.NONE, description="Hold admits nothing more; HoldAndDrain also stops what runs."
    )
    queueing_strategy: QueueingStrategy = Field(
        default=QueueingStrategy.BEST_EFFORT, description="Whether a small execution may overtake a large one."
    )


class LimitStatus(APIModel):
    """One limit and how much of it is used. Money is in US dollars, the others in the limit's own unit."""

    name: str = Field(max_length=64, description="The limit, such as executions, cpu or budget.")
    subject: str | None = Field(default=None, max_length=253, description="The owner, where the quota has perOwner.")
    limit: str = Field(max_length=32, description="What the spec allows.")
    used: str = Field(max_length=32, description="What is used (money: spent; a rate: missing from its bucket).")
    reserved: str = Field(default="0", max_length=32, description="What is held for running work and not yet used.")
    remaining: str = Field(max_length=32, description="What is left; never below 0.")
    percent: int = Field(ge=0, description="Used and reserved, in whole percent of the limit, rounded down.")
    reset_time: Timestamp | None = Field(
        default=None, description="When the window ends; of a rate: when its bucket is full again."
    )


class QuotaAlert(APIModel):
    """A threshold of the budget that fired: once in a window, whatever becomes of the limit later."""

    percent: int = Field(ge=1, le=100, description="Which of spec.budget.alertThresholdsPercent.")
    subject: str | None = Field(default=None, max_length=253, description="The owner, where the quota has perOwner.")
    time: Timestamp = Field(description="When so much was spent.")
    reset_time: Timestamp | None = Field(
        default=None, description="When the window ends in which it fired; the alert stands until then."
    )


class ResourceQuotaStatus(APIModel):
    """Observed state of a ResourceQuota."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Observations of the quota's state: Ready, Reconciling, Stalled, BudgetAlert.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    limits: list[LimitStatus] = Field(default=[], max_length=1024, description="Every limit and its use.")
    alerts: list[QuotaAlert] = Field(
        default=[], max_length=1024, description="Thresholds of the budget that fired in the windows that hold now."
    )
    running: int = Field(default=0, ge=0, description="Executions and jobs admitted under this quota.")
    pending: int = Field(default=0, ge=0, description="Executions and jobs waiting under this quota.")
    spent: str | None = Field(
        default=None, max_length=32, description="Spent of the budget in US dollars, for the table."
    )
    remaining: str | None = Field(default=None, max_length=32, description="Left of the budget in US dollars.")


KIND = Kind(
    kind="ResourceQuota",
    plural="resourcequotas",
    # The core kind of the same name is `quota`; `resourcequotas.almoner.dev` is unambiguous.
    short_names=("aq",),
    spec=ResourceQuotaSpec,
    status=ResourceQuotaStatus,
    description="A ResourceQuota says what a namespace, an owner or a set of agents may use: money, machines, pace. "
    "Not to be taken for the core kind of the same name: write resourcequotas.almoner.dev, or aq.",
    columns=(
        Column("Ready", condition_status("Ready"), description="Whether it is in force."),
        Column("Running", ".status.running", "integer", "Executions and jobs admitted under it."),
        Column("Pending", ".status.pending", "integer", "Executions and jobs that wait under it."),
        Column("Budget", ".spec.budget.amount", description="US dollars a period."),
        Column("Period", ".spec.budget.period", description="When the budget resets."),
        Column("Spent", ".status.spent", description="US dollars spent in this window."),
        Column("Remaining", ".status.remaining", description="US dollars left in this window."),
        Column("Enforcement", ".spec.enforcement", description="Enforce or Monitor.", priority=1),
        Column("Reason", condition_reason("Ready"), description="Why it is or is not in force.", priority=1),
        AGE,
    ),
    selectable_fields=(".spec.enforcement", ".spec.stopPolicy", ".spec.budget.period"),
)
