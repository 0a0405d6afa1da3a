"""Odd answers of models, through the real SDKs: the loop goes on, or ends by a reason of its own, never with exit 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almoner_core.agent_checks import first_problem
from almoner_core.api.agent import ModelAPI
from almoner_core.contract import AgentExitCode
from almoner_core.json_schema import SchemaError, self_contained
from almoner_runner.agent.failures import AgentFailure
from almoner_runner.agent.invocation import Invocation
from almoner_runner.agent.loop import run
from almoner_runner.agent.mending import NOT_AN_OBJECT, mend_arguments
from almoner_runner.agent.models import build_model
from almoner_runner.agent.output import render
from tests.support.agents import spec

OPENAI, ANTHROPIC = ModelAPI.OPENAI, ModelAPI.ANTHROPIC
ADD = {"operation": "add", "a": 1, "b": 2}
LIMITED = {"x-almoner-output-limited": "48"}


class NoMeter:
    async def reserve(self, tool: str) -> None:
        """Every call has room."""


def chat(message: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **message}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


def message(content: Any, stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 1, "output_tokens": 1}
    head = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": stop, "stop_sequence": None}
    return head | {"content": content, "usage": usage} | more


def text_of(api: ModelAPI, text: str, finish: str | None = None) -> dict[str, Any]:
    if api is OPENAI:
        return chat({"content": text}, finish or "stop")
    return message([{"type": "text", "text": text}], finish or "end_turn")


def calls_of(api: ModelAPI, *arguments: Any, ids: tuple[str, ...] = (), text: str = "") -> dict[str, Any]:
    """An answer that calls the calculator; with Anthropic the arguments are decoded first."""
    ids = ids or tuple(f"c{index}" for index in range(len(arguments)))
    pairs = list(zip(ids, arguments, strict=True))
    if api is OPENAI:
        calls = [{"id": i, "type": "function", "function": {"name": "calculator", "arguments": a}} for i, a in pairs]
        return chat({"content": text or None, "tool_calls": calls}, "tool_calls")
    blocks: list[Any] = [{"type": "text", "text": text}] if text else []
    return message(
        [*blocks, *({"type": "tool_use", "id": i, "name": "calculator", "input": a} for i, a in pairs)], "tool_use"
    )


class Ended:
    """How a run ended, and what the provider was asked."""

    def __init__(self, value: Any, failure: AgentFailure | None, requests: list[dict[str, Any]]) -> None:
        self.value, self.failure, self.requests = value, failure, requests

    @property
    def code(self) -> int:
        return 0 if self.failure is None else self.failure.exit_code

    @property
    def line(self) -> str:
        return "" if self.failure is None else self.failure.line

    @property
    def shown(self) -> str:
        """The conversation of the last request."""
        return json.dumps(self.requests[-1])


async def ended(api: ModelAPI, *answers: Any, headers: dict[str, str] | None = None, **fields: Any) -> Ended:
    """Run the loop against these answers: objects, or bytes."""
    requests: list[dict[str, Any]] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(json.loads(request.content))
        said = answers[min(len(requests), len(answers)) - 1]
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        return httpx2.Response(200, content=body, headers={"content-type": "application/json", **(headers or {})})

    agent = spec(**({"tools": [{"name": "calculator"}], "limits": {"maxTurns": 6}} | fields))
    invocation = Invocation(agent, api, "http://meter.test/v1", "any", "http://meter.test", "Go.", Path("unused"))
    model = build_model(invocation, httpx2.MockTransport(answer))
    try:
        result = await run(invocation, model=model, meter=NoMeter())
    except AgentFailure as failure:
        return Ended(None, failure, requests)
    return Ended(result.value, None, requests)


# --- C11: arguments that are JSON and no object -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "arguments", "told"),
    [
        (OPENAI, "null", "'operation' is a required property"),
        (OPENAI, None, "'operation' is a required property"),
        (OPENAI, "", "'operation' is a required property"),
        (OPENAI, "[1,2]", "must be one JSON object"),
        (OPENAI, "7", "must be one JSON object"),
        (OPENAI, json.dumps(json.dumps(ADD)), '\\"result\\":\\"3\\"'),
        (OPENAI, json.dumps(json.dumps(json.dumps(ADD))), "must be one JSON object"),
        (OPENAI, ADD, '\\"result\\":\\"3\\"'),
        (OPENAI, json.dumps({"self": 1} | ADD), "Additional properties are not allowed: 'self'"),
        (OPENAI, '{"operation":"add","a":NaN,"b":1}', "must be finite"),
        (OPENAI, '{"operation":"add","a":1e999,"b":1}', "must be finite"),
        (OPENAI, "[" * 50_000, "Invalid JSON"),
        (OPENAI, '{"a":' * 90 + "1" + "}" * 90, "must be one JSON object"),
        (ANTHROPIC, [1], "must be one JSON object"),
        (ANTHROPIC, None, "'operation' is a required property"),
        (ANTHROPIC, json.dumps(ADD), '\\"result\\":\\"3\\"'),
        (ANTHROPIC, {"self": 1} | ADD, "Additional properties are not allowed: 'self'"),
        (ANTHROPIC, {"operation": "add", "a": float("nan"), "b": 1}, "must be finite"),
    ],
)
async def test_c11_arguments_that_are_no_object_are_an_error_that_the_model_mends(
    api: ModelAPI, arguments: Any, told: str
) -> None:
    end = await ended(api, calls_of(api, arguments), text_of(api, "3"))
    assert (end.code, end.value, len(end.requests)) == (0, "3", 2), end.line
    assert told in end.shown


def test_c11_arguments_are_decoded_once_more_and_no_further() -> None:
    assert mend_arguments(None) == mend_arguments("null") == mend_arguments('"null"') == mend_arguments("") == {}
    assert mend_arguments(json.dumps(json.dumps(ADD))) == ADD
    assert mend_arguments(json.dumps(json.dumps(json.dumps(ADD)))) == {NOT_AN_OBJECT: json.dumps(ADD)}
    assert mend_arguments('{"a') == '{"a'


# --- C28: ids that are given twice ------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("given_id", ["c1", "", "x" * 500])
async def test_c28_calls_of_one_id_are_told_apart(api: ModelAPI, given_id: str) -> None:
    more = {"operation": "multiply", "a": 5, "b": 8}
    arguments = [ADD, more] if api is ANTHROPIC else [json.dumps(ADD), json.dumps(more)]
    twice = calls_of(api, *arguments, ids=(given_id, given_id))
    end = await ended(api, twice, text_of(api, "3"))
    assert (end.code, end.value, len(end.requests)) == (0, "3", 2), end.line
    assert '\\"result\\":\\"3\\"' in end.shown
    assert '\\"result\\":\\"40\\"' in end.shown
    # The same again in the next turn: results belong to their calls over the whole conversation.
    again = await ended(api, twice, twice, text_of(api, "3"))
    assert (again.code, len(again.requests)) == (0, 3), again.line
    assert len(_ids(again.requests[-1])) == 4


def _ids(request: dict[str, Any]) -> set[str]:
    found = set()
    for said in request["messages"]:
        if said["role"] == "assistant":
            found |= {call["id"] for call in said.get("tool_calls") or ()}
            found |= {block["id"] for block in said["content"] or () if isinstance(block, dict) and "id" in block}
    return found


# --- C07 B: half a surrogate pair -------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", [OPENAI, ANTHROPIC])
async def test_c07_half_an_emoji_is_replaced_and_the_run_goes_on(api: ModelAPI) -> None:
    broken = {"operation": "add", "a": "\ud83d", "b": 1}
    # OpenAI's arguments are a text in the text: once with the escape inside it, once with the half itself.
    for arguments in [broken] if api is ANTHROPIC else [json.dumps(broken), json.dumps(broken, ensure_ascii=False)]:
        end = await ended(api, calls_of(api, arguments, text="a\ud83d"), text_of(api, "b\udc00"))
        assert (end.code, end.value, len(end.requests)) == (0, "b\ufffd", 2), end.line
        assert "is not a decimal number" in end.shown
        assert "ud83d" not in end.shown
        assert "a\\ufffd" in end.shown


# --- C13: answers that are cut off or filtered ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "finish", "code", "says"),
    [
        (OPENAI, "length", AgentExitCode.LIMIT_EXCEEDED, "did not fit model.settings.maxOutputTokens, 64 tokens"),
        (OPENAI, "content_filter", AgentExitCode.INVALID_OUTPUT, "filtered the answer: content_filter"),
        (ANTHROPIC, "max_tokens", AgentExitCode.LIMIT_EXCEEDED, "did not fit model.settings.maxOutputTokens, 64"),
        (ANTHROPIC, "refusal", AgentExitCode.INVALID_OUTPUT, "the model refused"),
        (ANTHROPIC, "model_context_window_exceeded", AgentExitCode.LIMIT_EXCEEDED, "the model's context window"),
    ],
)
@pytest.mark.parametrize("text", ["half an ans", ""])
async def test_c13_an_answer_that_is_cut_off_or_filtered_is_none(
    api: ModelAPI, finish: str, code: int, says: str, text: str
) -> None:
    model = {"provider": "local", "name": "some-model", "settings": {"maxOutputTokens": 64}}
    end = await ended(api, text_of(api, text, finish), model=model)
    assert (end.code, len(end.requests)) == (code, 1)
    assert says in end.line
    assert end.value is None


@pytest.mark.parametrize(("api", "finish"), [(OPENAI, "length"), (ANTHROPIC, "max_tokens")])
async def test_c13_the_budget_is_named_where_the_meter_lowered_the_maximum(api: ModelAPI, finish: str) -> None:
    end = await ended(api, text_of(api, "half an ans", finish), headers=LIMITED)
    assert end.code == AgentExitCode.LIMIT_EXCEEDED
    assert "cut off after 48 tokens: the budget" in end.line
    whole = await ended(api, text_of(api, "whole"), headers=LIMITED)
    assert (whole.code, whole.value) == (0, "whole")


@pytest.mark.parametrize(("api", "finish"), [(OPENAI, "length"), (ANTHROPIC, "max_tokens")])
async def test_c13_a_call_of_a_tool_that_is_cut_off_is_not_made(api: ModelAPI, finish: str) -> None:
    answer = calls_of(api, {"operation": "sqrt"} if api is ANTHROPIC else '{"operation": "sqrt", "a"')
    if api is OPENAI:
        answer["choices"][0]["finish_reason"] = finish
    else:
        answer["stop_reason"] = finish
    end = await ended(api, answer, text_of(api, "never"))
    assert (end.code, len(end.requests)) == (AgentExitCode.LIMIT_EXCEEDED, 1)


@pytest.mark.parametrize(("api", "finish"), [(OPENAI, "length"), (ANTHROPIC, "max_tokens")])
async def test_c13_a_structured_answer_that_is_whole_counts(api: ModelAPI, finish: str) -> None:
    output = {"jsonSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}
    whole = await ended(api, text_of(api, '{"n": 1}\n\n', finish), output=output)
    assert (whole.code, whole.value) == (0, {"n": 1}), whole.line
    cut = await ended(api, text_of(api, '{"n": 1', finish), output=output)
    assert (cut.code, len(cut.requests)) == (AgentExitCode.LIMIT_EXCEEDED, 1)


async def test_c13_a_refusal_without_content_is_told_in_the_model_s_words() -> None:
    end = await ended(OPENAI, chat({"content": None, "refusal": "I will not."}))
    assert end.code == AgentExitCode.INVALID_OUTPUT
    assert "I will not." in end.line


# --- C18: schemas as they are found -----------------------------------------------------------------------------------

PERSON = {"type": "object", "properties": {"n": {"type": "string"}}}
DRAFT_7 = {
    "type": "object",
    "properties": {"who": {"$ref": "#/definitions/Person"}},
    "required": ["who"],
    "definitions": {"Person": PERSON},
}
SCHEMAS: list[dict[str, Any]] = [
    DRAFT_7,
    {"$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://x.test/person.json"} | DRAFT_7,
    DRAFT_7 | {"properties": {"who": {"$ref": "#/properties/other"}, "other": PERSON}},
    DRAFT_7 | {"$defs": {"a/b": PERSON}, "properties": {"who": {"$ref": "#/$defs/a~1b"}}},
    DRAFT_7 | {"properties": {"who": {"$ref": "#/definitions/Person"}, "default": {"$ref": "#/definitions/Person"}}},
    DRAFT_7 | {"definitions": {"Person": {"$ref": "#/definitions/P"}, "P": PERSON}},
    DRAFT_7 | {"$defs": {"P": PERSON | {"$anchor": "here"}}, "properties": {"who": {"$ref": "#here"}}},
]


@pytest.mark.parametrize("api", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("document", SCHEMAS)
async def test_c18_references_within_the_schema_work(api: ModelAPI, document: dict[str, Any]) -> None:
    output = {"jsonSchema": document}
    assert first_problem(spec(output=output)) is None
    end = await ended(api, text_of(api, '{"who":{"n":1}}'), text_of(api, '{"who":{"n":"a"}}'), output=output)
    assert (end.code, end.value, len(end.requests)) == (0, {"who": {"n": "a"}}, 2), end.line
    assert "$.who.n: 1 is not of type" in end.shown
    assert "#/definitions" not in json.dumps(end.requests[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"definitions": {}}, "#/definitions/Person"),
        ({"properties": {"who": {"$ref": "https://elsewhere.test/x.json"}}}, "https://elsewhere.test/x.json"),
        ({"properties": {"who": {"$ref": "#"}}}, "contains itself"),
        ({"definitions": {"Person": {"properties": {"p": {"$ref": "#/definitions/Person"}}}}}, "contains itself"),
    ],
)
async def test_c18_a_reference_that_does_not_work_is_named_before_anything_runs(
    change: dict[str, Any], says: str
) -> None:
    end = await ended(OPENAI, text_of(OPENAI, "{}"), output={"jsonSchema": DRAFT_7 | change})
    assert (end.code, end.requests) == (AgentExitCode.INVALID_INPUT, [])
    assert "output.jsonSchema" in end.line
    assert says in end.line


def test_c18_a_schema_is_rewritten_in_its_references_alone() -> None:
    data = {"enum": [{"$ref": "#/definitions/Person"}], "default": {"$ref": "nowhere"}}
    rewritten = self_contained(DRAFT_7 | {"properties": {"who": {"$ref": "#/definitions/Person"}, "data": data}})
    assert rewritten["properties"] == {"who": {"$ref": "#/$defs/d0"}, "data": data}
    assert rewritten["$defs"] == {"d0": PERSON}
    assert "definitions" not in rewritten
    with pytest.raises(SchemaError, match="nowhere"):
        self_contained({"$ref": "#/nowhere"})


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_c18_a_number_that_is_no_json_is_asked_for_again(number: str) -> None:
    output = {"jsonSchema": {"type": "object", "properties": {"a": {"type": "number"}}}}
    bad, good = text_of(OPENAI, f'{{"a":{number}}}'), text_of(OPENAI, '{"a":1.5}')
    end = await ended(OPENAI, bad, good, output=output)
    assert (end.code, render(end.value), len(end.requests)) == (0, '{"a": 1.5}', 2), end.line
    end = await ended(OPENAI, bad, output=output)
    assert (end.code, len(end.requests)) == (AgentExitCode.INVALID_OUTPUT, 3)


# --- C21: answers that are none ---------------------------------------------------------------------------------------

ERROR = {"error": {"message": "upstream error", "code": 502}}


@pytest.mark.parametrize(
    ("api", "answer", "says"),
    [
        (OPENAI, ERROR, "the model provider failed: upstream error"),
        (OPENAI, chat({}) | {"choices": []}, "no choices"),
        (OPENAI, chat({}) | {"choices": None}, "no choices"),
        (OPENAI, chat({}) | {"choices": [], **ERROR}, "upstream error"),
        (OPENAI, {"error": "out of order"}, "out of order"),
        (OPENAI, {"choices": ["x"]}, "cannot be read"),
        (OPENAI, {"choices": [{"message": None}]}, "cannot be read"),
        (OPENAI, chat({"content": 7}), "cannot be read"),
        (OPENAI, [], "no JSON object"),
        (OPENAI, b"<html>", "not JSON"),
        (OPENAI, b"", "not JSON"),
        (OPENAI, b"[" * 50_000, "nested too deeply"),
        (ANTHROPIC, {"type": "error", **ERROR}, "upstream error"),
        (ANTHROPIC, message(None), "no content"),
        (ANTHROPIC, message("text"), "no content"),
        (ANTHROPIC, message([{"type": "tool_use", "id": "a", "name": None, "input": {}}]), "cannot be read"),
    ],
)
async def test_c21_an_answer_that_is_none_is_the_provider_s_failure(api: ModelAPI, answer: Any, says: str) -> None:
    end = await ended(api, answer, text_of(api, "3"))
    assert (end.code, len(end.requests)) == (AgentExitCode.PROVIDER_FAILED, 1)
    assert says in end.line


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "7", "input_tokens": None, "output_tokens": -1}, "x"])
@pytest.mark.parametrize("api", [OPENAI, ANTHROPIC])
async def test_odd_usage_is_the_meter_s_to_read_and_no_reason_to_fail(api: ModelAPI, usage: Any) -> None:
    end = await ended(api, text_of(api, "3") | {"usage": usage})
    assert (end.code, end.value) == (0, "3"), end.line


# --- whatever a model says --------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["calculator", "add", "operation", "c1", "a", "null", "{}", "[", '"\ud83d"', "\ud83d", "stop"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
PLACES: dict[ModelAPI, list[tuple[Any, ...]]] = {
    OPENAI: [
        (),
        *((name,) for name in ("id", "created", "model", "usage", "choices", "error", "service_tier")),
        *(("choices", 0, *rest) for rest in [(), ("message",), ("finish_reason",), ("logprobs",), ("index",)]),
        *(("choices", 0, "message", name) for name in ("content", "tool_calls", "refusal", "reasoning", "audio")),
        *(("choices", 0, "message", "tool_calls", 0, *rest) for rest in [(), ("id",), ("type",), ("function",)]),
        *(("choices", 0, "message", "tool_calls", 0, "function", name) for name in ("name", "arguments")),
    ],
    ANTHROPIC: [
        (),
        *((name,) for name in ("id", "model", "usage", "content", "stop_reason", "error", "container", "stop_details")),
        *(("content", 0, *rest) for rest in [(), ("type",), ("text",), ("citations",)]),
        *(("content", 1, *rest) for rest in [(), ("type",), ("id",), ("name",), ("input",)]),
    ],
}


@settings(max_examples=50, deadline=None)
@given(api=st.sampled_from([OPENAI, ANTHROPIC]), data=st.data(), value=JSON_VALUES)
async def test_no_answer_of_a_model_is_unexpected(api: ModelAPI, data: st.DataObject, value: Any) -> None:
    answer: Any = calls_of(api, json.dumps(ADD) if api is OPENAI else ADD, text="so")
    place = data.draw(st.sampled_from(PLACES[api]))
    if place:
        inner = answer
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
    else:
        answer = value
    end = await ended(api, answer, answer, text_of(api, "3"))
    assert end.code != 1, (place, value, end.line)
