"""ToolProviders: taken into the cache, judged, and turned into what the meter is told of an agent's tools.

Role: as for ModelProviders, in one place: what a tool costs is resolved once, at admission (decision 0001). Boundary:
no I/O; Secrets come as facts. Prices travel in the meter's configuration, keys do not: tools run in the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from almoner_core.api.agent import AgentSpec, ToolProviderKind, key_of
from almoner_core.api.tool_provider import ToolProviderReason, ToolProviderSpec
from almoner_core.contract import MeterTool
from almoner_operator import news
from almoner_operator.cluster_providers import is_cluster_wide
from almoner_operator.tool_records import ToolProviderRecord, parse

if TYPE_CHECKING:
    from almoner_operator.agents import SecretFacts
    from almoner_operator.cache import Cache, Space


def observe(cache: Cache, event: str | None, raw: Mapping[str, Any]) -> None:
    """Take in a ToolProvider or ClusterToolProvider."""
    space = cache.space(raw["metadata"].get("namespace") or "")
    cache.configuration.take("ToolProvider" if space.name else "ClusterToolProvider", event, raw)
    if news.observe(space.tool_providers, event, raw, parse):
        touched(cache, space, str(raw["metadata"]["name"]))


def touched(cache: Cache, space: Space, name: str, *, judged: bool = False) -> None:
    """Note that a ToolProvider, or whether it can be used, changed: the agents that name it are judged again."""
    if not judged:
        cache.tool_providers_changed.add((space.name, name))
    if space is cache.cluster and not judged:
        cache.free_refused()
    key = key_of(name, cluster=space is cache.cluster)
    cache.agents_changed.update(
        (each.name, agent.name)
        for each in (cache.spaces.values() if space is cache.cluster else (space,))
        for agent in each.agents.values()
        if agent.spec is not None and any(tool.provider_key == key for tool in agent.spec.tools)
    )
    cache.wake()


def verdict(spec: ToolProviderSpec, secrets: Mapping[str, SecretFacts]) -> tuple[ToolProviderReason, str]:
    """Judge a ToolProvider."""
    from almoner_operator.agents import credentials_problem  # noqa: PLC0415 - agents is above this

    if spec.base_url is not None:
        text = "spec.baseURL: not supported by this version, whose tools call no service: remove it"
        return ToolProviderReason.NOT_SUPPORTED, text
    problem = credentials_problem(spec.credentials, secrets, cluster=is_cluster_wide(spec))
    if problem is not None:
        return ToolProviderReason(problem[0].value), problem[1]
    return ToolProviderReason.READY, "the provider can be used"


def for_agent(agent: AgentSpec | None, known: Mapping[str, ToolProviderRecord]) -> tuple[MeterTool, ...]:
    """Give what the meter is told of an agent's tools. Raises PodError where a ToolProvider is missing."""
    from almoner_operator.pods import PodError  # noqa: PLC0415 - pods is above this

    tools = []
    for index, tool in enumerate(agent.tools if agent is not None else ()):
        if tool.provider_key is None:
            continue
        record = known.get(tool.provider_key)
        told = record.meter_tool(tool.name) if record is not None else None
        if told is None:
            kind = tool.provider_kind or ToolProviderKind.TOOL_PROVIDER
            raise PodError(f"tools[{index}].provider: {kind} {tool.provider} does not exist or is not valid")
        tools.append(told)
    return tuple(tools)
