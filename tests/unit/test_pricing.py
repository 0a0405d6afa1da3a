"""Prices and bounds: exact integers, rounded up once, nothing billed twice, and no call dearer than its bound."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.contract import PriceCard, PriceTier
from almoner_core.price_data import context_window, meter_model, price_card
from almoner_core.pricing import (
    TokenCounts,
    bound_nanos,
    call_bound,
    cost_nanos,
    first_call_bound,
    input_tokens_bound,
    output_tokens_within,
    tier_for,
)

DOLLAR = 1_000_000_000
SONNET = PriceCard(
    version="test",
    tiers=(
        PriceTier(
            input=3 * DOLLAR,
            cached_input=300_000_000,
            cache_write=3_750_000_000,
            output=15 * DOLLAR,
            cache_write_long=6 * DOLLAR,
        ),
        PriceTier(
            input_tokens_min=200_001,
            input=6 * DOLLAR,
            cached_input=600_000_000,
            cache_write=7_500_000_000,
            output=22_500_000_000,
            cache_write_long=12 * DOLLAR,
        ),
    ),
)
OPENAI = ModelProviderSpec.model_validate({"type": "OpenAI"})
ANTHROPIC = ModelProviderSpec.model_validate({"type": "Anthropic"})


@pytest.mark.parametrize(
    ("tokens", "nanos"),
    [
        (TokenCounts(), 0),
        (TokenCounts(input=1), 3000),
        (TokenCounts(input=1_000_000, output=0), 6 * DOLLAR),
        (TokenCounts(input=1000, output=1000), 3_000_000 + 15_000_000),
        # Cached and written tokens are part of the input: billed once, at their own rate.
        (TokenCounts(input=1000, cached_input=900), 100 * 3000 + 900 * 300),
        (TokenCounts(input=1000, cached_input=400, cache_write=600), 400 * 300 + 600 * 3750),
        # Reasoning is part of the output.
        (TokenCounts(output=100, reasoning=90), 100 * 15_000),
        # The tier is chosen by the total input, and applies to all tokens.
        (TokenCounts(input=200_000, output=1), 200_000 * 3000 + 15_000),
        (TokenCounts(input=200_001, output=1), 200_001 * 6000 + 22_500),
        (TokenCounts(input=200_001, cached_input=200_001), 200_001 * 600),
        # A provider that counts its subsets outside the input is not believed to be cheaper than its parts.
        (TokenCounts(input=10, cached_input=100), 100 * 300),
    ],
)
def test_cost_of_a_call(tokens: TokenCounts, nanos: int) -> None:
    assert cost_nanos(SONNET, tokens) == nanos


def test_a_call_is_rounded_up_once() -> None:
    card = PriceCard(version="v", tiers=(PriceTier(input=1, cached_input=1, cache_write=1, output=1),))
    assert cost_nanos(card, TokenCounts(input=1)) == 1
    assert cost_nanos(card, TokenCounts(input=1, output=1)) == 1
    assert cost_nanos(card, TokenCounts(input=999_999, output=2)) == 2


def test_per_request_is_added_to_the_tokens() -> None:
    card = PriceCard(
        version="v", tiers=(PriceTier(input=0, cached_input=0, cache_write=0, output=0),), per_request=5_000
    )
    assert cost_nanos(card, TokenCounts(input=7, output=7)) == 5_000
    assert bound_nanos(card, 7, 7) == 5_000


def test_negative_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        TokenCounts(input=-1)


RATES = st.integers(min_value=0, max_value=200 * DOLLAR)


@st.composite
def cards(draw: st.DrawFn) -> PriceCard:
    starts = sorted({0, *draw(st.lists(st.integers(min_value=1, max_value=300_000), max_size=3))})
    tiers = tuple(
        PriceTier(
            input_tokens_min=start,
            input=draw(RATES),
            cached_input=draw(RATES),
            cache_write=draw(RATES),
            output=draw(RATES),
        )
        for start in starts
    )
    return PriceCard(version="drawn", tiers=tiers, per_request=draw(st.integers(min_value=0, max_value=DOLLAR)))


@st.composite
def calls(draw: st.DrawFn) -> TokenCounts:
    input_tokens = draw(st.integers(min_value=0, max_value=400_000))
    cached = draw(st.integers(min_value=0, max_value=input_tokens))
    write = draw(st.integers(min_value=0, max_value=input_tokens - cached))
    output = draw(st.integers(min_value=0, max_value=100_000))
    return TokenCounts(input=input_tokens, cached_input=cached, cache_write=write, output=output)


@given(cards(), calls(), st.integers(min_value=0, max_value=100_000), st.integers(min_value=0, max_value=100_000))
def test_no_call_is_dearer_than_its_bound(card: PriceCard, tokens: TokenCounts, more_in: int, more_out: int) -> None:
    bound = bound_nanos(card, tokens.input + more_in, tokens.output + more_out)
    assert cost_nanos(card, tokens) <= bound


@given(cards(), calls())
def test_cost_is_the_exact_sum_rounded_up(card: PriceCard, tokens: TokenCounts) -> None:
    tier = tier_for(card, tokens.input)
    exact = (
        Fraction(tokens.input - tokens.cached_input - tokens.cache_write) * tier.input
        + Fraction(tokens.cached_input) * tier.cached_input
        + Fraction(tokens.cache_write) * tier.cache_write
        + Fraction(tokens.output) * tier.output
    ) / 1_000_000
    billed = cost_nanos(card, tokens) - card.per_request
    assert exact <= billed < exact + 1


@given(cards(), st.integers(min_value=0, max_value=400_000), st.integers(min_value=0, max_value=50 * DOLLAR))
def test_the_largest_output_within_an_amount(card: PriceCard, input_tokens: int, nanos: int) -> None:
    output = output_tokens_within(card, input_tokens, nanos)
    if output < 0:
        assert bound_nanos(card, input_tokens, 0) > nanos
        return
    assert bound_nanos(card, input_tokens, output) <= nanos
    if output < 1_000_000_000:
        assert bound_nanos(card, input_tokens, output + 1) > nanos


def test_unknown_price_leaves_usd_out_of_the_bound() -> None:
    assert call_bound(None, 10, 5) == {"tokens": 15, "requests": 1}


def test_tools_and_schemas_cost_tokens_before_they_are_called() -> None:
    plain = input_tokens_bound(1000, 2)
    assert plain == 1000 + 2 * 16 + 64
    assert input_tokens_bound(1000, 2, tool_bytes=300) == plain + 300 + 1024
    assert input_tokens_bound(1000, 2, schema=True) == plain + 1024


def test_first_call_needs_sixteen_tokens_of_output_and_wants_them_all() -> None:
    first = first_call_bound(SONNET, text_bytes=400, max_output_tokens=1000)
    assert first.want["tokens"] - first.need["tokens"] == 1000 - 16
    assert first.want["usd"] - first.need["usd"] == (1000 - 16) * 15_000
    assert first.need["requests"] == first.want["requests"] == 1
    small = first_call_bound(SONNET, text_bytes=400, max_output_tokens=8)
    assert small.need == small.want


def test_an_override_comes_before_the_public_data() -> None:
    spec = ModelProviderSpec.model_validate(
        {
            "type": "OpenAI",
            "prices": [{"model": "gpt-4o", "inputPerMillion": "1", "outputPerMillion": "2", "perRequest": "0.001"}],
        }
    )
    card = price_card(spec, "team/openai", "gpt-4o", 7)
    assert card is not None
    assert card.version == "override team/openai generation 7"
    assert card.tiers == (PriceTier(input=DOLLAR, cached_input=DOLLAR, cache_write=DOLLAR, output=2 * DOLLAR),)
    assert card.per_request == 1_000_000


def test_public_prices_with_tiers_and_cache() -> None:
    import genai_prices

    card = price_card(ANTHROPIC, "team/anthropic", "claude-sonnet-4-5", 1)
    assert card is not None
    assert card.version == f"genai-prices {genai_prices.__version__}"
    assert card.tiers == SONNET.tiers
    assert context_window(ANTHROPIC, "claude-sonnet-4-5")


def test_a_dated_price_is_read_at_its_date() -> None:
    before = price_card(ANTHROPIC, "k", "claude-opus-4-6", 1, at=datetime(2026, 3, 12, tzinfo=UTC))
    after = price_card(ANTHROPIC, "k", "claude-opus-4-6", 1, at=datetime(2026, 3, 13, tzinfo=UTC))
    assert before is not None
    assert after is not None
    assert len(before.tiers) == 2
    assert len(after.tiers) == 1
    assert price_card(ANTHROPIC, "k", "claude-opus-4-6", 1) == after


@pytest.mark.parametrize(
    ("spec", "model"),
    [
        ({"type": "OpenAICompatible", "baseURL": "http://localhost:8080/v1"}, "smollm2-135m-instruct"),
        ({"type": "OpenAI"}, "no-such-model-anywhere"),
        ({"type": "OpenAI"}, "gpt-image-1"),  # image tokens cost more than text tokens: no card holds that
    ],
)
def test_unknown_is_none_and_not_zero(spec: dict[str, Any], model: str) -> None:
    assert price_card(ModelProviderSpec.model_validate(spec), "k", model, 1) is None


def test_a_compatible_server_is_known_by_its_address() -> None:
    spec = ModelProviderSpec.model_validate({"type": "OpenAICompatible", "baseURL": "https://api.deepseek.com/v1"})
    assert price_card(spec, "k", "deepseek-chat", 1) is not None


def test_our_costs_agree_with_the_public_calculation() -> None:
    from genai_prices import Usage, calc_price

    usage = Usage(input_tokens=250_000, cache_read_tokens=100_000, cache_write_tokens=50_000, output_tokens=2_000)
    theirs = calc_price(usage, "claude-sonnet-4-5", provider_id="anthropic").total_price
    card = price_card(ANTHROPIC, "k", "claude-sonnet-4-5", 1)
    assert card is not None
    ours = cost_nanos(card, TokenCounts(input=250_000, cached_input=100_000, cache_write=50_000, output=2_000))
    assert Decimal(ours) == theirs * DOLLAR


def test_what_the_meter_is_told_about_a_model() -> None:
    spec = ModelProviderSpec.model_validate(
        {
            "type": "OpenAICompatible",
            "baseURL": "http://localhost:8080/v1",
            "models": [{"name": "small", "contextWindow": 2048, "maxOutputTokens": 256}],
        }
    )
    model = meter_model(spec, "k", "small", 1)
    assert (model.price, model.context_window, model.max_output_tokens) == (None, 2048, 256)
    assert meter_model(spec, "k", "other", 1).context_window is None
