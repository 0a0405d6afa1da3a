"""What the meter is told of the ModelProviders that an agent may call: addresses, dialects, models, prices.

Boundary: no I/O; reads parsed records. Keys stay where they are: only a Secret's name passes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from almoner_core.api.agent import AgentSpec, ModelAPI
from almoner_core.api.model_provider import ModelProviderSpec, ProviderType
from almoner_core.contract import Dialect, MeterModel, MeterProvider
from almoner_core.price_data import meter_model
from almoner_operator.pods import PodError, PodProvider
from almoner_operator.records import ProviderRecord

PUBLIC_URLS: Final = {
    ProviderType.OPENAI: "https://api.openai.com/v1",
    ProviderType.ANTHROPIC: "https://api.anthropic.com",
}
MODELS_MAX: Final = 64


def dialects_of(spec: ModelProviderSpec) -> tuple[Dialect, ...]:
    """Give the dialects that a provider speaks, the first being the default."""
    if spec.type is ProviderType.OPENAI:
        return (Dialect.OPENAI,)
    if spec.type is ProviderType.ANTHROPIC:
        return (Dialect.ANTHROPIC,)
    return tuple(Dialect(api.value) for api in spec.apis or [ModelAPI.OPENAI])


def for_agent(agent: AgentSpec, providers: Mapping[str, ProviderRecord]) -> tuple[PodProvider, ...]:
    """Give the providers of an agent's model and fallbacks, its own first. Raises PodError where one is missing."""
    wanted: dict[str, list[str]] = {}
    for choice in (agent.model, *agent.model.fallbacks):
        models = wanted.setdefault(choice.provider, [])
        if choice.name not in models:
            models.append(choice.name)
    return tuple(_provider(providers.get(name), name, models) for name, models in wanted.items())


def _provider(record: ProviderRecord | None, name: str, models: list[str]) -> PodProvider:
    if record is None or record.spec is None:
        raise PodError(f"model.provider: ModelProvider {name} does not exist or is not valid")
    spec = record.spec
    base_url = spec.base_url or PUBLIC_URLS.get(spec.type)
    if base_url is None:
        raise PodError(f"model.provider: ModelProvider {name} has no baseURL")
    # The agent's own choice first; then whatever the provider lists, so that an agent's code may choose another.
    listed = [entry.name for entry in spec.models if entry.name not in models]
    return PodProvider(
        meter=MeterProvider(
            name=name,
            type=str(spec.type),
            base_url=base_url,
            dialects=dialects_of(spec),
            models=tuple(_model(record, spec, model) for model in [*models, *listed][:MODELS_MAX]),
        ),
        credentials=spec.credentials,
    )


def _model(record: ProviderRecord, spec: ModelProviderSpec, model: str) -> MeterModel:
    return meter_model(spec, f"{record.namespace}/{record.name}", model, record.generation)
