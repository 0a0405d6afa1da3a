from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from almoner_core import contract
from almoner_core.api.base import AnyObject, APIModel
from almoner_core.api.crd import NotStructuralError, all_definitions, structural_schema
from almoner_core.api.execution import MUTABLE_FIELDS
from almoner_core.api.meta import VALIDATIONS, Rule, validated
from almoner_core.api.registry import KINDS, kind_named
from almoner_core.money import Money
from almoner_dev import generate, reference
from almoner_dev.definitions import HEADER

ROOT = Path(__file__).resolve().parents[2]
DEFINITIONS = all_definitions()
# What a structural schema of the API server may hold.
KEYWORDS = {
    "type", "format", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems",
    "maxItems", "minProperties", "maxProperties", "properties", "required", "items", "additionalProperties", "default",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields", VALIDATIONS,
}  # fmt: skip


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives every schema at and below this one, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}[*]")


def version(plural: str) -> dict[str, Any]:
    (only,) = DEFINITIONS[plural]["spec"]["versions"]
    return dict(only)


def everything() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{plural}{path}", schema)
        for plural in DEFINITIONS
        for path, schema in walk(version(plural)["schema"]["openAPIV3Schema"])
        if not path.startswith(".metadata")
    ]


def test_every_field_is_described() -> None:
    lacking = [
        path
        for path, schema in everything()
        for name, child in schema.get("properties", {}).items()
        if name != "metadata" and len(child.get("description", "")) < 4
    ]
    assert not lacking


def test_only_what_a_structural_schema_may_say_is_said() -> None:
    assert not {(path, key) for path, schema in everything() for key in schema if key not in KEYWORDS}


def test_everything_is_bounded() -> None:
    unbounded = []
    for path, schema in everything():
        kind = schema.get("type")
        if kind == "array":
            bounded = "maxItems" in schema
        elif kind == "string":
            bounded = "maxLength" in schema or "enum" in schema or schema.get("format") == "date-time"
            bounded = bounded or path.endswith((".apiVersion", ".kind"))
        elif "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
            bounded = "maxProperties" in schema
        elif schema.get("x-kubernetes-int-or-string"):
            bounded = "pattern" in schema and "minimum" in schema and "maximum" in schema
        else:
            bounded = True
        if not bounded:
            unbounded.append(path)
    assert not unbounded


def test_integers_are_of_64_bits_and_nothing_is_a_float() -> None:
    for path, schema in everything():
        assert schema.get("type") != "number", path
        if schema.get("type") == "integer":
            assert schema.get("format") == "int64", path


def test_statuses_have_no_defaults_but_that_nobody_has_looked() -> None:
    for plural in DEFINITIONS:
        status = version(plural)["schema"]["openAPIV3Schema"]["properties"]["status"]
        assert status["default"] == {"observedGeneration": -1}
        assert [path for path, schema in walk(status) if "default" in schema] == [""]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_names_of_kinds(kind: Any) -> None:
    definition = DEFINITIONS[kind.plural]
    names = definition["spec"]["names"]
    assert names["categories"] == ["almoner"]
    assert names["singular"] == kind.kind.lower()
    assert names["listKind"] == kind.kind + "List"
    assert definition["spec"]["scope"] == ("Cluster" if kind.kind.startswith("Cluster") else "Namespaced")
    assert version(kind.plural)["subresources"] == {"status": {}}
    assert 1 <= len(version(kind.plural).get("selectableFields", [])) <= 8
    assert all(column["description"] for column in version(kind.plural)["additionalPrinterColumns"])
    assert kind_named(kind.kind) is kind


def test_short_names_clash_with_nothing() -> None:
    names = [name for kind in KINDS for name in (*kind.short_names, kind.plural)]
    assert len(set(names)) == len(names)
    taken_by_kubernetes = (
        "cj cm crd cs csr deploy ds ep ev hpa ing limits netpol no ns pc pdb po pv pvc quota rc rs sa sc sts svc"
    )
    assert not set(taken_by_kubernetes.split()) & set(names)


def test_an_unknown_kind_is_named_with_those_there_are() -> None:
    with pytest.raises(KeyError, match=r"Workflow.*Execution"):
        kind_named("Workflow")


@pytest.mark.parametrize("kind", ["Execution", "TrainingJob"])
def test_every_field_but_the_mutable_ones_is_immutable(kind: str) -> None:
    spec = version(kind_named(kind).plural)["schema"]["openAPIV3Schema"]["properties"]["spec"]
    frozen = {rule["fieldPath"].removeprefix(".") for rule in spec[VALIDATIONS] if "oldSelf" in rule["rule"]}
    assert frozen == set(spec["properties"]) - set(MUTABLE_FIELDS)


def test_rules_point_at_fields_that_exist_and_end_in_words() -> None:
    count = 0
    for path, schema in everything():
        for rule in schema.get(VALIDATIONS, []):
            count += 1
            at = schema
            for step in rule.get("fieldPath", "").split(".")[1:]:
                at = at["properties"][step]
            assert len(rule["message"]) > 15, (path, rule)
            assert "self." not in rule["message"], (path, rule)
    assert count > 60


