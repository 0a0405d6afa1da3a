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
from almoner_core.price_data import is_same_model, listed_as, meter_model, public_models
from almoner_operator.cluster_providers import is_cluster_wide
from almoner_operator.pods import PodError, PodProvider
from almoner_operator.records import ProviderRecord

PUBLIC_URLS: Final = {
    ProviderType.OPENAI: "https://api.openai.com/v1",
    ProviderType.ANTHROPIC: "https://api.anthropic.com",
}
MODELS_MAX: Final = 64
"""Models that a meter is told in full; the others in a list of prices (`almoner_core.price_list`)."""
_PUBLIC_MAX: Final = 256
_public: dict[tuple[str, str, int], tuple[MeterModel, ...]] = {}


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
    # Our own loop calls its model alone; what code of the user's calls is not known.
    runner = agent.runner
    own_code = runner is not None and (runner.image is not None or runner.command is not None)
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
    # The agent's own choice first; then whatever the provider lists, so that an agent's code may choose another.
    told = {model: _own(record, spec, model) for model in models}
    for entry in spec.models:
        if entry.name not in told:
            told[entry.name] = _model(record, spec, entry.name)
    told |= _other_names(record, spec, told)
    full, more = [*told.values()][:MODELS_MAX], [*told.values()][MODELS_MAX:]
    if not spec.models and own_code:
        # Nothing is listed, so any that has a price: embeddings, and the models that frameworks choose by themselves.
        more += [each for each in _priced(record, spec) if each.name not in told]
    return PodProvider(
        meter=MeterProvider(
            name=name,
            type=str(spec.type),
            base_url=base_url,
            dialects=dialects_of(spec),
            allow_fields=tuple(spec.allow_fields),
            models=tuple(full),
        ),
        credentials=spec.credentials,
        from_ledger=is_cluster_wide(spec),
        more=tuple(more),
        listed=bool(spec.models),
    )


def _other_names(record: ProviderRecord, spec: ModelProviderSpec, told: dict[str, MeterModel]) -> dict[str, MeterModel]:
    """Give the models by their other names, with and without a date, as far as the public data knows them.

    One that it takes for the same model costs what that costs. A dated one that it has another price for costs that:
    the meter, which takes a date for no part of a name, must not take it for the cheaper one.
    """
    bases: dict[str, list[str]] = {}
    for name in told:
        bases.setdefault(undated(name), []).append(name)
    others: dict[str, MeterModel] = {}
    for name in public_models(spec):
        listed = [] if name in told else bases.get(undated(name), [])
        same = next((each for each in listed if is_same_model(spec, name, each)), None)
        if same is not None:
            others[name] = told[same].model_copy(update={"name": name})
        elif listed and name != undated(name):
            others[name] = _model(record, spec, name)
    return others


def _own(record: ProviderRecord, spec: ModelProviderSpec, model: str) -> MeterModel:
    """The Agent's model, which may be another name of a listed one."""
    listed = listed_as(spec, model)
    return _model(record, spec, listed or model).model_copy(update={"name": model})


def _priced(record: ProviderRecord, spec: ModelProviderSpec) -> tuple[MeterModel, ...]:
    """Give every model that a provider has a price for, by its own word or by the public data. Remembered."""
    key = (record.place, record.uid, record.generation)
    if key not in _public:
        if len(_public) >= _PUBLIC_MAX:
            _public.clear()
        names = dict.fromkeys([*(price.model for price in spec.prices), *public_models(spec)])
        models = (_model(record, spec, name) for name in names)
        _public[key] = tuple(each for each in models if each.price is not None)
    return _public[key]


def _model(record: ProviderRecord, spec: ModelProviderSpec, model: str) -> MeterModel:
    return meter_model(spec, record.place, model, record.generation)
