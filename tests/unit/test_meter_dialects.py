"""What a request can cost at most, and what an answer says it cost, in both dialects: tables."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from almoner_core.pricing import TokenCounts
from almoner_runner.meter import anthropic, openai
from almoner_runner.meter.answers import tier_of
from almoner_runner.meter.body import Body, read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.refusals import InvalidCallError, RefusedError

CARD = Card(version="v", tiers=(Tier(input=1, cached_input=1, cache_write=1, output=1),))
WINDOW = 50_000
STRICT = Rules(strict=True, priced=True, default_output=1024)
FREE = Rules(strict=False, priced=False, default_output=1024)
MESSAGES = [{"role": "user", "content": "hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


NO_MESSAGES = (openai.responses, openai.embeddings)


def provider(kind: str = "OpenAICompatible", most: int | None = None) -> Provider:
    model = Model("m", CARD, context_window=WINDOW, max_output_tokens=most)
    return Provider("p", kind, "http://x/v1", ("OpenAI", "Anthropic"), {"m": model, "free": Model("free")})


def body(**fields: Any) -> Body:
    return read_body(json.dumps(fields).encode())


def bound(bounder: Any, rules: Rules = STRICT, *, kind: str = "OpenAICompatible", **request: Any) -> Call:
    call = bounder(provider(kind), body(model="m", **request), rules)
    assert isinstance(call, Call)
    return call


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_fields", "output"),
    [
        ({}, 1024),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": None}, 1024),
    ],
)
def test_chat_output_bound(request_fields: dict[str, Any], output: int) -> None:
    assert bound(openai.chat, messages=MESSAGES, **request_fields).output_bound == output


@pytest.mark.parametrize(
    ("kind", "request_fields", "sent"),
    [
        ("OpenAI", {}, {"max_completion_tokens": 1024}),
        ("OpenAI", {"max_tokens": 5}, {"max_tokens": 5}),
        ("OpenAI", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ("OpenAICompatible", {}, {"max_tokens": 1024}),
        # Case C06: the client's own field, alone.
        ("OpenAICompatible", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ("OpenAICompatible", {"max_tokens": 5}, {"max_tokens": 5}),
        (
            "OpenAICompatible",
            {"max_tokens": 5, "max_completion_tokens": 7},
            {"max_tokens": 7, "max_completion_tokens": 7},
        ),
    ],
)
def test_the_output_maximum_is_always_sent(kind: str, request_fields: dict[str, Any], sent: dict[str, int]) -> None:
    payload = json.loads(bound(openai.chat, kind=kind, messages=MESSAGES, **request_fields).body())
    assert {k: v for k, v in payload.items() if k.startswith("max_")} == sent


def test_a_maximum_beyond_the_models_own_is_lowered_to_it() -> None:
    call = openai.chat(provider(most=4096), body(model="m", messages=MESSAGES, max_tokens=10**6), STRICT)
    assert (call.output_bound, json.loads(call.body())["max_tokens"]) == (4096, 4096)


def test_text_is_bounded_by_its_bytes_and_more() -> None:
    text = "naïve 漢字 🎉 " * 100
    call = bound(openai.chat, messages=[{"role": "user", "content": text}])
    assert len(text.encode()) < call.input_bound < len(json.dumps(text)) + 500


@pytest.mark.parametrize(
    ("content", "window"),
    [
        ("text", False),
        ([{"type": "text", "text": "x"}], False),
        ([{"type": "text", "text": "x"}, IMAGE], True),
        ([{"type": "input_audio", "input_audio": {}}], True),
        ([{"type": "file", "file": {"file_id": "f"}}], True),
        ({"odd": 1}, True),
    ],
)
def test_chat_input_that_is_not_text_is_bounded_by_the_window(content: Any, window: bool) -> None:
    call = bound(openai.chat, messages=[{"role": "user", "content": content}])
    assert (call.input_bound == WINDOW) == window


def test_earlier_audio_is_not_in_the_request_and_bounded_by_the_window() -> None:
    messages = [{"role": "assistant", "audio": {"id": "audio_1"}}, *MESSAGES]
    assert bound(openai.chat, messages=messages).input_bound == WINDOW


@pytest.mark.parametrize(
    ("content", "window"),
    [
        ("text", False),
        ([{"type": "text", "text": "x"}], False),
        ([{"type": "tool_result", "tool_use_id": "t", "content": "x"}], False),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]}], True),
        ([{"type": "image", "source": {"type": "url", "url": "https://x"}}], True),
        ([{"type": "document", "source": {}}], True),
        (["bare"], True),
    ],
)
def test_message_input_that_is_not_text_is_bounded_by_the_window(content: Any, window: bool) -> None:
    call = bound(anthropic.messages, max_tokens=5, messages=[{"role": "user", "content": content}])
    assert (call.input_bound == WINDOW) == window


def test_tools_raise_the_input_bound() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    plain, with_tools = bound(openai.chat, messages=MESSAGES), bound(openai.chat, messages=MESSAGES, tools=[tool])
    assert with_tools.input_bound - plain.input_bound > 1024 + len(json.dumps(tool))
    custom = {"name": "f", "input_schema": {"type": "object"}}
    plain = bound(anthropic.messages, max_tokens=5, messages=MESSAGES)
    with_tools = bound(anthropic.messages, max_tokens=5, messages=MESSAGES, tools=[custom])
    assert with_tools.input_bound - plain.input_bound > 1024


def test_thinking_keeps_the_maximum_above_its_budget() -> None:
    thinking = {"type": "enabled", "budget_tokens": 2000}
    call = bound(anthropic.messages, max_tokens=3000, messages=MESSAGES, thinking=thinking)
    # Where the maximum is lowered below it, the budget goes down too.
    assert (call.output_bound, call.output_least) == (3000, 2048)
    # Interleaved thinking may have the larger budget: then both count.
    assert bound(anthropic.messages, max_tokens=1000, messages=MESSAGES, thinking=thinking).output_bound == 3000


def test_a_response_that_continues_another_is_bounded_by_the_window() -> None:
    assert bound(openai.responses, input="hello").input_bound < 500
    assert bound(openai.responses, input="hello", previous_response_id="r").input_bound == WINDOW
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    assert bound(openai.responses, input=image).input_bound == WINDOW
    text = [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, {"type": "item_reference", "id": "i"}]
    assert bound(openai.responses, input=text[:1]).input_bound < 500
    assert bound(openai.responses, input=text).input_bound == WINDOW
    assert bound(openai.responses, input="x", max_output_tokens=5).output_bound == 5


def test_embeddings_have_no_output() -> None:
    call = bound(openai.embeddings, input=["a", "b"])
    assert (call.output_bound, call.resource_type) == (0, "embedding")


@pytest.mark.parametrize(
    ("bounder", "fields", "param"),
    [
        (openai.chat, {"web_search_options": {}}, "web_search_options"),
        (openai.chat, {"prediction": {}}, "prediction"),
        (openai.chat, {"modalities": ["audio"]}, "modalities"),
        (openai.chat, {"n_predict": 100_000}, "n_predict"),
        (openai.chat, {"service_tier": "priority"}, "service_tier"),
        (openai.chat, {"tools": [{"type": "web_search"}]}, "tools"),
        (openai.chat, {"n": 0}, "n"),
        (openai.chat, {"n": 10_000}, "n"),
        (openai.chat, {"max_tokens": -1}, "max_tokens"),
        (openai.chat, {"max_tokens": 1.5}, "max_tokens"),
        (openai.chat, {"max_tokens": True}, "max_tokens"),
        (openai.chat, {"stream": "yes"}, "stream"),
        (openai.chat, {"stream": True, "stream_options": 1}, "stream_options"),
        (openai.responses, {"background": True}, "background"),
        (openai.responses, {"tools": [{"type": "web_search_preview"}]}, "tools"),
        (openai.responses, {"prompt": {"id": "p"}}, "prompt"),
        (openai.embeddings, {"stream": True}, "stream"),
        (anthropic.messages, {"mcp_servers": [{"type": "url", "url": "https://x"}]}, "mcp_servers"),
        (anthropic.messages, {"container": "c"}, "container"),
        (anthropic.messages, {"speed": "fast"}, "speed"),
        (anthropic.messages, {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools"),
        (
            anthropic.messages,
            {"system": [{"type": "text", "text": "x", "cache_control": {"ttl": "1h"}}]},
            "cache_control",
        ),
        (anthropic.messages, {"service_tier": "batch"}, "service_tier"),
    ],
)
def test_what_may_cost_more_is_refused_by_name(bounder: Any, fields: dict[str, Any], param: str) -> None:
    arguments: dict[str, Any] = fields if bounder in NO_MESSAGES else {"messages": MESSAGES, **fields}
    with pytest.raises(InvalidCallError) as refused:
        bound(bounder, STRICT, **arguments)
    assert refused.value.param == param


CLEAR = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}, {"type": "clear_tool_uses_20250919"}]}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("bounder", "fields"),
    [
        # Case C05, fault F12: what asks for nothing, and what only shrinks or marks a call.
        (openai.chat, {"modalities": ["text"]}),
        *((openai.chat, {name: None}) for name in ("modalities", "audio", "prediction", "web_search_options")),
        (openai.responses, {"background": False, "conversation": None, "prompt": None, "client_metadata": {"a": "b"}}),
        (openai.responses, {"unheard_of": ""}),
        (anthropic.messages, {"context_management": CLEAR}),
        (anthropic.messages, {"container": None, "mcp_servers": [], "fallbacks": []}),
        (anthropic.messages, {"speed": "standard", "thread": None}),
        (openai.embeddings, {"truncate": None}),
    ],
)
def test_what_costs_nothing_more_passes_as_it_is(bounder: Any, fields: dict[str, Any]) -> None:
    given: dict[str, Any] = {"input": "hello"} if bounder in NO_MESSAGES else {"messages": MESSAGES}
    call = bound(bounder, **given, **fields)
    sent = json.loads(call.body())
    assert {name: sent[name] for name in fields} == fields
    assert call.input_bound < WINDOW, "it is bounded by its bytes as before"


@pytest.mark.parametrize(
    "value",
    [
        {"edits": [{"type": "compact_20260112"}]},
        {"edits": [CLEAR["edits"][0], {"type": "compact_20260112"}]},
        {"edits": [{"type": ["clear_thinking_"]}]},
        {"edits": {}},
        {"edits": [], "other": 1},
        {},
    ],
)
def test_context_management_that_may_sample_is_refused(value: Any) -> None:
    with pytest.raises(InvalidCallError, match="context_management"):
        bound(anthropic.messages, max_tokens=5, messages=MESSAGES, context_management=value)


def test_every_fault_of_a_request_is_named_at_once() -> None:
    with pytest.raises(InvalidCallError) as refused:
        bound(
            anthropic.messages,
            max_tokens=5,
            messages=MESSAGES,
            container="c",
            speed="fast",
            tools=[
                {"type": "tool_search_tool_bm25_20251119", "name": "t"},
                {"type": "web_search_20250305", "name": "w"},
            ],
            system=[{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            service_tier="batch",
        )
    said = refused.value.message
    for words in ("container, speed", "tools[0]", "tools[1]", "cache_control.ttl", "service_tier"):
        assert words in said
    with pytest.raises(InvalidCallError, match=r"n_predict.*tools.0.*service_tier"):
        bound(openai.chat, messages=MESSAGES, n_predict=9, tools=[{"type": "web_search"}], service_tier="priority")


def test_many_unknown_fields_make_no_long_answer() -> None:
    with pytest.raises(InvalidCallError) as refused:
        openai.chat(provider(), body(model="m", **{"x" * 500 + str(number): 1 for number in range(500)}), STRICT)
    assert len(refused.value.message) < 600
    with pytest.raises(InvalidCallError, match="and 492 more") as refused:
        bound(openai.chat, messages=MESSAGES, tools=[{"type": "web_search"}] * 500)
    assert len(refused.value.message) < 3000


def test_what_runs_at_codexs_own_side_is_bounded_by_its_bytes() -> None:
    """Case C15."""
    tools = [
        FUNCTION,
        {"type": "custom", "name": "apply_patch"},
        {"type": "local_shell"},
        {"type": "namespace", "name": "x", "description": "y", "tools": [FUNCTION]},
    ]
    plain = bound(openai.responses, input="hello", tools=[FUNCTION])
    call = bound(openai.responses, input="hello", tools=tools)
    assert plain.input_bound + len(json.dumps(FUNCTION)) < call.input_bound < WINDOW
    items: list[Any] = [
        {"type": "message", "role": "user", "content": "hello"},
        {"type": "additional_tools", "role": "developer", "tools": [FUNCTION]},
        {
            "type": "local_shell_call",
            "call_id": "c",
            "action": {"type": "exec", "command": ["ls"]},
            "status": "completed",
        },
        {"type": "local_shell_call_output", "call_id": "c", "output": "x"},
    ]
    without = bound(openai.responses, input=items[:1] + items[2:])
    call = bound(openai.responses, input=items)
    # What is written anew counts twice, as it does among the tools.
    assert without.input_bound + 2 * len(json.dumps(FUNCTION)) <= call.input_bound < WINDOW


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "web_search", "external_web_access": False},
        {"type": "namespace", "name": "x", "tools": [{"type": "web_search"}]},
        {"type": "namespace", "name": "x", "tools": [{"type": "namespace", "name": "y", "tools": []}]},
        {"type": "shell"},
    ],
)
def test_hosted_tools_are_refused_wherever_they_are(tool: dict[str, Any]) -> None:
    with pytest.raises(InvalidCallError, match="hosted tool"):
        bound(openai.responses, input="hello", tools=[tool])
    with pytest.raises(InvalidCallError, match="hosted tool"):
        bound(openai.responses, input=[{"type": "additional_tools", "tools": [tool]}])
    with pytest.raises(InvalidCallError, match="hosted tool 'namespace'"):
        bound(openai.chat, messages=MESSAGES, tools=[{"type": "namespace", "name": "x", "tools": []}])


def test_a_tool_that_is_on_by_default_is_refused_with_the_way_to_switch_it_off() -> None:
    with pytest.raises(InvalidCallError, match=r'web_search = "disabled"'):
        bound(openai.responses, input="hello", tools=[{"type": "web_search"}])


def test_threads_are_refused_so_that_tool_runners_go_on_without() -> None:
    """Fault F9: by these words alone the SDKs know."""
    with pytest.raises(InvalidCallError) as refused:
        bound(anthropic.messages, max_tokens=5, messages=MESSAGES, thread={"type": "create"})
    error = refused.value
    body = anthropic.error_body(error.code, error.message, error.status, error.param)["error"]
    assert body["type"] == "invalid_request_error"
    assert body["details"] == {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}


def test_without_a_budget_unknown_fields_pass() -> None:
    call = bound(openai.chat, FREE, messages=MESSAGES, web_search_options={})
    assert json.loads(call.body())["web_search_options"] == {}
    assert bound(anthropic.messages, FREE, max_tokens=5, messages=MESSAGES, speed="fast").output_bound == 5


@pytest.mark.parametrize("name", ["free", "unheard-of"])
def test_an_unpriced_model_is_refused_only_under_money(name: str) -> None:
    with pytest.raises(RefusedError, match="no known price"):
        openai.chat(provider(), body(model=name, messages=MESSAGES), STRICT)
    call = openai.chat(provider(), body(model=name, messages=MESSAGES), FREE)
    assert "usd" not in call.bound()


@pytest.mark.parametrize("model", [None, "", 7, "x" * 200, "x\0", "x\n"])
@pytest.mark.parametrize("bounder", [openai.chat, openai.responses, openai.embeddings, anthropic.messages])
def test_a_call_must_name_its_model_as_the_ledger_can_store_it(bounder: Any, model: Any) -> None:
    with pytest.raises(InvalidCallError, match="model: must name"):
        bounder(provider(), body(model=model, messages=MESSAGES, input="x"), FREE)


@pytest.mark.parametrize("tier", ["flex\0", "flex\n", "x" * 40, "é", 7, None])
def test_a_tier_that_the_ledger_could_not_store_is_none(tier: Any) -> None:
    assert tier_of({"service_tier": tier}) is None
    assert tier_of({"service_tier": "flex"}) == "flex"


def test_messages_must_be_a_list() -> None:
    for bounder in (openai.chat, anthropic.messages):
        with pytest.raises(InvalidCallError, match="messages: must be a list"):
            bound(bounder, messages={})


def test_the_tier_is_held_to_the_list_price_at_openai_alone() -> None:
    assert bound(openai.chat, kind="OpenAI", messages=MESSAGES).payload.get("service_tier") == "default"
    assert "service_tier" not in bound(openai.chat, messages=MESSAGES).payload.fields


def test_lowering_the_output_and_taking_it_back() -> None:
    call = bound(openai.chat, messages=MESSAGES, max_completion_tokens=500, n=2)
    room = call.bound(100)["tokens"]
    assert call.output_max_within("tokens", room) == 100
    call.lower_output(100)
    assert (call.output_bound, call.limited_from) == (200, 500)
    assert json.loads(call.body())["max_completion_tokens"] == 100
    assert "max_tokens" not in json.loads(call.body())
    call.restore_output(500)
    assert (call.output_bound, call.limited_from) == (1000, None)
    assert call.output_max_within("tool_calls", 10) == -1
    assert call.output_max_within("tokens", 1) == -1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"), [(429, "rate_limit_error"), (404, "not_found_error"), (503, "overloaded_error")]
)
def test_refusals_in_each_providers_shape(status: int, kind: str) -> None:
    assert anthropic.error_body("code", "why", status, None)["error"]["type"] == kind
    body = openai.error_body("insufficient_quota", "why", 429, None)
    assert body["error"]["type"] == body["error"]["code"] == "insufficient_quota"


def test_c05_cache_entries_of_an_hour_pass_where_they_have_a_price() -> None:
    system = [{"type": "text", "text": "x" * 500, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    tier = Tier(input=1000, cached_input=100, cache_write=1250, output=5000, cache_write_long=2000)
    priced = dataclasses.replace(provider(), models={"m": Model("m", Card("v", (tier,)), WINDOW)})
    asked = {"model": "m", "max_tokens": 5, "messages": MESSAGES}
    long = anthropic.messages(priced, body(**asked, system=system), STRICT)
    short = anthropic.messages(priced, body(**asked, system="x" * 500), STRICT)
    assert (long.long_cache, short.long_cache) == (True, False)
    assert long.bound()["usd"] > short.bound()["usd"] * 3 // 2
    written = TokenCounts(input=100, cache_write=100, cache_write_long=60)
    assert long.cost(written) == -(-(40 * 1250 + 60 * 2000) // 1_000_000)


@pytest.mark.parametrize("bounder", [openai.chat, openai.responses, openai.embeddings, anthropic.messages])
def test_f11_what_the_provider_allows_passes_and_its_bytes_count(bounder: Any) -> None:
    field = {"chat_template_kwargs": {"enable_thinking": True, "note": "x" * 300}}
    given: dict[str, Any] = {"input": "hi"} if bounder in NO_MESSAGES else {"messages": MESSAGES, "max_tokens": 5}
    request = {"model": "m", **given}
    with pytest.raises(InvalidCallError, match=r"chat_template_kwargs.*allowFields"):
        bounder(provider(), body(**request, **field), STRICT)
    allowing = dataclasses.replace(provider(), allow_fields=frozenset(field))
    call = bounder(allowing, body(**request, **field), STRICT)
    plain = bounder(allowing, body(**request), STRICT)
    # Once as it was sent, and once more where a template may write it anew.
    times = 1 if bounder is openai.embeddings else 2
    assert 300 * times < call.input_bound - plain.input_bound < WINDOW / 2
    with pytest.raises(InvalidCallError, match="guided_json"):
        bounder(allowing, body(**request, **field, guided_json={"a": 1}), STRICT)
