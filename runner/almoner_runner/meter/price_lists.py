"""Models beside those that the configuration tells in full: prices in few bytes, by provider.

The operator writes them to `extra` as `almoner_core.price_list` says, so that an older meter goes on without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from almoner_core.environment import EXTRA_PRICE_LISTS
from almoner_core.price_list import unpack
from almoner_runner.meter.config import Card, Config, ConfigError, Model, Provider, Tier


def with_price_lists(config: Config) -> Config:
    """Give the configuration with all models. What is told in full comes first. Raises ConfigError."""
    given = config.extra.get(EXTRA_PRICE_LISTS)
    if given is None:
        return config
    path = f"config.extra.{EXTRA_PRICE_LISTS}"
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: expected an object")
    providers = tuple(_extended(each, given.get(each.name), f"{path}.{each.name}") for each in config.providers)
    return replace(config, providers=providers)


def _extended(provider: Provider, given: Any, path: str) -> Provider:
    if given is None:
        return provider
    if not isinstance(given, Mapping):
        raise ConfigError(f"{path}: expected an object")
    models: dict[str, Model] = {}
    if "prices" in given:
        try:
            models = {
                name: Model(name, price, window, most)
                for name, price, window, most in unpack(given["prices"], _tier, _card)
            }
        except ValueError as error:
            raise ConfigError(f"{path}.prices: {error}") from None
    return replace(
        provider,
        models=provider.models | {name: model for name, model in models.items() if name not in provider.models},
        listed=given.get("listed") is True,
        left_out=given.get("left_out") is True,
    )


def _card(version: str, per_request: int, tiers: tuple[Tier, ...], batch: tuple[Tier, ...]) -> Card:
    return Card(version, tiers, per_request, batch)


def _tier(row: Sequence[Any]) -> Tier:
    start, plain, cached, write, output, write_long = row
    return Tier(plain, cached, write, output, start, write_long)
