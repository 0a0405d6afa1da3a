"""Where prices come from: a ModelProvider's own first, then the public price data of genai-prices, else unknown.

Apart from `pricing` because genai-prices is heavy (imported inside the functions, where it is used): the operator
resolves prices and hands the meter finished cards. Pure: the data is a table inside the package, and the date at which
dated prices are read is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Any, Final

from almoner_core.api.model_provider import (
    BatchPrice,
    ModelPrice,
    ModelPriceTier,
    ModelProviderSpec,
    ProviderType,
)
from almoner_core.api.tool_provider import RESOURCE_TYPES, ToolProviderSpec
from almoner_core.contract import MeterModel, MeterTool, PriceCard, PriceTier, ToolPriceCard
from almoner_core.model_names import undated
from almoner_core.money import NANOS_PER_DOLLAR, Money

_PROVIDER_IDS: Final = {ProviderType.OPENAI: "openai", ProviderType.ANTHROPIC: "anthropic"}
_KINDS: Final = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")
_LONG: Final = "cache_write_1h_mtok"
# Priced things that the meter refuses under a budget, by name, so that they need no place in a card: hosted tools.
_REFUSED: Final = frozenset({"web_searches_kcount", "storage_searches_kcount"})
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.:/@]{0,126}[A-Za-z0-9])?$")
_UNMETERED: Final = re.compile(
    "audio|realtime|transcribe|whisper|tts|image|search|deep-research|computer-use|moderation"
)
_VERSION_CHARS_MAX: Final = 128


def price_card(
    provider: ModelProviderSpec, provider_key: str, model: str, generation: int, *, at: datetime | None = None
) -> PriceCard | None:
    """Give what a model costs, or None where that is not known (which is not zero).

    provider_key: namespace/name of the ModelProvider; with `generation` it names the override in the card's version.
    at: the moment at which dated prices are read; None reads the newest ones. Where a price depends on the time of day,
    or on anything that a call does not say before it is made, the dearest of them counts.
    """
    for price in provider.prices:
        if price.model == model:
            return override_card(price, f"override {provider_key} generation {generation}"[:_VERSION_CHARS_MAX])
    info = _find(provider, model)
    if info is None:
        return None
    # Imported here: see the module.
    import genai_prices  # noqa: PLC0415

    return _card(info, f"genai-prices {genai_prices.__version__}", at)


def public_card(provider_id: str, model: str, *, at: datetime | None = None) -> PriceCard | None:
    """Give what the public data says of a model at a provider as genai-prices names it, such as `openai`; or None."""
    import genai_prices  # noqa: PLC0415 - see the module
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see the module

    try:
        info = get_snapshot().find_provider_model(model, None, provider_id, None)[1]
    except LookupError:
        return None
    return _card(info, f"genai-prices {genai_prices.__version__}", at)


def context_window(provider: ModelProviderSpec, model: str) -> int | None:
    """Give the most tokens of input: the ModelProvider's word, then the public data's, else None."""
    for entry in provider.models:
        if entry.name == model and entry.context_window is not None:
            return entry.context_window
    info = _find(provider, model)
    window: int | None = getattr(info, "context_window", None)
    return window


def public_models(provider: ModelProviderSpec) -> tuple[str, ...]:
    """Give every name of a provider's models that the public data has a price in text tokens for.

    Left out is what calls are not metered for, whatever its price: sound, pictures, searches.
    """
    return _public_models(_PROVIDER_IDS.get(provider.type), provider.base_url)


def is_same_model(provider: ModelProviderSpec, first: str, second: str) -> bool:
    """Say whether the public data has one entry for both names of a provider's."""
    one, other = _find(provider, first), _find(provider, second)
    return one is not None and other is not None and one.id == other.id


def listed_as(provider: ModelProviderSpec, model: str) -> str | None:
    """Give the name under which a provider lists a model: with or without a date; None where it does not."""
    names = [entry.name for entry in provider.models]
    if model in names:
        return model
    return next(
        (name for name in names if undated(name) == undated(model) and is_same_model(provider, model, name)), None
    )


