"""Which models an agent may call by name: dated ones, all that have a price, and what is said of the rest."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.environment import METER_CONFIG_BYTES_MAX
from almoner_core.model_names import same_model, undated
from almoner_core.price_data import listed_as, meter_model, public_models
from almoner_operator import providers
from almoner_operator.cache import Cache
from almoner_operator.pods import PodProvider, build_pod
from almoner_runner.meter import openai
from almoner_runner.meter.body import read_body
from almoner_runner.meter.config import Card, ConfigError, Model, Provider, Tier, parse
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.price_lists import with_price_lists
from almoner_runner.meter.refusals import RefusedError
from tests.support import agents, pods
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


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"listed": True}, r"'other' is not listed: .*spec\.models of ModelProvider 'p'.*priced models here: m$"),
        ({"listed": False}, r"'other' has no known price.*spec\.prices"),
        ({"listed": False, "left_out": True}, r"no room for all models of provider 'p': list it in spec\.models"),
        ({}, r"'other' is not listed, or has no known price"),  # an older operator's
    ],
)
def test_f6_what_is_not_listed_and_what_has_no_price_are_told_apart(told: dict[str, Any], says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        call(replace(provider("m"), **told), "other")


def test_a_model_without_a_price_is_refused_by_that() -> None:
    with pytest.raises(RefusedError, match=r"'free' has no known price.*spec\.prices"):
        call(replace(provider("m"), listed=True), "free")
    with pytest.raises(RefusedError, match=r"m-11 and 88 more$"):
        call(provider(*(f"m-{number:02}" for number in range(100))), "other")


def spec(**given: Any) -> ModelProviderSpec:
    return ModelProviderSpec.model_validate(given)


def found(*, image: str | None, model: str = "gpt-4.1-mini", runner: Any = None, **given: Any) -> PodProvider:
    """The provider of an agent, as the operator hands it on."""
    cache = Cache(meter=SETTINGS.meter_requests, wake=lambda: None)
    # Prices of a provider are remembered.
    uid = repr((image, model, runner, sorted(given.items(), key=str)))
    metadata = {"name": "main", "namespace": "team", "uid": uid, "resourceVersion": "1", "generation": 1}
    cache.observe_provider(None, {"metadata": metadata, "spec": given, "status": {}})
    how = {"image": image} if image else runner
    agent = agents.spec(model={"provider": "main", "name": model}, **({"runner": how} if how else {}))
    (only,) = providers.for_agent(agent, cache.providers_for(cache.space("team")))
    return only


def meters(only: PodProvider, **request: Any) -> Provider:
    """The provider, as the meter of the pod reads it."""
    pod = build_pod(pods.request(providers=(only,), **request), SETTINGS)
    (meter,) = pod["spec"]["initContainers"]
    text = next(each["value"] for each in meter["env"] if each["name"] == "ALMONER_METER_CONFIG")
    assert len(text.encode()) <= METER_CONFIG_BYTES_MAX
    (read,) = with_price_lists(parse(text)).providers
    return read


def told(**given: Any) -> list[str]:
    """The models that the meter of an agent is told about."""
    return list(meters(found(**given)).models)


def test_f6_without_a_list_code_of_the_user_may_call_all_that_has_a_price() -> None:
    given: dict[str, Any] = {"type": "OpenAI", "credentials": KEY}
    everything = told(**given, image="user/code:1")
    assert everything[0] == "gpt-4.1-mini"
    assert {"gpt-4.1", "gpt-4o", "o3", "text-embedding-3-small", "text-embedding-ada-002"} <= set(everything)
    assert {"gpt-4o-2024-05-13", "gpt-5-codex", "gpt-3.5-turbo-0125"} <= set(everything)
    assert len(everything) == len(set(everything))
    assert not [name for name in everything if "audio" in name or "search" in name]
    assert set(told(**given, image=None, runner={"command": ["python", "/code/mine.py"]})) == set(everything)
    # Our own loop calls its model.
    assert told(**given, image=None) == ["gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"]
    assert told(type="OpenAICompatible", baseURL="http://here.example/v1", image="user/code:1") == ["gpt-4.1-mini"]


def test_f6_without_a_list_what_spec_prices_names_may_be_called() -> None:
    prices = [{"model": name, "inputPerMillion": "1", "outputPerMillion": "2"} for name in ("embed", "gpt-4.1-mini")]
    given = {"type": "OpenAICompatible", "baseURL": "http://here.example/v1", "prices": prices}
    assert told(**given, image="user/code:1") == ["gpt-4.1-mini", "embed"]


def test_f6_with_a_list_only_that_and_its_names_with_and_without_a_date() -> None:
    listed = [{"name": "gpt-4o"}, {"name": "mine"}, {"name": "gpt-5-2025-08-07", "contextWindow": 1000}]
    prices = [{"model": "gpt-5-2025-08-07", "inputPerMillion": "7", "outputPerMillion": "8"}]
    only = found(type="OpenAI", credentials=KEY, models=listed, prices=prices, model="gpt-4o", image="user/code:1")
    read = meters(only)
    more = {"gpt-4o-2024-05-13", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-5"}
    assert set(read.models) == {"gpt-4o", "mine", "gpt-5-2025-08-07"} | more
    assert read.models["gpt-4o-2024-08-06"].price == read.models["gpt-4o"].price
    # Another name of a listed model costs what that is said to cost.
    assert read.models["gpt-5"] == replace(read.models["gpt-5-2025-08-07"], name="gpt-5")
    assert read.models["gpt-5"].context_window == 1000
    # An earlier version was dearer: the date does not make it the cheaper one.
    older, newer = read.models["gpt-4o-2024-05-13"].price, read.models["gpt-4o"].price
    assert older is not None
    assert newer is not None
    assert older.tiers[0].input > newer.tiers[0].input
    with pytest.raises(RefusedError, match="'gpt-5-codex' is not listed"):
        call(read, "gpt-5-codex")


def test_an_agent_may_name_a_listed_model_by_its_date() -> None:
    listed = [{"name": "gpt-4.1-mini", "contextWindow": 1000}]
    given = spec(type="OpenAI", credentials=KEY, models=listed)
    assert listed_as(given, "gpt-4.1-mini-2025-04-14") == "gpt-4.1-mini"
    assert listed_as(given, "gpt-4.1-mini") == "gpt-4.1-mini"
    assert [listed_as(given, name) for name in ("gpt-4.1", "gpt-4.1-mini-2031-01-01", "mine")] == [None] * 3
    claude = spec(type="Anthropic", credentials=KEY, models=[{"name": "claude-sonnet-4-5"}])
    assert listed_as(claude, "claude-sonnet-4-5-20250929") == "claude-sonnet-4-5"
    assert listed_as(claude, "claude-sonnet-4-6") is None
    older = spec(type="OpenAI", credentials=KEY, models=[{"name": "gpt-4o"}])
    assert listed_as(older, "gpt-4o-2024-05-13") is None  # it has a price of its own
    only = found(type="OpenAI", credentials=KEY, models=listed, model="gpt-4.1-mini-2025-04-14", image=None)
    assert meters(only).models["gpt-4.1-mini-2025-04-14"].context_window == 1000


def test_more_models_than_are_told_in_full_are_told_all_the_same() -> None:
    listed = [{"name": f"model-{number}", "maxOutputTokens": 10 + number} for number in range(256)]
    prices = [
        {
            "model": f"model-{number}",
            "inputPerMillion": str(number),
            "outputPerMillion": "2",
            "perRequest": "0.001",
            "tiers": [{"inputTokensMin": 1000, "inputPerMillion": "3", "outputPerMillion": "4"}],
            "batch": {"discountPercent": 50},
        }
        for number in range(256)
    ]
    only = found(
        type="OpenAICompatible",
        baseURL="http://here.example/v1",
        models=listed,
        prices=prices,
        model="model-7",
        image="user/code:1",
    )
    assert (len(only.meter.models), len(only.more)) == (providers.MODELS_MAX, 256 - providers.MODELS_MAX)
    read = meters(only)
    assert len(read.models) == 256
    for wanted in (*only.meter.models, *only.more):
        assert wanted.price is not None
        model = read.models[wanted.name]
        assert dataclasses.asdict(model) | {"price": None} == wanted.model_dump() | {"price": None}
        assert model.price is not None
        # Tuples, and the order of fields, are the only difference.
        assert dataclasses.asdict(model.price) == wanted.price.model_dump()
    assert [read.models[f"model-{number}"].max_output_tokens for number in (0, 255)] == [10, 265]


@pytest.mark.parametrize(
    "given",
    [
        {"type": "OpenAI", "credentials": KEY},
        {"type": "Anthropic", "credentials": KEY},
        *(
            {"type": "OpenAICompatible", "baseURL": url}
            for url in ("https://openrouter.ai/api/v1", "https://api.together.xyz/v1", "https://api.mistral.ai/v1")
        ),
    ],
    ids=["OpenAI", "Anthropic", "OpenRouter", "Together", "Mistral"],
)
def test_every_public_model_reaches_the_meter_with_its_price(given: dict[str, Any]) -> None:
    names = public_models(spec(**given))
    assert len(names) > 20
    read = meters(found(**given, model=names[0], image="user/code:1"))
    assert set(read.models) == set(names)
    for name in names:
        wanted = meter_model(spec(**given), "team/main", name, 1)
        model = read.models[name]
        assert wanted.price is not None
        assert model.price is not None
        assert dataclasses.asdict(model.price) == wanted.price.model_dump()
        assert model.context_window == wanted.context_window


def test_where_there_is_no_room_the_own_model_is_told_and_what_is_dearer_by_its_date() -> None:
    only = found(type="OpenAI", credentials=KEY, model="gpt-4o", image="user/code:1")
    read = meters(only, input="x" * 110_000)
    assert set(read.models) == {"gpt-4o", *(f"gpt-4o-2024-{date}" for date in ("05-13", "08-06", "11-20"))}
    assert read.left_out
    assert read.models["gpt-4o-2024-05-13"].price != read.models["gpt-4o"].price


@pytest.mark.parametrize("kind", ["OpenAI", "Anthropic"])
def test_no_date_hides_a_price(kind: str) -> None:
    """A name of the public data that the meter would take for another model costs what that costs, or is told."""
    given = spec(type=kind, credentials=KEY)
    cards = {name: meter_model(given, "team/main", name, 1).price for name in public_models(given)}
    for name, card in cards.items():
        for other in same_model(name):
            assert other not in cards or cards[other] == card or name == "gpt-4o-2024-05-13"


def test_what_is_no_list_of_prices_is_refused_by_name() -> None:
    only = found(type="OpenAI", credentials=KEY, image="user/code:1")
    pod = build_pod(pods.request(providers=(only,)), SETTINGS)
    (meter,) = pod["spec"]["initContainers"]
    config = parse(next(each["value"] for each in meter["env"] if each["name"] == "ALMONER_METER_CONFIG"))
    prices = config.extra["price_lists"]["main"]["prices"]
    for change in (
        {"cards": [[0, 0, [], []]]},
        {"cards": [[0, 0, [[1, 1, 1, 1, 1, None]], []]]},
        {"cards": [[9, 0, [[0, 1, 1, 1, 1, None]], []]]},
        {"cards": [[0, 0, [[0, 1, 1, 1, -1, None]], []]]},
        {"cards": [[0, 0, [[0, 1, 1, True, 1, None]], []]]},
        {"cards": [[0, 0, [[0, 1, 1, 1, 1]], []]]},
        {"models": [["m", 10**6, None, None]]},
        {"models": [["m", 0, "1", None]]},
        {"models": [["", 0, None, None]]},
        {"models": [["m", 0, None]]},
        {"models": [["m", 0, None, None]] * 2049},
        {"versions": None},
    ):
        broken = {"main": {"listed": False, "prices": prices | change}}
        with pytest.raises(ConfigError, match=r"config\.extra\.price_lists\.main\.prices"):
            with_price_lists(replace(config, extra=config.extra | {"price_lists": broken}))
    oddities: list[Any] = [[], {"main": []}]
    for odd in oddities:
        with pytest.raises(ConfigError, match="expected an object"):
            with_price_lists(replace(config, extra={"price_lists": odd}))
