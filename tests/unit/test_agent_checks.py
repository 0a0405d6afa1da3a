"""What an Agent's spec by itself gets refused for: nothing is accepted and ignored."""

from __future__ import annotations

import time
from typing import Any

import pytest

from almoner_core import agent_checks
from almoner_core.agent_checks import ProblemKind, first_problem, problems
from almoner_core.json_schema import Schema, SchemaError
from almoner_core.patterns import PATTERN_CHARS_MAX, PatternError, compile_pattern
from almoner_runner.agent.failures import AgentFailure
from almoner_runner.agent.time_bound import time_bound
from almoner_runner.tools.registry import KNOWN, build
from tests.support.agents import spec

OBJECT: dict[str, Any] = {"type": "object"}
IMAGE = {"image": "example/sdk:1"}


def guard(side: str = "output", **check: Any) -> dict[str, Any]:
    return {"guardrails": {side: [{"name": "g", **check}]}}


def output(**schema: Any) -> dict[str, Any]:
    return {"output": {"jsonSchema": {"type": "object", **schema}}}


NOT_SUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "fallbacks": (
        {"model": {"provider": "p", "name": "m", "fallbacks": [{"provider": "q", "name": "m"}]}},
        "model.fallbacks",
    ),
    "handoffs": ({"handoffs": [{"agent": "other"}]}, "handoffs[0]"),
    "guardrail agent, input": (guard("input", agent="judge"), "guardrails.input[g].agent"),
    "guardrail agent, output": (guard(agent="judge"), "guardrails.output[g].agent"),
    "approval": ({"safety": {"approvalRequired": ["pay"]}}, "safety.approvalRequired"),
    "domains": ({"safety": {"allowedDomains": ["example.com"]}}, "safety.allowedDomains"),
    "domains of a deployment": (
        {"type": "RealDeployment", "limits": {"maxCost": "1"}, "safety": {"allowedDomains": ["example.com"]}},
        "safety.allowedDomains",
    ),
}
INVALID: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown tool": ({"tools": [{"name": "abacus"}]}, "tools[0].name", "this version has: calculator"),
    "tool's setting": ({"tools": [{"name": "calculator", "config": {"x": 1}}]}, "tools[0].config", "unknown setting"),
    "retry of the input": (guard("input", pattern="x", action="Retry"), "guardrails.input[g].action", "no meaning"),
    "pattern": (guard(pattern="("), "guardrails.output[g].pattern", "missing )"),
    "pattern that looks back": (guard(pattern="(?<=a)b"), "guardrails.output[g].pattern", "invalid perl operator"),
    "pattern too large": (guard(pattern="((a{100}){100}){100}"), "guardrails.output[g].pattern", "repetition"),
    "redact by schema": (guard(jsonSchema=OBJECT, action="Redact"), "guardrails.output[g].action", "nothing to redact"),
    "guardrail's schema": (guard(jsonSchema={"type": "nonsense"}), "guardrails.output[g].jsonSchema", "$.type"),
    "guardrail's pattern in a schema": (
        guard(jsonSchema={"properties": {"a": {"pattern": "(a)\\1"}}}),
        "guardrails.output[g].jsonSchema",
        "at $.properties.a.pattern",
    ),
    "guardrail's reference": (
        guard(jsonSchema={"$ref": "#/$defs/nobody"}),
        "guardrails.output[g].jsonSchema",
        "leads nowhere",
    ),
    "output a list": ({"output": {"jsonSchema": {"type": "array"}}}, "output.jsonSchema.type", "must be 'object'"),
    "output without a type": ({"output": {"jsonSchema": {}}}, "output.jsonSchema.type", "must be 'object'"),
    "output schema": (output(required="city"), "output.jsonSchema", "at $.required"),
    "output's pattern": (output(properties={"a": {"pattern": "["}}), "output.jsonSchema", "not a regular expression"),
    "output's key pattern": (output(patternProperties={"[": {}}), "output.jsonSchema", "$.patternProperties"),
    "output's reference abroad": (
        output(properties={"a": {"$ref": "https://example.com/schema.json"}}),
        "output.jsonSchema",
        "leads out of the schema",
    ),
    "output's reference to nowhere": (
        output(properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"c": {}}}),
        "output.jsonSchema",
        "leads nowhere",
    ),
    "output that contains itself": (
        output(
            properties={"a": {"$ref": "#/$defs/tree"}},
            **{"$defs": {"tree": {"properties": {"b": {"items": {"$ref": "#/$defs/tree"}}}}}},
        ),
        "output.jsonSchema",
        "contains itself",
    ),
    "unevaluated beside patterns": (
        output(unevaluatedProperties=False, allOf=[{"patternProperties": {"a": {}}}]),
        "output.jsonSchema",
        "does not go together",
    ),
    "seed for Anthropic": (
        {"model": {"provider": "p", "name": "m", "api": "Anthropic", "settings": {"seed": 1}}},
        "model.settings.seed",
        "has no seed",
    ),
    "larger than an environment variable": (
        {"instructions": "x" * 65_536, "output": {"jsonSchema": {"type": "object", "description": "y" * 60_000}}},
        "instructions",
        "at most 116000",
    ),
}
BESIDE_IMAGE: dict[str, dict[str, Any]] = {
    "instructions": {"instructions": "Be brief."},
    "guardrails.input": guard("input", maxLength=5),
    "guardrails.output": guard(maxLength=5),
    "output": output(),
    "limits.maxTurns": {"limits": {"maxTurns": 3}},
    "model.api": {"model": {"provider": "p", "name": "m", "api": "OpenAI"}},
    "model.settings.temperature": {"model": {"provider": "p", "name": "m", "settings": {"temperature": "1"}}},
    "model.settings.topP": {"model": {"provider": "p", "name": "m", "settings": {"topP": "1"}}},
    "model.settings.seed": {"model": {"provider": "p", "name": "m", "settings": {"seed": 1}}},
    "tools[0]": {"tools": [{"name": "calculator"}]},
    "tools[0].config": {"tools": [{"name": "t", "provider": "p", "config": {}}]},
    "tools[0].callsPerMinute": {"tools": [{"name": "t", "provider": "p", "callsPerMinute": 1}]},
    "tools[0].timeoutSeconds": {"tools": [{"name": "t", "provider": "p", "timeoutSeconds": 1}]},
}


