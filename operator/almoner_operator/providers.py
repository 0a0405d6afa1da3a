"""What the meter is told of the providers that an agent may call: addresses, dialects, models, prices.

Boundary: no I/O; reads parsed records. Keys stay where they are: only a Secret's name passes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from almoner_core.api.agent import AgentSpec, ModelAPI, ModelChoice
from almoner_core.api.model_provider import ModelProviderSpec, ProviderType
from almoner_core.contract import Dialect, MeterModel, MeterProvider
from almoner_core.model_names import undated
from almoner_core.price_data import meter_model, public_models
from almoner_operator.cluster_providers import is_cluster_wide
from almoner_operator.pods import PodError, PodProvider
from almoner_operator.records import ProviderRecord

PUBLIC_URLS: Final = {
    ProviderType.OPENAI: "https://api.openai.com/v1",
    ProviderType.ANTHROPIC: "https://api.anthropic.com",
}
MODELS_MAX: Final = 96


def dialects_of(spec: ModelProviderSpec) -> tuple[Dialect, ...]:
    """Give the dialects that a provider speaks, the first being the default."""
    if spec.type is ProviderType.OPENAI:
        return (Dialect.OPENAI,)
    if spec.type is ProviderType.ANTHROPIC:
        return (Dialect.ANTHROPIC,)
    return tuple(Dialect(api.value) for api in spec.apis or [ModelAPI.OPENAI])


def for_agent(agent: AgentSpec, providers: Mapping[str, ProviderRecord]) -> tuple[PodProvider, ...]:
    """Give the providers of an agent's model and fallbacks, its own first; `providers` by key.

    Raises PodError where one is missing.
    """
    wanted: dict[str, tuple[ModelChoice, list[str]]] = {}
    for choice in (agent.model, *agent.model.fallbacks):
        _, models = wanted.setdefault(choice.provider_key, (choice, []))
        if choice.name not in models:
            models.append(choice.name)
    # Our own loop calls its model alone; what an image of the user's calls is not known.
    own_code = agent.runner is not None and agent.runner.image is not None
    found = tuple(
        _provider(providers.get(key), choice, models, own_code=own_code) for key, (choice, models) in wanted.items()
    )
    if len({each.meter.name for each in found}) < len(found):
        raise PodError("model.fallbacks: a ModelProvider and a ClusterModelProvider of one name: rename one of them")
    return found


def _provider(record: ProviderRecord | None, choice: ModelChoice, models: list[str], *, own_code: bool) -> PodProvider:
    name = choice.provider
    if record is None or record.spec is None:
        raise PodError(f"model.provider: {choice.provider_kind} {name} does not exist or is not valid")
    spec = record.spec
    base_url = spec.base_url or PUBLIC_URLS.get(spec.type)
    if base_url is None:
        raise PodError(f"model.provider: {choice.provider_kind} {name} has no baseURL")
    # The agent's own choice first; then whatever the provider lists, so that an agent's code may choose another. Where
    # it lists nothing, any that has a price: embeddings, and the models that frameworks choose by themselves.
    listed = [entry.name for entry in spec.models]
    if own_code:
        listed += [name for name in public_models(spec) if not spec.models or undated(name) in listed]
    named = list(dict.fromkeys([*models, *listed]))
    return PodProvider(
        meter=MeterProvider(
            name=name,
            type=str(spec.type),
            base_url=base_url,
            dialects=dialects_of(spec),
            allow_fields=tuple(spec.allow_fields),
            models=tuple(_model(record, spec, model) for model in named[:MODELS_MAX]),
        ),
        credentials=spec.credentials,
        from_ledger=is_cluster_wide(spec),
    )


def _model(record: ProviderRecord, spec: ModelProviderSpec, model: str) -> MeterModel:
    return meter_model(spec, record.place, model, record.generation)
