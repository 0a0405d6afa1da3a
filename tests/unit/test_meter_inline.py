"""Which input its bytes bound: only shapes that are on the list; everything else is bounded by the context window."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseReasoningItem
from pydantic import BaseModel

from almoner_core.environment import DEFAULT_CONTEXT_WINDOW
from almoner_runner.meter import anthropic, openai
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.refusals import InvalidCallError, RefusedError

CARD = Card(version="v", tiers=(Tier(input=1, cached_input=1, cache_write=1, output=1),))
WINDOW = 50_000
STRICT = Rules(strict=True, priced=True, default_output=1024)
FREE = Rules(strict=False, priced=False, default_output=1024)
PROVIDER = Provider(
    "p", "OpenAICompatible", "http://x/v1", ("OpenAI", "Anthropic"), {"m": Model("m", CARD, context_window=WINDOW)}
)
CACHE = {"cache_control": {"type": "ephemeral"}}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "number"}}}


def bounded(bounder: Callable[..., Call], rules: Rules = STRICT, **fields: Any) -> bool:
    """Whether a request is bounded by its bytes, and not by the window."""
    call = bounder(PROVIDER, read_body(json.dumps({"model": "m", **fields}).encode()), rules)
    assert call.input_bound >= len(call.body())
    return call.input_bound < WINDOW


def chat(message: Any) -> bool:
    return bounded(openai.chat, messages=[message])


def response(item: Any) -> bool:
    return bounded(openai.responses, input=[item])


def message(block: Any) -> bool:
    return bounded(anthropic.messages, max_tokens=5, messages=[{"role": "user", "content": [block]}])


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


TEXT = {"type": "text", "text": "hello"}
ALLOWED: dict[str, tuple[Callable[[Any], bool], dict[str, Any]]] = {
    "chat text": (chat, {"role": "user", "content": "hello", "name": "alice"}),
    "chat parts": (chat, user({**TEXT, **CACHE}, {"type": "refusal", "refusal": "no"})),
    "chat calls": (
        chat,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "thoughts",
            "tool_calls": [
                {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"x":1e15}'}},
                {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "text"}},
                {
                    "id": "c3",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra_content": {"google": {"thought_signature": "AAAA"}},
                },
            ],
        },
    ),
    "chat result": (chat, {"role": "tool", "tool_call_id": "c1", "content": "4"}),
    "chat old call": (chat, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}),
    "response message": (response, {"role": "user", "content": "hello"}),
    "response parts": (
        response,
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "phase": "final_answer",
            "content": [{"type": "output_text", "text": "hi"}],
        },
    ),
    "response call": (
        response,
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
    ),
    "response result": (response, {"type": "function_call_output", "id": "fco_1", "call_id": "c", "output": "4"}),
    "response custom call": (response, {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "text"}),
    "response custom result": (
        response,
        {"type": "custom_tool_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "4"}]},
    ),
    "response reasoning": (
        response,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "I thought"}],
            "encrypted_content": "gAAAA",
        },
    ),
    "response thoughts": (
        response,
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "I thought"}]},
    ),
    "message text": (message, {**TEXT, **CACHE}),
    "message call": (
        message,
        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1e15]}, "caller": {"type": "direct"}},
    ),
    "message result": (
        message,
        {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": [TEXT], **CACHE},
    ),
    "message thinking": (message, {"type": "thinking", "thinking": "I think", "signature": "AAAA"}),
    "message hidden": (message, {"type": "redacted_thinking", "data": "AAAA"}),
    "message search": (
        message,
        {
            "type": "search_result",
            "source": "https://example.com",
            "title": "it",
            "content": [TEXT],
            "citations": {"enabled": True},
        },
    ),
}
# What each of these loses its content without: the rest is then stored, or nowhere.
NEEDED = {
    "response parts": ("role", "content"),
    "response call": ("call_id", "name", "arguments"),
    "response result": ("call_id", "output"),
    "response reasoning": ("encrypted_content",),
    "message hidden": ("data",),
    "message search": ("content",),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_shapes_on_the_list_are_bounded_by_their_bytes(name: str) -> None:
    check, item = ALLOWED[name]
    assert check(item)
    empty: tuple[Any, ...] = (None, "", [], {}, False)
    for nothing in empty:
        assert check({**item, "annotations": nothing}), "what is empty names nothing"


@pytest.mark.parametrize(
    ("check", "item"),
    [
        # What is stored at the provider.
        (response, {"id": "msg_0"}),
        (response, {"type": None, "id": "msg_0"}),
        (response, {"type": "item_reference", "id": "msg_0"}),
        (response, {"type": "message", "id": "msg_0"}),
        (response, {"type": "message", "id": "msg_0", "role": "assistant", "content": None}),
        (response, {"type": "message", "id": "msg_0", "role": "assistant", "content": []}),
        (response, {"type": "reasoning", "id": "rs_0"}),
        (response, {"type": "reasoning", "id": "rs_0", "summary": []}),
        (response, {"type": "reasoning", "id": "rs_0", "encrypted_content": None}),
        (
            response,
            {"type": "reasoning", "id": "rs_0", "content": [{"type": "reasoning_text", "text": "x"}], "summary": []},
        ),
        (response, {"type": "function_call", "id": "fc_0"}),
        (response, {"type": "function_call_output", "id": "o", "call_id": "c", "output": ""}),
        (response, {"type": "compaction", "id": "c", "encrypted_content": "AAAA"}),
        (response, {"type": "computer_call_output", "call_id": "c", "output": {"file_id": "f"}}),
        (response, {"type": "mcp_list_tools", "server_label": "s"}),
        (response, {"role": "user", "content": {"id": "msg_0"}}),
        (response, user({"type": "input_file", "file_id": "f"})),
        (response, user({"type": "input_image", "file_id": "f"})),
        (response, user({"type": "input_text", "text": "x", "file_id": "f"})),
        (response, "msg_0"),
        (response, ["msg_0"]),
        (response, 7),
        (response, {"type": ["message"], "role": "user", "content": "x"}),
        (response, {"type": {}, "role": "user", "content": "x", "id": "m"}),
        (chat, {"role": "assistant", "audio": {"id": "audio_1"}}),
        (chat, {"role": "assistant", "content": "x", "id": "chatcmpl-1"}),
        (chat, user({"type": "file", "file": {"file_id": "f"}})),
        (chat, "text"),
        (chat, None),
        (chat, {"content": "no role"}),
        (chat, user({"type": "text", "text": "x", "id": "part_1"})),
        (chat, user({"type": ["text"], "text": "x"})),
        (chat, {"role": "assistant", "tool_calls": [{"id": "call_1"}]}),
        (chat, {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"x": 1}}}]}),
        (message, {"type": "container_upload", "file_id": "f"}),
        (message, {"type": "document", "source": {"type": "file", "file_id": "f"}}),
        (message, {"type": "image", "source": {"type": "file", "file_id": "f"}}),
        (message, {"type": "tool_reference", "tool_name": "f"}),
        (
            message,
            {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "f"}]},
        ),
        (message, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        (message, {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"encrypted_content": "AAAA"}]}),
        (message, {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": "code_execution"}}),
        (message, {"type": {}, "text": "x"}),
        (message, {"type": ["text"], "text": "x"}),
        # What lies elsewhere, or is no text.
        (response, user({"type": "input_image", "image_url": "https://example.com/i.png"})),
        (response, user({"type": "input_file", "file_url": "https://example.com/f.pdf"})),
        (chat, user({"type": "image_url", "image_url": {"url": "https://example.com/i.png"}})),
        (chat, user({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}})),
        (message, {"type": "image", "source": {"type": "url", "url": "https://example.com/i.png"}}),
        (message, {"type": "document", "source": {"type": "url", "url": "https://example.com/f.pdf"}}),
        (message, {"type": "search_result", "source": "https://example.com", "title": "t"}),
    ],
)
def test_what_names_content_that_is_not_in_the_request_is_bounded_by_the_window(
    check: Callable[[Any], bool], item: Any
) -> None:
    assert not check(item)


@pytest.mark.parametrize(
    ("bounder", "fields"),
    [
        (openai.responses, {"input": "x", "previous_response_id": "resp_0"}),
        (openai.responses, {"input": {"id": "msg_0"}}),
        (openai.responses, {"input": 5}),
        (openai.responses, {"input": "x", "instructions": [{"id": "msg_0"}]}),
        (openai.responses, {"input": "x", "tools": [{"type": "function", "name": "f", "id": "stored"}]}),
        (openai.chat, {"messages": [], "tools": [{"type": "function", "id": "stored"}]}),
        (openai.chat, {"messages": [], "functions": [{"name": "f", "id": "stored"}]}),
        (anthropic.messages, {"messages": [], "system": {"id": "stored"}}),
        (anthropic.messages, {"messages": [], "system": [{"type": "document", "source": {"file_id": "f"}}]}),
        (anthropic.messages, {"messages": [], "tools": [{"name": "f", "file_id": "f"}]}),
        (anthropic.messages, {"messages": [{"role": "user"}]}),
        (anthropic.messages, {"messages": ["msg_0"]}),
    ],
)
def test_other_fields_that_name_stored_content(bounder: Callable[..., Call], fields: dict[str, Any]) -> None:
    assert not bounded(bounder, **fields)


@pytest.mark.parametrize(
    ("bounder", "field"),
    [
        (openai.responses, {"conversation": "conv_0"}),
        (openai.responses, {"prompt": {"id": "pmpt_0"}}),
        (openai.chat, {"previous_response_id": "resp_0"}),
        (anthropic.messages, {"container": "container_0"}),
        (anthropic.messages, {"mcp_servers": [{"url": "https://example.com"}]}),
    ],
)
def test_stored_requests_are_refused_under_a_budget_and_bounded_by_the_window_without(
    bounder: Callable[..., Call], field: dict[str, Any]
) -> None:
    with pytest.raises(InvalidCallError) as refused:
        bounded(bounder, **field)
    assert refused.value.param in field
    assert not bounded(bounder, FREE, **field)


@pytest.mark.parametrize("given_input", ["x", ["x", "y"], [1, 2, 3], [[1, 2], [3]], []])
def test_embeddings_of_texts_and_tokens_are_bounded_by_their_bytes(given_input: Any) -> None:
    assert bounded(openai.embeddings, input=given_input)


@pytest.mark.parametrize("given_input", [None, {"file_id": "f"}, [{"image": "x"}], ["x", 1], [[1], "x"], [True], [1.5]])
def test_embeddings_of_anything_else(given_input: Any) -> None:
    with pytest.raises(InvalidCallError, match="input: under a budget"):
        bounded(openai.embeddings, input=given_input)
    assert not bounded(openai.embeddings, FREE, input=given_input)


# --- what the SDKs send back of an answer -----------------------------------------------------------------------------


def test_answers_of_the_openai_sdk_that_are_sent_back_are_bounded_by_their_bytes() -> None:
    function = {"name": "f", "arguments": "{}"}
    answer = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "content": "hi",
            "annotations": [],
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        }
    )
    assert chat(answer.model_dump())
    assert chat(answer.model_dump(exclude_none=True))
    content = [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]
    items: list[BaseModel] = [
        ResponseOutputMessage.model_validate(
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        ),
        ResponseFunctionToolCall.model_validate({"type": "function_call", "id": "fc_1", "call_id": "c", **function}),
        ResponseReasoningItem.model_validate(
            {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
        ),
    ]
    for item in items:
        assert response(item.model_dump()), item
        assert response(item.model_dump(exclude_none=True)), item


def test_answers_of_the_anthropic_sdk_that_are_sent_back_are_bounded_by_their_bytes() -> None:
    blocks: list[BaseModel] = [
        TextBlock.model_validate({"type": "text", "text": "hi"}),
        ToolUseBlock.model_validate({"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}),
        ThinkingBlock.model_validate({"type": "thinking", "thinking": "I think", "signature": "AAAA"}),
    ]
    for block in blocks:
        assert message(block.model_dump()), block


NOWHERE = Provider("p", "OpenAICompatible", "http://x/v1", ("OpenAI",), {"m": Model("m", CARD)})


@pytest.mark.parametrize(
    ("bounder", "name", "fields"),
    [
        (openai.chat, "messages", {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}),
        (openai.responses, "input", {"input": [{"id": "msg_0"}]}),
        (
            anthropic.messages,
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        ),
    ],
)
def test_without_a_known_window_such_input_is_refused_by_name(
    bounder: Callable[..., Call], name: str, fields: dict[str, Any]
) -> None:
    payload = json.dumps({"model": "m", **fields}).encode()
    with pytest.raises(
        InvalidCallError, match=r"state contextWindow for the model in spec.models of ModelProvider 'p'"
    ) as no:
        bounder(NOWHERE, read_body(payload), STRICT)
    assert (no.value.code, no.value.param) == ("unbounded_input", name)
    assert bounder(NOWHERE, read_body(payload), FREE).input_bound == DEFAULT_CONTEXT_WINDOW, "an estimate"
    text = json.dumps({"model": "m", "messages": [user(TEXT)], "max_tokens": 5}).encode()
    if bounder is not openai.responses:
        assert bounder(NOWHERE, read_body(text), STRICT).input_bound < 500


@pytest.mark.parametrize(
    ("betas", "window"),
    [
        ((), 0),
        (("files-api-2025-04-14",), 0),
        (("context-1m-2025-08-07",), 1_000_000),
        (("interleaved-thinking-2025-05-14, context-1m-2025-08-07",), 1_000_000),
        (("files-api-2025-04-14", "context-2m-2026-01-01,context-1m-2025-08-07"), 2_000_000),
        (("context-management-2025-06-27",), 0),
    ],
)
def test_a_larger_window_that_the_headers_ask_for_is_what_bounds(betas: tuple[str, ...], window: int) -> None:
    asked = anthropic.window_asked(betas)
    assert asked == window
    stored = {"messages": [user({"type": "document", "source": {"type": "file", "file_id": "f"}})], "max_tokens": 5}
    rules = dataclasses.replace(STRICT, window_least=asked)
    call = anthropic.messages(PROVIDER, read_body(json.dumps({"model": "m", **stored}).encode()), rules)
    assert call.input_bound == max(WINDOW, window)


def test_a_bound_by_the_window_is_never_below_what_is_sent() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2 * WINDOW}}
    call = openai.chat(PROVIDER, read_body(json.dumps({"model": "m", "messages": [user(image)]}).encode()), STRICT)
    assert call.input_bound > len(call.body()) > WINDOW


NAMES = sorted(
    openai.CHAT_FIELDS
    | openai.RESPONSES_FIELDS
    | anthropic.MESSAGE_FIELDS
    | {"type", "role", "content", "function", "name", "id", "text", "ttl", "input", "arguments", "include_usage"}
)
WORDS = ["user", "message", "text", "function", "tool_use", "reasoning", "m", "flex", "auto", "custom", "bash_1", ""]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.sampled_from([openai.chat, openai.responses, openai.embeddings, anthropic.messages]),
    st.dictionaries(st.sampled_from(NAMES), ANY, max_size=6),
    st.sampled_from([STRICT, FREE]),
    st.sampled_from([PROVIDER, dataclasses.replace(PROVIDER, type="OpenAI")]),
)
@settings(max_examples=200)
def test_whatever_is_sent_is_bounded_or_refused_and_never_a_fault(
    bounder: Callable[..., Call], fields: dict[str, Any], rules: Rules, provider: Provider
) -> None:
    content = json.dumps({"model": "m", **fields}).replace("Infinity", "1e999").encode()
    try:
        call = bounder(provider, read_body(content), rules)
    except RefusedError as error:
        status = error.status
    else:
        status = 200
        assert call.input_bound >= len(call.body())
        assert all(amount >= 0 for amount in call.bound().values())
    assert status in (200, 400, 404)


# --- by chance --------------------------------------------------------------------------------------------------------

FREE_JSON = ("input", "arguments")  # any JSON, or text
SOMETHING = st.sampled_from(["stored_1", 7, ["stored_1"], {"id": "stored_1"}, True, "https://example.com/x"])
UNKNOWN = st.sampled_from(["file_id", "item_id", "previous_response_id", "container", "source_url", "image_url", "x"])


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of an item whose fields have a meaning."""
    if isinstance(value, list):
        for each in value:
            yield from objects(each)
    elif isinstance(value, dict):
        yield value
        for name, each in value.items():
            if name not in FREE_JSON:
                yield from objects(each)


