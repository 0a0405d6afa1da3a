"""The kinds of the API group, in the order in which a person would read about them."""

from __future__ import annotations

from typing import Final

from almoner_core.api import (
    agent,
    cluster_model_provider,
    cluster_tool_provider,
    execution,
    model_provider,
    resource_quota,
    tool_provider,
    training_job,
)
from almoner_core.api.meta import Kind

KINDS: Final[tuple[Kind, ...]] = (
    model_provider.KIND,
    tool_provider.KIND,
    cluster_model_provider.KIND,
    cluster_tool_provider.KIND,
    agent.KIND,
    execution.KIND,
    training_job.KIND,
    resource_quota.KIND,
)


def kind_named(name: str) -> Kind:
    """Find a kind by its CamelCase name. Raises KeyError naming the kinds there are."""
    for kind in KINDS:
        if kind.kind == name:
            return kind
    raise KeyError(f"no kind {name!r}; there are {', '.join(kind.kind for kind in KINDS)}")
