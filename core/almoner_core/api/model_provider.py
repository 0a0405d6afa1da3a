"""ModelProvider: where models come from, and what they cost."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from almoner_core.api.agent import ModelAPI
from almoner_core.api.base import OBSERVED_TEXT, UNSEEN, APIModel, Condition, ModelName, SecretKeyReference
from almoner_core.api.meta import AGE, NAME_IS_LABEL, Column, Kind, Rule, condition_reason, condition_status, validated
from almoner_core.money import Money


class ProviderType(StrEnum):
    """Kinds of providers."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"
    OPENAI_COMPATIBLE = "OpenAICompatible"


class ProviderReason(StrEnum):
    """Reasons of a ModelProvider's conditions."""

    READY = "Ready"
    """The provider can be used."""
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    """The Secret or its key does not exist."""
    SECRET_UNKNOWN = "SecretUnknown"  # noqa: S105 - likewise
    """The operator could not look at a Secret; the message has the HTTP status. It looks again every half minute."""
    SECRET_FORBIDDEN = "SecretForbidden"  # noqa: S105 - likewise
    """The operator has not the right to look at a Secret, so nothing that names it may run."""
    SECRET_NOT_LABELLED = "SecretNotLabelled"  # noqa: S105 - likewise
    """The Secret that a cluster-scoped provider names lacks the label almoner.dev/provider-key: "true"."""
    CREDENTIALS_MISSING = "CredentialsMissing"
    """The provider's type needs credentials and the spec has none."""
    NO_CREDENTIALS = "NoCredentials"
    """The model server asks for no credential, so an agent can walk past the meter (condition Bypassable)."""
    CREDENTIALS_HELD = "CredentialsHeld"
    """The meter alone holds the credential (condition Bypassable is False)."""
    INVALID_SPEC = "InvalidSpec"
    """The stored object does not fit the schema of this version."""


class ModelPriceTier(APIModel):
    """Prices of calls whose input reaches a size; they apply to all tokens of such a call, as providers do it."""

    input_tokens_min: int = Field(
        ge=1, le=1_000_000_000, description="Input tokens (cached ones included) from which these prices apply."
    )
    input_per_million: Money = Field(description="US dollars per million input tokens.")
    output_per_million: Money = Field(description="US dollars per million output tokens.")
    cached_input_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens read from the cache; input's where absent."
    )
    cache_write_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens written to the cache; input's where absent."
    )
    long_cache_write_per_million: Money | None = Field(
        default=None,
        description="US dollars per million input tokens written to the cache for an hour; where absent, calls that "
        "ask for such entries are refused under a budget.",
    )


class BatchPrice(APIModel):
    """What calls cost that ask for, and are served as, slow processing: service tiers `flex` and `batch`."""

    model_config = validated(
        Rule(
            "has(self.discountPercent) != has(self.inputPerMillion)",
            "must be either discountPercent or rates of its own",
            ".discountPercent",
        ),
        Rule(
            "has(self.inputPerMillion) == has(self.outputPerMillion)",
            "inputPerMillion and outputPerMillion go together",
            ".outputPerMillion",
        ),
        Rule(
            "has(self.inputPerMillion) || (!has(self.cachedInputPerMillion) && !has(self.cacheWritePerMillion) "
            "&& !has(self.longCacheWritePerMillion))",
            "rates of the cache go with inputPerMillion; a discount applies to them too",
            ".inputPerMillion",
        ),
    )

    discount_percent: int | None = Field(
        default=None, ge=0, le=100, description="Percent off every token price of the model, whatever the tier."
    )
    input_per_million: Money | None = Field(default=None, description="US dollars per million input tokens.")
    output_per_million: Money | None = Field(default=None, description="US dollars per million output tokens.")
    cached_input_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens read from the cache; input's where absent."
    )
    cache_write_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens written to the cache; input's where absent."
    )
    long_cache_write_per_million: Money | None = Field(
        default=None,
        description="US dollars per million input tokens written to the cache for an hour; where absent, calls that "
        "ask for such entries are refused under a budget.",
    )


class ModelPrice(APIModel):
    """Prices of one model in US dollars per million tokens; they override the public price data."""

    model_config = validated(
        Rule(
            "!has(self.tiers) || self.tiers.map(tier, tier.inputTokensMin).isSorted()",
            "tiers must ascend by inputTokensMin",
            ".tiers",
        )
    )

    model: ModelName = Field(description="The model's name as the provider knows it.")
    input_per_million: Money = Field(description="US dollars per million input tokens.")
    output_per_million: Money = Field(description="US dollars per million output tokens.")
    cached_input_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens read from the cache; input's where absent."
    )
    cache_write_per_million: Money | None = Field(
        default=None, description="US dollars per million input tokens written to the cache; input's where absent."
    )
    long_cache_write_per_million: Money | None = Field(
        default=None,
        description="US dollars per million input tokens written to the cache for an hour; where absent, calls that "
        "ask for such entries are refused under a budget.",
    )
    per_request: Money | None = Field(default=None, description="US dollars per call, besides the tokens.")
    tiers: list[ModelPriceTier] = Field(
        default=[],
        max_length=7,
        description="Prices of larger calls, ascending; the prices above are those of calls below the first tier.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["inputTokensMin"]},
    )
    batch: BatchPrice | None = Field(
        default=None,
        description="Prices of slow processing; where absent, calls that ask for it are refused under a budget.",
    )


