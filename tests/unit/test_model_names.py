"""Which models an agent may call by name: dated ones, all that have a price, and what is said of the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.model_names import same_model, undated
from almoner_core.price_data import meter_model, public_models
from almoner_operator import providers
from almoner_operator.cache import Cache
from almoner_runner.meter import openai
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.refusals import RefusedError
from tests.support import agents
from tests.support.pods import SETTINGS

CARD = Card("v", (Tier(1000, 1000, 1000, 1000),))
STRICT = Rules(strict=True, priced=True)
KEY = {"name": "key", "key": "api-key"}


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("gpt-4.1-mini", "gpt-4.1-mini"),
        ("gpt-3.5-turbo-0613", "gpt-3.5-turbo-0613"),
        ("o3-20", "o3-20"),
    ],
)
def test_a_date_is_no_part_of_the_name(name: str, base: str) -> None:
    assert undated(name) == base
    assert (base in same_model(name)) == (base != name)


def call(provider: Provider, model: str) -> Call:
    return openai.chat(provider, read_body(json.dumps({"model": model, "messages": []}).encode()), STRICT)


def provider(*names: str, kind: str = "OpenAI") -> Provider:
    models = {name: Model(name, CARD) for name in names} | {"free": Model("free")}
    return Provider("p", kind, "http://p/v1", ("OpenAI",), models)


@pytest.mark.parametrize(
    ("listed", "asked"),
    [
        ("gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"),
        ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku-20241022"),
        ("claude-sonnet-4-0", "claude-sonnet-4-20250514"),
    ],
)
def test_f6_a_dated_name_of_a_listed_model_costs_what_that_costs(listed: str, asked: str) -> None:
    made = call(provider(listed), asked)
    assert (made.model.name, made.model.price) == (asked, CARD)


def test_a_servers_own_names_mean_what_they_say() -> None:
    with pytest.raises(RefusedError, match="is not listed"):
        call(provider("llama", kind="OpenAICompatible"), "llama-2025-04-14")


def test_f6_what_is_not_listed_and_what_has_no_price_are_told_apart() -> None:
    with pytest.raises(RefusedError, match=r"'other' is not listed.*spec\.models.*priced models here: m$"):
        call(provider("m"), "other")
    with pytest.raises(RefusedError, match=r"'free' has no known price.*spec\.prices"):
        call(provider("m"), "free")
    with pytest.raises(RefusedError, match=r"m-11 and 88 more$"):
        call(provider(*(f"m-{number:02}" for number in range(100))), "other")


def spec(**given: Any) -> ModelProviderSpec:
    return ModelProviderSpec.model_validate(given)


def told(*, image: str | None, **given: Any) -> list[str]:
    """The models that the meter of an agent is told about."""
    cache = Cache(meter=SETTINGS.meter_requests, wake=lambda: None)
    metadata = {"name": "main", "namespace": "team", "uid": "u", "resourceVersion": "1", "generation": 1}
    cache.observe_provider(None, {"metadata": metadata, "spec": given, "status": {}})
    runner = {"runner": {"image": image}} if image else {}
    agent = agents.spec(model={"provider": "main", "name": "gpt-4.1-mini"}, **runner)
    (found,) = providers.for_agent(agent, cache.providers_for(cache.space("team")))
    return [model.name for model in found.meter.models]


def test_f6_without_a_list_code_of_the_user_may_call_all_that_has_a_price() -> None:
    everything = told(type="OpenAI", credentials=KEY, image="user/code:1")
    assert everything[0] == "gpt-4.1-mini"
    assert {"gpt-4.1", "gpt-4o", "o3", "text-embedding-3-small", "text-embedding-ada-002"} <= set(everything)
    assert len(everything) == len(set(everything)) <= providers.MODELS_MAX
    assert not [name for name in everything if "audio" in name or "search" in name]
    # Our own loop calls its model.
    assert told(type="OpenAI", credentials=KEY, image=None) == ["gpt-4.1-mini"]
    assert told(type="OpenAICompatible", baseURL="http://here.example/v1", image="user/code:1") == ["gpt-4.1-mini"]


def test_f6_with_a_list_only_that_and_its_dated_names_that_cost_something_else() -> None:
    listed = [{"name": "gpt-4o"}, {"name": "mine"}]
    models = told(type="OpenAI", credentials=KEY, models=listed, image="user/code:1")
    assert models == ["gpt-4.1-mini", "gpt-4o", "mine", "gpt-4o-2024-05-13"]


@pytest.mark.parametrize("kind", ["OpenAI", "Anthropic"])
def test_every_public_model_is_told_with_its_price(kind: str) -> None:
    given = spec(type=kind, credentials=KEY)
    names = public_models(given)
    assert len(names) > 20
    cards = [meter_model(given, "team/main", name, 1) for name in names]
    assert all(card.price is not None for card in cards)
    # They go into every such pod's manifest.
    assert sum(len(card.model_dump_json(exclude_defaults=True)) for card in cards) < 25_000
