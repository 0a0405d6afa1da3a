"""Cluster-scoped providers: how a namespace sees them beside its own, and whom they let in.

Role: an Agent names a ModelProvider of its namespace or a ClusterModelProvider by one key (`provider_key`); `Seen`
gives both kinds by it. `refused` says, in words for people, which provider does not allow a run, and by which list.
Asked when an Agent is judged, and again at every admission with the owner and the spec that was pinned: what
`spec.allow` says now is what counts then. Boundary: PURE.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from almoner_core.api import allow
from almoner_core.api.agent import CLUSTER_MARK, AgentSpec, AgentType, ToolProviderKind, key_of
from almoner_core.api.cluster_model_provider import ClusterModelProviderSpec
from almoner_core.api.cluster_tool_provider import ClusterToolProviderSpec
from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.api.tool_provider import ToolProviderSpec

Record = TypeVar("Record")

_THINGS = {"namespaces": "namespace", "owners": "owner", "agents": "agent", "agentTypes": "agents of type"}


class Seen(Mapping[str, Record]):
    """What a namespace may name, by key: its own records, and the cluster's. Shows them as they are now."""

    def __init__(self, own: Mapping[str, Record], cluster: Mapping[str, Record]) -> None:
        self._own, self._cluster = own, cluster

    def __getitem__(self, key: str) -> Record:
        if key.startswith(CLUSTER_MARK):
            return self._cluster[key.removeprefix(CLUSTER_MARK)]
        return self._own[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (key_of(name, cluster=True) for name in self._cluster)

    def __len__(self) -> int:
        return len(self._own) + len(self._cluster)


class Asker(NamedTuple):
    """Who would use a provider; `owner` None: not known yet."""

    namespace: str
    agent: str
    agent_type: AgentType
    owner: str | None = None


def is_cluster_wide(spec: ModelProviderSpec | ToolProviderSpec) -> bool:
    """Whether a provider's key lies in Almoner's own namespace."""
    return isinstance(spec, ClusterModelProviderSpec | ClusterToolProviderSpec)


def not_allowed(provider: str, spec: ModelProviderSpec | ToolProviderSpec, asker: Asker) -> str:
    """Say why a provider (its kind and name) may not be used; empty where it may be."""
    if not isinstance(spec, ClusterModelProviderSpec | ClusterToolProviderSpec):
        return ""
    found = allow.refusal(
        spec.allow, namespace=asker.namespace, agent=asker.agent, agent_type=asker.agent_type, owner=asker.owner
    )
    if found is None:
        return ""
    where, lacking = found
    return (
        f"{provider} does not allow {_THINGS[where]} {lacking}: it is not in its spec.allow.{where}; ask an "
        "administrator to add it, or name another provider"
    )


def refused(
    agent: AgentSpec | None,
    asker: Asker,
    models: Mapping[str, ModelProviderSpec | None],
    tools: Mapping[str, ToolProviderSpec | None],
) -> str:
    """Say which provider of an agent does not allow a run; empty where all do. A missing one is others' to find."""
    if agent is None:
        return ""
    for choice in (agent.model, *agent.model.fallbacks):
        model = models.get(choice.provider_key)
        if model is not None and (text := not_allowed(f"{choice.provider_kind} {choice.provider}", model, asker)):
            return text
    for tool in agent.tools:
        source = tools.get(tool.provider_key or "")
        kind = tool.provider_kind or ToolProviderKind.TOOL_PROVIDER
        if source is not None and (text := not_allowed(f"{kind} {tool.provider}", source, asker)):
            return text
    return ""
