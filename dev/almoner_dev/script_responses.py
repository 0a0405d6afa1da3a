"""Scripted replies in the shape of OpenAI's Responses API, plain and streamed. No I/O."""

from __future__ import annotations

import json
from typing import Any

from almoner_dev.script_shapes import Reply, Usage, pieces_of


def responses_answer(reply: Reply, request: dict[str, Any], number: int) -> dict[str, Any]:
    """A `response`, completed."""
    cut = reply.stop == "length"
    return {
        **_head(request, number),
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": _items(reply, number),
        "usage": None if reply.usage is None else _usage(reply.usage),
        **({} if reply.service_tier is None else {"service_tier": reply.service_tier}),
    }


def responses_stream(reply: Reply, request: dict[str, Any], number: int) -> list[str]:
    """The events of a streamed response."""
    begun = {**_head(request, number), "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for place, item in enumerate(_items(reply, number)):
        make = _call_events if item["type"] == "function_call" else _text_events
        events += make(item, {"output_index": place})
    whole = responses_answer(reply, request, number)
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': place})}\n\n"
        for place, event in enumerate(events)
    ]


def _head(request: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1_700_000_000,
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "metadata": request.get("metadata") or {},
        "model": request.get("model", ""),
        "parallel_tool_calls": True,
        "previous_response_id": request.get("previous_response_id"),
        "store": request.get("store", True),
        "temperature": 1.0,
        "text": request.get("text") or {"format": {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _items(reply: Reply, number: int) -> list[dict[str, Any]]:
    if not reply.tool_calls:
        content = [{"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}]
        head = {"type": "message", "id": f"msg_{number}", "status": "completed", "role": "assistant"}
        return [{**head, "content": content}]
    return [
        {
            "type": "function_call",
            "id": f"fc_{number}_{place}",
            "call_id": call.id or f"call_{place}",
            "name": call.name,
            "arguments": json.dumps(call.arguments),
            "status": "completed",
        }
        for place, call in enumerate(reply.tool_calls)
    ]


def _text_events(item: dict[str, Any], at: dict[str, Any]) -> list[dict[str, Any]]:
    (part,) = item["content"]
    inside = {**at, "item_id": item["id"], "content_index": 0}
    opened = {**item, "status": "in_progress", "content": []}
    return [
        {"type": "response.output_item.added", **at, "item": opened},
        {"type": "response.content_part.added", **inside, "part": {**part, "text": ""}},
        *(
            {"type": "response.output_text.delta", **inside, "delta": piece, "logprobs": []}
            for piece in pieces_of(part["text"])
        ),
        {"type": "response.output_text.done", **inside, "text": part["text"], "logprobs": []},
        {"type": "response.content_part.done", **inside, "part": part},
        {"type": "response.output_item.done", **at, "item": item},
    ]


def _call_events(item: dict[str, Any], at: dict[str, Any]) -> list[dict[str, Any]]:
    inside = {**at, "item_id": item["id"]}
    said = item["arguments"]
    return [
        {"type": "response.output_item.added", **at, "item": {**item, "status": "in_progress", "arguments": ""}},
        *({"type": "response.function_call_arguments.delta", **inside, "delta": each} for each in pieces_of(said)),
        {"type": "response.function_call_arguments.done", **inside, "name": item["name"], "arguments": said},
        {"type": "response.output_item.done", **at, "item": item},
    ]
