"""What all kinds share: the model base with Kubernetes' camelCase, conditions, references, bounded types.

Specs ignore unknown fields (the API server has pruned or refused them by the schema); every bound here becomes a bound
in the CRD, so that CEL rules fit their cost budget.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from almoner_core.nesting import bounded

GROUP: Final = "almoner.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

DNS_LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_KEY_PATTERN: Final = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
DOMAIN_PATTERN: Final = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
OWNER_PATTERN: Final = r"^[A-Za-z0-9]([-A-Za-z0-9_.@:/]*[A-Za-z0-9])?$"

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN_PATTERN)]
OwnerName = Annotated[str, Field(min_length=1, max_length=128, pattern=OWNER_PATTERN)]
ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][-A-Za-z0-9_.:/@]*$")]
ShortText = Annotated[str, Field(max_length=1024)]
# A JSON value of any shape, kept as it is (x-kubernetes-preserve-unknown-fields in the CRD). The schema's bounds are
# those of its outermost level: a structural schema cannot recurse, and CEL cannot see into an open value. So depth and
# size are bounded when the object is read, and its condition says which field is too deep or too large.
AnyJSON = Annotated[
    Any,
    AfterValidator(bounded),
    Field(
        json_schema_extra={
            "x-kubernetes-preserve-unknown-fields": True,
            "maxLength": 32768,
            "maxItems": 4096,
            "maxProperties": 1024,
        }
    ),
]
# A JSON object of any shape, likewise.
AnyObject = Annotated[
    dict[str, Any],
    AfterValidator(bounded),
    Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 1024}),
]
Timestamp = datetime


class APIModel(BaseModel):
    """Base of every API type: snake_case in Python, camelCase on the wire."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_attribute_docstrings=False
    )

    def to_wire(self) -> dict[str, Any]:
        """Give the JSON form for the API server: camelCase, unset values left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class ConditionStatus(StrEnum):
    """The three values of a condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


UNSEEN: Final = -1
"""`status.observedGeneration` of an object that the operator has not looked at: no generation, so that kstatus, and all
who wait for what it says, do not take a new object for one that is done."""
OBSERVED_TEXT: Final = "Generation that this status speaks of; -1 where the operator has not looked at it yet."


class Condition(APIModel):
    """One observation of an object's state, as metav1.Condition has it."""

    type: str = Field(
        description="Type of the condition in CamelCase.",
        min_length=1,
        max_length=316,
        pattern=r"^[A-Za-z]([A-Za-z0-9]*)$",
    )
    status: ConditionStatus = Field(description="Status of the condition: True, False or Unknown.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="The metadata.generation that the condition was set upon."
    )
    last_transition_time: Timestamp = Field(description="When the status of this condition last changed.")
    reason: str = Field(
        description="CamelCase reason of the last transition; every value is documented in the reference.",
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
    )
    message: str = Field(description="What a person needs to know, with the numbers.", max_length=32768)


class LocalObjectReference(APIModel):
    """A reference to an object of the same namespace."""

    name: ObjectName = Field(description="Name of the object, in the same namespace.")


class SecretKeyReference(APIModel):
    """One key of a Secret of the same namespace."""

    name: ObjectName = Field(description="Name of the Secret, in the same namespace.")
    key: str = Field(
        min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="The key within the Secret's data."
    )


class SystemSecretKeyReference(SecretKeyReference):
    """One key of a Secret of Almoner's own namespace."""

    name: ObjectName = Field(
        description="Name of the Secret, in Almoner's own namespace (almoner-system). It needs the label "
        "almoner.dev/provider-key: 'true'."
    )


class ConfigMapKeyReference(APIModel):
    """One key of a ConfigMap of the same namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap, in the same namespace.")
    key: str = Field(
        min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="The key within the ConfigMap's data."
    )


class KStatusCondition(StrEnum):
    """The three conditions that kstatus (and so Flux and Argo CD) reads."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
