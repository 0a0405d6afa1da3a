"""Open JSON: how deep, how large, and reading what is deeper than the decoder goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.nesting import (
    BYTES_MAX,
    CUT_DEPTH,
    DEPTH_MAX,
    TooDeepError,
    TooLargeError,
    bounded,
    cut,
    depth_of,
    loads,
)
from almoner_operator.records import parse_agent, parse_run

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int) -> Any:
    value: Any = 1
    for index in range(levels):
        value = {"a": value} if index % 2 else [value]
    return value


def deep_text(levels: int) -> str:
    return '{"a":[' * levels + "1" + "]}" * levels


def test_the_deepest_value_that_is_allowed_passes_and_one_more_is_refused() -> None:
    assert bounded(nested(DEPTH_MAX)) == nested(DEPTH_MAX)
    with pytest.raises(TooDeepError, match="deeper than 64 levels"):
        bounded(nested(DEPTH_MAX + 1))
    with pytest.raises(TooDeepError):
        bounded(nested(100_000))


def test_what_is_too_large_is_refused_with_its_size() -> None:
    assert bounded("x" * (BYTES_MAX - 2))
    with pytest.raises(TooLargeError, match=str(BYTES_MAX + 1)):
        bounded("x" * (BYTES_MAX - 1))


@pytest.mark.parametrize("levels", [600, 5000, 50_000])
def test_json_of_any_depth_is_read_and_what_is_beside_it_is_kept(levels: int) -> None:
    text = '{"name":"\\"[{","deep":' + deep_text(levels) + ',"after":[1,{"b":"]}"}]}'
    found = loads(text)
    assert found["name"] == '"[{'
    assert found["after"] == [1, {"b": "]}"}]
    assert depth_of(found, 10_000) == CUT_DEPTH
    assert loads(text.encode()) == found


@given(JSON, st.integers(1, 5))
def test_cutting_leaves_json_that_is_as_deep_as_asked(value: Any, depth: int) -> None:
    text = json.dumps(value)
    found = json.loads(cut(text, depth))
    assert depth_of(found) == min(depth_of(value), depth)
    if depth_of(value) <= depth:
        assert found == value


@given(JSON)
def test_what_the_decoder_can_read_is_read_as_it_is(value: Any) -> None:
    assert loads(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a":' * 3000])
def test_what_is_no_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def manifest(spec: object, **more: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": "x", "uid": "u", "resourceVersion": "1"}, "spec": spec, **more}


MODEL = {"provider": "p", "name": "m"}


@pytest.mark.parametrize("levels", [65, 128, 256, 400, 900])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("output.jsonSchema", lambda deep: {"output": {"jsonSchema": {"a": deep}}}),
        ("tools.0.config", lambda deep: {"tools": [{"name": "calculator", "config": {"a": deep}}]}),
        (
            "guardrails.input.0.jsonSchema",
            lambda deep: {"guardrails": {"input": [{"name": "g", "jsonSchema": {"a": deep}}]}},
        ),
    ],
)
def test_an_agent_that_nests_too_deeply_is_read_and_says_which_field(levels: int, place: str, value: Any) -> None:
    record = parse_agent(manifest({"type": "Simulation", "model": MODEL, **value(nested(levels))}))
    assert record.spec is None
    assert record.invalid == f"spec.{place}: Value error, nested deeper than 64 levels"


@pytest.mark.parametrize("levels", [65, 256, 900])
def test_a_run_that_nests_too_deeply_is_read_and_says_which_field(levels: int) -> None:
    execution = parse_run("Execution", manifest({"agentRef": {"name": "a"}, "input": {"json": nested(levels)}}))
    job = parse_run("TrainingJob", manifest({"agentRef": {"name": "a"}, "hyperparameters": {"a": nested(levels)}}))
    for run, place in ((execution, "input.json"), (job, "hyperparameters")):
        assert run.spec is None  # type: ignore[union-attr]
        assert run.invalid == f"spec.{place}: Value error, nested deeper than 64 levels"  # type: ignore[union-attr]


@pytest.mark.parametrize("spec", [None, [], "x", 5, {"agentRef": "x"}, {"agentRef": {"name": 5}}])
@pytest.mark.parametrize(
    "status", [None, [], "x", {"phase": 5}, {"phase": "Succeeded", "usage": [], "completionTime": 5}, {"phase": []}]
)
def test_what_was_stored_without_a_schema_is_read(spec: object, status: object) -> None:
    for kind in ("Execution", "TrainingJob"):
        parse_run(kind, manifest(spec, status=status))
    parse_agent(manifest(spec, status=status))
