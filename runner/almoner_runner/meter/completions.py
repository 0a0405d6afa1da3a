"""OpenAI's legacy completions: text in, text on. Requests to bounds.

Pure; answers are read as those of chats. Fields by OpenAI's API reference and what compatible servers add. Each prompt
of a list is answered by itself, and of `best_of` answers all are billed, though `n` come back.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_runner.meter.body import Body
from almoner_runner.meter.config import Provider
from almoner_runner.meter.dialect import (
    CHOICES_MAX,
    Call,
    Rules,
    find_model,
    flag,
    number,
    set_output_maximum,
    words,
)
from almoner_runner.meter.fields import Faults, unknown
from almoner_runner.meter.openai import OPENAI_TYPE, ask_for_usage, texts_bound
from almoner_runner.meter.refusals import InvalidCallError

FIELDS: Final = words(
    "model prompt max_tokens n best_of echo suffix stream stream_options temperature top_p stop presence_penalty "
    "frequency_penalty logit_bias logprobs user seed top_k min_p repetition_penalty repeat_penalty cache_prompt"
)
API_DEFAULT_TOKENS: Final = 16
PROMPTS_MAX: Final = 2048


def completions(provider: Provider, payload: Body, rules: Rules) -> Call:
    """Bound a completion."""
    model = find_model(provider, payload, rules)
    names = unknown(payload.fields, FIELDS | provider.allow_fields, {})
    if rules.strict:
        faults = Faults()
        faults.add_unknown(names, "completions")
        faults.check()
    prompts = _prompts(payload.get("prompt"))
    bound = texts_bound(payload, "prompt", prompts, model, known=not names, strict=rules.strict)
    answers = max(number(payload, name, least=1, most=CHOICES_MAX) or 1 for name in ("n", "best_of"))
    stream = flag(payload, "stream")
    hide_usage = stream and ask_for_usage(payload)
    call = Call(
        operation="text_completion",
        resource_type="llm",
        provider=provider,
        model=model,
        payload=payload,
        usage_shape="openai",
        input_bound=bound,
        output_fields=("max_tokens",),
        # Some servers count what they echo as output.
        output_extra=bound if flag(payload, "echo") else 0,
        choices=prompts * answers,
        stream=stream,
        hide_usage=hide_usage,
    )
    asked = number(payload, "max_tokens")
    if asked is None and provider.type == OPENAI_TYPE:
        # What the API takes where nobody says one: a longer answer than that is not what was asked for.
        asked = API_DEFAULT_TOKENS
    set_output_maximum(call, [asked], rules)
    return call


def _prompts(prompt: Any) -> int:
    """Give how many prompts there are: a list of numbers is one. Raises InvalidCallError."""
    if not isinstance(prompt, list) or (prompt and all(type(each) is int for each in prompt)):
        return 1
    if len(prompt) > PROMPTS_MAX:
        raise InvalidCallError(f"prompt: at most {PROMPTS_MAX} prompts in one request", param="prompt")
    return max(1, len(prompt))