@pytest.mark.parametrize("case", NOT_SUPPORTED.values(), ids=NOT_SUPPORTED)
@pytest.mark.parametrize("runner", [{}, IMAGE], ids=["loop", "image"])
def test_what_this_version_does_not_do_is_refused_by_name(
    case: tuple[dict[str, Any], str], runner: dict[str, Any]
) -> None:
    fields, place = case
    found = first_problem(spec(**fields, runner=runner, instructions=""))
    assert found is not None
    assert (found.kind, found.field) == (ProblemKind.NOT_SUPPORTED, place)


@pytest.mark.parametrize("case", INVALID.values(), ids=INVALID)
def test_what_the_loop_cannot_use_is_refused_by_name(case: tuple[dict[str, Any], str, str]) -> None:
    fields, place, says = case
    found = first_problem(spec(**fields))
    assert found is not None
    assert (found.kind, found.field) == (ProblemKind.INVALID, place)
    assert says in found.message


@pytest.mark.parametrize(("place", "fields"), BESIDE_IMAGE.items())
def test_what_only_the_loop_reads_is_refused_beside_an_image(place: str, fields: dict[str, Any]) -> None:
    plain = {"instructions": "", "runner": IMAGE}
    assert first_problem(spec(**plain)) is None
    assert [each.field for each in problems(spec(**(plain | fields)))] == [place]