@given(st.sampled_from(sorted(ALLOWED)), st.data())
def test_an_unknown_field_anywhere_takes_an_item_off_the_list(name: str, data: st.DataObject) -> None:
    check, item = ALLOWED[name]
    changed = copy.deepcopy(item)
    target = data.draw(st.sampled_from(list(objects(changed))), label="object")
    target[data.draw(UNKNOWN.filter(lambda field: field not in target))] = data.draw(SOMETHING)
    assert not check(changed)


@given(st.sampled_from(sorted(ALLOWED)), st.data())
def test_a_changed_type_takes_an_item_off_the_list(name: str, data: st.DataObject) -> None:
    check, item = ALLOWED[name]
    changed = copy.deepcopy(item)
    typed = [each for each in objects(changed) if "type" in each and each["type"] != "ephemeral"]
    if not typed:
        typed = [changed]
    data.draw(st.sampled_from(typed))["type"] = data.draw(
        st.sampled_from(["item_reference", "image", "file", "Text", "text ", ["text"], {"a": 1}, 1, "unheard_of"])
    )
    assert not check(changed)


@given(st.sampled_from(sorted(ALLOWED)), st.data())
def test_a_text_that_is_no_text_takes_an_item_off_the_list(name: str, data: st.DataObject) -> None:
    check, item = ALLOWED[name]
    changed = copy.deepcopy(item)
    places = [(each, field) for each in objects(changed) for field, value in each.items() if isinstance(value, str)]
    target, field = data.draw(st.sampled_from([place for place in places if place[1] != "input"]), label="text")
    target[field] = data.draw(st.sampled_from([{"id": "stored_1"}, [{"id": "stored_1"}], 7, ["stored_1", 7]]))
    assert not check(changed)


@given(st.sampled_from(sorted(NEEDED)), st.data())
def test_an_item_without_its_content_takes_itself_off_the_list(name: str, data: st.DataObject) -> None:
    check, item = ALLOWED[name]
    gone = data.draw(st.sampled_from(NEEDED[name]))
    without = {field: value for field, value in item.items() if field != gone}
    assert not check(without)
    if "id" in item:
        assert not check({**item, gone: data.draw(st.sampled_from([None, "", []]))})
