"""What a request can cost at most, and what an answer says it cost, in both dialects: tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

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
        # A server that knows only the older name would not be bounded by the newer one.
        ("OpenAICompatible", {"max_completion_tokens": 5}, {"max_completion_tokens": 5, "max_tokens": 5}),
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
    assert (call.output_bound, call.output_least) == (3000, 2001)
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
        (anthropic.messages, {"mcp_servers": []}, "mcp_servers"),
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
    assert json.loads(call.body())["max_tokens"] == json.loads(call.body())["max_completion_tokens"] == 100
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