@lru_cache(maxsize=64)
def _public_models(provider_id: str | None, base_url: str | None) -> tuple[str, ...]:
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see the module

    for identity, url in ((None, base_url), (provider_id, None)):
        if identity is None and url is None:
            continue
        try:
            found = get_snapshot().find_provider(None, identity, url)
        except LookupError:
            continue
        names = dict.fromkeys(name for info in found.models for name in (info.id, *_equal_names(info.match)))
        plain = (name for name in names if _NAME.match(name) and not _UNMETERED.search(name))
        return tuple(name for name in plain if public_card(found.id, name) is not None)
    return ()


def _equal_names(match: Any) -> Iterator[str]:
    """Give the names that a rule of the data takes for a model: those that it has letter by letter."""
    if (name := getattr(match, "equals", None)) is not None:
        yield name
    for rule in getattr(match, "or_", None) or ():
        yield from _equal_names(rule)


def meter_model(
    provider: ModelProviderSpec, provider_key: str, model: str, generation: int, *, at: datetime | None = None
) -> MeterModel:
    """Give all that the meter is told about one model."""
    listed = next((entry for entry in provider.models if entry.name == model), None)
    return MeterModel(
        name=model,
        price=price_card(provider, provider_key, model, generation, at=at),
        context_window=context_window(provider, model),
        max_output_tokens=listed.max_output_tokens if listed is not None else None,
    )


def meter_tool(provider: ToolProviderSpec, provider_key: str, tool: str, generation: int) -> MeterTool:
    """Give all that the meter is told about one tool; without a price where its ToolProvider has none for it."""
    found = next((price for price in provider.prices if price.tool == tool), None)
    card = None
    if found is not None:
        card = ToolPriceCard(
            version=f"override {provider_key} generation {generation}"[:_VERSION_CHARS_MAX],
            per_call=0 if found.per_call is None else found.per_call.nanos,
            per_unit=0 if found.per_unit is None else found.per_unit.nanos,
        )
    return MeterTool(
        name=tool,
        provider=provider_key.rpartition("/")[2],
        resource_type=RESOURCE_TYPES[provider.type].value,
        price=card,
    )


def override_card(price: ModelPrice, version: str) -> PriceCard:
    """Give the card of prices that somebody wrote down."""
    tiers = (_tier(price, 0), *(_tier(tier, tier.input_tokens_min) for tier in price.tiers))
    per_request = 0 if price.per_request is None else price.per_request.nanos
    return PriceCard(version=version, tiers=tiers, per_request=per_request, batch=_batch(price.batch, tiers))


def _tier(rates: ModelPrice | ModelPriceTier, start: int) -> PriceTier:
    return _rates_tier(
        start,
        rates.input_per_million,
        rates.output_per_million,
        cached=rates.cached_input_per_million,
        write=rates.cache_write_per_million,
        long=rates.long_cache_write_per_million,
    )


def _rates_tier(
    start: int, plain: Money, output: Money, *, cached: Money | None, write: Money | None, long: Money | None
) -> PriceTier:
    return PriceTier(
        input_tokens_min=start,
        input=plain.nanos,
        cached_input=plain.nanos if cached is None else cached.nanos,
        cache_write=plain.nanos if write is None else write.nanos,
        output=output.nanos,
        cache_write_long=None if long is None else long.nanos,
    )


