"""Which input is bounded by its bytes: the shapes whose whole content is in the request.

Pure. A list of what is allowed, field by field: everything else may name content that is stored or lies elsewhere (an
item's id, a file, an address, an earlier response), whose tokens no byte of the request bounds, so it is bounded by the
model's context window. A field that this list does not know takes its item off the list, unless its value is null,
false, zero or empty, which names nothing.

Blobs that only the provider can read (`encrypted_content`, `signature`, `data` of a redacted thought) are bounded by
their bytes: they are what the model once wrote, encrypted and in base64, which is more than a byte a token. Should one
hold more, the bill passes the bound, and the ledger freezes the allotment after that one call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return type(value) is str


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _json(value: Any) -> bool:
    """Any JSON: it is written into the prompt as it is."""
    del value
    return True


def _either(first: Check, second: Check) -> Check:
    return lambda value: first(value) or second(value)


def _every(check: Check) -> Check:
    return lambda value: type(value) is list and all(map(check, value))


def _shape(needed: str, fields: dict[str, Check], *, stored: bool = False) -> Check:
    """An object with these fields, and none but these. `stored`: with an id it may be stored, so it must be whole."""
    needed_names = tuple(needed.split())

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        for name in needed_names:
            if name not in value:
                return False
        for name, given in value.items():
            if given and ((known := fields.get(name)) is None or not known(given)):
                return False
        return not (stored and value.get("id")) or all(value[name] for name in needed_names)

    return check


def _kinds(table: dict[str, Check], untyped: Check | None = None) -> Check:
    """An object whose `type` says which shape it has."""

    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        kind = value.get("type")
        if kind is None:
            return untyped is not None and untyped(value)
        found = table.get(kind) if type(kind) is str else None
        return found is not None and found(value)

    return check


_CACHE: Final[dict[str, Check]] = {"cache_control": _shape("type", {"type": _text, "ttl": _text})}
_TEXT_PART: Final = _shape("text", {"type": _text, "text": _text, **_CACHE})
_REFUSAL_PART: Final = _shape("refusal", {"type": _text, "refusal": _text, **_CACHE})

# --- OpenAI -----------------------------------------------------------------------------------------------------------

# Images are bounded by what one can cost (images.py), wherever they lie. A chat completion's files are counted apart.
_IMAGE_URL: Final = _either(_text, _shape("url", {"url": _text, "detail": _text, "format": _text}))
_OPENAI_PART: Final = _kinds(
    {
        **dict.fromkeys(("text", "input_text", "output_text", "summary_text", "reasoning_text"), _TEXT_PART),
        "refusal": _REFUSAL_PART,
        "input_image": _shape("", {"type": _text, "image_url": _text, "file_id": _text, "detail": _text}),
    }
)
_CHAT_PART: Final = _kinds(
    {
        **dict.fromkeys(("text", "input_text", "output_text"), _TEXT_PART),
        "refusal": _REFUSAL_PART,
        "image_url": _shape("image_url", {"type": _text, "image_url": _IMAGE_URL, **_CACHE}),
        "file": _shape(
            "file",
            {"type": _text, "file": _shape("", {"file_data": _text, "file_id": _text, "filename": _text}), **_CACHE},
        ),
    }
)
_OPENAI_CONTENT: Final = _either(_text, _every(_either(_text, _OPENAI_PART)))
_FUNCTION_CALL: Final = _shape("name", {"name": _text, "arguments": _text})
_SIGNED: Final = _shape("google", {"google": _shape("", {"thought_signature": _text})})
_CHAT_FUNCTION: Final = _shape(
    "function",
    {"id": _text, "type": _text, "index": _number, "function": _FUNCTION_CALL, "extra_content": _SIGNED},
)
_CHAT_CUSTOM: Final = _shape(
    "custom", {"id": _text, "type": _text, "custom": _shape("name", {"name": _text, "input": _text})}
)
chat_message: Final = _shape(
    "role",
    {
        "role": _text,
        "content": _either(_text, _every(_either(_text, _CHAT_PART))),
        "name": _text,
        "refusal": _text,
        "tool_calls": _every(_kinds({"function": _CHAT_FUNCTION, "custom": _CHAT_CUSTOM}, _CHAT_FUNCTION)),
        "tool_call_id": _text,
        "function_call": _FUNCTION_CALL,
        # What compatible servers add: the text of thoughts, and that an answer goes on.
        "reasoning_content": _text,
        "reasoning": _text,
        "prefix": _flag,
        **_CACHE,
    },
)
_FUNCTION: Final[dict[str, Check]] = {"name": _text, "description": _text, "parameters": _json, "strict": _flag}
_CUSTOM: Final[dict[str, Check]] = {"name": _text, "description": _text, "format": _json}
chat_function: Final = _shape("name", _FUNCTION)
chat_tool: Final = _kinds(
    {
        "function": _shape("function", {"type": _text, "function": chat_function, **_CACHE}),
        "custom": _shape("custom", {"type": _text, "custom": _shape("name", _CUSTOM), **_CACHE}),
    }
)

_ITEM: Final[dict[str, Check]] = {"type": _text, "id": _text, "status": _text}
_ITEM_MESSAGE: Final = _shape(
    "role content", {**_ITEM, "role": _text, "content": _OPENAI_CONTENT, "phase": _text}, stored=True
)
_ITEM_OUTPUT: Final = _shape("call_id output", {**_ITEM, "call_id": _text, "output": _OPENAI_CONTENT}, stored=True)
_ITEM_REASONING: Final = _shape(
    "",
    {**_ITEM, "summary": _every(_OPENAI_PART), "content": _every(_OPENAI_PART), "encrypted_content": _text},
)


def _reasoning(value: Any) -> bool:
    """With an id and no blob, the thoughts are those that the provider stored."""
    return _ITEM_REASONING(value) and bool(value.get("encrypted_content") or not value.get("id"))


_FUNCTION_TOOLS: Final[dict[str, Check]] = {
    "function": _shape("name", {"type": _text, **_FUNCTION}),
    "custom": _shape("name", {"type": _text, **_CUSTOM}),
}
response_tool: Final = _kinds(
    {
        **_FUNCTION_TOOLS,
        "local_shell": _shape("", {"type": _text}),
        # Client functions in a group.
        "namespace": _shape(
            "name",
            {"type": _text, "name": _text, "description": _text, "tools": _every(_kinds(_FUNCTION_TOOLS))},
        ),
    }
)
response_item: Final = _kinds(
    {
        "message": _ITEM_MESSAGE,
        "function_call": _shape(
            "call_id name arguments",
            {**_ITEM, "call_id": _text, "name": _text, "namespace": _text, "arguments": _text},
            stored=True,
        ),
        "function_call_output": _ITEM_OUTPUT,
        "custom_tool_call": _shape(
            "call_id name input", {**_ITEM, "call_id": _text, "name": _text, "input": _text}, stored=True
        ),
        "custom_tool_call_output": _ITEM_OUTPUT,
        "local_shell_call": _shape("call_id action", {**_ITEM, "call_id": _text, "action": _json}, stored=True),
        "local_shell_call_output": _shape("output", {**_ITEM, "call_id": _text, "output": _text}, stored=True),
        "additional_tools": _shape("tools", {"type": _text, "role": _text, "tools": _every(response_tool)}),
        "reasoning": _reasoning,
    },
    untyped=_ITEM_MESSAGE,
)


def embedding_input(value: Any) -> bool:
    """Texts or token ids, one or many: a token id is a byte at least."""
    if type(value) is not list:
        return _text(value)
    kinds = set(map(type, value))
    if kinds == {list}:
        return all(set(map(type, tokens)) <= {int} for tokens in value)
    return kinds <= {str} or kinds == {int}


# --- Anthropic --------------------------------------------------------------------------------------------------------

_SEARCH_RESULT: Final = _shape(
    "content",
    {
        "type": _text,
        "source": _text,
        "title": _text,
        "content": _every(_kinds({"text": _TEXT_PART})),
        "citations": _shape("", {"enabled": _flag}),
        **_CACHE,
    },
)
_IMAGE: Final = _shape(
    "source",
    {
        "type": _text,
        "source": _shape("type", {"type": _text, "media_type": _text, "data": _text, "url": _text, "file_id": _text}),
        **_CACHE,
    },
)
# Documents of text alone: of a PDF no byte says how many tokens its pages have.
_DOCUMENT: Final = _shape(
    "source",
    {
        "type": _text,
        "source": _kinds(
            {
                "text": _shape("data", {"type": _text, "media_type": _text, "data": _text}),
                "content": _shape(
                    "content",
                    {"type": _text, "content": _either(_text, _every(_kinds({"text": _TEXT_PART, "image": _IMAGE})))},
                ),
            }
        ),
        "title": _text,
        "context": _text,
        "citations": _shape("", {"enabled": _flag}),
        **_CACHE,
    },
)


def _document(value: Any) -> bool:
    """Nothing is known of one without a source."""
    return _DOCUMENT(value) and bool(value["source"])


_RESULT_CONTENT: Final = _either(
    _text,
    _every(_kinds({"text": _TEXT_PART, "search_result": _SEARCH_RESULT, "image": _IMAGE, "document": _document})),
)
_BLOCKS: Final = _kinds(
    {
        "text": _TEXT_PART,
        "search_result": _SEARCH_RESULT,
        "image": _IMAGE,
        "document": _document,
        "thinking": _shape("thinking", {"type": _text, "thinking": _text, "signature": _text}),
        "redacted_thinking": _shape("data", {"type": _text, "data": _text}),
        "tool_use": _shape(
            "name input",
            {
                "type": _text,
                "id": _text,
                "name": _text,
                "input": _json,
                "caller": lambda value: value == {"type": "direct"},
                **_CACHE,
            },
        ),
        "tool_result": _shape(
            "tool_use_id",
            {"type": _text, "tool_use_id": _text, "content": _RESULT_CONTENT, "is_error": _flag, **_CACHE},
        ),
    }
)
message: Final = _shape("role content", {"role": _text, "content": _either(_text, _every(_BLOCKS))})
system: Final = _either(_text, _every(_kinds({"text": _TEXT_PART})))
message_tool: Final = _shape(
    "name",
    {
        "type": _text,
        "name": _text,
        "description": _text,
        "input_schema": _json,
        "input_examples": _json,
        "strict": _flag,
        "eager_input_streaming": _flag,
        # Of the tools that run at the client's.
        "display_width_px": _number,
        "display_height_px": _number,
        "display_number": _number,
        "enable_zoom": _flag,
        "max_characters": _number,
        **_CACHE,
    },
)