class ProviderModel(APIModel):
    """One model that may be used."""

    model_config = validated(
        Rule(
            "!has(self.maxOutputTokens) || !has(self.contextWindow) || self.maxOutputTokens <= self.contextWindow",
            "maxOutputTokens must not exceed contextWindow",
            ".maxOutputTokens",
        )
    )

    name: ModelName = Field(description="The model's name as the provider knows it.")
    context_window: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Most tokens of input and output together. It bounds input that is not text, or is not in the "
        "request; without it, and where the public price data does not say, such input is refused under a budget.",
    )
    max_output_tokens: int | None = Field(
        default=None, ge=1, le=10_000_000, description="Most output tokens of a call."
    )


class ProviderRateLimits(APIModel):
    """How fast the provider may be called, over all runs."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=10_000_000, description="Calls a minute.")
    tokens_per_minute: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description="Tokens a minute.")


FieldName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DEARER_FIELDS: Final = (
    # What the meter bounds or sets itself.
    *("model", "models", "messages", "input", "prompt", "stream", "stream_options", "service_tier", "thread"),
    # How much is written, and how often.
    *("n", "best_of", "num_completions", "num_return_sequences", "candidate_count", "num_beams", "use_beam_search"),
    *("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_gen_len", "max_length"),
    *("max_tokens_to_sample", "n_predict", "num_predict", "options", "generation_config", "thinking_budget"),
    # What serves the call otherwise, at other prices, or with more of them.
    *("provider", "route", "fallbacks", "transforms", "speed", "inference_geo", "background", "prediction"),
    *("tools", "functions", "plugins", "mcp_servers", "container", "context_management", "skills"),
    *("web_search", "web_search_options", "search_parameters", "search_options", "enable_search", "data_sources"),
    # Input that its bytes do not bound.
    *("conversation", "audio", "modalities", "image", "images", "video", "videos", "file_ids", "attachments"),
)
"""Fields of requests that `allowFields` may not name."""


class ModelProviderSpec(APIModel):
    """Desired state of a ModelProvider."""

    model_config = validated(
        Rule(
            "self.type != 'OpenAICompatible' || has(self.baseURL)",
            "OpenAICompatible needs baseURL: there is no public address to fall back on",
            ".baseURL",
            "FieldValueRequired",
        ),
        Rule(
            "self.type == 'OpenAICompatible' || has(self.baseURL) || has(self.credentials)",
            "OpenAI and Anthropic need credentials, unless baseURL leads to a server that asks for none",
            ".credentials",
            "FieldValueRequired",
        ),
        Rule(
            "self.type == 'OpenAICompatible' || !has(self.apis) || size(self.apis) == 0",
            "apis goes with type OpenAICompatible only: the dialect of OpenAI and Anthropic is known",
            ".apis",
        ),
        Rule(
            f"!has(self.allowFields) || !self.allowFields.exists(name, name.lowerAscii() in {list(DEARER_FIELDS)})",
            "allowFields must not name a field that may raise a call's cost beyond its bound, such as n, max_tokens, "
            "tools, options or provider",
            ".allowFields",
        ),
    )

    type: ProviderType = Field(description="OpenAI, Anthropic, or OpenAICompatible for anything that speaks OpenAI.")
    base_url: str | None = Field(
        default=None,
        alias="baseURL",
        min_length=8,
        max_length=2048,
        pattern=r"^https?://[^\s?#@]+$",
        description="What an SDK takes as its base URL (OpenAI: with /v1; Anthropic: without); the provider's public "
        "one where absent. Needed for OpenAICompatible.",
    )
    apis: list[ModelAPI] = Field(
        default=[],
        max_length=2,
        description="Dialects that an OpenAICompatible server speaks; [OpenAI] where empty.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    credentials: SecretKeyReference | None = Field(
        default=None,
        description="The key, mounted into meters alone; whoever may read Secrets of the namespace can read it, as the "
        "role edit may: a ClusterModelProvider's they cannot. Needed for OpenAI and Anthropic, unless baseURL is set.",
    )
    models: list[ProviderModel] = Field(
        default=[],
        max_length=256,
        description="Models that may be used, by these names and with or without a date; where empty, any that has a "
        "price.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    prices: list[ModelPrice] = Field(
        default=[],
        max_length=256,
        description="Prices that override or supply what the public price data lacks.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["model"]},
    )
    rate_limits: ProviderRateLimits | None = Field(default=None, description="How fast the provider may be called.")
    allow_fields: list[FieldName] = Field(
        default=[],
        max_length=32,
        description="Top-level fields of requests that pass under a budget besides those that the meter knows, such as "
        "chat_template_kwargs, guided_json or safe_prompt. You vouch that the server charges nothing more for them; "
        "their bytes count as input.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )


class ModelProviderStatus(APIModel):
    """Observed state of a ModelProvider."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Ready, Reconciling, Stalled, and Bypassable: whether an agent could walk past the meter.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


KIND = Kind(
    kind="ModelProvider",
    plural="modelproviders",
    short_names=("mp",),
    spec=ModelProviderSpec,
    status=ModelProviderStatus,
    description="A ModelProvider says where models come from, with which key, and what they cost. Its key lies in its "
    "namespace, and whoever may read Secrets there can read it.",
    columns=(
        Column("Type", ".spec.type", description="Kind of the provider."),
        Column("URL", ".spec.baseURL", description="Base URL, where it is not the public one."),
        Column("Ready", condition_status("Ready"), description="Whether it can be used."),
        Column("Reason", condition_reason("Ready"), description="Why it can or cannot be used."),
        Column("Bypassable", condition_status("Bypassable"), description="Whether agents can walk past the meter."),
        AGE,
    ),
    selectable_fields=(".spec.type", ".spec.credentials.name"),
    rules=(NAME_IS_LABEL,),
    name_length_max=63,
)
