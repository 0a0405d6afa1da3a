"""The meter reads by hand what the operator writes with pydantic: the two are held together field by field."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from pydantic import BaseModel

from almoner_core import contract, environment
from almoner_core.contract import (
    Dialect,
    MeterConfig,
    MeterModel,
    MeterProvider,
    MeterTool,
    PriceCard,
    PriceTier,
    ToolPriceCard,
)
from almoner_runner.meter import config as meter
from almoner_runner.meter.config import ConfigError, parse

FULL = MeterConfig(
    execution_namespace="team",
    execution_name="run",
    execution_uid="uid",
    kind="TrainingJob",
    attempt=3,
    agent="greeter",
    owner="alice",
    allotment="allotment-id",
    ledger_url="http://ledger:8080",
    ledger_ca="-----BEGIN CERTIFICATE-----",
    providers=(
        MeterProvider(
            name="one",
            type="OpenAICompatible",
            base_url="http://host:1/v1",
            dialects=(Dialect.OPENAI, Dialect.ANTHROPIC),
            key_file="key",
            models=(
                MeterModel(
                    name="m",
                    price=PriceCard(
                        version="v",
                        tiers=(
                            PriceTier(input=1, cached_input=2, cache_write=3, output=4),
                            PriceTier(input_tokens_min=100, input=5, cached_input=6, cache_write=7, output=8),
                        ),
                        per_request=9,
                        batch=(PriceTier(input=10, cached_input=11, cache_write=12, output=13),),
                    ),
                    context_window=1000,
                    max_output_tokens=100,
                ),
                MeterModel(name="unpriced"),
            ),
        ),
        MeterProvider(name="two", type="Anthropic", base_url="https://host/", dialects=(Dialect.ANTHROPIC,), models=()),
    ),
    tools=(
        MeterTool(
            name="web_search",
            provider="serper",
            resource_type="web_search",
            price=ToolPriceCard(version="t", per_call=3, per_unit=4),
        ),
        MeterTool(name="unpriced", provider="serper", resource_type="web_search"),
    ),
    default_model="m",
    max_output_tokens=50,
    input="text",
    input_file="/some/file",
    extra={"a": [1, {"b": None}]},
)


def as_plain(value: Any) -> Any:
    """Gives the meter's dataclasses as the operator's JSON; models are by name in the meter."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [each.name for each in dataclasses.fields(value) if each.name not in meter.NOT_TOLD_HERE]
        return {name: as_plain(getattr(value, name)) for name in fields}
    if isinstance(value, dict) and all(isinstance(v, meter.Model) for v in value.values()) and value:
        return [as_plain(v) for v in value.values()]
    if isinstance(value, tuple):
        return [as_plain(v) for v in value]
    return value


def test_a_configuration_survives_the_way_from_operator_to_meter() -> None:
    assert MeterConfig.model_validate(as_plain(parse(FULL.model_dump_json())) | {"providers": []}) == FULL.model_copy(
        update={"providers": ()}
    )
    parsed = parse(FULL.model_dump_json())
    for provider, ours in zip(FULL.providers, parsed.providers, strict=True):
        plain = as_plain(ours)
        plain["models"] = plain["models"] or []
        assert MeterProvider.model_validate(plain) == provider


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (MeterConfig, meter.Config),
        (MeterProvider, meter.Provider),
        (MeterModel, meter.Model),
        (PriceCard, meter.Card),
        (PriceTier, meter.Tier),
        (MeterTool, meter.Tool),
        (ToolPriceCard, meter.ToolPrice),
    ],
)
def test_both_sides_know_the_same_fields(theirs: type[BaseModel], ours: type[Any]) -> None:
    assert set(theirs.model_fields) == {field.name for field in dataclasses.fields(ours)} - meter.NOT_TOLD_HERE


def test_what_is_optional_to_the_operator_is_optional_to_the_meter() -> None:
    needed = {name: "x" for name, field in MeterConfig.model_fields.items() if field.is_required()}
    least = {**needed, "attempt": 1, "providers": []}
    assert as_plain(parse(json.dumps(least))) | {"providers": []} == MeterConfig.model_validate(least).model_dump(
        mode="json"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("allotment",), None, "config.allotment: is needed"),
        (("attempt",), 0, "config.attempt: must be at least 1"),
        (("attempt",), True, "config.attempt: expected int, got bool"),
        (("attempt",), 1.0, "config.attempt: expected int, got float"),
        (("surprise",), 1, "config: unknown field 'surprise'"),
        (("providers",), {}, "config.providers: expected list"),
        (("providers",), [{}] * 10, "config.providers: at most 9 entries, got 10"),
        (("providers", 0, "base_url"), "ftp://x", r"config.providers\[0\].base_url: must begin with http"),
        (("providers", 0, "dialects"), ["Klingon"], r"'Klingon' is not one of OpenAI, Anthropic"),
        (("providers", 0, "models", 0, "price", "tiers"), [], "must begin at input_tokens_min 0"),
        (("providers", 0, "models", 0, "price", "tiers", 1, "input_tokens_min"), 0, "ascend"),
        (("providers", 0, "models", 0, "price", "tiers", 0, "output"), -1, r"tiers\[0\].output: must be at least 0"),
        (("providers", 0, "models", 0, "price", "batch", 0, "input_tokens_min"), 5, "batch: must begin at"),
        (("tools", 0, "price", "per_call"), -1, r"tools\[0\].price.per_call: must be at least 0"),
        (("tools", 0, "provider"), None, r"tools\[0\].provider: is needed"),
        (("tools",), [{}] * 65, "config.tools: at most 64 entries, got 65"),
        (("extra",), [], "config.extra: expected dict"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    data = json.loads(FULL.model_dump_json())
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        parse(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '"x"', "x" * 200_000])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_base_urls_as_the_sdks_take_them() -> None:
    first, second = parse(FULL.model_dump_json()).providers
    assert first.url("OpenAI", "chat/completions") == "http://host:1/v1/chat/completions"
    assert first.url("Anthropic", "messages") == "http://host:1/v1/messages"
    assert second.url("Anthropic", "messages") == "https://host/v1/messages"


def test_the_first_provider_that_speaks_a_dialect() -> None:
    config = parse(FULL.model_dump_json())
    assert config.provider_for("Anthropic") == config.providers[0]
    assert config.provider_named("two") == config.providers[1]
    assert config.provider_named("three") is None


def test_the_contract_hands_on_every_constant() -> None:
    for name, value in vars(environment).items():
        if name.isupper():
            assert getattr(contract, name) == value
