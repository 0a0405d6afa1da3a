"""What an admission asks of providers: may this run use them, are their keys there, which keys may its meter have.

Role: the questions of admit.py that are about providers, each with its answer in words for people. Boundary: looks at
the cache and at the metadata of Secrets; decides nothing about quotas or money.
"""

from __future__ import annotations

from collections.abc import Mapping

from almoner_core.api.agent import AgentSpec
from almoner_core.api.base import SecretKeyReference
from almoner_core.contract import LABEL_PROVIDER_KEY
from almoner_core.wire import KeyGrant
from almoner_operator import providers
from almoner_operator.cache import Cache, Space
from almoner_operator.cluster_providers import Asker, is_cluster_wide, refused
from almoner_operator.context import Context
from almoner_operator.records import ProviderRecord, Run


def refusal(cache: Cache, run: Run, agent: AgentSpec | None) -> str:
    """Say which cluster-scoped provider does not allow a run, as its `spec.allow` is now; empty where all do."""
    if agent is None:
        return ""
    space = cache.space(run.key.namespace)
    asker = Asker(space.name, run.agent_name or "", agent.type, run.owner)
    models = {key: each.spec for key, each in cache.providers_for(space).items()}
    tools = {key: each.spec for key, each in cache.tool_providers_for(space).items()}
    return refused(agent, asker, models, tools)


async def keys_missing(context: Context, space: Space, agent: AgentSpec | None) -> str:
    """Say which provider's key is known not to be there; empty where none is. Without it the pod would hang."""
    if agent is None:
        return ""
    seen = context.cache.providers_for(space)
    for choice in {each.provider_key: each for each in (agent.model, *agent.model.fallbacks)}.values():
        record = seen.get(choice.provider_key)
        spec = record.spec if record is not None else None
        if spec is None or spec.credentials is None:
            continue
        cluster = is_cluster_wide(spec)
        place = context.settings.own_namespace if cluster else space.name
        problem = await _key_problem(context, place, spec.credentials, labelled=cluster)
        if problem:
            return f"{choice.provider_kind} {choice.provider}: spec.credentials: {problem}"
    return ""


async def _key_problem(context: Context, namespace: str, key: SecretKeyReference, *, labelled: bool) -> str:
    fact = (await context.secrets.facts(namespace, [key.name])).get(key.name)
    where = f"Secret {key.name} in namespace {namespace}" if labelled else f"Secret {key.name}"
    if fact is None:
        return f"{where} does not exist" if labelled else f"{where} does not exist in this namespace"
    if labelled and not fact.unknown and not fact.provider_key:
        return f'{where} lacks the label {LABEL_PROVIDER_KEY}: "true"'
    return f"{where} has no key {key.key}" if fact.keys is not None and key.key not in fact.keys else ""


def grants(agent: AgentSpec | None, seen: Mapping[str, ProviderRecord]) -> list[KeyGrant] | None:
    """Give the keys that the attempt's meter may ask the ledger for; None where there are none. Raises PodError."""
    if agent is None:
        return None
    found = [
        KeyGrant(provider=each.meter.name, secret=each.credentials.name, key=each.credentials.key)
        for each in providers.for_agent(agent, seen)
        if each.from_ledger and each.credentials is not None
    ]
    return found or None
