"""Images, files and references: bounded by what providers document, by their own count, or by what this meter saw."""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_runner.meter import anthropic, counting, openai
from almoner_runner.meter.app import Bounder
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules

CARD = Card("v", (Tier(1000, 1000, 1000, 1000),))
WINDOW = 1_000_000
STRICT = Rules(strict=True, priced=True)
PNG = base64.b64encode(b"\x89PNG" * 5_000).decode()
DATA_URL = f"data:image/png;base64,{PNG}"
SMALL = 1_000  # tokens: the text of these requests, whatever it is


def bound(bounder: Bounder, kind: str, model: str, rules: Rules = STRICT, **payload: Any) -> Call:
    provider = Provider("p", kind, "http://p/v1", ("OpenAI", "Anthropic"), {model: Model(model, CARD, WINDOW)})
    return bounder(provider, read_body(json.dumps({"model": model, **payload}).encode()), rules)


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def image(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


INLINE = image(type="base64", media_type="image/png", data=PNG)
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PNG}}
CLAUDE_IMAGES = [
    (user(INLINE), 1),
    (user(INLINE, INLINE, image(type="url", url="https://x/y.png")), 3),
    (user(image(type="file", file_id="f")), 1),
    (user({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "x"}, INLINE]}), 1),
    (user({"type": "document", "source": {"type": "content", "content": [INLINE]}}), 1),
    (user({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}), 0),
    (user({"type": "text", "text": "x"}), 0),
]


@pytest.mark.parametrize(("messages", "count"), CLAUDE_IMAGES)
def test_f3_an_image_costs_claude_so_much_at_most_and_not_its_bytes(messages: Any, count: int) -> None:
    call = bound(anthropic.messages, "Anthropic", "claude-opus-4-8", max_tokens=5, messages=messages)
    assert count * 5_000 <= call.input_bound <= count * 5_000 + SMALL


@pytest.mark.parametrize(("model", "each"), [("gpt-4.1-mini", 4_096), ("gpt-4o-mini", 50_000), ("gpt-9", 50_000)])
@pytest.mark.parametrize("url", [DATA_URL, "https://x/y.png"])
def test_f3_an_image_costs_openai_s_models_so_much_at_most(model: str, each: int, url: str) -> None:
    # Strands says the format beside.
    part = {"type": "image_url", "image_url": {"url": url, "detail": "high", "format": "image/png"}}
    chat = bound(openai.chat, "OpenAI", model, messages=user(part, {"type": "text", "text": "what is it?"}))
    assert each <= chat.input_bound <= each + SMALL
    items = [
        {"role": "user", "content": [{"type": "input_image", "image_url": url}]},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": url}]},
    ]
    response = bound(openai.responses, "OpenAI", model, input=items)
    assert 2 * each <= response.input_bound <= 2 * each + SMALL


def test_a_server_that_documents_nothing_may_see_a_whole_window() -> None:
    part = {"type": "image_url", "image_url": {"url": DATA_URL}}
    assert bound(openai.chat, "OpenAICompatible", "m", messages=user(part)).input_bound == WINDOW
    assert bound(anthropic.messages, "OpenAICompatible", "m", max_tokens=5, messages=user(INLINE)).input_bound == WINDOW


@pytest.mark.parametrize(
    ("bounder", "kind", "messages"),
    [
        # What looks like an image in a tool's input is written into the prompt as it is.
        (anthropic.messages, "Anthropic", user({"type": "tool_use", "id": "t", "name": "n", "input": {"x": [INLINE]}})),
        (anthropic.messages, "Anthropic", user({"type": "text", "text": json.dumps(INLINE)})),
        (openai.chat, "OpenAI", user({"type": "text", "text": json.dumps({"type": "image_url", "url": DATA_URL})})),
    ],
)
def test_text_that_looks_like_an_image_counts_by_its_bytes(bounder: Bounder, kind: str, messages: Any) -> None:
    call = bound(bounder, kind, "gpt-4o", max_tokens=5, messages=messages)
    assert len(PNG) < call.input_bound < WINDOW


@pytest.mark.parametrize(
    "source",
    [
        {"type": "base64", "media_type": "application/pdf", "data": PNG},
        {"type": "base64", "media_type": "text/plain", "data": PNG},
        {"type": "url", "url": "https://x/y.pdf"},
        {"type": "file", "file_id": "f"},
    ],
)
def test_a_document_is_bounded_by_the_window(source: dict[str, Any]) -> None:
    messages = user({"type": "document", "source": source})
    assert bound(anthropic.messages, "Anthropic", "m", max_tokens=5, messages=messages).input_bound == WINDOW


