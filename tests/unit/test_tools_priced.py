"""Tools with a price: what a manifest says, what a call may cost, who may name a ToolProvider, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.agent import AgentReason, AgentSpec
from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.api.tool_provider import ToolProviderReason, ToolProviderSpec
from almoner_core.contract import ToolPriceCard
from almoner_core.price_data import meter_tool
from almoner_core.pricing import tool_nanos
from almoner_operator import tool_providers, tool_records
from almoner_operator.agents import AgentFacts, ProviderFacts, SecretFacts, ToolProviderFacts, agent_verdict
from almoner_operator.cache import Cache
from almoner_operator.pods import PodError
from almoner_operator.scheduling.model import Requests
from almoner_runner.meter.config import Tool, ToolPrice
from almoner_runner.meter.refusals import InvalidCallError, RefusedError
from almoner_runner.meter.tools import ToolCall, free_tool, read_call

SERPER: dict[str, Any] = {
    "type": "Serper",
    "credentials": {"name": "serper-key", "key": "api-key"},
    "prices": [{"tool": "web_search", "perCall": "0.001"}, {"tool": "store", "perCall": "0.1", "perUnit": "0.002"}],
}
IMAGE = {"runner": {"image": "example/sdk:1"}}
SEARCH = Tool("web_search", "serper", "web_search", ToolPrice("v", per_call=1_000_000))
STORE = Tool("store", "serper", "vector_db", ToolPrice("v", per_call=100, per_unit=7))
UNPRICED = Tool("other", "serper", "web_search")


# --- prices -----------------------------------------------------------------------------------------------------------


def test_a_price_is_resolved_with_its_version() -> None:
    spec = ToolProviderSpec.model_validate(SERPER)
    told = meter_tool(spec, "team/serper", "store", 4)
    assert told.price == ToolPriceCard(
        version="override team/serper generation 4", per_call=100_000_000, per_unit=2_000_000
    )
    assert (told.provider, told.resource_type) == ("serper", "web_search")
    assert meter_tool(spec, "team/serper", "unknown", 4).price is None, "unknown is not zero"


@given(st.integers(0, 10**18), st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_units_never_cost_less(per_call: int, per_unit: int, units: int, more: int) -> None:
    card = ToolPriceCard(version="v", per_call=per_call, per_unit=per_unit)
    assert tool_nanos(card, units) == per_call + units * per_unit
    assert tool_nanos(card, units + more) >= tool_nanos(card, units)


def test_negative_units_are_no_discount() -> None:
    with pytest.raises(ValueError, match="negative"):
        tool_nanos(ToolPriceCard(version="v", per_unit=1), -1)


# --- the meter --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "body", "bound"),
    [
        (SEARCH, b"", {"tool_calls": 1, "usd": 1_000_000}),
        (SEARCH, b"{}", {"tool_calls": 1, "usd": 1_000_000}),
        (SEARCH, b'{"units": 5}', {"tool_calls": 1, "usd": 1_000_000}),
        (STORE, b'{"units": 5}', {"tool_calls": 1, "usd": 135}),
        (STORE, b'{"units": 0}', {"tool_calls": 1, "usd": 100}),
        (free_tool("calculator"), b"{}", {"tool_calls": 1, "usd": 0}),
        (UNPRICED, b"{}", {"tool_calls": 1}),
    ],
)
def test_a_calls_cost_is_known_before_it(tool: Tool, body: bytes, bound: dict[str, int]) -> None:
    call = read_call(tool, body)
    assert call.bound() == bound
    record = call.record()
    assert record["cost_nanos"] == bound.get("usd")
    assert record["tool_calls"] == 1


@pytest.mark.parametrize(
    ("tool", "body", "message"),
    [
        (STORE, b"{}", "say how many"),
        (STORE, b'{"units": null}', "say how many"),
        (STORE, b'{"units": -1}', "whole number"),
        (STORE, b'{"units": 1.5}', "whole number"),
        (STORE, b'{"units": true}', "whole number"),
        (STORE, b'{"units": "3"}', "whole number"),
        (STORE, json.dumps({"units": 10**9 + 1}).encode(), "whole number"),
        (STORE, b'{"unit": 3}', '"units" alone'),
        (STORE, b"[]", '"units" alone'),
        (STORE, b"{", "not JSON"),
        (STORE, b"\xff", "not JSON"),
    ],
)
def test_a_call_that_cannot_be_read_is_refused(tool: Tool, body: bytes, message: str) -> None:
    with pytest.raises(InvalidCallError, match=message):
        read_call(tool, body)


def test_a_tool_of_unknown_price_is_refused_where_money_is_limited() -> None:
    with pytest.raises(RefusedError, match="no known price") as caught:
        ToolCall(UNPRICED).check(["usd", "tool_calls"], {})
    assert caught.value.code == "tool_unpriced"
    ToolCall(UNPRICED).check(["tool_calls"], {})


def test_one_call_keeps_to_the_most_of_one_call() -> None:
    ToolCall(STORE, 1).check(["usd"], {"usd": 107})
    with pytest.raises(RefusedError, match=r"at most \$0\.000000106, this one would use \$0\.000000107"):
        ToolCall(STORE, 1).check(["usd"], {"usd": 106})
    # No record may cost more than the ledger takes, or it could never be posted.
    dear = Tool("dear", "p", "tool", ToolPrice("v", per_unit=10**15))
    with pytest.raises(RefusedError):
        ToolCall(dear, 10**9).check([], {})


# --- the operator -----------------------------------------------------------------------------------------------------


def agent(*tools: dict[str, Any], **more: Any) -> AgentSpec:
    spec = {"type": "Research", "model": {"provider": "models", "name": "m"}, "tools": list(tools), **more}
    return AgentSpec.model_validate(spec)


def facts(**more: Any) -> AgentFacts:
    models = ModelProviderSpec.model_validate({"type": "OpenAICompatible", "baseURL": "http://models:1/v1"})
    serper = ToolProviderFacts(ToolProviderSpec.model_validate(SERPER))
    return AgentFacts(providers={"models": ProviderFacts(models)}, **{"tool_providers": {"serper": serper}, **more})


@pytest.mark.parametrize(
    ("tool", "more", "reason", "says"),
    [
        ({"name": "calculator"}, {}, AgentReason.READY, ""),
        ({"name": "web_search", "provider": "serper"}, {}, AgentReason.READY, ""),
        (
            {"name": "web_search", "provider": "google"},
            {},
            AgentReason.TOOL_PROVIDER_NOT_FOUND,
            "spec.tools[0].provider: ToolProvider google does not exist",
        ),
        (
            {"name": "send_email", "provider": "serper"},
            {},
            AgentReason.TOOL_UNPRICED,
            "spec.tools[0].name: no price is known for send_email",
        ),
        (
            {"name": "web_search", "provider": "serper"},
            {
                "tool_providers": {
                    "serper": ToolProviderFacts(ToolProviderSpec.model_validate(SERPER), ready=False, message="why")
                }
            },
            AgentReason.TOOL_PROVIDER_NOT_READY,
            "not ready: why",
        ),
    ],
)
def test_an_agent_is_ready_when_its_tools_are(
    tool: dict[str, Any], more: dict[str, Any], reason: AgentReason, says: str
) -> None:
    found = agent_verdict(agent(tool, **({} if tool["name"] == "calculator" else IMAGE)), facts(**more))
    assert found.reason is reason
    assert says in found.message


def test_a_tool_providers_key_is_no_agents() -> None:
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "serper-key", "key": "api-key"}}}]
    secrets = {"serper-key": SecretFacts(agent_readable=True)}
    found = agent_verdict(agent(runner={"env": env}), facts(secrets=secrets))
    assert found.reason is AgentReason.SECRET_NOT_READABLE
    assert "holds a provider's key" in found.message


@pytest.mark.parametrize(
    ("secrets", "reason"),
    [
        ({"serper-key": SecretFacts(unknown="timeout")}, ToolProviderReason.SECRET_UNKNOWN),
        ({"serper-key": SecretFacts(unknown="403 x", forbidden=True)}, ToolProviderReason.SECRET_FORBIDDEN),
        ({}, ToolProviderReason.SECRET_NOT_FOUND),
        ({"serper-key": SecretFacts(keys=frozenset({"other"}))}, ToolProviderReason.SECRET_NOT_FOUND),
        ({"serper-key": SecretFacts(keys=frozenset({"api-key"}))}, ToolProviderReason.READY),
    ],
)
def test_a_tool_provider_is_ready_when_its_secret_is_there(secrets: Any, reason: ToolProviderReason) -> None:
    assert tool_providers.verdict(ToolProviderSpec.model_validate(SERPER), secrets)[0] is reason


def raw(version: int, generation: int = 1, uid: str = "u", **spec: Any) -> dict[str, Any]:
    metadata = {
        "namespace": "team",
        "name": "serper",
        "uid": uid,
        "resourceVersion": str(version),
        "generation": generation,
    }
    return {"metadata": metadata, "spec": {**SERPER, **spec}}


def test_the_cache_takes_tool_providers_in() -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    tool_providers.observe(cache, "ADDED", raw(5))
    space = cache.space("team")
    first = space.tool_providers["serper"]
    assert cache.tool_providers_changed == {("team", "serper")}
    cache.tool_providers_changed.clear()
    tool_providers.observe(cache, "MODIFIED", raw(6))  # a status write, most likely our own
    tool_providers.observe(cache, "MODIFIED", raw(4))  # late
    assert space.tool_providers["serper"] is first
    assert not cache.tool_providers_changed
    tool_providers.observe(cache, "MODIFIED", raw(7, generation=2, type="Custom"))
    assert first.successor is space.tool_providers["serper"]
    tool_providers.observe(cache, "DELETED", raw(8, uid="another"))
    assert "serper" in space.tool_providers
    tool_providers.observe(cache, "DELETED", raw(8))
    assert "serper" not in space.tool_providers
    tool_providers.observe(cache, "ADDED", raw(9, type="Nonsense"))
    assert space.tool_providers["serper"].spec is None
    assert "type" in space.tool_providers["serper"].invalid


def test_what_the_meter_is_told_of_an_agents_tools() -> None:
    known = {"serper": tool_records.parse(raw(1, generation=3))}
    spec = agent({"name": "calculator"}, {"name": "web_search", "provider": "serper"})
    (told,) = tool_providers.for_agent(spec, known)
    assert told.price == ToolPriceCard(version="override team/serper generation 3", per_call=1_000_000)
    assert tool_providers.for_agent(None, known) == ()
    with pytest.raises(PodError, match=r"tools\[1\]\.provider: ToolProvider serper does not exist"):
        tool_providers.for_agent(spec, {})
