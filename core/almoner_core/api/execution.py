"""Execution: one run of an agent."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from almoner_core.api.agent import Limits
from almoner_core.api.base import (
    OBSERVED_TEXT,
    UNSEEN,
    AnyJSON,
    APIModel,
    Condition,
    ConfigMapKeyReference,
    LocalObjectReference,
    ObjectName,
    OwnerName,
    Timestamp,
)
from almoner_core.api.meta import AGE, Column, Kind, Rule, condition_reason, immutable, validated
from almoner_core.api.usage import Usage
from almoner_core.environment import OutputProblem
from almoner_core.money import Money


class ExecutionPhase(StrEnum):
    """Where an execution stands, for people."""

    PENDING = "Pending"
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


TERMINAL_PHASES = frozenset({ExecutionPhase.SUCCEEDED, ExecutionPhase.FAILED, ExecutionPhase.CANCELLED})


class ExecutionCondition(StrEnum):
    """Conditions of an Execution besides Ready, Reconciling and Stalled."""

    ACCEPTED = "Accepted"
    ADMITTED = "Admitted"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"


class WaitReason(StrEnum):
    """Why an execution waits."""

    WAITING_FOR_QUOTA = "WaitingForQuota"
    """A ResourceQuota's executions, cpu, memory or gpu are in use."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """A budget has no room for the first allotment."""
    NO_BUDGET = "NoBudget"
    """No enforced money limit governs the execution; limits fail closed."""
    RATE_LIMITED = "RateLimited"
    """A rate has no room now."""
    WAITING_FOR_PREEMPTION = "WaitingForPreemption"
    """Less important executions are being stopped to make room."""
    QUEUE_FULL = "QueueFull"
    """The quota's `pending` is reached."""
    ON_HOLD = "OnHold"
    """The quota's stopPolicy holds its queue."""
    SUSPENDED = "Suspended"
    """The execution itself is suspended."""
    RESTORED = "Restored"
    """It was restored from a backup without its status, or copied, so it may have run already: it waits as if suspended
    until `spec.suspend` is set to false from true, or the backup's label and the annotation `almoner.dev/uid` are
    removed."""
    AGENT_NOT_FOUND = "AgentNotFound"
    """The Agent does not exist (yet)."""
    AGENT_NOT_READY = "AgentNotReady"
    """The Agent is not Ready; its condition says why."""
    PROVIDER_NOT_READY = "ProviderNotReady"
    """A ModelProvider or ClusterModelProvider is not Ready."""
    PROVIDER_NOT_ALLOWED = "ProviderNotAllowed"
    """A ClusterModelProvider or ClusterToolProvider does not allow the namespace, owner, agent or its type; the message
    names the field of `spec.allow`."""
    QUOTA_NOT_READY = "QuotaNotReady"
    """A ResourceQuota that selects the execution is not in force yet, or asks for what this version cannot enforce."""
    INPUT_NOT_FOUND = "InputNotFound"
    """The ConfigMap or key that holds the input does not exist (yet)."""
    POD_REFUSED = "PodRefused"
    """The cluster refuses the pod for what it is, and waiting does not help: a core ResourceQuota wants a limit that a
    container lacks, a LimitRange or a policy does not let it in. The message says what is to be set."""
    POD_NAME_TAKEN = "PodNameTaken"
    """A pod of the attempt's name is there that the operator did not create; the next attempt has another name."""
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    """A ConfigMap or key that the runner's environment names does not exist (yet)."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    """A Secret or key that the runner's environment or a provider's credentials name does not exist (yet)."""
    WAITING_FOR_LEASE = "WaitingForLease"
    """An earlier attempt vanished, and its meter may still be spending until its lease is over."""
    BACKOFF = "Backoff"
    """A failed attempt is retried after a while."""
    LEDGER_UNAVAILABLE = "LedgerUnavailable"
    """The ledger does not answer, so nothing may be spent."""
    QUEUED = "Queued"
    """It was not looked at yet."""


class FailureReason(StrEnum):
    """Why an attempt or an execution failed. The user can name those that are worth a retry in `retry.reasons`."""

    AGENT_FAILED = "AgentFailed"
    """The agent container exited with a code other than 0, and no refused call explains it."""
    RUNNER_FAILED = "RunnerFailed"
    """The meter or the pod could not start or went wrong."""
    START_TIMEOUT = "StartTimeout"
    """A node took the pod, and it did not start within the start deadline."""
    UNSCHEDULABLE = "Unschedulable"
    """No node took the pod within the start deadline; it gives its quota back and is tried again, ever less often."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """An image of the pod cannot be pulled."""
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    """A container of the pod cannot be created, such as for want of a Secret's key."""
    EVICTED = "Evicted"
    """The node evicted the pod."""
    NODE_LOST = "NodeLost"
    """The pod vanished, or its node stopped answering."""
    PROVIDER_FAILED = "ProviderFailed"
    """The model provider failed, over all tries and fallbacks."""
    PROVIDER_REFUSED = "ProviderRefused"
    """The model provider refused the agent's calls with HTTP 400, 401, 403 or 404, and none that began after that
    succeeded: another attempt would end the same way until key, model or request are put right."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """A call, or the pod's machine time, did not fit the budget. Of any image: the agent exited with a code of its own
    other than 0, its meter had refused a call for want of room, and no call that began after that succeeded."""
    RATE_LIMITED = "RateLimited"
    """A rate had no room for a call, however long it waited: a quota's, a ModelProvider's, or the provider's own. Of
    any image: as for BudgetExhausted."""
    LIMIT_EXCEEDED = "LimitExceeded"
    """A limit of the execution itself (tokens, tool calls, turns) was reached, or an answer's maximum cut it off."""
    TIMEOUT = "Timeout"
    """timeoutSeconds ran out."""
    GUARDRAIL_TRIPPED = "GuardrailTripped"
    """A guardrail refused the input or the output."""
    INVALID_INPUT = "InvalidInput"
    """The input cannot be used."""
    INVALID_OUTPUT = "InvalidOutput"
    """The output is not of the declared shape, or there is none: the model refused, or a filter took it."""
    PREEMPTED = "Preempted"
    """It made room for something more important; not a failure, it queues again."""
    REJECTED = "Rejected"
    """It can never start: it asks for more than a quota ever allows, or a quota rejects what does not fit at once."""
    QUEUE_TIMEOUT = "QueueTimeout"
    """queueTimeoutSeconds ran out while it waited in the queue."""
    INVALID_SPEC = "InvalidSpec"
    """The stored object does not fit the schema of this version."""
    STATUS_LOST = "StatusLost"
    """Somebody overwrote the status, and the ledger knows that it has run: how it ended is not known, and nothing runs
    twice. Create another to run it again."""


