"""What to ask a provider that counts the input of a request for nothing, and what its count bounds.

Pure. A byte is a token at most, and seldom one: where that bound, or a context window, finds no room, the provider is
asked (`Room.tightened`). Anthropic and OpenAI's Responses count whole requests. Chat completions have no such route:
there the files alone are counted, which are what no byte bounds. Providers call the count an estimate that may be off
by a little, so a margin is added.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_runner.meter.config import ANTHROPIC, OPENAI
from almoner_runner.meter.dialect import Call, words

COUNT_MESSAGES: Final = "messages/count_tokens"
COUNT_RESPONSES: Final = "responses/input_tokens"
MARGIN_PART: Final = 20
MARGIN_TOKENS: Final = 512

_MESSAGE_FIELDS: Final = words(
    "model messages system tools tool_choice thinking output_config output_format cache_control"
)
_RESPONSE_FIELDS: Final = words(
    "model input instructions tools tool_choice text reasoning previous_response_id parallel_tool_calls truncation"
)


def question(call: Call) -> tuple[str, dict[str, Any]] | None:
    """Give the route and the body to ask; None where the call's provider counts nothing of the kind."""
    fields = call.payload.fields
    if call.provider.type == ANTHROPIC and call.usage_shape == "anthropic":
        return COUNT_MESSAGES, {name: value for name, value in fields.items() if name in _MESSAGE_FIELDS}
    if call.provider.type != OPENAI:
        return None
    if call.usage_shape == "responses":
        return COUNT_RESPONSES, {name: value for name, value in fields.items() if name in _RESPONSE_FIELDS}
    if call.usage_shape == "openai" and call.files:
        content = [{"type": "input_file", **file} for file in call.files]
        return COUNT_RESPONSES, {"model": fields.get("model"), "input": [{"role": "user", "content": content}]}
    return None


def bound_of(call: Call, answer: dict[str, Any]) -> int | None:
    """Give the most tokens of input by a provider's answer; None where it does not say a count."""
    tokens = answer.get("input_tokens")
    if type(tokens) is not int or tokens <= 0:
        return None
    return call.beside_files + tokens + tokens // MARGIN_PART + MARGIN_TOKENS
