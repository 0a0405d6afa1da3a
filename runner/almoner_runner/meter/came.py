"""How much output of a stream came, at most, for streams that break before they say their usage.

Pure. A token stands for at least one byte of what it writes, so the bytes of a stream's deltas bound the tokens that
came, with what is known of what no delta shows: markup around tool calls, ends of turns. That holds where every token
of the output is in the stream. Where a model may reason unseen nothing is counted, and the hold is taken (decision 33).
"""

from __future__ import annotations

import re
from typing import Any, Final

from almoner_runner.meter.answers import event_data
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.told import details

MARGIN_TOKENS: Final = 1024
"""What a provider may have generated that did not come: it notices a broken connection late."""
BLOCK_TOKENS: Final = 16
CALL_TOKENS: Final = 64
CALL_WEIGHT: Final = 4
"""Models write calls of tools in a markup of their own, which is longer than the JSON that is made of it."""
# OpenAI's models that do not reason, by its model pages; of the others, and of names unknown, nothing is assumed.
_SHOWS_ALL: Final = re.compile(
    r"(?:.*/)?(?:gpt-3\.5-turbo(?:-instruct)?|davinci-002|babbage-002|gpt-4|gpt-4-turbo|gpt-4o|gpt-4o-mini|chatgpt-4o-latest|gpt-4\.1|gpt-4\.1-mini|gpt-4\.1-nano)"
    r"(?:-\d{4}-\d\d-\d\d|-\d{4})?"
)
_CHAT_DELTA: Final = frozenset({"role", "content", "refusal", "tool_calls", "function_call"})
_TEXT_EVENTS: Final = frozenset({"response.output_text.delta", "response.refusal.delta"})
_CALL_EVENTS: Final = frozenset({"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"})
_ITEMS: Final = {"message": BLOCK_TOKENS, "function_call": CALL_TOKENS, "custom_tool_call": CALL_TOKENS}


def shows_all(call: Call) -> bool:
    """Whether the stream of a call carries every token of its output. To be asked before the request is released."""
    fields = call.payload.fields
    if call.output_extra:
        return False
    if call.usage_shape == "anthropic":
        # Later models may think unasked; their streams say so by the kinds of their blocks.
        thinking = details(fields, "thinking")
        return not thinking or thinking.get("type") == "disabled"
    reasons = fields.get("reasoning") or fields.get("reasoning_effort")
    return not reasons and _SHOWS_ALL.fullmatch(call.model.name) is not None


class Came:
    """Counts what comes of one stream. `hidden`: something came that says that not all of it does."""

    def __init__(self, shape: str) -> None:
        self._shape = shape
        self._tokens = 0
        self.hidden = False

    @property
    def bound(self) -> int | None:
        """Most tokens of output; None where nothing came, or not all of it does."""
        return None if self.hidden or not self._tokens else self._tokens + MARGIN_TOKENS

    def watch(self, event: bytes) -> None:
        """Take one event."""
        data = event_data(event)
        match self._shape:
            case "anthropic":
                self._watch_anthropic(data)
            case "responses":
                self._watch_response(data)
            case _:
                self._watch_chat(data)

    def _add(self, text: Any, weight: int = 1) -> None:
        if isinstance(text, str):
            self._tokens += weight * len(text.encode("utf-8", "replace"))
        elif text:
            self.hidden = True

    def _watch_chat(self, data: dict[str, Any]) -> None:
        choices = data.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                self.hidden = True
                continue
            self._add(choice.get("text"))
            delta = details(choice, "delta")
            # What servers add shows reasoning, or a part of it.
            self.hidden = self.hidden or any(delta[name] for name in delta.keys() - _CHAT_DELTA)
            self._add(delta.get("content"))
            self._add(delta.get("refusal"))
            calls = delta.get("tool_calls")
            for call in (*(calls if isinstance(calls, list) else ()), delta.get("function_call")):
                if isinstance(call, dict):
                    function = call.get("function", call)
                    function = function if isinstance(function, dict) else {}
                    self._tokens += CALL_TOKENS if call.get("id") or function.get("name") else 0
                    self._add(function.get("name"), CALL_WEIGHT)
                    self._add(function.get("arguments"), CALL_WEIGHT)

    def _watch_anthropic(self, data: dict[str, Any]) -> None:
        match data.get("type"):
            case "content_block_start":
                block = details(data, "content_block")
                if block.get("type") not in ("text", "tool_use"):
                    self.hidden = True
                self._tokens += BLOCK_TOKENS if block.get("type") == "text" else CALL_TOKENS
                self._add(block.get("text"))
                self._add(block.get("name"), CALL_WEIGHT)
            case "content_block_delta":
                delta = details(data, "delta")
                if delta.get("type") not in ("text_delta", "input_json_delta", "citations_delta"):
                    self.hidden = True
                self._add(delta.get("text"))
                self._add(delta.get("partial_json"), CALL_WEIGHT)

    def _watch_response(self, data: dict[str, Any]) -> None:
        kind = data.get("type")
        if kind == "response.output_item.added":
            item = details(data, "item")
            self.hidden = self.hidden or item.get("type") not in _ITEMS
            self._tokens += _ITEMS.get(str(item.get("type")), 0)
            self._add(item.get("name"), CALL_WEIGHT)
        elif kind in _TEXT_EVENTS:
            self._add(data.get("delta"))
        elif kind in _CALL_EVENTS:
            self._add(data.get("delta"), CALL_WEIGHT)
        elif "reasoning" in str(kind):
            self.hidden = True