class ExecutionReason(StrEnum):
    """Reasons of an Execution's conditions besides those of waiting and failing."""

    ACCEPTED = "Accepted"
    """The spec is valid and the agent is pinned or awaited."""
    QUEUED = "Queued"
    """It waits; the Admitted condition says for what."""
    ADMITTED = "Admitted"
    """Quota and allotment are held for it."""
    RUNNING = "Running"
    """The agent container runs."""
    POD_NOT_CREATED = "PodNotCreated"
    """It is admitted, and its pod could not be created yet."""
    POD_NOT_BOUND = "PodNotBound"
    """Its pod is not known to the ledger yet, so its meter may not start."""
    UNSCHEDULABLE = "Unschedulable"
    """No node takes its pod."""
    IMAGE_PULL_FAILED = "ImagePullFailed"
    """An image of its pod cannot be pulled; it fails if that lasts."""
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    """A container of its pod cannot be created; it fails if that lasts."""
    METER_NOT_READY = "MeterNotReady"
    """The meter in its pod does not start."""
    POD_MISSING = "PodMissing"
    """Its pod is gone without a last word; it counts as lost if that lasts."""
    WAITING_FOR_LEASE = "WaitingForLease"
    """Its pod vanished, and its meter may still be spending until its lease is over."""
    SUCCEEDED = "Succeeded"
    """The agent finished with exit code 0."""
    CANCELLED = "Cancelled"
    """A person cancelled it."""
    SUSPENDED = "Suspended"
    """A person suspended it."""
    RESUMED = "Resumed"
    """It is not suspended any more."""
    FAILED = "Failed"
    """It failed; the Failed condition says why."""
    NOT_ADMITTED = "NotAdmitted"
    """It ended before it was admitted."""
    NOT_FINISHED = "NotFinished"
    """It has not ended yet."""


class ExecutionInput(APIModel):
    """What the agent is given: exactly one of text, json, configMapKeyRef."""

    # Not a rule in CEL, which cannot see a field of unknown shape such as json; and oneOf would not name the field.
    model_config = validated(extra={"minProperties": 1, "maxProperties": 1})

    text: str | None = Field(default=None, max_length=32768, description="Input as text.")
    json_: AnyJSON | None = Field(default=None, alias="json", description="Input as any JSON value.")
    config_map_key_ref: ConfigMapKeyReference | None = Field(
        default=None, description="A key of a ConfigMap that holds the input (at most 96 KiB)."
    )


