"""Where a runner's pod may run, and beside what: Kubernetes' own fields, bounded, in Kubernetes' own words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from almoner_core.api.base import LABEL_KEY_PATTERN, LABEL_VALUE_PATTERN, APIModel
from almoner_core.api.meta import Rule, validated

LabelKey = Annotated[str, Field(min_length=1, max_length=317, pattern=LABEL_KEY_PATTERN)]
LabelValue = Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)]


class TolerationOperator(StrEnum):
    """How a toleration's key and value are compared with a taint's."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(APIModel):
    """A taint that the pod tolerates."""

    model_config = validated(
        Rule(
            "self.operator != 'Exists' || !has(self.value)",
            "a toleration with operator Exists has no value",
            ".value",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds goes with effect NoExecute only",
            ".tolerationSeconds",
        ),
    )

    # Not optional: a toleration of every taint there is would run on control planes and on nodes that are failing.
    key: LabelKey = Field(description="Key of the taint.")
    operator: TolerationOperator = Field(default=TolerationOperator.EQUAL, description="Exists or Equal.")
    value: LabelValue | None = Field(default=None, description="Value of the taint, with operator Equal.")
    effect: TaintEffect | None = Field(default=None, description="Effect of the taint; every effect where absent.")
    toleration_seconds: int | None = Field(
        default=None, ge=0, le=2_592_000, description="Seconds that the pod stays on a node with such a taint."
    )


class SelectorOperator(StrEnum):
    """How a node's label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"
    GT = "Gt"
    LT = "Lt"


class NodeRequirement(APIModel):
    """One demand on a node's labels."""

    model_config = validated(
        Rule(
            "(self.operator in ['Exists', 'DoesNotExist']) == (!has(self.values) || size(self.values) == 0)",
            "Exists and DoesNotExist have no values; the other operators need some",
            ".values",
        ),
        Rule(
            "!(self.operator in ['Gt', 'Lt']) || (has(self.values) && size(self.values) == 1 && "
            "self.values[0].matches('^-?[0-9]{1,18}$'))",
            "Gt and Lt compare with exactly one integer",
            ".values",
        ),
    )

    key: LabelKey = Field(description="Key of the label.")
    operator: SelectorOperator = Field(description="In, NotIn, Exists, DoesNotExist, Gt or Lt.")
    values: list[LabelValue] = Field(default=[], max_length=32, description="Values that the operator compares with.")


class NodeTerm(APIModel):
    """Demands that a node must meet all together."""

    match_expressions: list[NodeRequirement] = Field(
        min_length=1, max_length=16, description="Demands on the node's labels."
    )


class NodeSelectorTerms(APIModel):
    """Terms of which a node must meet at least one."""

    node_selector_terms: list[NodeTerm] = Field(min_length=1, max_length=8, description="Terms; one of them is enough.")


class PreferredTerm(APIModel):
    """A term that is preferred, with its weight."""

    weight: int = Field(ge=1, le=100, description="How much it counts, 1 to 100.")
    preference: NodeTerm = Field(description="The term.")


class NodeAffinity(APIModel):
    """Nodes that the pod needs, and nodes that it prefers."""

    required_during_scheduling_ignored_during_execution: NodeSelectorTerms | None = Field(
        default=None, description="What a node must have."
    )
    preferred_during_scheduling_ignored_during_execution: list[PreferredTerm] = Field(
        default=[], max_length=8, description="What a node had better have."
    )


class Affinity(APIModel):
    """Affinity of the pod. Only to nodes: what spreads pods is topologySpreadConstraints."""

    node_affinity: NodeAffinity = Field(description="Nodes that the pod needs, and nodes that it prefers.")


class WhenUnsatisfiable(StrEnum):
    """What happens to a pod that would break a spread."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class TopologySpread(APIModel):
    """Spreads the pods of the same Agent."""

    max_skew: int = Field(default=1, ge=1, le=1000, description="Most pods that one domain may have more than another.")
    topology_key: LabelKey = Field(description="Label of nodes that makes the domains, such as a zone's.")
    when_unsatisfiable: WhenUnsatisfiable = Field(
        default=WhenUnsatisfiable.SCHEDULE_ANYWAY, description="DoNotSchedule or ScheduleAnyway."
    )
