"""Agent: what may run."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from almoner_core.api.base import (
    DOMAIN_PATTERN,
    OBSERVED_TEXT,
    UNSEEN,
    AnyObject,
    APIModel,
    Condition,
    LocalObjectReference,
    ModelName,
    ObjectName,
    ShortText,
    Timestamp,
)
from almoner_core.api.meta import (
    AGE,
    NAME_IS_LABEL,
    Column,
    Kind,
    Rule,
    condition_reason,
    condition_status,
    exactly_one_of,
    validated,
)
from almoner_core.api.runner import Runner
from almoner_core.api.usage import Usage
from almoner_core.money import Money

CLUSTER_MARK: Final = "cluster/"
"""Begins the keys of cluster-scoped providers; no name has a slash."""


class AgentType(StrEnum):
    """What an agent is for. A type has teeth: see the reference."""

    SIMULATION = "Simulation"
    EVALUATION = "Evaluation"
    RESEARCH = "Research"
    REAL_DEPLOYMENT = "RealDeployment"


class ModelAPI(StrEnum):
    """The dialect in which a model is called."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class ModelProviderKind(StrEnum):
    """Kinds of what a model may come from."""

    MODEL_PROVIDER = "ModelProvider"
    CLUSTER_MODEL_PROVIDER = "ClusterModelProvider"


class ToolProviderKind(StrEnum):
    """Kinds of what a paid tool may come from."""

    TOOL_PROVIDER = "ToolProvider"
    CLUSTER_TOOL_PROVIDER = "ClusterToolProvider"


class AgentReason(StrEnum):
    """Reasons of an Agent's Ready condition."""

    READY = "Ready"
    """Everything that the agent needs is there."""
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    """A ModelProvider that the agent names does not exist in its namespace, or a ClusterModelProvider nowhere."""
    PROVIDER_NOT_READY = "ProviderNotReady"
    """A ModelProvider or ClusterModelProvider that the agent names is not Ready."""
    PROVIDER_NOT_ALLOWED = "ProviderNotAllowed"
    """A ClusterModelProvider or ClusterToolProvider that the agent names does not allow it; the message names the field
    of `spec.allow`."""
    MODEL_NOT_ALLOWED = "ModelNotAllowed"
    """The provider does not list the model."""
    MODEL_UNPRICED = "ModelUnpriced"
    """The model has no price, so no budget could bound it."""
    TOOL_PROVIDER_NOT_FOUND = "ToolProviderNotFound"
    """A ToolProvider that a tool names does not exist in the agent's namespace, or a ClusterToolProvider in the
    cluster."""
    TOOL_PROVIDER_NOT_READY = "ToolProviderNotReady"
    """A ToolProvider or ClusterToolProvider that one of the agent's tools names is not Ready."""
    TOOL_UNPRICED = "ToolUnpriced"
    """The ToolProvider of a tool has no price for it, so no budget could bound it."""
    NOT_SUPPORTED = "NotSupported"
    """The agent asks for something that this version does not do; the message names the field."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    """A Secret that the runner's environment names does not exist, or lacks the key."""
    SECRET_NOT_READABLE = "SecretNotReadable"  # noqa: S105 - likewise
    """A Secret lacks the label almoner.dev/agent-readable, or is one that a provider uses."""
    SECRET_UNKNOWN = "SecretUnknown"  # noqa: S105 - likewise
    """The operator could not look at a Secret; the message has the HTTP status. It looks again every half minute."""
    SECRET_FORBIDDEN = "SecretForbidden"  # noqa: S105 - likewise
    """The operator has not the right to look at a Secret, so nothing that names it may run."""
    UNSAFE_DEPLOYMENT = "UnsafeDeployment"
    """A RealDeployment without a hard budget or a safety policy, or on a provider that can be walked past."""
    INVALID_SPEC = "InvalidSpec"
    """A field cannot be used as it is written, or the stored object does not fit the schema of this version."""


class ModelSettings(APIModel):
    """Settings of a model call. Decimal numbers are strings: the API has no floats."""

    max_output_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Most output tokens of one call, sent as the request's maximum."
    )
    temperature: str | None = Field(
        default=None,
        max_length=8,
        pattern=r"^([01](\.[0-9]{1,4})?|2(\.0{1,4})?)$",
        description="Sampling temperature, '0' to '2'.",
    )
    top_p: str | None = Field(
        default=None, max_length=8, pattern=r"^(0(\.[0-9]{1,4})?|1(\.0{1,4})?)$", description="Nucleus, '0' to '1'."
    )
    seed: int | None = Field(default=None, ge=0, le=2147483647, description="Sampling seed where the provider has one.")


def key_of(provider: str, *, cluster: bool) -> str:
    """Give the key of a provider among those that a namespace may name: its name, marked where it is the cluster's."""
    return f"{CLUSTER_MARK}{provider}" if cluster else provider