def test_data_that_calls_itself_no_image_is_text() -> None:
    other = image(type="base64", media_type="application/pdf", data=PNG)
    call = bound(anthropic.messages, "Anthropic", "m", max_tokens=5, messages=user(other))
    assert call.input_bound > len(PNG)


@given(st.lists(st.sampled_from(["text", "image", "result"]), max_size=8), st.text(max_size=60))
def test_the_bound_covers_every_byte_that_is_no_image_and_every_image(kinds: list[str], text: str) -> None:
    blocks = {
        "text": {"type": "text", "text": text},
        "image": INLINE,
        "result": {"type": "tool_result", "tool_use_id": "t", "content": [INLINE, {"type": "text", "text": text}]},
    }
    call = bound(anthropic.messages, "Anthropic", "m", max_tokens=5, messages=user(*(blocks[kind] for kind in kinds)))
    count = sum(kind != "text" for kind in kinds)
    assert call.input_bound >= len(call.body()) - count * len(PNG) + count * 5_000


def test_the_window_caps_what_bytes_say_where_it_is_enforced() -> None:
    long = [{"role": "user", "content": "x" * (WINDOW + 10_000)}]
    assert bound(openai.chat, "OpenAI", "gpt-4o", messages=long).input_bound == WINDOW
    assert bound(openai.chat, "OpenAICompatible", "m", messages=long).input_bound > WINDOW


def test_tools_count_once_where_their_form_in_the_prompt_is_shorter() -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "d" * 5_000, "parameters": {}}}
    once = bound(openai.chat, "OpenAI", "gpt-4o", messages=[], tools=[tool]).input_bound
    twice = bound(openai.chat, "OpenAICompatible", "m", messages=[], tools=[tool]).input_bound
    assert 5_000 < once < 7_000
    assert twice > once + 5_000
    tool["function"]["description"] = "\u00e9" * 5_000  # type: ignore[index]
    assert bound(openai.chat, "OpenAI", "gpt-4o", messages=[], tools=[tool]).input_bound > 30_000


def test_f3_a_response_that_this_meter_saw_counts_what_it_had() -> None:
    known = dataclasses.replace(STRICT, stored={"p/resp_1": 4_000})
    asked: dict[str, Any] = {"input": "go on", "previous_response_id": "resp_1"}
    assert 4_000 < bound(openai.responses, "OpenAI", "gpt-4o", known, **asked).input_bound < 4_000 + SMALL
    assert bound(openai.responses, "OpenAI", "gpt-4o", **asked).input_bound == WINDOW
    other = {**asked, "previous_response_id": "resp_2"}
    assert bound(openai.responses, "OpenAI", "gpt-4o", known, **other).input_bound == WINDOW


def test_what_the_provider_is_asked_to_count() -> None:
    claude = bound(anthropic.messages, "Anthropic", "m", max_tokens=5, temperature=1, messages=user(PDF), system="s")
    assert counting.question(claude) == (
        "messages/count_tokens",
        {"model": "m", "messages": user(PDF), "system": "s"},
    )
    response = bound(openai.responses, "OpenAI", "gpt-4o", input="x", previous_response_id="r", temperature=1)
    assert counting.question(response) == (
        "responses/input_tokens",
        {"model": "gpt-4o", "input": "x", "previous_response_id": "r"},
    )
    file = {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PNG}"}
    chat = bound(openai.chat, "OpenAI", "gpt-4o", messages=user({"type": "file", "file": file}))
    assert counting.question(chat) == (
        "responses/input_tokens",
        {"model": "gpt-4o", "input": [{"role": "user", "content": [{"type": "input_file", **file}]}]},
    )
    assert chat.input_bound == WINDOW
    assert chat.beside_files < SMALL
    # Nothing that only a byte bound serves, and no server that is not the provider's own.
    assert counting.question(bound(openai.chat, "OpenAI", "gpt-4o", messages=[])) is None
    assert counting.question(bound(anthropic.messages, "OpenAICompatible", "m", max_tokens=5, messages=[])) is None


def test_a_file_among_what_nobody_counts_is_not_counted_alone() -> None:
    parts = ({"type": "file", "file": {"file_id": "f"}}, {"type": "input_audio", "input_audio": {"data": "A"}})
    call = bound(openai.chat, "OpenAI", "gpt-4o", messages=user(*parts))
    assert call.input_bound == WINDOW
    assert counting.question(call) is None


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [({"input_tokens": 3_000}, 3_662), ({"input_tokens": 0}, None), ({"input_tokens": True}, None), ({}, None)],
)
def test_a_count_bounds_with_a_margin(answer: dict[str, Any], tokens: int | None) -> None:
    call = bound(anthropic.messages, "Anthropic", "m", max_tokens=5, messages=user(PDF))
    assert counting.bound_of(call, answer) == tokens