def test_the_environment_that_leads_to_the_meter_is_reserved() -> None:
    env = version("agents")["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["runner"]["properties"][
        "env"
    ]
    rules = " ".join(rule["rule"] for rule in env["items"][VALIDATIONS])
    names = {value for name, value in vars(contract).items() if name.startswith("ENV_") and isinstance(value, str)}
    # Which model a framework takes by default is the user's business.
    names -= {contract.ENV_OPENAI_DEFAULT_MODEL, contract.ENV_ANTHROPIC_MODEL}
    assert names
    assert all(name.startswith("ALMONER_") or f"'{name}'" in rules for name in names)


class Leaf(APIModel):
    """A leaf."""

    model_config = validated(Rule("self.size < 5", "inner rule"))
    size: int = Field(default=1, gt=0, lt=10, description="Size.")
    cost: Money | None = Field(default=None, description="Cost.")


class Tree(APIModel):
    """A tree."""

    leaf: Leaf | None = Field(
        default=None,
        description="The leaf.",
        json_schema_extra={VALIDATIONS: [Rule("has(self.cost)", "outer rule").to_schema()]},
    )
    sure: Leaf = Field(default=Leaf(), description="A sure leaf.")
    only: Literal["one"] = Field(default="one", description="A constant.")
    any: AnyObject | None = Field(default=None, description="Anything.")
    labels: dict[Annotated[str, Field(max_length=9, pattern="^a+$")], Annotated[str, Field(max_length=3)]] = Field(
        default={}, max_length=2, description="Labels."
    )


def test_what_pydantic_writes_becomes_structural() -> None:
    schema = structural_schema(Tree)["properties"]
    assert schema["leaf"]["description"] == "The leaf."
    assert [rule["message"] for rule in schema["leaf"][VALIDATIONS]] == ["inner rule", "outer rule"]
    assert "default" not in schema["leaf"]
    assert schema["sure"]["default"] == {}
    assert schema["sure"]["properties"]["size"] == {
        "type": "integer", "format": "int64", "minimum": 1, "maximum": 9, "default": 1, "description": "Size.",
    }  # fmt: skip
    assert "type" not in schema["sure"]["properties"]["cost"]
    assert schema["only"]["enum"] == ["one"]
    assert schema["any"] == {
        "type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 1024,
        "description": "Anything.",
    }  # fmt: skip
    assert schema["labels"]["additionalProperties"] == {"type": "string", "maxLength": 3}
    assert "key.matches(r'^a+$') && size(key) <= 9" in schema["labels"][VALIDATIONS][0]["rule"]


class Union(APIModel):
    """Two types."""

    both: int | str = Field(description="Both.")


class Float(APIModel):
    """An exclusive bound of a float."""

    rate: float = Field(gt=0, description="Rate.")


class Pair(APIModel):
    """A tuple."""

    pair: tuple[int, str] = Field(description="Pair.")


class Silent(APIModel):
    """No description."""

    silent: int = 0


class Loop(APIModel):
    """Contains itself."""

    loop: list[Loop] = Field(default=[], max_length=3, description="Loop.")


class Shapeless(APIModel):
    """A field of any type that does not say so."""

    shapeless: Any = Field(description="Shapeless.")


class Discriminated(APIModel):
    """Contains a union."""

    branch: Leaf | Pair = Field(description="Branch.")


@pytest.mark.parametrize("model", [Union, Float, Pair, Silent, Loop, Shapeless, Discriminated])
def test_what_no_structural_schema_can_say_raises_with_its_path(model: type[APIModel]) -> None:
    with pytest.raises(NotStructuralError, match=rf"^{model.__name__}(\.|\b)"):
        structural_schema(model)


@pytest.mark.parametrize("enum", [enum for enum, _ in reference.REASONS])
def test_every_reason_is_documented_and_fits_a_condition(enum: type[StrEnum]) -> None:
    docs = reference.member_docs(enum)
    assert {member.value for member in enum} == set(docs)
    assert all(member.value.isalnum() and member.value[0].isupper() for member in enum)


def test_what_is_generated_is_fresh() -> None:
    assert [str(path) for path, _ in generate.stale(ROOT)] == []


def test_generating_writes_what_is_stale_and_removes_what_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["--check", "--root", str(tmp_path)]) == 1
    assert "stale: crds/almoner.dev_agents.yaml" in capsys.readouterr().err
    assert generate.main(["--root", str(tmp_path)]) == 0
    gone = tmp_path / "crds" / "almoner.dev_workflows.yaml"
    gone.write_text(HEADER)
    by_hand = tmp_path / "crds" / "kustomization.yaml"
    by_hand.write_text("resources: []\n")
    assert generate.main(["--check", "--root", str(tmp_path)]) == 1
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.main(["--check", "--root", str(tmp_path)]) == 0
    assert not gone.exists()
    assert by_hand.exists()


def test_the_operators_folder_is_no_package() -> None:
    # `operator/__init__.py` would shadow the standard library's operator wherever the root is on the path.
    assert (ROOT / "operator").is_dir()
    assert not (ROOT / "operator" / "__init__.py").exists()
