"""What a CRD says besides the schema of its fields: names, columns, selectable fields, and the rules that span fields.

Rules stand beside the models that they guard (`model_config = validated(Rule(...), ...)`), kinds beside their specs
(`KIND = Kind(...)`); `registry.py` collects the kinds, `crd.py` turns them into manifests. Nothing here knows YAML or
the API server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import ConfigDict

if TYPE_CHECKING:
    from almoner_core.api.base import APIModel

VALIDATIONS: Final = "x-kubernetes-validations"

RuleReason = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden", "FieldValueDuplicate"]
ColumnType = Literal["string", "integer", "date", "boolean"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule. `field` is the path below the object that the message is about, such as `.amount`."""

    rule: str
    message: str
    field: str | None = None
    reason: RuleReason = "FieldValueInvalid"

    def to_schema(self) -> dict[str, Any]:
        """Give the rule as `x-kubernetes-validations` has it."""
        out: dict[str, Any] = {"rule": self.rule, "message": self.message, "reason": self.reason}
        if self.field is not None:
            out["fieldPath"] = self.field
        return out


@dataclass(frozen=True, slots=True)
class Column:
    """One printer column. Priority 0 stands in `kubectl get`, 1 in `kubectl get -o wide` only."""

    name: str
    path: str
    type: ColumnType = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the API group. `rules` guard the whole object, metadata.name included."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    spec: type[APIModel]
    status: type[APIModel]
    description: str
    columns: tuple[Column, ...]
    selectable_fields: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    name_length_max: int = 253
    scope: Literal["Namespaced", "Cluster"] = "Namespaced"

    @property
    def singular(self) -> str:
        """The lower-case kind."""
        return self.kind.lower()


NAME_IS_LABEL: Final = Rule(
    "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    "metadata.name becomes a label and part of paths: lower-case letters, digits and '-' only, no dots",
    ".metadata.name",
)
AGE: Final = Column("Age", ".metadata.creationTimestamp", "date", "Time since the object was created.")


def condition_status(type_: str) -> str:
    """Give the path of a condition's status, for a printer column."""
    return f'.status.conditions[?(@.type=="{type_}")].status'


def condition_reason(type_: str) -> str:
    """Give the path of a condition's reason, for a printer column."""
    return f'.status.conditions[?(@.type=="{type_}")].reason'


def validated(*rules: Rule, extra: dict[str, Any] | None = None) -> ConfigDict:
    """Give a model's configuration that carries rules (and other schema keys) into its JSON schema."""
    schema: dict[str, Any] = dict(extra or {})
    if rules:
        schema[VALIDATIONS] = [rule.to_schema() for rule in rules]
    return ConfigDict(json_schema_extra=schema)


def not_above(
    lower: str, upper: str, message: str, *, path: tuple[str, ...] = ("self", "self"), field: str | None = None
) -> Rule:
    """Compare two amounts as quantities, never as text; text that is no amount is the pattern's to refuse.

    `lower` and `upper` are field names below the objects in `path`; where one of these is absent, nothing is compared.
    """
    low, high = f"{path[0]}.{lower}", f"{path[1]}.{upper}"
    parents = "".join(f"!has({each}) || " for each in path if each != "self")
    return Rule(
        f"{parents}!has({low}) || !has({high}) || !isQuantity(string({low})) || !isQuantity(string({high})) || "
        f"quantity(string({low})).compareTo(quantity(string({high}))) <= 0",
        message,
        field if field is not None else f".{lower}",
    )


def exactly_one_of(*fields: str, message: str) -> Rule:
    """Demand exactly one of the named fields."""
    present = ", ".join(f"has(self.{name})" for name in fields)
    return Rule(f"[{present}].filter(present, present).size() == 1", message)


def immutable(model_fields: Iterable[str], mutable: Iterable[str]) -> tuple[Rule, ...]:
    """Give one rule a field, so that the message names it. Both sides are tested: adding and removing are changes too.

    `model_fields` are names on the wire. A field that both sides lack has not changed.
    """
    free = frozenset(mutable)
    allowed = ", ".join(sorted(free))
    return tuple(
        Rule(
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
            f"spec.{name} is immutable, and so is the rest of spec but for {allowed}: create a new object instead",
            f".{name}",
            "FieldValueForbidden",
        )
        for name in model_fields
        if name not in free
    )
