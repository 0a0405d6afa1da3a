"""The output maximum that the meter chooses, and what refusals say of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.model_facts import DEFAULT_OUTPUT_TOKENS, default_output, image_tokens, longest_answer
from almoner_runner.meter import anthropic, openai
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.maxima import field_told, limit_told, message_of

CARD = Card("v", (Tier(1000, 1000, 1000, 1000),), 0, ())


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        ("gpt-3.5-turbo-0125", 4_096),
        ("gpt-4", 8_192),
        ("gpt-4-0613", 8_192),
        ("gpt-4-turbo-2024-04-09", 4_096),
        ("gpt-4o", 16_384),
        ("gpt-4o-2024-05-13", 4_096),
        ("gpt-4o-mini-2024-07-18", 16_384),
        ("ft:gpt-4o-mini-2024-07-18:acme", 16_384),
        ("gpt-4.1-nano", 32_768),
        ("o1-mini", 65_536),
        ("o3-2025-04-16", 100_000),
        ("o4-mini", 100_000),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-5.4-mini", 128_000),
        ("claude-3-haiku-20240307", 4_096),
        ("claude-3-5-haiku-latest", 8_192),
        ("claude-sonnet-4-5-20250929", 64_000),
        ("claude-opus-4-1", 32_000),
        ("claude-opus-4-8", 128_000),
        ("Qwen/Qwen3-8B", DEFAULT_OUTPUT_TOKENS),
    ],
)
def test_the_longest_answer_of_known_families(model: str, tokens: int) -> None:
    assert longest_answer(model) == tokens


@pytest.mark.parametrize(
    ("provider", "model", "tokens"),
    [
        ("Anthropic", "claude-opus-4-8", 5_000),
        ("OpenAI", "gpt-4o-mini", 50_000),
        ("OpenAI", "gpt-4o", 2_048),
        ("OpenAI", "gpt-4.1-mini", 4_096),
        ("OpenAI", "gpt-4.1", 2_048),
        ("OpenAI", "gpt-6-astra", 50_000),
        ("OpenAICompatible", "gpt-4o", None),
    ],
)
def test_the_most_tokens_of_an_image(provider: str, model: str, tokens: int | None) -> None:
    assert image_tokens(provider, model) == tokens


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_a_default_is_at_least_a_token_and_never_above_the_window(bound: int, window: int) -> None:
    assert 1 <= default_output("some-model", bound, window) <= window


def call_of(payload: dict[str, Any], rules: Rules, *, kind: str = "OpenAI", **model: Any) -> Call:
    provider = Provider("p", kind, "http://p/v1", ("OpenAI",), {"gpt-4o": Model("gpt-4o", CARD, **model)})
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **payload}
    return openai.chat(provider, read_body(json.dumps(body).encode()), rules)


STRICT = Rules(strict=True, priced=True)


def test_c12_who_says_no_maximum_gets_the_models_own_and_is_told_so() -> None:
    call = call_of({}, STRICT, context_window=128_000)
    assert (call.output_max, call.output_chosen) == (16_384, True)
    assert json.loads(call.body())["max_completion_tokens"] == 16_384


def test_the_provider_s_word_and_the_agent_s_come_first() -> None:
    assert call_of({}, STRICT, max_output_tokens=128_000).output_max == 128_000
    assert call_of({}, Rules(strict=True, priced=True, default_output=300)).output_max == 300
    learned = Rules(strict=True, priced=True, learned={"p/gpt-4o": 777})
    assert call_of({}, learned).output_max == 777
    asked = call_of({"max_tokens": 900}, learned)
    assert (asked.output_max, asked.output_chosen) == (900, False)


def test_where_nothing_is_limited_nothing_is_added() -> None:
    call = call_of({}, Rules(strict=False, priced=False))
    assert not call.output_chosen
    assert not {"max_tokens", "max_completion_tokens"} & set(json.loads(call.body()))
    assert call.output_max == 16_384  # the estimate, should it be cut off


def test_another_field_replaces_the_one_that_the_meter_set() -> None:
    call = call_of({}, STRICT, kind="OpenAICompatible")
    assert json.loads(call.body())["max_tokens"]
    call.choose_output(4_000, "max_completion_tokens")
    sent = json.loads(call.body())
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (4_000, False)
    call.lower_output(500)
    assert json.loads(call.body())["max_completion_tokens"] == 500


def test_an_anthropic_thinking_budget_above_the_maximum_is_bounded_beside_it() -> None:
    provider = Provider("p", "Anthropic", "http://p", ("Anthropic",), {"claude-x": Model("claude-x", CARD)})
    body = {"model": "claude-x", "messages": [], "max_tokens": 100, "thinking": {"budget_tokens": 4_000}}
    call = anthropic.messages(provider, read_body(json.dumps(body).encode()), STRICT)
    assert (call.output_max, call.output_bound) == (100, 4_100)


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("max_tokens is too large: 32768. This model supports at most 16384 completion tokens, whereas you", 16_384),
        ("max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens for claude-3-5", 8_192),
        (
            (
                "This model's maximum context length is 8192 tokens. However, you requested 32868 tokens (100 in the "
                "messages, 32768 in the completion). Please reduce the length of the messages or completion."
            ),
            8_092,
        ),
        (
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 32768. This model's maximum context length is "
                "8192 tokens and your request has 100 input tokens (32768 > 8192 - 100)."
            ),
            8_092,
        ),
        ("`max_new_tokens` must be less than or equal to 2048", 2_048),
        ("maximum context length is 8192 tokens and your request has 9000 input tokens", None),
        ("max_tokens: supports at most 99999999 output tokens", None),
        ("messages: roles must alternate", None),
        ("", None),
    ],
)
def test_what_refusals_say_of_a_maximum(message: str, limit: int | None) -> None:
    assert limit_told(message, 32_769) == limit


def test_c06_the_other_field_as_azure_and_openai_ask_for_it() -> None:
    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    assert field_told(said, "max_tokens") == "max_completion_tokens"
    assert field_told(said, "max_completion_tokens") is None
    assert field_told("'temperature' is not supported. Use 'top_p' instead.", "max_tokens") is None


@given(st.text(max_size=300) | st.from_regex(r"max_tokens.{0,20}\d{1,12}.{0,20}"), st.integers(1, 10**6))
def test_no_text_is_too_odd(message: str, asked: int) -> None:
    limit = limit_told(message, asked)
    assert limit is None or 0 < limit < asked
    assert field_told(message, "max_tokens") in (None, "max_completion_tokens")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "m"}}, "m"),
        ({"type": "error", "error": {"type": "x", "message": "m"}}, "m"),
        ({"object": "error", "message": "m"}, "m"),
        ({"detail": "m"}, "m"),
        ({"error": "m"}, "m"),
        ({"error": None}, ""),
        ({"detail": [1]}, ""),
    ],
)
def test_where_errors_keep_their_text(body: dict[str, Any], text: str) -> None:
    assert message_of(body) == text


def thinking_call(maximum: int, budget: int, **more: Any) -> Call:
    provider = Provider("p", "Anthropic", "http://p", ("Anthropic",), {"claude-x": Model("claude-x", CARD)})
    thinking = {"type": "enabled", "budget_tokens": budget, **more}
    body = {"model": "claude-x", "messages": [], "max_tokens": maximum, "thinking": thinking}
    return anthropic.messages(provider, read_body(json.dumps(body).encode()), STRICT)


def test_f2_a_budget_of_thoughts_goes_down_with_the_maximum() -> None:
    """Claude Code asks for 31,999 of its 32,000 tokens."""
    call = thinking_call(32_000, 31_999)
    assert call.output_least == 2_048
    longest = len(call.body())
    for output, budget in ((8_000, 6_000), (2_048, 1_536), (32_000, 31_999)):
        call.lower_output(output)
        sent = json.loads(call.body())
        assert (sent["max_tokens"], sent["thinking"]) == (output, {"type": "enabled", "budget_tokens": budget})
        assert len(call.body()) <= longest
    modest = thinking_call(32_000, 2_000)
    modest.lower_output(4_000)
    assert json.loads(modest.body())["thinking"]["budget_tokens"] == 2_000


@pytest.mark.parametrize("call", [thinking_call(100, 4_000), thinking_call(5_000, 4_000, odd=1e15)])
def test_a_budget_that_cannot_go_down_keeps_the_maximum_up(call: Call) -> None:
    assert call.output_least > 4_000
    assert not call.thinking