class ModelChoice(APIModel):
    """One model of one provider."""

    provider: ObjectName = Field(
        description="Name of a ModelProvider in the same namespace, or of what providerKind says."
    )
    provider_kind: ModelProviderKind = Field(
        default=ModelProviderKind.MODEL_PROVIDER,
        description="ModelProvider, or ClusterModelProvider: one of the whole cluster, whose key no namespace holds.",
    )
    name: ModelName = Field(description="The model's name as the provider knows it.")

    @property
    def provider_key(self) -> str:
        """What tells the provider from all others that the agent's namespace may name."""
        return key_of(self.provider, cluster=self.provider_kind is ModelProviderKind.CLUSTER_MODEL_PROVIDER)


class AgentModel(ModelChoice):
    """The model that an agent talks to."""

    model_config = validated(
        Rule(
            "!has(self.fallbacks) || !self.fallbacks.exists(f, f.provider == self.provider && "
            "f.providerKind == self.providerKind && f.name == self.name)",
            "fallbacks must not repeat the model itself: name another provider or another model",
            ".fallbacks",
        )
    )

    api: ModelAPI | None = Field(
        default=None, description="Dialect in which our agent loop calls the model; the provider's first where absent."
    )
    settings: ModelSettings = Field(default=ModelSettings(), description="Settings of every call.")
    fallbacks: list[ModelChoice] = Field(
        default=[],
        max_length=8,
        description="Models to try in this order when the provider fails. Not supported yet: such an Agent is not "
        "Ready.",
    )


class Tool(APIModel):
    """A tool that the agent may call."""

    model_config = validated(
        Rule(
            "!has(self.providerKind) || has(self.provider)",
            "providerKind says of which kind the provider is: give provider too",
            ".providerKind",
        )
    )

    name: str = Field(
        min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*$", description="Name of a built-in tool: calculator."
    )
    provider: ObjectName | None = Field(
        default=None,
        description="Name of a ToolProvider in the same namespace, or of what providerKind says: what a call costs. "
        "None: it is free.",
    )
    provider_kind: ToolProviderKind | None = Field(
        default=None,
        description="ToolProvider (where absent), or ClusterToolProvider: one of the whole cluster.",
    )
    config: AnyObject | None = Field(default=None, description="Settings of the tool; its own page lists them.")
    calls_per_minute: int | None = Field(default=None, ge=1, le=100_000, description="Most calls a minute in one run.")
    timeout_seconds: int | None = Field(
        default=None, ge=1, le=3600, description="Seconds after which a call has failed; 30 where absent."
    )

    @property
    def provider_key(self) -> str | None:
        """What tells the provider from all others that the agent's namespace may name; None: the tool is free."""
        if self.provider is None:
            return None
        return key_of(self.provider, cluster=self.provider_kind is ToolProviderKind.CLUSTER_TOOL_PROVIDER)


class Handoff(APIModel):
    """Another agent that may take the conversation over."""

    agent: ObjectName = Field(description="Name of an Agent in the same namespace.")
    description: ShortText = Field(default="", description="When to hand over, in words for the model.")


class GuardrailAction(StrEnum):
    """What a tripped guardrail does."""

    TRIP = "Trip"
    RETRY = "Retry"
    REDACT = "Redact"


class Guardrail(APIModel):
    """A check of input or output: exactly one of pattern, maxLength, jsonSchema, agent."""

    model_config = validated(
        exactly_one_of(
            "pattern",
            "maxLength",
            "jsonSchema",
            "agent",
            message="must be exactly one of pattern, maxLength, jsonSchema, agent",
        ),
        Rule(
            "!has(self.action) || self.action != 'Redact' || has(self.pattern)",
            "Redact needs a pattern: nothing else says which part of the text to remove",
            ".action",
        ),
    )

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", description="Its name.")
    action: GuardrailAction = Field(default=GuardrailAction.TRIP, description="What happens when it trips.")
    pattern: str | None = Field(
        default=None, max_length=1024, description="Regular expression (RE2) that must not match."
    )
    max_length: int | None = Field(default=None, ge=1, le=1_048_576, description="Most characters of the text.")
    json_schema: AnyObject | None = Field(default=None, description="JSON Schema that the text must satisfy.")
    agent: ObjectName | None = Field(
        default=None,
        description="An Agent that answers whether the text passes. Not supported yet: such an Agent is not Ready.",
    )


class Guardrails(APIModel):
    """Checks of what comes in and of what goes out."""

    input: list[Guardrail] = Field(
        default=[],
        max_length=16,
        description="Checks of the input.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    output: list[Guardrail] = Field(
        default=[],
        max_length=16,
        description="Checks of the output.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class Output(APIModel):
    """The shape of the answer."""

    json_schema: AnyObject = Field(description="JSON Schema that the answer must satisfy.")


class Limits(APIModel):
    """Hard limits of one execution, checked before the call that would break them."""

    max_turns: int | None = Field(default=None, ge=1, le=10_000, description="Most turns of the agent loop.")
    max_cost: Money | None = Field(default=None, description="Most US dollars, such as '0.25'.")
    max_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000_000_000, description="Most tokens, input and output together."
    )
    max_tool_calls: int | None = Field(default=None, ge=0, le=1_000_000_000, description="Most calls of tools.")
    timeout_seconds: int | None = Field(
        default=None, ge=1, le=2_592_000, description="Most seconds of running, over all attempts."
    )