class RetryReason(StrEnum):
    """Reasons that `retry.reasons` may name: those after which another attempt can end otherwise."""

    AGENT_FAILED = "AgentFailed"
    RUNNER_FAILED = "RunnerFailed"
    START_TIMEOUT = "StartTimeout"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CONTAINER_NOT_CREATED = "ContainerNotCreated"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    PROVIDER_FAILED = "ProviderFailed"
    PROVIDER_REFUSED = "ProviderRefused"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    RATE_LIMITED = "RateLimited"
    LIMIT_EXCEEDED = "LimitExceeded"
    GUARDRAIL_TRIPPED = "GuardrailTripped"
    INVALID_INPUT = "InvalidInput"
    INVALID_OUTPUT = "InvalidOutput"


class Retry(APIModel):
    """What happens after a failed attempt."""

    model_config = validated(
        Rule(
            "!has(self.backoffSeconds) || !has(self.backoffMaxSeconds) || "
            "self.backoffSeconds <= self.backoffMaxSeconds",
            "backoffSeconds must not exceed backoffMaxSeconds (300 where not set)",
            ".backoffSeconds",
        )
    )

    limit: int = Field(default=0, ge=0, le=100, description="Most further attempts after the first.")
    backoff_seconds: int = Field(default=10, ge=1, le=3600, description="Base of the exponential backoff.")
    backoff_max_seconds: int = Field(default=300, ge=1, le=86400, description="Cap of the backoff.")
    reasons: list[RetryReason] = Field(
        default=[],
        max_length=16,
        description="Reasons that are retried; where empty: AgentFailed, RunnerFailed, StartTimeout, "
        "ImagePullFailed, ContainerNotCreated, Evicted, NodeLost, ProviderFailed and RateLimited. What never ends "
        "otherwise, such as Timeout, is refused here.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


QueueTimeout = Annotated[
    int,
    Field(
        ge=1,
        le=31_536_000,
        description="Most seconds of waiting in the queue, each time that it is queued; then it fails with reason "
        "QueueTimeout. The backoff before a retry and the time that it is suspended do not count.",
    ),
]

# What may change while an Execution or a TrainingJob lives.
MUTABLE_FIELDS: Final = ("cancel", "priority", "suspend")


class ExecutionSpec(APIModel):
    """Desired state of an Execution. Immutable but for suspend, cancel and priority."""

    model_config = validated(
        Rule(
            "!has(self.timeoutSeconds) || !has(self.limits) || !has(self.limits.timeoutSeconds) || "
            "self.timeoutSeconds == self.limits.timeoutSeconds",
            "timeoutSeconds contradicts limits.timeoutSeconds: set one of them, or both to the same",
            ".timeoutSeconds",
        ),
        *immutable(
            (
                "agentRef",
                "input",
                "owner",
                "preemptible",
                "limits",
                "retry",
                "timeoutSeconds",
                "queueTimeoutSeconds",
                "ttlSecondsAfterFinished",
            ),
            mutable=MUTABLE_FIELDS,
        ),
    )

    agent_ref: LocalObjectReference = Field(description="The Agent to run, in the same namespace.")
    input: ExecutionInput = Field(
        default=ExecutionInput(), description="What the agent is given: exactly one of text, json, configMapKeyRef."
    )
    owner: OwnerName | None = Field(
        default=None, description="Whose budget pays, such as a team; the namespace where absent."
    )
    priority: int = Field(default=5, ge=1, le=10, description="1 (least) to 10 (most important).")
    preemptible: bool = Field(
        default=False, description="Whether it may be stopped to make room for a higher priority."
    )
    limits: Limits = Field(default=Limits(), description="Tightens the agent's limits, never widens them.")
    retry: Retry = Field(default=Retry(), description="What happens after a failed attempt.")
    timeout_seconds: int | None = Field(
        default=None, ge=1, le=2_592_000, description="Most seconds of running, over all attempts."
    )
    queue_timeout_seconds: QueueTimeout | None = None
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds after its end until the object is deleted; kept where absent. Not honoured on an object "
        "that Argo CD or Flux tracks, which would create it and run it again.",
    )
    suspend: bool = Field(default=False, description="Hold it back, or stop it where it runs, until set to false.")
    cancel: bool = Field(default=False, description="End it for good. A terminal state latches.")


class PinnedAgent(APIModel):
    """The Agent as it was at admission; retries run what was pinned."""

    name: ObjectName = Field(description="Name of the Agent.")
    uid: str = Field(max_length=64, description="Its uid.")
    generation: int = Field(ge=0, description="Its generation.")
    hash: str = Field(max_length=64, description="SHA-256 of its spec, in hexadecimal.")


