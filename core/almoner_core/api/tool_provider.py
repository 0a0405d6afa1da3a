"""ToolProvider: where paid tools come from, and what their calls cost."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pydantic import Field

from almoner_core.api.base import OBSERVED_TEXT, UNSEEN, APIModel, Condition, SecretKeyReference
from almoner_core.api.meta import AGE, NAME_IS_LABEL, Column, Kind, Rule, condition_reason, condition_status, validated
from almoner_core.money import Money
from almoner_core.usage import ResourceType

TOOL_NAME_PATTERN: Final = r"^[a-z][a-z0-9_]*$"


class ToolProviderType(StrEnum):
    """Kinds of tool providers."""

    SERPER = "Serper"
    SERP_API = "SerpAPI"
    DUCK_DUCK_GO = "DuckDuckGo"
    PINECONE = "Pinecone"
    CHROMA = "Chroma"
    SMTP = "SMTP"
    CUSTOM = "Custom"


class ToolProviderReason(StrEnum):
    """Reasons of a ToolProvider's conditions."""

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
    NOT_SUPPORTED = "NotSupported"
    """The provider asks for something that this version does not do; the message names the field."""
    INVALID_SPEC = "InvalidSpec"
    """The stored object does not fit the schema of this version."""


RESOURCE_TYPES: Final = {
    ToolProviderType.SERPER: ResourceType.WEB_SEARCH,
    ToolProviderType.SERP_API: ResourceType.WEB_SEARCH,
    ToolProviderType.DUCK_DUCK_GO: ResourceType.WEB_SEARCH,
    ToolProviderType.PINECONE: ResourceType.VECTOR_DB,
    ToolProviderType.CHROMA: ResourceType.VECTOR_DB,
    ToolProviderType.SMTP: ResourceType.EMAIL,
    ToolProviderType.CUSTOM: ResourceType.TOOL,
}
"""What a record of a call is counted as."""


class ToolPrice(APIModel):
    """What one tool's calls cost: so much a call, and so much for each unit that the call names beforehand."""

    model_config = validated(
        Rule(
            "has(self.perCall) || has(self.perUnit)",
            "must have perCall, perUnit, or both: what is free costs '0'",
            ".perCall",
            "FieldValueRequired",
        ),
        Rule("!has(self.unit) || has(self.perUnit)", "unit says what perUnit counts: give perUnit too", ".perUnit"),
    )

    tool: str = Field(
        min_length=1, max_length=64, pattern=TOOL_NAME_PATTERN, description="The tool's name, as agents list it."
    )
    per_call: Money | None = Field(default=None, description="US dollars per call, such as '0.001'.")
    per_unit: Money | None = Field(
        default=None, description="US dollars per unit of a call: a vector, an email; '0' where absent."
    )
    unit: str | None = Field(default=None, min_length=1, max_length=32, description="What a unit is, for people.")


class ToolProviderSpec(APIModel):
    """Desired state of a ToolProvider."""

    model_config = validated(
        Rule(
            "!(self.type in ['Serper', 'SerpAPI', 'Pinecone']) || has(self.credentials)",
            "Serper, SerpAPI and Pinecone need credentials",
            ".credentials",
            "FieldValueRequired",
        ),
    )

    type: ToolProviderType = Field(
        description="Serper, SerpAPI, DuckDuckGo, Pinecone, Chroma, SMTP, or Custom for anything else."
    )
    base_url: str | None = Field(
        default=None,
        alias="baseURL",
        min_length=8,
        max_length=2048,
        pattern=r"^(https?|smtps?)://[^\s?#@]+$",
        description="Where the service is. Not supported yet, since the agent's own code calls it: such a ToolProvider "
        "is not Ready.",
    )
    credentials: SecretKeyReference | None = Field(
        default=None,
        description="The key of the service, which no agent may read; whoever may read Secrets of the namespace can, "
        "as the role edit may. Needed for Serper, SerpAPI, Pinecone.",
    )
    prices: list[ToolPrice] = Field(
        default=[],
        max_length=64,
        description="What calls cost, by tool. A tool without a price is refused under a budget: unknown is not zero.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["tool"]},
    )


class ToolProviderStatus(APIModel):
    """Observed state of a ToolProvider."""

    observed_generation: int | None = Field(default=None, ge=UNSEEN, description=OBSERVED_TEXT)
    conditions: list[Condition] = Field(
        default=[],
        max_length=16,
        description="Ready, Reconciling, Stalled.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


KIND = Kind(
    kind="ToolProvider",
    plural="toolproviders",
    short_names=("tp",),
    spec=ToolProviderSpec,
    status=ToolProviderStatus,
    description="A ToolProvider says where paid tools come from, with which key, and what their calls cost.",
    columns=(
        Column("Type", ".spec.type", description="Kind of the provider."),
        Column("URL", ".spec.baseURL", description="Its address, where it is not the public one."),
        Column("Ready", condition_status("Ready"), description="Whether it can be used."),
        Column("Reason", condition_reason("Ready"), description="Why it can or cannot be used."),
        AGE,
    ),
    selectable_fields=(".spec.type", ".spec.credentials.name"),
    rules=(NAME_IS_LABEL,),
    name_length_max=63,
)