class Safety(APIModel):
    """What a RealDeployment must declare."""

    budget_enforced: bool = Field(default=False, description="The owner asserts that a hard budget governs this agent.")
    allowed_domains: list[Annotated[str, Field(min_length=1, max_length=253, pattern=DOMAIN_PATTERN)]] = Field(
        default=[],
        max_length=128,
        description="Domains that Almoner's own tools may reach, such as 'api.example.com' or '*.example.com'. Not "
        "supported yet: such an Agent is not Ready.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    approval_required: list[Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]] = Field(
        default=[],
        max_length=64,
        description="Tools whose calls wait for a person's approval. Not supported yet: such an Agent is not Ready.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class AgentSpec(APIModel):
    """Desired state of an Agent."""

    model_config = validated(
        Rule(
            "self.type != 'RealDeployment' || has(self.safety)",
            "a RealDeployment must declare safety, such as budgetEnforced: true",
            ".safety",
            "FieldValueRequired",
        ),
        Rule(
            "self.type != 'RealDeployment' || (has(self.limits) && has(self.limits.maxCost)) || "
            "(has(self.safety) && has(self.safety.budgetEnforced) && self.safety.budgetEnforced)",
            "a RealDeployment needs a hard budget: set limits.maxCost, or safety.budgetEnforced to true",
            ".limits",
            "FieldValueRequired",
        ),
    )

    type: AgentType = Field(description="What the agent is for: Simulation, Evaluation, Research or RealDeployment.")
    description: ShortText = Field(default="", description="What the agent does, for people.")
    model: AgentModel = Field(description="The model that the agent talks to.")
    instructions: str = Field(default="", max_length=65536, description="System instructions of the agent loop.")
    tools: list[Tool] = Field(
        default=[],
        max_length=64,
        description="Tools that the agent may call.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    handoffs: list[Handoff] = Field(
        default=[],
        max_length=32,
        description="Agents that may take over. Not supported yet: such an Agent is not Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["agent"]},
    )
    guardrails: Guardrails = Field(default=Guardrails(), description="Checks of input and output.")
    output: Output | None = Field(default=None, description="The shape of the answer; free text where absent.")
    limits: Limits = Field(default=Limits(), description="Hard limits of every execution of this agent.")
    runner: Runner = Field(default=Runner(), description="How the agent's container runs.")
    safety: Safety | None = Field(default=None, description="What a RealDeployment must declare.")


class ExecutionCounts(APIModel):
    """Executions of this agent by phase."""

    pending: int = Field(default=0, ge=0, description="Seen, not yet accepted.")
    queued: int = Field(default=0, ge=0, description="Waiting for quota or budget.")
    running: int = Field(default=0, ge=0, description="Admitted or running.")
    succeeded: int = Field(default=0, ge=0, description="Finished well.")
    failed: int = Field(default=0, ge=0, description="Finished badly.")
    cancelled: int = Field(default=0, ge=0, description="Cancelled.")


class AgentStatus(APIModel):
    """Observed state of an Agent."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Observations of the agent's state: Ready, Reconciling, Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    executions: ExecutionCounts = Field(default=ExecutionCounts(), description="Executions by phase.")
    usage: Usage = Field(default=Usage(), description="What all executions of this agent used, deleted ones included.")
    last_execution: LocalObjectReference | None = Field(default=None, description="The newest execution.")
    last_execution_time: Timestamp | None = Field(default=None, description="When it was created.")


KIND = Kind(
    kind="Agent",
    plural="agents",
    short_names=("ag",),
    spec=AgentSpec,
    status=AgentStatus,
    description="An Agent says what may run: its model, instructions, tools, container, and hard limits.",
    columns=(
        Column("Type", ".spec.type", description="What the agent is for."),
        Column("Model", ".spec.model.name", description="The model that it talks to."),
        Column("Provider", ".spec.model.provider", description="The provider of that model.", priority=1),
        Column("Ready", condition_status("Ready"), description="Whether it can run."),
        Column("Reason", condition_reason("Ready"), description="Why it can or cannot run."),
        Column("Running", ".status.executions.running", "integer", "Executions admitted or running."),
        Column("Queued", ".status.executions.queued", "integer", "Executions that wait.", priority=1),
        Column("Cost", ".status.usage.cost", description="US dollars spent by all its executions."),
        AGE,
    ),
    selectable_fields=(".spec.type", ".spec.model.provider", ".spec.model.name"),
    rules=(NAME_IS_LABEL,),
    name_length_max=63,
)
