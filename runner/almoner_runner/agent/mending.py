"""A model's answers, made such that SDKs and framework can read them, without changing what they say.

Role: answers as they come over HTTP (`mend_answer`), and arguments of tools (`mend_arguments`). Boundary: pure. Why:
a paid answer should not be lost, and a run not die, of half an emoji, of a number that is no JSON, of arguments that
are encoded twice. What says nothing usable is told as what it is: the provider's failure.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

NESTING_MAX: Final = 64
NOT_AN_OBJECT: Final = "not_an_object"
"""Arguments that are no object are shown to tool and model as the only value of an object, under this name."""
COUNT_MAX: Final = 10**12
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


class NoAnswerError(Exception):
    """It is no answer of a model, whatever its status says; the message is the provider's own where it has one."""


def mend_answer(body: bytes, *, anthropic: bool) -> bytes:
    """Give the answer with what no reader takes replaced. Raises NoAnswerError."""
    try:
        data = clean(json.loads(body))
    except RecursionError as error:
        raise NoAnswerError("its answer is nested too deeply") from error
    except ValueError as error:
        raise NoAnswerError("its answer is not JSON") from error
    if not isinstance(data, dict):
        raise NoAnswerError("its answer is no JSON object")
    parts = data.get("content" if anthropic else "choices")
    if not parts and (wrong := data.get("error")):
        said = wrong.get("message") if isinstance(wrong, dict) else wrong
        raise NoAnswerError(str(said or "it answered with an error that says nothing"))
    if not isinstance(parts, list) or not (parts or anthropic):
        raise NoAnswerError(f"its answer has no {'content' if anthropic else 'choices'}")
    usage = data.get("usage")
    needed = ("input_tokens", "output_tokens") if anthropic else ("prompt_tokens", "completion_tokens", "total_tokens")
    data["usage"] = dict.fromkeys(needed, 0) | (_counts(usage) if isinstance(usage, dict) else {})
    if not anthropic:
        _mend_calls(parts)
    return json.dumps(data).encode()


def mend_arguments(given: object) -> dict[str, Any] | str:
    """Give the arguments of a tool as an object: null is an empty one, and what was encoded twice is decoded.

    What is no object comes as {NOT_AN_OBJECT: value}. What is no JSON comes as the text that it is.
    """
    for _ in range(2):
        if not isinstance(given, str):
            break
        try:
            given = json.loads(given) if given else None
        except (ValueError, RecursionError):
            return _SURROGATES.sub(_REPLACEMENT, str(given))
    if given is None:
        return {}
    try:
        value = clean(given)
    except RecursionError:
        value = "nested too deeply"
    return value if isinstance(value, dict) else {NOT_AN_OBJECT: value}


def clean(value: Any, levels: int = NESTING_MAX) -> Any:
    """Give a JSON value that every reader takes: no half of a surrogate pair, no NaN. Raises RecursionError."""
    if levels < 0:
        raise RecursionError("nested too deeply")
    if isinstance(value, str):
        return _SURROGATES.sub(_REPLACEMENT, value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [clean(each, levels - 1) for each in value]
    if isinstance(value, dict):
        return {clean(key): clean(each, levels - 1) for key, each in value.items()}
    return value


def has_non_finite(value: Any) -> bool:
    """Whether a value holds NaN or an infinity, which JSON has not. Does not recurse."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, float) and not math.isfinite(current):
            return True
        if isinstance(current, dict):
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)
    return False


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Keep the counts alone: the SDKs add them up. The meter has read the usage itself."""
    kept: dict[str, Any] = {}
    for name, value in usage.items():
        if isinstance(value, dict):
            kept[name] = _counts(value)
        elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= COUNT_MAX:
            kept[name] = value
    return kept


def _mend_calls(choices: list[Any]) -> None:
    """Give every call of a tool an id and arguments that are a text, as OpenAI's shape has them."""
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        for call in calls if isinstance(calls, list) else ():
            if not isinstance(call, dict):
                continue
            call["id"] = call["id"] if isinstance(call.get("id"), str) else ""
            call["type"] = call.get("type") or "function"
            function = call.get("function")
            if isinstance(function, dict) and not isinstance(function.get("arguments"), str):
                function["arguments"] = json.dumps(function.get("arguments"))
