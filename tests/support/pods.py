"""One attempt as the operator would hand it over for a pod to be built."""

from __future__ import annotations

from typing import Any

from almoner_core.api.agent import AgentSpec
from almoner_core.api.base import SecretKeyReference
from almoner_core.contract import Dialect, MeterModel, MeterProvider, PriceCard, PriceTier
from almoner_operator.pods import PodProvider, PodRequest, RunnerSettings

SETTINGS = RunnerSettings(image="almoner/runner:test", ledger_url="http://almoner-ledger.almoner:8700")
UID = "11111111-2222-3333-4444-555555555555"


def agent_spec(**fields: Any) -> AgentSpec:
    """A small agent."""
    return AgentSpec.model_validate(
        {
            "type": "Research",
            "model": {"provider": "openai", "name": "small"},
            "instructions": "Be brief. $(HOME) costs $5.",
            "limits": {"maxTurns": 10, "maxCost": "0.25"},
            **fields,
        }
    )


def provider(name: str = "openai", *, credentials: bool = True) -> PodProvider:
    """A provider with one priced model."""
    tier = PriceTier(input=1, cached_input=1, cache_write=1, output=2)
    return PodProvider(
        meter=MeterProvider(
            name=name,
            type="OpenAICompatible",
            base_url="http://models.example:8000/v1",
            dialects=(Dialect.OPENAI,),
            models=(MeterModel(name="small", price=PriceCard(version="test", tiers=(tier,))),),
        ),
        credentials=SecretKeyReference(name="the-secret", key="api-key") if credentials else None,
    )


def request(**fields: Any) -> PodRequest:
    """The first attempt of an Execution `hello`."""
    spec = agent_spec()
    values: dict[str, Any] = {
        "kind": "Execution",
        "namespace": "team-a",
        "name": "hello",
        "uid": UID,
        "attempt": 1,
        "owner": "ann",
        "runner": spec.runner,
        "agent_name": "greeter",
        "agent": spec,
        "limits": spec.limits,
        "input": "Say hello",
        **fields,
    }
    if values["runner"].image is not None and "limits" not in fields:
        values["limits"] = spec.limits.model_copy(update={"max_turns": None})  # turns are our loop's
    return PodRequest(**values)
