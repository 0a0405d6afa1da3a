"""Scripted replies, and how they look in OpenAI's and Anthropic's shapes, plain and streamed. No I/O."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Usage(_Model):
    """Tokens that the answer claims. `input_tokens` includes the cached ones, as OpenAI counts."""

    input_tokens: int = Field(default=10, ge=0)
    output_tokens: int = Field(default=5, ge=0)
    cached_input_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)


class ToolCall(_Model):
    """One call of a tool."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    id: str = ""


class Reply(_Model):
    """One answer, or one fault."""

    text: str = "ok"
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = Field(default=Usage(), description="None: the answer carries no usage.")
    stop: Literal["stop", "length"] = "stop"
    service_tier: str | None = Field(
        default=None, description="What an answer in OpenAI's shape says it was served as."
    )
    latency_ms: float = Field(default=0, ge=0, description="Before the first byte.")
    chunk_ms: float = Field(default=0, ge=0, description="Between the pieces of a stream.")
    status: int = Field(default=200, ge=200, le=599, description="400 and above: an error in the provider's shape.")
    message: str = "scripted error"
    headers: dict[str, str] = Field(default_factory=dict)
    hang: bool = Field(default=False, description="Never answer; streams hang after their first piece.")
    break_after: int | None = Field(default=None, ge=0, description="Cut the connection after so many pieces.")
    match: str | None = Field(
        default=None,
        description="A regular expression: only for requests whose body has it. Such a reply is not used up.",
    )


class Script(_Model):
    """Replies in the order in which they are given out."""

    replies: tuple[Reply, ...] = (Reply(),)
    then: Literal["last", "cycle", "error"] = Field(default="last", description="What comes after the last one.")


def pieces_of(text: str) -> list[str]:
    """A text as a stream cuts it: words with the blank before them."""
    return re.findall(r"\s*\S+|\s+$", text)


def _openai_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _anthropic_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": max(0, usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens),
        "output_tokens": usage.output_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
    }


def _openai_calls(reply: Reply) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id or f"call_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
        }
        for index, call in enumerate(reply.tool_calls)
    ]


def openai_answer(reply: Reply, request: dict[str, Any], number: int) -> dict[str, Any]:
    """A `chat.completion`."""
    message: dict[str, Any] = {"role": "assistant", "content": None if reply.tool_calls else reply.text}
    if reply.tool_calls:
        message["tool_calls"] = _openai_calls(reply)
    finish = "tool_calls" if reply.tool_calls else reply.stop
    answer: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": request.get("model", ""),
        "choices": [
            {"index": index, "message": message, "finish_reason": finish, "logprobs": None}
            for index in range(int(request.get("n") or 1))
        ],
    }
    if reply.usage is not None:
        answer["usage"] = _openai_usage(reply.usage)
    if reply.service_tier is not None:
        answer["service_tier"] = reply.service_tier
    return answer


def openai_stream(reply: Reply, request: dict[str, Any], number: int) -> list[str]:
    """The events of a streamed chat completion."""
    with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
    head: dict[str, Any] = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": request.get("model", ""),
    }
    if with_usage:
        head["usage"] = None
    if reply.service_tier is not None:
        head["service_tier"] = reply.service_tier
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    if reply.tool_calls:
        for index, call in enumerate(_openai_calls(reply)):
            function = call["function"]
            first = {"index": index, "id": call["id"], "type": "function"}
            deltas.append(({"tool_calls": [{**first, "function": {"name": function["name"], "arguments": ""}}]}, None))
            rest = [{"index": index, "function": {"arguments": piece}} for piece in pieces_of(function["arguments"])]
            deltas += [({"tool_calls": [each]}, None) for each in rest]
    else:
        deltas += [({"content": piece}, None) for piece in pieces_of(reply.text)]
    deltas.append(({}, "tool_calls" if reply.tool_calls else reply.stop))
    chunks = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": f}]} for d, f in deltas]
    if with_usage and reply.usage is not None:
        chunks.append({**head, "choices": [], "usage": _openai_usage(reply.usage)})
    return [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]


def _anthropic_blocks(reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.text and not reply.tool_calls:
        blocks.append({"type": "text", "text": reply.text})
    for index, call in enumerate(reply.tool_calls):
        blocks.append(
            {"type": "tool_use", "id": call.id or f"toolu_{index}", "name": call.name, "input": call.arguments}
        )
    return blocks


def _anthropic_stop(reply: Reply) -> str:
    if reply.tool_calls:
        return "tool_use"
    return "max_tokens" if reply.stop == "length" else "end_turn"


def anthropic_answer(reply: Reply, request: dict[str, Any], number: int) -> dict[str, Any]:
    """A `message`."""
    answer: dict[str, Any] = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": request.get("model", ""),
        "content": _anthropic_blocks(reply),
        "stop_reason": _anthropic_stop(reply),
        "stop_sequence": None,
    }
    if reply.usage is not None:
        answer["usage"] = _anthropic_usage(reply.usage)
    return answer


def anthropic_stream(reply: Reply, request: dict[str, Any], number: int) -> list[str]:
    """The events of a streamed message."""
    start = anthropic_answer(reply, request, number) | {"content": [], "stop_reason": None}
    if reply.usage is not None:
        start["usage"] = _anthropic_usage(reply.usage) | {"output_tokens": 1}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(_anthropic_blocks(reply)):
        if block["type"] == "text":
            empty, deltas = {**block, "text": ""}, [{"type": "text_delta", "text": p} for p in pieces_of(block["text"])]
        else:
            empty = {**block, "input": {}}
            pieces = pieces_of(json.dumps(block["input"]))
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    end: dict[str, Any] = {
        "type": "message_delta",
        "delta": {"stop_reason": _anthropic_stop(reply), "stop_sequence": None},
    }
    if reply.usage is not None:
        end["usage"] = {"output_tokens": reply.usage.output_tokens}
    events += [end, {"type": "message_stop"}]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
