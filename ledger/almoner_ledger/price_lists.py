"""Prices to rate records again by: a list that somebody wrote down, or the public price data. Knows no database."""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Sequence
from typing import Annotated, Final, Protocol

import yaml
from pydantic import ConfigDict, Field, ValidationError

from almoner_core.api.base import APIModel, ObjectName
from almoner_core.api.model_provider import ModelPrice
from almoner_core.contract import PriceCard
from almoner_core.price_data import override_card, public_card

FILE_BYTES_MAX: Final = 4 * 1024 * 1024


class Prices(Protocol):
    """Where the price of a record is looked up."""

    def card(self, provider: str, model: str, day: dt.date) -> PriceCard | None:
        """Give the price of a model at a ModelProvider on a day; None where it is not known."""


class ListedPrice(ModelPrice):
    """A price of a list; for one ModelProvider, or for any."""

    model_config = ConfigDict(extra="forbid")

    provider: ObjectName | None = Field(default=None, description="Name of the ModelProvider; any where absent.")


class PriceList(APIModel):
    """A list of prices under one version."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(min_length=1, max_length=128)]
    prices: Annotated[list[ListedPrice], Field(min_length=1, max_length=4096)]

    def card(self, provider: str, model: str, day: dt.date) -> PriceCard | None:
        """Give the price of a model: that for its provider before that for any."""
        del day
        return self._cards.get((provider, model)) or self._cards.get((None, model))

    @functools.cached_property
    def _cards(self) -> dict[tuple[str | None, str], PriceCard]:
        return {(price.provider, price.model): override_card(price, self.version) for price in self.prices}


def read(content: bytes) -> PriceList:
    """Read a price list in YAML. Raises ValueError that names the field."""
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"--prices: the file is larger than {FILE_BYTES_MAX} bytes")
    try:
        found = PriceList.model_validate(yaml.safe_load(content))
    except yaml.YAMLError as error:
        raise ValueError(f"--prices: this is not YAML: {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"--prices: {where}: {first['msg']}") from error
    seen: set[tuple[str | None, str]] = set()
    for index, price in enumerate(found.prices):
        _check(price, f"--prices: prices.{index}")
        if (price.provider, price.model) in seen:
            raise ValueError(f"--prices: prices.{index}: {price.model} is listed twice for the same provider")
        seen.add((price.provider, price.model))
    return found


def _check(price: ListedPrice, place: str) -> None:
    """Check what the API server checks by CEL in a ModelProvider."""
    starts = [tier.input_tokens_min for tier in price.tiers]
    if starts != sorted(set(starts)):
        raise ValueError(f"{place}.tiers: must ascend by inputTokensMin")
    batch = price.batch
    if batch is not None:
        rates = (batch.input_per_million, batch.output_per_million)
        if (batch.discount_percent is None) == (rates[0] is None) or (rates[0] is None) != (rates[1] is None):
            raise ValueError(f"{place}.batch: must be either discountPercent, or inputPerMillion and outputPerMillion")


class PublicPrices:
    """The public price data. A ModelProvider that it does not know by name must be named by the user."""

    def __init__(self, named: dict[str, str]) -> None:
        self._named = named
        self._cards: dict[tuple[str, str, dt.date], PriceCard | None] = {}

    def card(self, provider: str, model: str, day: dt.date) -> PriceCard | None:
        """Give the price that was in force on a day, as far as the data keeps old prices."""
        key = (self._named.get(provider, provider), model, day)
        if key not in self._cards:
            at = dt.datetime.combine(day, dt.time(), dt.UTC)
            self._cards[key] = public_card(*key[:2], at=at)
        return self._cards[key]


def public(named: Sequence[str]) -> PublicPrices:
    """Give the public price data; `named` are PROVIDER=ID. Raises ValueError where it is not installed."""
    try:
        import genai_prices  # noqa: F401, PLC0415 - heavy, and in the ledger's image only where somebody wants it
    except ImportError:
        raise ValueError("--genai-prices: the package genai-prices is not installed") from None
    pairs = [text.partition("=") for text in named]
    for provider, _, name in pairs:
        if not provider or not name:
            raise ValueError("--as: write PROVIDER=ID, such as my-openai=openai")
    return PublicPrices({provider: name for provider, _, name in pairs})