class QueueStatus(APIModel):
    """Where it stands in the queue."""

    position: int | None = Field(
        default=None, ge=1, description="Place in the queue: exact for the first 100, rounded up to hundreds beyond."
    )
    waiting_for: str | None = Field(default=None, max_length=1024, description="What it waits for, with the numbers.")
    since: Timestamp | None = Field(default=None, description="When it began to wait.")
    next_change_time: Timestamp | None = Field(
        default=None, description="When this can next change without anyone acting, such as a budget's reset."
    )


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    PREEMPTED = "Preempted"
    SUSPENDED = "Suspended"


class AttemptAdmission(APIModel):
    """What an attempt was admitted with: it counts until the attempt has ended, whatever changes meanwhile."""

    cpu_milli: int = Field(default=0, ge=0, description="Requested cpu in millicores, the meter's included.")
    memory: int = Field(default=0, ge=0, description="Requested memory in bytes, the meter's included.")
    gpu: int = Field(default=0, ge=0, description="Requested GPUs.")
    grace_seconds: int = Field(default=0, ge=0, description="Seconds that its pod may take to end.")
    timeout_seconds: int | None = Field(
        default=None, ge=0, description="Most seconds of running, over all attempts; absent: not limited."
    )
    first_cost: Money | None = Field(default=None, description="US dollars that were set aside for its first call.")
    first_tokens: int | None = Field(default=None, ge=0, description="Tokens that its first call may need.")


class Attempt(APIModel):
    """One try at running the execution, in one pod."""

    number: int = Field(ge=1, description="Counts from 1.")
    pod: str = Field(max_length=253, description="Name of the pod.")
    pod_uid: str | None = Field(default=None, alias="podUID", max_length=64, description="Uid of the pod.")
    pod_proof: str | None = Field(
        default=None,
        max_length=64,
        description="Digest of what the operator's own pod carries: no other pod counts while the uid is not known.",
    )
    allotment: str | None = Field(default=None, max_length=64, description="Id of its allotment in the ledger.")
    admitted_time: Timestamp | None = Field(default=None, description="When it was admitted.")
    start_time: Timestamp | None = Field(default=None, description="When the agent container started.")
    finish_time: Timestamp | None = Field(default=None, description="When it ended.")
    outcome: AttemptOutcome = Field(default=AttemptOutcome.RUNNING, description="How it ended.")
    reason: str | None = Field(default=None, max_length=128, description="Why it ended so.")
    message: str | None = Field(default=None, max_length=1024, description="What a person needs to know.")
    exit_code: int | None = Field(default=None, description="Exit code of the agent container.")
    refused_calls: int | None = Field(default=None, ge=0, description="Calls that its meter refused.")
    log_tail: str | None = Field(
        default=None,
        max_length=2048,
        description="The end of the agent's log, of the last few attempts that failed or were stopped.",
    )
    usage: Usage | None = Field(default=None, description="What the attempt used.")
    admission: AttemptAdmission | None = Field(
        default=None, description="What it was admitted with; while it is under way."
    )


class OutputIssue(APIModel):
    """What is wrong with the output: nothing of it, or not all of it, is kept."""

    reason: OutputProblem = Field(description="What is wrong, by name.")
    message: str | None = Field(default=None, max_length=1024, description="What a person needs to know.")


class ExecutionStatus(APIModel):
    """Observed state of an Execution."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    phase: ExecutionPhase | None = Field(default=None, description="Where the execution stands, for people.")
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
    attempts: list[Attempt] = Field(default=[], max_length=101, description="Attempts, oldest first.")
    usage: Usage = Field(default=Usage(), description="What it used, over all attempts.")
    output: str | None = Field(default=None, max_length=4096, description="The answer, or its beginning.")
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
    kind="Execution",
    plural="executions",
    short_names=("ex",),
    spec=ExecutionSpec,
    status=ExecutionStatus,
    description="An Execution is one run of an Agent, queued by priority and run inside hard limits.",
    columns=(
        Column("Agent", ".spec.agentRef.name", description="The agent that it runs."),
        Column("Phase", ".status.phase", description="Where it stands."),
        Column("Reason", condition_reason("Ready"), description="Why it stands there."),
        Column("Priority", ".spec.priority", "integer", "1 (least) to 10 (most important)."),
        Column("Position", ".status.queue.position", "integer", "Place in the queue."),
        Column("Cost", ".status.usage.cost", description="US dollars spent."),
        Column("Tokens", ".status.usage.tokens.total", "integer", "Tokens used.", priority=1),
        Column("Owner", ".status.owner", description="Whose budget pays.", priority=1),
        Column("Message", ".status.message", description="One line on where it stands.", priority=1),
        AGE,
    ),
    selectable_fields=(".spec.agentRef.name", ".spec.owner", ".spec.priority", ".spec.preemptible", ".status.phase"),
)