GOOD: list[dict[str, Any]] = [
    {},
    {"tools": [{"name": "calculator", "config": {"precision": 5}}]},
    {"instructions": "", "runner": IMAGE, "tools": [{"name": "t", "provider": "p"}], "limits": {"maxToolCalls": 3}},
    guard("input", pattern=r"(?i)\bsecret\b", action="Redact"),
    guard(jsonSchema={"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}),
    guard(jsonSchema={"definitions": {"a": {}}, "$ref": "#/definitions/a"}),
    output(properties={"who": {"$ref": "#/definitions/Person"}}, definitions={"Person": OBJECT}),
    output(properties={"pattern": {"type": "string"}, "$ref": {"const": {"$ref": "x", "pattern": "("}}}),
    output(properties={"a": {"pattern": r"^\p{L}+\z"}}),
    output(properties={"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"$ref": "#/$defs/c"}, "c": {}}}),
    {"safety": {"budgetEnforced": True, "allowedDomains": [], "approvalRequired": []}},
]


@pytest.mark.parametrize("fields", GOOD)
def test_what_can_be_used_has_no_problem(fields: dict[str, Any]) -> None:
    assert list(problems(spec(**fields))) == []


def test_the_loop_has_the_tools_that_are_checked() -> None:
    assert set(KNOWN) == set(agent_checks.BUILT_IN_TOOLS)
    for name in KNOWN:
        build(spec(tools=[{"name": name}]).tools)


# --- patterns and schemas ---------------------------------------------------------------------------------------------


def test_no_pattern_hangs_a_run() -> None:
    began = time.monotonic()
    assert not compile_pattern("(a+)+$").found_in("a" * 200_000 + "!")
    schema = Schema({"pattern": "(a+)+$", "patternProperties": {"^(a|aa)+$": {}}, "additionalProperties": False})
    assert schema.problems("a" * 200_000 + "!") == ["$: '" + "a" * 199]
    assert schema.problems({"a" * 50_000 + "!": 1})
    assert compile_pattern("a").replace("a" * 100_000, "-") == "-" * 100_000
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("text", ["", "\ud800 half a pair", "\x00", "漢字" * 1000])
def test_any_text_can_be_searched(text: str) -> None:
    pattern = compile_pattern("[漢h]")
    assert pattern.found_in(text) is ("漢" in text or "h" in text)
    assert "漢" not in pattern.replace(text, "-")


@pytest.mark.parametrize("pattern", ["(", "[", "a**", r"\1", "(?=a)", "\ud800", "x" * (PATTERN_CHARS_MAX + 1)])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(pattern)


def test_a_replacement_is_taken_as_it_is() -> None:
    assert compile_pattern("(a)").replace("a", r"\1\2[redacted]") == r"\1\2[redacted]"


def test_properties_that_no_pattern_names_are_additional() -> None:
    schema = Schema(
        {"properties": {"a": {}}, "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False}
    )
    assert schema.problems({"a": 1, "x-b": 2}) == []
    assert schema.problems({"x-b": "2"}) == ["$.x-b: '2' is not of type 'integer'"]
    assert schema.problems({"c": 1, "b": 2}) == ["$: Additional properties are not allowed: 'b', 'c'"]
    typed = Schema({"additionalProperties": {"type": "integer"}})
    assert typed.problems({"c": "1"}) == ["$.c: '1' is not of type 'integer'"]


def test_a_schema_that_goes_round_in_circles_is_an_error_and_no_crash() -> None:
    with pytest.raises(SchemaError, match="circles"):
        Schema({"$ref": "#"}).problems(1)


def test_a_check_that_takes_too_long_ends_the_run() -> None:
    """Forty definitions, each asked twice by the one above it: two to the fortieth questions."""
    definitions: dict[str, Any] = {
        f"d{index}": {"anyOf": [{"$ref": f"#/$defs/d{index + 1}"}] * 2} for index in range(40)
    }
    definitions["d40"] = {"type": "string"}
    schema = Schema({"$ref": "#/$defs/d0", "$defs": definitions})
    began = time.monotonic()
    with pytest.raises(AgentFailure, match=r"takes longer than 0\.2 seconds"), time_bound("guardrail g", 0.2):
        schema.problems(1)
    assert time.monotonic() - began < 20


def test_a_check_that_ends_in_time_leaves_no_alarm() -> None:
    with time_bound("guardrail g", 0.05):
        pass
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"dependencies": {"a": ["b"]}}, r"\$\.dependencies.*dependentRequired"),
        ({"properties": {"x": {"additionalItems": False}}}, r"\$\.properties\.x\.additionalItems.*prefixItems"),
        ({"$defs": {"n": {"$recursiveRef": "#"}}}, r"\$\.\$defs\.n\.\$recursiveRef"),
    ],
)
def test_a_keyword_that_would_say_nothing_is_refused_by_name(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(SchemaError, match=place):
        Schema(schema)


def test_a_property_may_have_any_name() -> None:
    schema = Schema({"properties": {"dependencies": {"type": "array"}}, "examples": [{"additionalItems": 1}]})
    assert schema.problems({"dependencies": 1})
