"""How much of a broken stream came: never less than its tokens, and no bound where a model may reason unseen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_runner.meter import anthropic, openai
from almoner_runner.meter.body import read_body
from almoner_runner.meter.came import CALL_TOKENS, CALL_WEIGHT, MARGIN_TOKENS, Came, shows_all
from almoner_runner.meter.config import Model, Provider
from almoner_runner.meter.dialect import Rules

RULES = Rules(strict=False, priced=False)


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def counted(shape: str, *events: dict[str, Any]) -> Came:
    came = Came(shape)
    for each in events:
        came.watch(event(each))
    return came


def chat(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hällo"}}
START = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}


@pytest.mark.parametrize(
    ("shape", "events", "least"),
    [
        ("openai", [chat(role="assistant", content=""), chat(content="hällo")], 6),
        ("openai", [{"choices": [{"index": 0, "text": "hello"}]}], 5),
        ("openai", [chat(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}])], CALL_TOKENS),
        ("openai", [chat(content="a"), {"choices": [], "usage": None}, {"choices": [{"delta": None}]}], 1),
        ("anthropic", [{"type": "message_start"}, START, TEXT], 6),
        (
            "anthropic",
            [
                {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f", "input": {}}},
                {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'}},
            ],
            7 * CALL_WEIGHT,
        ),
        ("responses", [{"type": "response.output_text.delta", "delta": "hällo"}], 6),
        ("responses", [{"type": "response.function_call_arguments.delta", "delta": "{}"}], 2 * CALL_WEIGHT),
    ],
)
def test_what_came_is_counted_by_its_bytes(shape: str, events: list[dict[str, Any]], least: int) -> None:
    bound = counted(shape, *events).bound
    assert bound is not None
    assert least + MARGIN_TOKENS <= bound <= least + MARGIN_TOKENS + 100


@pytest.mark.parametrize(
    ("shape", "events"),
    [
        ("openai", []),
        ("openai", [chat(role="assistant", content="")]),
        ("openai", [chat(content="a"), chat(reasoning_content="hm")]),
        ("openai", [chat(content="a"), chat(reasoning="hm")]),
        ("openai", [chat(content=[{"type": "text", "text": "a"}])]),
        ("anthropic", [{"type": "message_start"}]),
        ("anthropic", [{"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}, TEXT]),
        ("anthropic", [{"type": "content_block_start", "content_block": {"type": "redacted_thinking"}}, TEXT]),
        ("anthropic", [TEXT, {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "x"}}]),
        ("responses", [{"type": "response.output_item.added", "item": {"type": "reasoning"}}]),
        ("responses", [{"type": "response.reasoning_summary_text.delta", "delta": "x"}]),
    ],
)
def test_where_nothing_came_or_something_is_hidden_the_hold_is_taken(shape: str, events: list[dict[str, Any]]) -> None:
    assert counted(shape, *events).bound is None


@given(st.lists(st.text(), min_size=1))
def test_no_text_has_more_tokens_than_are_counted(texts: list[str]) -> None:
    # The finest tokenizer there is gives a token for each byte.
    whole = sum(len(text.encode("utf-8", "replace")) for text in texts)
    for shape, made in (
        ("openai", [chat(content=text) for text in texts]),
        ("anthropic", [START] + [TEXT | {"delta": {"type": "text_delta", "text": text}} for text in texts]),
        ("responses", [{"type": "response.output_text.delta", "delta": text} for text in texts]),
    ):
        bound = counted(shape, *made).bound
        assert bound is None or bound >= whole + MARGIN_TOKENS
        assert whole == 0 or bound is not None


@pytest.mark.parametrize(
    ("dialect", "model", "fields", "shows"),
    [
        ("messages", "claude-sonnet-4-5", {}, True),
        ("messages", "claude-sonnet-4-5", {"thinking": {"type": "disabled"}}, True),
        ("messages", "claude-sonnet-4-5", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, False),
        ("messages", "claude-sonnet-4-5", {"thinking": {"type": "adaptive"}}, False),
        ("chat", "gpt-4.1-mini", {}, True),
        ("chat", "gpt-4o-2024-08-06", {}, True),
        ("chat", "openai/gpt-4o", {}, True),
        ("chat", "gpt-4o-audio-preview", {}, False),
        ("chat", "gpt-4.1-mini", {"reasoning_effort": "low"}, False),
        ("chat", "gpt-5", {}, False),
        ("chat", "o3", {}, False),
        ("chat", "some-model", {}, False),
        ("responses", "gpt-4.1", {}, True),
        ("responses", "gpt-4.1", {"reasoning": {"effort": "low"}}, False),
        ("responses", "gpt-5-mini", {}, False),
    ],
)
def test_only_streams_that_show_all_are_counted(dialect: str, model: str, fields: dict[str, Any], shows: bool) -> None:
    provider = Provider("p", "OpenAICompatible", "https://p.test/v1", ("OpenAI",), {model: Model(model)})
    body = {"model": model, "stream": True, "max_tokens": 4096, "messages": [{"role": "user", "content": "x"}]}
    if dialect == "responses":
        body = {"model": model, "stream": True, "input": "x"}
    bounder = {"messages": anthropic.messages, "chat": openai.chat, "responses": openai.responses}[dialect]
    call = bounder(provider, read_body(json.dumps(body | fields).encode()), RULES)
    assert shows_all(call) is shows
