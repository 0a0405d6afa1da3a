"""What a provider's refusal says of the output maximum that the meter chose: a lower one, or the other field for it.

Pure. A client that names no maximum gets one of the meter's, which a model may not take; then the provider answers 400
and bills nothing, and says how much it would take. So the meter asks once more, and knows it from then on. Only texts
that name the field or speak of output tokens are read; messages as OpenAI, Anthropic, Azure, vLLM, SGLang, TGI and
llama.cpp write them.
"""

from __future__ import annotations

import re
from typing import Any, Final

READ_CHARS_MAX: Final = 4096
LEARNED_MAX: Final = 256
"""So many models of so many providers are remembered."""

_NUMBER: Final = r"(?P<limit>\d{1,9})"
_LIMITS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "max_tokens is too large: 32768. This model supports at most 16384 completion tokens"
        rf"supports at most {_NUMBER} (?:completion|output) tokens",
        # "max_tokens: 32768 > 8192, which is the maximum allowed number of output tokens for ..."
        rf"max_tokens: \d+ > {_NUMBER}, which is the maximum",
        (
            r"(?:max_(?:completion_|output_)?tokens|max_new_tokens)\b.{0,80}"
            rf"(?:at most|less than or equal to|<=|maximum (?:of|is)) ?{_NUMBER}"
        ),
    )
)
# "This model's maximum context length is 8192 tokens. However, you requested 32868 tokens (100 in the messages, ..."
# "maximum context length is 8192 tokens and your request has 100 input tokens"
_WINDOW: Final = re.compile(r"(?:maximum )?context (?:length|window|size)\D{0,40}?(\d{3,9})", re.IGNORECASE)
_INPUT: Final = re.compile(
    r"(\d{1,9}) (?:tokens )?(?:in the messages|from the input|in your prompt|input tokens)", re.IGNORECASE
)
_WRONG_FIELD: Final = re.compile(
    r"['\"`]?(?P<wrong>max_tokens|max_completion_tokens)['\"`]? (?:is|was) not supported.{0,80}?"
    r"['\"`]?(?P<right>max_tokens|max_completion_tokens)['\"`]? instead",
    re.IGNORECASE | re.DOTALL,
)


def limit_told(message: str, asked: int) -> int | None:
    """Give the output maximum that a refusal says would do, below what was `asked`; None where it says none."""
    text = message[:READ_CHARS_MAX]
    found = next((match for pattern in _LIMITS if (match := pattern.search(text))), None)
    if found is not None:
        limit = int(found["limit"])
    elif (window := _WINDOW.search(text)) and (given := _INPUT.search(text)):
        limit = int(window[1]) - int(given[1])
    else:
        return None
    return limit if 0 < limit < asked else None


def field_told(message: str, used: str) -> str | None:
    """Give the field that a refusal wants in place of the one that was used; None where it speaks of no such thing."""
    found = _WRONG_FIELD.search(message[:READ_CHARS_MAX])
    if found is None or found["wrong"] != used or found["right"] == used:
        return None
    return found["right"]


def message_of(body: dict[str, Any]) -> str:
    """Give the text of an error in OpenAI's, Anthropic's or FastAPI's shape; empty where there is none."""
    error = body.get("error")
    for holder in (error, body):
        if isinstance(holder, dict):
            text = holder.get("message") or holder.get("detail")
            if isinstance(text, str):
                return text
    return error if isinstance(error, str) else ""