def _batch(price: BatchPrice | None, tiers: tuple[PriceTier, ...]) -> tuple[PriceTier, ...]:
    """Give the tiers of slow processing: a discount on every rate, rounded up, or rates for calls of any size."""
    if price is None:
        return ()
    if price.input_per_million is not None and price.output_per_million is not None:
        cached, write = price.cached_input_per_million, price.cache_write_per_million
        long = price.long_cache_write_per_million
        return (
            _rates_tier(0, price.input_per_million, price.output_per_million, cached=cached, write=write, long=long),
        )
    if price.discount_percent is None:
        return ()
    kept = 100 - price.discount_percent
    return tuple(
        PriceTier(
            input_tokens_min=tier.input_tokens_min,
            input=-(-tier.input * kept // 100),
            cached_input=-(-tier.cached_input * kept // 100),
            cache_write=-(-tier.cache_write * kept // 100),
            output=-(-tier.output * kept // 100),
            cache_write_long=None if tier.cache_write_long is None else -(-tier.cache_write_long * kept // 100),
        )
        for tier in tiers
    )


def _find(provider: ModelProviderSpec, model: str) -> Any | None:
    """Find genai-prices' entry: by the base URL where it is a known provider's, else by the type."""
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415 - see the module

    snapshot = get_snapshot()
    questions: list[tuple[str | None, str | None]] = []
    if provider.base_url is not None:
        questions.append((None, provider.base_url))
    if provider.type in _PROVIDER_IDS:
        questions.append((_PROVIDER_IDS[provider.type], None))
    for provider_id, url in questions:
        try:
            return snapshot.find_provider_model(model, None, provider_id, url)[1]
        except LookupError:
            continue
    return None


def _card(info: Any, version: str, at: datetime | None) -> PriceCard | None:
    """Make a card of genai-prices' entry; None where its prices have parts that a card cannot hold."""
    alternatives = [_rates(prices) for prices in _in_force(info.prices, at)]
    known = [rates for rates in alternatives if rates is not None]
    if not known or len(known) != len(alternatives):
        return None
    starts = sorted({0} | {start for rates in known for kind in rates.values() for start, _ in kind if start})
    long = all(_LONG in rates for rates in known)
    tiers = tuple(
        PriceTier(
            input_tokens_min=start,
            input=max(_at(rates["input_mtok"], start) for rates in known),
            cached_input=max(_at(rates["cache_read_mtok"], start) for rates in known),
            cache_write=max(_at(rates["cache_write_mtok"], start) for rates in known),
            output=max(_at(rates["output_mtok"], start) for rates in known),
            cache_write_long=max(_at(rates[_LONG], start) for rates in known) if long else None,
        )
        for start in starts
    )
    per_request = max(rates["requests"][0][1] for rates in known)
    return PriceCard(version=version, tiers=tiers, per_request=per_request) if len(tiers) <= 8 else None


def _in_force(prices: Any, at: datetime | None) -> list[Any]:
    """Give the prices that may apply: the newest by date, and every one that depends on the time of day."""
    if not isinstance(prices, list):
        return [prices]
    chosen: list[Any] = []
    for conditional in reversed(prices):
        constraint = conditional.constraint
        if constraint is None:
            return [*chosen, conditional.prices]
        if hasattr(constraint, "start_date"):
            if at is None or constraint.active(at):
                return [*chosen, conditional.prices]
        else:
            chosen.append(conditional.prices)
    return chosen


Steps = tuple[tuple[int, int], ...]


def _rates(prices: Any) -> dict[str, Steps] | None:
    """Read one set of prices as steps (first input token of the step, nano-dollars per million) by kind."""
    given = {key: value for key, value in prices.__dict__.items() if value is not None}
    for key in list(given):
        if key in _REFUSED:
            del given[key]
    per_request = given.pop("requests_kcount", None)
    if "input_mtok" not in given or not set(given) <= {*_KINDS, _LONG} or hasattr(per_request, "tiers"):
        return None  # audio, images, pages, hours: no bound by text tokens holds for these
    plain = _steps(given["input_mtok"])
    long = {_LONG: _steps(given[_LONG])} if _LONG in given else {}
    return {
        **long,
        "input_mtok": plain,
        "cache_read_mtok": _steps(given["cache_read_mtok"]) if "cache_read_mtok" in given else plain,
        "cache_write_mtok": _steps(given["cache_write_mtok"]) if "cache_write_mtok" in given else plain,
        # Embedding models have no output.
        "output_mtok": _steps(given["output_mtok"]) if "output_mtok" in given else ((0, 0),),
        "requests": ((0, 0 if per_request is None else _nanos(per_request / 1000)),),
    }


def _steps(price: Any) -> Steps:
    if isinstance(price, Decimal):
        return ((0, _nanos(price)),)
    # genai-prices' tier applies above its start, ours from a number of tokens on.
    return ((0, _nanos(price.base)), *((tier.start + 1, _nanos(tier.price)) for tier in price.tiers))


def _at(steps: Steps, tokens: int) -> int:
    return next(rate for start, rate in reversed(steps) if start <= tokens)


def _nanos(dollars: Decimal) -> int:
    return int((dollars * NANOS_PER_DOLLAR).to_integral_value(rounding=ROUND_CEILING))
