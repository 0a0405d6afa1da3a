"""The meter's configuration, read by hand from the JSON that the operator writes.

Light copies of contract.MeterConfig and its parts: importing pydantic would cost the meter a fifth of its memory and a
third of its start. A test holds the two together field by field. Errors name the field and what was expected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from almoner_core.environment import METER_CONFIG_BYTES_MAX

OPENAI: Final = "OpenAI"
ANTHROPIC: Final = "Anthropic"
DIALECTS: Final = (OPENAI, ANTHROPIC)
PROVIDERS_MAX: Final = 9
MODELS_MAX: Final = 64
ALLOWED_FIELDS_MAX: Final = 32
TIERS_MAX: Final = 8
TOOLS_MAX: Final = 64

NOT_TOLD_HERE: Final = frozenset({"listed", "left_out"})
"""Fields that come from elsewhere than their own object."""

T = TypeVar("T")


class ConfigError(ValueError):
    """The configuration cannot be used; the message names the field."""


@dataclass(frozen=True, slots=True)
class Tier:
    """Nano-dollars per million tokens for calls whose input reaches `input_tokens_min`."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    input_tokens_min: int = 0
    cache_write_long: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """What one model costs; see contract.PriceCard."""

    version: str
    tiers: tuple[Tier, ...]
    per_request: int = 0
    batch: tuple[Tier, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One model that may be called; `price` None is unknown."""

    name: str
    price: Card | None = None
    context_window: int | None = None  # None: not known
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider; `models` by name."""

    name: str
    type: str
    base_url: str
    dialects: tuple[str, ...]
    models: dict[str, Model]
    key_file: str | None = None
    ledger_key: bool = False  # the ledger hands it over
    allow_fields: frozenset[str] = frozenset()  # of requests: they pass besides those that are known
    # By the list of prices, see price_lists.py.
    listed: bool | None = None  # whether it lists its models, so that there are none but these; None: not told
    left_out: bool = False  # there was no room for all that it has prices for

    @property
    def first_party(self) -> bool:
        """Whether these are OpenAI's or Anthropic's own models: their names, windows and templates are documented."""
        return self.type in (OPENAI, ANTHROPIC)

    def url(self, dialect: str, route: str) -> str:
        """Give the address of a route such as `chat/completions` or `messages`.

        An OpenAI base URL ends in /v1, an Anthropic one does not: that is how the two SDKs take it. A compatible server
        that speaks both has one base URL, so its /v1 is taken off for Anthropic.
        """
        base = self.base_url.rstrip("/")
        if dialect == OPENAI:
            return f"{base}/{route}"
        return f"{base.removesuffix('/v1')}/v1/{route}"


@dataclass(frozen=True, slots=True)
class ToolPrice:
    """What one tool's calls cost; see contract.ToolPriceCard."""

    version: str
    per_call: int = 0
    per_unit: int = 0


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool of a ToolProvider; `price` None is unknown."""

    name: str
    provider: str
    resource_type: str
    price: ToolPrice | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """All that the meter is told; see contract.MeterConfig."""

    execution_namespace: str
    execution_name: str
    execution_uid: str
    attempt: int
    agent: str
    owner: str
    allotment: str
    ledger_url: str
    providers: tuple[Provider, ...]
    kind: str = "Execution"
    ledger_ca: str | None = None
    tools: tuple[Tool, ...] = ()
    default_model: str | None = None
    max_output_tokens: int | None = None
    input: str | None = None
    input_file: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def provider_for(self, dialect: str) -> Provider | None:
        """Give the first provider that speaks a dialect."""
        return next((provider for provider in self.providers if dialect in provider.dialects), None)

    def provider_named(self, name: str) -> Provider | None:
        """Give a provider by its name."""
        return next((provider for provider in self.providers if provider.name == name), None)


def parse(text: str) -> Config:
    """Read the configuration. Raises ConfigError."""
    if len(text.encode("utf-8", "replace")) > METER_CONFIG_BYTES_MAX:
        raise ConfigError(f"the configuration is larger than {METER_CONFIG_BYTES_MAX} bytes")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from None
    given = _object(data, "config", Config)
    return Config(
        execution_namespace=_text(given, "config", "execution_namespace"),
        execution_name=_text(given, "config", "execution_name"),
        execution_uid=_text(given, "config", "execution_uid"),
        kind=_text(given, "config", "kind", "Execution"),
        attempt=_number(given, "config", "attempt", least=1),
        agent=_text(given, "config", "agent"),
        owner=_text(given, "config", "owner"),
        allotment=_text(given, "config", "allotment"),
        ledger_url=_text(given, "config", "ledger_url"),
        ledger_ca=_optional_text(given, "config", "ledger_ca"),
        providers=tuple(_provider(p, path) for p, path in _list(given, "config", "providers", PROVIDERS_MAX)),
        tools=tuple(_tool(t, path) for t, path in _list(given, "config", "tools", TOOLS_MAX))
        if "tools" in given
        else (),
        default_model=_optional_text(given, "config", "default_model"),
        max_output_tokens=_optional_number(given, "config", "max_output_tokens", least=1),
        input=_optional_text(given, "config", "input"),
        input_file=_optional_text(given, "config", "input_file"),
        extra=_typed(given.get("extra", {}), "config.extra", dict),
    )


def _provider(value: Any, path: str) -> Provider:
    given = _object(value, path, Provider)
    dialects = tuple(_typed(d, at, str) for d, at in _list(given, path, "dialects", len(DIALECTS)))
    for dialect in dialects:
        if dialect not in DIALECTS:
            raise ConfigError(f"{path}.dialects: {dialect!r} is not one of {', '.join(DIALECTS)}")
    models = [_model(m, at) for m, at in _list(given, path, "models", MODELS_MAX)]
    base_url = _text(given, path, "base_url")
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{path}.base_url: must begin with http:// or https://")
    return Provider(
        name=_text(given, path, "name"),
        type=_text(given, path, "type"),
        base_url=base_url,
        dialects=dialects,
        models={model.name: model for model in models},
        key_file=_optional_text(given, path, "key_file"),
        ledger_key=_typed(given.get("ledger_key", False), f"{path}.ledger_key", bool),
        allow_fields=_allowed(given, path),
    )


def _allowed(given: dict[str, Any], path: str) -> frozenset[str]:
    if "allow_fields" not in given:
        return frozenset()
    return frozenset(_typed(name, at, str) for name, at in _list(given, path, "allow_fields", ALLOWED_FIELDS_MAX))


def _model(value: Any, path: str) -> Model:
    given = _object(value, path, Model)
    price = given.get("price")
    return Model(
        name=_text(given, path, "name"),
        price=None if price is None else _card(price, f"{path}.price"),
        context_window=_optional_number(given, path, "context_window", least=1),
        max_output_tokens=_optional_number(given, path, "max_output_tokens", least=1),
    )


def _tool(value: Any, path: str) -> Tool:
    given = _object(value, path, Tool)
    price = given.get("price")
    return Tool(
        name=_text(given, path, "name"),
        provider=_text(given, path, "provider"),
        resource_type=_text(given, path, "resource_type"),
        price=None if price is None else _tool_price(price, f"{path}.price"),
    )


def _tool_price(value: Any, path: str) -> ToolPrice:
    given = _object(value, path, ToolPrice)
    return ToolPrice(
        version=_text(given, path, "version"),
        per_call=_number(given, path, "per_call", 0),
        per_unit=_number(given, path, "per_unit", 0),
    )


def _card(value: Any, path: str) -> Card:
    given = _object(value, path, Card)
    return Card(
        version=_text(given, path, "version"),
        tiers=_tiers(given, path, "tiers"),
        per_request=_number(given, path, "per_request", 0),
        batch=_tiers(given, path, "batch") if given.get("batch") else (),
    )


def _tiers(given: dict[str, Any], path: str, name: str) -> tuple[Tier, ...]:
    tiers = tuple(_tier(tier, at) for tier, at in _list(given, path, name, TIERS_MAX))
    starts = [tier.input_tokens_min for tier in tiers]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ConfigError(f"{path}.{name}: must begin at input_tokens_min 0 and ascend, got {starts}")
    return tiers


def _tier(value: Any, path: str) -> Tier:
    given = _object(value, path, Tier)
    return Tier(
        input_tokens_min=_number(given, path, "input_tokens_min", 0),
        input=_number(given, path, "input"),
        cached_input=_number(given, path, "cached_input"),
        cache_write=_number(given, path, "cache_write"),
        output=_number(given, path, "output"),
        cache_write_long=_optional_number(given, path, "cache_write_long", least=0),
    )


def _typed(value: Any, path: str, kind: type[T]) -> T:
    # bool is an int to Python and to nobody else.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _object(value: Any, path: str, shape: type[Any]) -> dict[str, Any]:
    given: dict[str, Any] = _typed(value, path, dict)
    if unknown := sorted(set(given) - (set(shape.__slots__) - NOT_TOLD_HERE)):
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}")
    return given


def _text(given: dict[str, Any], path: str, name: str, default: str | None = None) -> str:
    value = given.get(name, default)
    if value is None:
        raise ConfigError(f"{path}.{name}: is needed")
    return _typed(value, f"{path}.{name}", str)


def _optional_text(given: dict[str, Any], path: str, name: str) -> str | None:
    value = given.get(name)
    return None if value is None else _typed(value, f"{path}.{name}", str)


def _number(given: dict[str, Any], path: str, name: str, default: int | None = None, *, least: int = 0) -> int:
    value = given.get(name, default)
    if value is None:
        raise ConfigError(f"{path}.{name}: is needed")
    number = _typed(value, f"{path}.{name}", int)
    if number < least:
        raise ConfigError(f"{path}.{name}: must be at least {least}, got {number}")
    return number


def _optional_number(given: dict[str, Any], path: str, name: str, *, least: int) -> int | None:
    return None if given.get(name) is None else _number(given, path, name, least=least)


def _list(given: dict[str, Any], path: str, name: str, most: int) -> list[tuple[Any, str]]:
    if name not in given:
        raise ConfigError(f"{path}.{name}: is needed")
    values: list[Any] = _typed(given[name], f"{path}.{name}", list)
    if len(values) > most:
        raise ConfigError(f"{path}.{name}: at most {most} entries, got {len(values)}")
    return [(value, f"{path}.{name}[{index}]") for index, value in enumerate(values)]
