"""Who may use a cluster-scoped provider: `spec.allow`, and what it says of one agent.

Boundary: PURE. The API server holds the schema; the operator asks `refusal` when it judges an Agent and again at every
admission, so that a change binds whatever is admitted after it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field

from almoner_core.api.agent import AgentType
from almoner_core.api.base import APIModel, OwnerName

ANY_NAMESPACE: Final = "*"
ENTRIES_MAX: Final = 256
_SET: Final[dict[str, Any]] = {"x-kubernetes-list-type": "set"}

NamespaceName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$")]
AgentName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=127,
        pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    ),
]


class Allow(APIModel):
    """Who may use a provider: every list that is given must have the run. No list may be empty."""

    namespaces: list[NamespaceName] = Field(
        min_length=1,
        max_length=ENTRIES_MAX,
        description="Namespaces whose agents may use it, by name; '*' stands for all of them.",
        json_schema_extra=_SET,
    )
    owners: list[OwnerName] | None = Field(
        default=None,
        min_length=1,
        max_length=ENTRIES_MAX,
        description="Owners whose runs may use it; any where absent.",
        json_schema_extra=_SET,
    )
    agents: list[AgentName] | None = Field(
        default=None,
        min_length=1,
        max_length=ENTRIES_MAX,
        description="Agents that may use it, as name or namespace/name; any where absent.",
        json_schema_extra=_SET,
    )
    agent_types: list[AgentType] | None = Field(
        default=None,
        min_length=1,
        max_length=4,
        description="Types of agents that may use it; any where absent.",
        json_schema_extra=_SET,
    )


def refusal(
    allow: Allow, *, namespace: str, agent: str, agent_type: AgentType, owner: str | None = None
) -> tuple[str, str] | None:
    """Say which list keeps an agent out, and what it lacks: `("namespaces", "team-b")`. None: it may use the provider.

    `owner` None: not known yet, so that nothing is said of owners.
    """
    if ANY_NAMESPACE not in allow.namespaces and namespace not in allow.namespaces:
        return "namespaces", namespace
    if allow.agents is not None and agent not in allow.agents and f"{namespace}/{agent}" not in allow.agents:
        return "agents", f"{namespace}/{agent}"
    if allow.agent_types is not None and agent_type not in allow.agent_types:
        return "agentTypes", agent_type.value
    if allow.owners is not None and owner is not None and owner not in allow.owners:
        return "owners", owner
    return None
