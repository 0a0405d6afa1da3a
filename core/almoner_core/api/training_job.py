"""TrainingJob: a longer run with progress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from almoner_core.api.agent import Limits
from almoner_core.api.base import (
    OBSERVED_TEXT,
    UNSEEN,
    AnyObject,
    APIModel,
    Condition,
    LocalObjectReference,
    OwnerName,
    Timestamp,
)
from almoner_core.api.execution import (
    MUTABLE_FIELDS,
    Attempt,
    ExecutionPhase,
    OutputIssue,
    PinnedAgent,
    QueueStatus,
    QueueTimeout,
    Retry,
)
from almoner_core.api.meta import AGE, Column, Kind, Rule, condition_reason, exactly_one_of, immutable, validated
from almoner_core.api.runner import Runner
from almoner_core.api.usage import Usage


class TrainingJobSpec(APIModel):
    """Desired state of a TrainingJob: exactly one of agentRef and runner. Only suspend, cancel, priority may change."""

    model_config = validated(
        exactly_one_of("agentRef", "runner", message="must be exactly one of agentRef, runner"),
        Rule(
            "!has(self.runner) || has(self.runner.image) || has(self.runner.command)",
            "runner needs an image or a command: there is no trainer of Almoner's own",
            ".runner",
            "FieldValueRequired",
        ),
        Rule(
            "!has(self.runner) || !has(self.runner.topologySpreadConstraints)",
            "topologySpreadConstraints spread the pods of an Agent: a runner of its own has no others",
            ".runner.topologySpreadConstraints",
            "FieldValueForbidden",
        ),
        Rule(
            "!has(self.steps) || !has(self.episodes)",
            "steps and episodes exclude each other: a run is counted in one of them",
            ".episodes",
        ),
        Rule(
            "!has(self.deadlineSeconds) || !has(self.limits) || !has(self.limits.timeoutSeconds) || "
            "self.deadlineSeconds == self.limits.timeoutSeconds",
            "deadlineSeconds contradicts limits.timeoutSeconds: set one of them, or both to the same",
            ".deadlineSeconds",
        ),
        *immutable(
            (
                "agentRef",
                "runner",
                "parallelism",
                "steps",
                "episodes",
                "hyperparameters",
                "retry",
                "preemptible",
                "owner",
                "deadlineSeconds",
                "queueTimeoutSeconds",
                "limits",
                "ttlSecondsAfterFinished",
            ),
            mutable=MUTABLE_FIELDS,
        ),
    )

    agent_ref: LocalObjectReference | None = Field(
        default=None, description="The Agent to train or evaluate, in the same namespace."
    )
    runner: Runner | None = Field(default=None, description="The trainer's own container.")
    parallelism: int = Field(default=1, ge=1, le=1, description="Pods at once. This version runs one.")
    steps: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="Steps of the whole run.")
    episodes: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="Episodes of the whole run.")
    hyperparameters: AnyObject | None = Field(
        default=None, description="Given to the trainer unchanged, in its JSON input beside steps or episodes."
    )
    retry: Retry = Field(default=Retry(), description="What happens after a failed attempt.")
    priority: int = Field(default=5, ge=1, le=10, description="1 (least) to 10 (most important).")
    preemptible: bool = Field(
        default=False, description="Whether it may be stopped to make room for a higher priority."
    )
    owner: OwnerName | None = Field(
        default=None, description="Whose budget pays, such as a team; the namespace where absent."
    )
    suspend: bool = Field(default=False, description="Hold it back, or stop it where it runs, until set to false.")
    cancel: bool = Field(default=False, description="End it for good. A terminal state latches.")
    deadline_seconds: int | None = Field(
        default=None, ge=1, le=31_536_000, description="Most seconds of running, over all attempts."
    )
    queue_timeout_seconds: QueueTimeout | None = None
    limits: Limits = Field(default=Limits(), description="Hard limits of the job.")
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds after its end until the object is deleted; kept where absent.",
    )


class Metric(APIModel):
    """One value that the trainer reported."""

    name: str = Field(min_length=1, max_length=128, description="Name of the metric, such as loss.")
    value: str = Field(max_length=64, description="The value as a decimal string.")


class Progress(APIModel):
    """How far the job is, as the trainer reports it."""

    step: int = Field(default=0, ge=0, description="Steps (or episodes) done.")
    total: int | None = Field(default=None, ge=1, description="Steps (or episodes) of the whole run.")
    percent: int | None = Field(default=None, ge=0, le=100, description="Whole percent done.")
    message: str | None = Field(default=None, max_length=256, description="A word from the trainer.")
    estimated_completion_time: Timestamp | None = Field(
        default=None, description="When it should be done at this pace."
    )
    update_time: Timestamp | None = Field(default=None, description="When the trainer last reported.")


class TrainingJobStatus(APIModel):
    """Observed state of a TrainingJob. Phases and conditions are an Execution's."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    phase: ExecutionPhase | None = Field(default=None, description="Where the job stands, for people.")
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Accepted, Admitted, Complete, Failed, Suspended, and kstatus' Ready, Reconciling, Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    agent: PinnedAgent | None = Field(default=None, description="The Agent as pinned at admission.")
    owner: str | None = Field(default=None, max_length=253, description="Whose budget pays.")
    quotas: list[Annotated[str, Field(max_length=253)]] = Field(
        default=[], max_length=64, description="ResourceQuotas that govern it."
    )
    queue: QueueStatus | None = Field(default=None, description="Where it stands in the queue.")
    progress: Progress | None = Field(default=None, description="How far it is.")
    metrics: list[Metric] = Field(
        default=[],
        max_length=32,
        description="Latest value of every metric.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    attempts: list[Attempt] = Field(default=[], max_length=101, description="Attempts, oldest first.")
    usage: Usage = Field(default=Usage(), description="What it used, over all attempts.")
    output: str | None = Field(default=None, max_length=4096, description="The result, or its beginning.")
    output_truncated: bool | None = Field(
        default=None, description="Whether `output` is only the beginning; the ledger serves the whole."
    )
    output_issue: OutputIssue | None = Field(
        default=None, description="Why the output of the newest attempt is not, or not wholly, kept."
    )
    refused_calls: int | None = Field(
        default=None,
        ge=0,
        description="Calls that meters refused, over all attempts; it may have succeeded all the same.",
    )
    message: str | None = Field(default=None, max_length=1024, description="One line on where it stands.")
    admitted_time: Timestamp | None = Field(default=None, description="When the first attempt was admitted.")
    start_time: Timestamp | None = Field(default=None, description="When the first attempt started.")
    completion_time: Timestamp | None = Field(default=None, description="When it ended.")


KIND = Kind(
    kind="TrainingJob",
    plural="trainingjobs",
    short_names=("tj",),
    spec=TrainingJobSpec,
    status=TrainingJobStatus,
    description="A TrainingJob is a longer run that reports its progress, queued and limited as an Execution is.",
    columns=(
        Column("Phase", ".status.phase", description="Where it stands."),
        Column("Reason", condition_reason("Ready"), description="Why it stands there."),
        Column("Priority", ".spec.priority", "integer", "1 (least) to 10 (most important)."),
        Column("Step", ".status.progress.step", "integer", "Steps or episodes done."),
        Column("Percent", ".status.progress.percent", "integer", "Whole percent done."),
        Column("Done-By", ".status.progress.estimatedCompletionTime", description="When it should end.", priority=1),
        Column("Cost", ".status.usage.cost", description="US dollars spent."),
        Column("Owner", ".status.owner", description="Whose budget pays.", priority=1),
        Column("Message", ".status.message", description="One line on where it stands.", priority=1),
        AGE,
    ),
    selectable_fields=(".spec.agentRef.name", ".spec.owner", ".spec.priority", ".spec.preemptible", ".status.phase"),
)
