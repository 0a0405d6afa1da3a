"""Prices that somebody wrote down: tiers by input size, slow processing, and what the meter makes of both."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.model_provider import ModelPrice, ModelProviderSpec
from almoner_core.contract import PriceCard, PriceTier
from almoner_core.price_data import price_card
from almoner_core.pricing import TokenCounts, bound_nanos, cost_nanos, output_tokens_within
from almoner_runner.meter import openai
from almoner_runner.meter.answers import Seen
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Rules
from almoner_runner.meter.refusals import InvalidCallError

DOLLAR = 1_000_000_000
STRICT = Rules(strict=True, priced=True, default_output=100)
MESSAGES = [{"role": "user", "content": "hello"}]


def card_of(**price: Any) -> PriceCard:
    given = {"model": "m", "inputPerMillion": "2", "outputPerMillion": "8", **price}
    card = price_card(ModelProviderSpec.model_validate({"type": "OpenAI", "prices": [given]}), "team/p", "m", 3)
    assert card is not None
    assert card.version == "override team/p generation 3"
    return card


def test_an_override_has_tiers_of_its_own() -> None:
    card = card_of(
        cachedInputPerMillion="0.5",
        tiers=[
            {"inputTokensMin": 1000, "inputPerMillion": "4", "outputPerMillion": "12", "cacheWritePerMillion": "5"},
            {"inputTokensMin": 5000, "inputPerMillion": "1", "outputPerMillion": "1"},
        ],
    )
    assert [tier.input_tokens_min for tier in card.tiers] == [0, 1000, 5000]
    # What a tier leaves out costs what its own input costs, never what a smaller call's does.
    assert card.tiers[1] == PriceTier(
        input_tokens_min=1000, input=4 * DOLLAR, cached_input=4 * DOLLAR, cache_write=5 * DOLLAR, output=12 * DOLLAR
    )
    assert cost_nanos(card, TokenCounts(input=999)) == 999 * 2000
    assert cost_nanos(card, TokenCounts(input=1000, cache_write=1000)) == 1000 * 5000
    assert cost_nanos(card, TokenCounts(input=5000, output=1)) == 5001 * 1000
    # The dearest tier that the input may reach bounds it, though a larger call costs less.
    assert bound_nanos(card, 5000, 1) == 5000 * 5000 + 12_000


@pytest.mark.parametrize(
    ("batch", "rates"),
    [
        ({"discountPercent": 50}, (DOLLAR, 250_000_000, DOLLAR, 4 * DOLLAR)),
        ({"discountPercent": 0}, (2 * DOLLAR, 500_000_000, 2 * DOLLAR, 8 * DOLLAR)),
        ({"discountPercent": 100}, (0, 0, 0, 0)),
        ({"inputPerMillion": "1.5", "outputPerMillion": 3}, (1_500_000_000, 1_500_000_000, 1_500_000_000, 3 * DOLLAR)),
        (
            {"inputPerMillion": 1, "outputPerMillion": 3, "cachedInputPerMillion": 0, "cacheWritePerMillion": 2},
            (DOLLAR, 0, 2 * DOLLAR, 3 * DOLLAR),
        ),
    ],
)
def test_batch_prices_are_a_discount_or_rates(batch: dict[str, Any], rates: tuple[int, int, int, int]) -> None:
    (tier,) = card_of(cachedInputPerMillion="0.5", batch=batch).batch
    assert (tier.input, tier.cached_input, tier.cache_write, tier.output) == rates


def test_a_discount_holds_in_every_tier_and_is_rounded_up() -> None:
    tiers = [{"inputTokensMin": 10, "inputPerMillion": "0.000000003", "outputPerMillion": 1}]
    card = card_of(tiers=tiers, batch={"discountPercent": 33})
    assert [tier.input_tokens_min for tier in card.batch] == [0, 10]
    assert card.batch[1].input == 3  # 2.01 rounded up: never below what the discount leaves
    assert card.batch[0].output == 5_360_000_000


def test_the_public_data_knows_no_batch_price() -> None:
    card = price_card(ModelProviderSpec.model_validate({"type": "OpenAI"}), "k", "gpt-4.1", 1)
    assert card is not None
    assert card.batch == ()


RATES = st.integers(min_value=0, max_value=200 * DOLLAR)
MONEY = st.integers(min_value=0, max_value=10**12).map(lambda nanos: f"{nanos // 10**9}.{nanos % 10**9:09d}")


@st.composite
def rates(draw: st.DrawFn) -> dict[str, Any]:
    given = {"inputPerMillion": draw(MONEY), "outputPerMillion": draw(MONEY)}
    for name in draw(
        st.sets(st.sampled_from(["cachedInputPerMillion", "cacheWritePerMillion", "longCacheWritePerMillion"]))
    ):
        given[name] = draw(MONEY)
    return given


@st.composite
def overrides(draw: st.DrawFn) -> PriceCard:
    """Cards as manifests can write them: up to eight tiers, and perhaps a batch price of either form."""
    starts = sorted(draw(st.sets(st.integers(min_value=1, max_value=300_000), max_size=7)))
    price = {**draw(rates()), "tiers": [{"inputTokensMin": start, **draw(rates())} for start in starts]}
    batch = draw(st.one_of(st.none(), rates(), st.integers(0, 100).map(lambda percent: {"discountPercent": percent})))
    if batch is not None:
        price["batch"] = batch
    if draw(st.booleans()):
        price["perRequest"] = draw(MONEY)
    return card_of(**price)


@st.composite
def calls(draw: st.DrawFn) -> TokenCounts:
    given = draw(st.integers(min_value=0, max_value=400_000))
    cached = draw(st.integers(min_value=0, max_value=given))
    write = draw(st.integers(min_value=0, max_value=given - cached))
    long = draw(st.integers(min_value=0, max_value=write))
    output = draw(st.integers(min_value=0, max_value=100_000))
    return TokenCounts(given, cached, write, output=output, cache_write_long=long)


MORE = st.integers(min_value=0, max_value=100_000)


@given(overrides(), calls(), MORE, MORE, st.booleans())
def test_no_call_is_dearer_than_its_bound_however_it_is_served(
    card: PriceCard, tokens: TokenCounts, more_in: int, more_out: int, served: bool
) -> None:
    given_tokens, output = tokens.input + more_in, tokens.output + more_out
    bound = bound_nanos(card, given_tokens, output, batch=True, long=True)
    assert cost_nanos(card, tokens, batch=served) <= bound
    assert cost_nanos(card, tokens) <= bound_nanos(card, given_tokens, output, long=True) <= bound
    short = dataclasses.replace(tokens, cache_write_long=0)
    assert cost_nanos(card, short) <= min(bound_nanos(card, given_tokens, output), cost_nanos(card, tokens))


@given(overrides(), st.integers(min_value=0, max_value=400_000), st.integers(min_value=0, max_value=50 * DOLLAR))
def test_the_largest_output_of_a_batch_call_within_an_amount(card: PriceCard, given_tokens: int, nanos: int) -> None:
    output = output_tokens_within(card, given_tokens, nanos, batch=True)
    if output < 0:
        assert bound_nanos(card, given_tokens, 0, batch=True) > nanos
        return
    assert bound_nanos(card, given_tokens, output, batch=True) <= nanos


# --- the meter --------------------------------------------------------------------------------------------------------

LIGHT = Card(
    version="v",
    tiers=(Tier(input=2 * DOLLAR, cached_input=0, cache_write=0, output=8 * DOLLAR),),
    batch=(Tier(input=DOLLAR, cached_input=0, cache_write=0, output=4 * DOLLAR),),
)
PLAIN = Card(version="v", tiers=LIGHT.tiers)


def flex(card: Card, kind: str = "OpenAI", **changes: Any) -> Any:
    provider = Provider("p", kind, "http://x/v1", ("OpenAI",), {"m": Model("m", card, context_window=1000)})
    payload = {"model": "m", "messages": MESSAGES, "service_tier": "flex", **changes}
    return openai.chat(provider, read_body(json.dumps(payload).encode()), STRICT)


def test_a_call_that_asks_for_slow_processing_is_bounded_by_the_dearer_price() -> None:
    call = flex(LIGHT)
    assert call.batch
    assert call.payload.get("service_tier") == "flex"
    assert call.bound()["usd"] == call.input_bound * 2000 + 100 * 8000


@pytest.mark.parametrize(
    ("served", "nanos"),
    [("flex", 14_000), ("batch", 14_000), ("default", 28_000), ("priority", 28_000), (None, 28_000)],
)
def test_it_costs_what_the_answer_says_it_was_served_as(served: str | None, nanos: int) -> None:
    call = flex(LIGHT)
    call.served = served
    assert call.cost(TokenCounts(input=10, output=1)) == nanos


def test_a_tier_that_nobody_asked_for_is_not_believed() -> None:
    call = flex(LIGHT, service_tier="default")
    call.served = "flex"
    assert call.cost(TokenCounts(input=10, output=1)) == 28_000


def test_without_a_batch_price_the_tier_is_refused_under_a_budget() -> None:
    with pytest.raises(InvalidCallError, match="batch price"):
        flex(PLAIN)
    with pytest.raises(InvalidCallError, match="service_tier"):
        flex(LIGHT, service_tier="priority")


def test_streams_say_how_they_were_served() -> None:
    seen = Seen("openai")
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    event = b"data: " + json.dumps({"choices": [], "usage": usage, "service_tier": "flex"}).encode()
    assert seen.watch(event)
    assert seen.tier == "flex"
    for told, tier in (("default", "default"), (["flex"], None)):
        seen = Seen("responses")
        response = {"usage": {"input_tokens": 1, "output_tokens": 1}, "service_tier": told}
        data = {"type": "response.completed", "response": response}
        seen.watch(b"data: " + json.dumps(data).encode())
        assert seen.tier == tier


def test_every_price_of_a_manifest_is_bounded() -> None:
    tiers = [{"inputTokensMin": n, "inputPerMillion": 1, "outputPerMillion": 1} for n in range(1, 9)]
    with pytest.raises(ValueError, match="at most 7"):
        ModelPrice.model_validate({"model": "m", "inputPerMillion": 1, "outputPerMillion": 1, "tiers": tiers})
