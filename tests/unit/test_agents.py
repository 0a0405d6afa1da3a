"""Whether agents and providers can be used, and the limits that govern a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.agent import AgentReason, AgentSpec, AgentType, Limits
from almoner_core.api.cluster_model_provider import ClusterModelProviderSpec
from almoner_core.api.cluster_tool_provider import ClusterToolProviderSpec
from almoner_core.api.model_provider import ModelProviderSpec, ProviderReason
from almoner_core.api.tool_provider import ToolProviderSpec
from almoner_core.money import Money
from almoner_operator.agents import (
    AgentFacts,
    ProviderFacts,
    SecretFacts,
    ToolProviderFacts,
    agent_verdict,
    effective_limits,
    provider_verdict,
)
from almoner_operator.scheduling.model import Agent
from almoner_operator.scheduling.selection import can_be_budgeted
from tests.support.scheduling import NANOS, quota


def spec(**fields: Any) -> AgentSpec:
    return AgentSpec.model_validate({"type": "Research", "model": {"provider": "main", "name": "small"}, **fields})


def provider_spec(**fields: Any) -> ModelProviderSpec:
    return ModelProviderSpec.model_validate(
        {
            "type": "OpenAICompatible",
            "baseURL": "http://models.example/v1",
            "credentials": {"name": "main-key", "key": "k"},
            **fields,
        }
    )


def shared(**allow: Any) -> ProviderFacts:
    """A ClusterModelProvider that lets in the namespace of the agents here, unless `allow` says otherwise."""
    fields = {**provider_spec().to_wire(), "allow": {"namespaces": ["team-a"], **allow}}
    return ProviderFacts(ClusterModelProviderSpec.model_validate(fields))


SHARED_MODEL = {"provider": "main", "providerKind": "ClusterModelProvider", "name": "small"}
SHARED_TOOL = {"name": "web_search", "provider": "serper", "providerKind": "ClusterToolProvider"}
SHARED_TOOLS = ClusterToolProviderSpec.model_validate(
    {
        "type": "DuckDuckGo",
        "prices": [{"tool": "web_search", "perCall": "0"}],
        "allow": {"namespaces": ["team-b"]},
    }
)
MAIN = {"main": ProviderFacts(provider_spec())}
SECRETS = {"readable": SecretFacts(agent_readable=True, keys=frozenset({"k"})), "private": SecretFacts()}
TOOLS = ToolProviderSpec.model_validate({"type": "DuckDuckGo", "prices": [{"tool": "web_search", "perCall": "0"}]})
IMAGE = {"image": "example/sdk:1"}
SAFE = {"type": "RealDeployment", "safety": {"budgetEnforced": True}}


def env_from(name: str, key: str = "k") -> dict[str, Any]:
    return {"runner": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]}}


def facts(**fields: Any) -> AgentFacts:
    return AgentFacts(**{"providers": MAIN, "secrets": SECRETS, "namespace": "team-a", "name": "agent", **fields})


# Each case: the agent, the facts, the reason, part of the message.
VERDICTS: dict[str, tuple[AgentSpec, AgentFacts, AgentReason, str]] = {
    "all there": (spec(), facts(), AgentReason.READY, ""),
    "no provider": (
        spec(),
        facts(providers={}),
        AgentReason.PROVIDER_NOT_FOUND,
        "spec.model.provider: ModelProvider main does not exist",
    ),
    "provider not ready": (
        spec(),
        facts(providers={"main": ProviderFacts(provider_spec(), ready=False, message="no Secret")}),
        AgentReason.PROVIDER_NOT_READY,
        "no Secret",
    ),
    "no provider of the cluster": (
        spec(model=SHARED_MODEL),
        facts(),
        AgentReason.PROVIDER_NOT_FOUND,
        "spec.model.provider: ClusterModelProvider main does not exist in this cluster",
    ),
    "a provider of the cluster, whatever its namespace calls so": (
        spec(model=SHARED_MODEL),
        facts(providers={"main": ProviderFacts(provider_spec(), ready=False), "cluster/main": shared()}),
        AgentReason.READY,
        "",
    ),
    "another namespace's provider": (
        spec(model=SHARED_MODEL),
        facts(providers={"cluster/main": shared(namespaces=["team-b"])}),
        AgentReason.PROVIDER_NOT_ALLOWED,
        "ClusterModelProvider main does not allow namespace team-a: it is not in its spec.allow.namespaces",
    ),
    "a provider for other types of agents": (
        spec(model=SHARED_MODEL),
        facts(providers={"cluster/main": shared(agentTypes=["Evaluation"])}),
        AgentReason.PROVIDER_NOT_ALLOWED,
        "does not allow agents of type Research: it is not in its spec.allow.agentTypes",
    ),
    "who is not allowed does not learn more": (
        spec(model=SHARED_MODEL),
        facts(providers={"cluster/main": replace(shared(agents=["other"]), ready=False, message="no Secret")}),
        AgentReason.PROVIDER_NOT_ALLOWED,
        "does not allow agent team-a/agent",
    ),
    "owners are the admission's business": (
        spec(model=SHARED_MODEL),
        facts(providers={"cluster/main": shared(owners=["ann"])}),
        AgentReason.READY,
        "",
    ),
    "a tool of the cluster that is not for it": (
        spec(runner=IMAGE, tools=[SHARED_TOOL]),
        facts(tool_providers={"cluster/serper": ToolProviderFacts(SHARED_TOOLS)}),
        AgentReason.PROVIDER_NOT_ALLOWED,
        "spec.tools[0].provider: ClusterToolProvider serper does not allow namespace team-a",
    ),
    "a provider's key of the cluster": (
        spec(**env_from("shared")),
        facts(secrets={"shared": SecretFacts(agent_readable=True, provider_key=True)}),
        AgentReason.SECRET_NOT_READABLE,
        "holds a provider's key",
    ),
    "a Secret that is called like the cluster's key": (
        spec(**env_from("main-key")),
        facts(
            providers={**MAIN, "main": ProviderFacts(provider_spec(credentials=None)), "cluster/main": shared()},
            secrets={"main-key": SecretFacts(agent_readable=True)},
        ),
        AgentReason.READY,
        "",
    ),
    "model not listed": (
        spec(),
        facts(providers={"main": ProviderFacts(provider_spec(models=[{"name": "large"}]))}),
        AgentReason.MODEL_NOT_ALLOWED,
        "does not list small; it lists large",
    ),
    "model listed": (
        spec(),
        facts(providers={"main": ProviderFacts(provider_spec(models=[{"name": "small"}]))}),
        AgentReason.READY,
        "",
    ),
    "model without a price": (
        spec(),
        facts(has_price=lambda _provider, model: model != "small"),
        AgentReason.MODEL_UNPRICED,
        "add it to spec.prices of ModelProvider main",
    ),
    "tool's provider missing": (
        spec(runner=IMAGE, tools=[{"name": "web_search", "provider": "serper"}]),
        facts(),
        AgentReason.TOOL_PROVIDER_NOT_FOUND,
        "spec.tools[0].provider: ToolProvider serper does not exist",
    ),
    "tool's provider not ready": (
        spec(runner=IMAGE, tools=[{"name": "web_search", "provider": "serper"}]),
        facts(tool_providers={"serper": ToolProviderFacts(TOOLS, ready=False, message="no Secret")}),
        AgentReason.TOOL_PROVIDER_NOT_READY,
        "no Secret",
    ),
    "tool without a price": (
        spec(runner=IMAGE, tools=[{"name": "send_email", "provider": "serper"}]),
        facts(tool_providers={"serper": ToolProviderFacts(TOOLS)}),
        AgentReason.TOOL_UNPRICED,
        "add it to spec.prices of ToolProvider serper",
    ),
    "tool with a price": (
        spec(runner=IMAGE, tools=[{"name": "web_search", "provider": "serper"}]),
        facts(tool_providers={"serper": ToolProviderFacts(TOOLS)}),
        AgentReason.READY,
        "",
    ),
    "not supported": (
        spec(handoffs=[{"agent": "helper"}]),
        facts(),
        AgentReason.NOT_SUPPORTED,
        "spec.handoffs[0]: not supported",
    ),
    "a dialect that the provider does not speak": (
        spec(model={"provider": "main", "name": "small", "api": "Anthropic"}),
        facts(),
        AgentReason.INVALID_SPEC,
        "spec.model.api: ModelProvider main speaks OpenAI, not Anthropic",
    ),
    "a seed for Anthropic": (
        spec(model={"provider": "claude", "name": "small", "settings": {"seed": 1}}),
        facts(providers={"claude": ProviderFacts(provider_spec(type="Anthropic"))}),
        AgentReason.INVALID_SPEC,
        "spec.model.settings.seed: Anthropic's API has no seed",
    ),
    "secret missing": (spec(**env_from("nothing")), facts(), AgentReason.SECRET_NOT_FOUND, "Secret nothing"),
    "secret without the key": (
        spec(**env_from("readable", "x")),
        facts(),
        AgentReason.SECRET_NOT_FOUND,
        "has no key x",
    ),
    "secret readable": (spec(**env_from("readable")), facts(), AgentReason.READY, ""),
    "secret not readable": (
        spec(**env_from("private")),
        facts(),
        AgentReason.SECRET_NOT_READABLE,
        "lacks the label almoner.dev/agent-readable",
    ),
    "a provider's own secret": (
        spec(**env_from("main-key")),
        facts(secrets={"main-key": SecretFacts(agent_readable=True)}),
        AgentReason.SECRET_NOT_READABLE,
        "holds a provider's key",
    ),
    "secret cannot be looked at": (
        spec(**env_from("hidden")),
        facts(secrets={"hidden": SecretFacts(unknown="503 ServiceUnavailable")}),
        AgentReason.SECRET_UNKNOWN,
        "Secret hidden cannot be looked at now (503 ServiceUnavailable)",
    ),
    "secret may not be looked at": (
        spec(**env_from("hidden")),
        facts(secrets={"hidden": SecretFacts(unknown="403 Forbidden", forbidden=True)}),
        AgentReason.SECRET_FORBIDDEN,
        "Secret hidden may not be looked at (403 Forbidden)",
    ),
    "a variable that leads to the meter": (
        spec(runner={"env": [{"name": "OPENAI_API_KEY", "value": "x"}]}),
        facts(),
        AgentReason.INVALID_SPEC,
        "OPENAI_API_KEY is set by the runner",
    ),
    "the meter's user": (spec(runner={"runAsUser": 10002}), facts(), AgentReason.INVALID_SPEC, "runAsUser"),
    "a deployment without safety": (
        spec(type="RealDeployment"),
        facts(budgeted=True),
        AgentReason.UNSAFE_DEPLOYMENT,
        "spec.safety: ",
    ),
    "a deployment that asserts no budget": (
        spec(type="RealDeployment", safety={}),
        facts(budgeted=True),
        AgentReason.UNSAFE_DEPLOYMENT,
        "spec.safety.budgetEnforced",
    ),
    "a deployment without a budget": (
        spec(**SAFE),
        facts(),
        AgentReason.UNSAFE_DEPLOYMENT,
        "needs a hard budget",
    ),
    "a deployment under a quota's budget": (spec(**SAFE), facts(budgeted=True), AgentReason.READY, ""),
    "a deployment with maxCost": (spec(**SAFE, limits={"maxCost": "1"}), facts(), AgentReason.READY, ""),
    "a deployment with maxCost that asserts no more": (
        spec(type="RealDeployment", safety={}, limits={"maxCost": "1"}),
        facts(),
        AgentReason.READY,
        "",
    ),
    "a deployment that could walk past the meter": (
        spec(**SAFE),
        facts(budgeted=True, providers={"main": ProviderFacts(provider_spec(credentials=None))}),
        AgentReason.UNSAFE_DEPLOYMENT,
        "past the meter",
    ),
    "research may use an open server": (
        spec(),
        facts(providers={"main": ProviderFacts(provider_spec(credentials=None))}),
        AgentReason.READY,
        "",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_an_agent_is_ready_or_says_what_it_lacks(case: str) -> None:
    agent, surroundings, reason, message = VERDICTS[case]
    verdict = agent_verdict(agent, surroundings)
    assert verdict.reason is reason
    assert message in verdict.message


def test_every_reason_of_an_agent_is_met() -> None:
    assert {reason for _, _, reason, _ in VERDICTS.values()} == set(AgentReason)


@pytest.mark.parametrize(
    ("provider", "secrets", "reason", "bypassable"),
    [
        (provider_spec(), {"main-key": SecretFacts(unknown="500 x")}, ProviderReason.SECRET_UNKNOWN, False),
        (
            provider_spec(),
            {"main-key": SecretFacts(unknown="403 x", forbidden=True)},
            ProviderReason.SECRET_FORBIDDEN,
            False,
        ),
        (provider_spec(), {"main-key": SecretFacts()}, ProviderReason.READY, False),
        (provider_spec(), {}, ProviderReason.SECRET_NOT_FOUND, False),
        (provider_spec(), {"main-key": SecretFacts(keys=frozenset())}, ProviderReason.SECRET_NOT_FOUND, False),
        (provider_spec(credentials=None), {}, ProviderReason.READY, True),
        (provider_spec(type="OpenAI", credentials=None), {}, ProviderReason.CREDENTIALS_MISSING, True),
        (provider_spec(type="Anthropic", credentials=None), {}, ProviderReason.CREDENTIALS_MISSING, True),
    ],
)
def test_a_provider_is_ready_or_says_what_it_lacks(
    provider: ModelProviderSpec, secrets: dict[str, SecretFacts], reason: ProviderReason, bypassable: bool
) -> None:
    verdict = provider_verdict(provider, secrets)
    assert (verdict.reason, verdict.bypassable) == (reason, bypassable)


NUMBERS = ("max_turns", "max_tokens", "max_tool_calls", "timeout_seconds")
limits = st.builds(
    Limits,
    **{name: st.none() | st.integers(1, 100) for name in NUMBERS},
    max_cost=st.none() | st.integers(0, 10).map(lambda dollars: Money(dollars * NANOS)),
)


@given(limits, limits, st.none() | st.integers(1, 100))
def test_an_execution_tightens_and_never_widens(agent: Limits, own: Limits, timeout: int | None) -> None:
    result = effective_limits(agent, own, timeout)
    for name in (*NUMBERS, "max_cost"):
        sources = [getattr(agent, name), getattr(own, name)]
        if name == "timeout_seconds":
            sources.append(timeout)
        known = [value for value in sources if value is not None]
        assert getattr(result, name) == (min(known) if known else None)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"budget": NANOS}, True),
        ({"budget": NANOS, "enforced": False}, False),
        ({}, False),
        ({"budget": NANOS, "owners": frozenset({"ann"})}, True),
        ({"budget": NANOS, "agent_types": frozenset({AgentType.SIMULATION})}, False),
    ],
)
def test_whether_a_budget_can_govern_an_agent(fields: dict[str, Any], expected: bool) -> None:
    assert can_be_budgeted([quota(**fields)], Agent("a", AgentType.RESEARCH)) is expected
