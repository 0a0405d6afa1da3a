"""kopf's handlers, one file a kind. Each takes an event into the cache and returns; nothing is decided here."""

from __future__ import annotations

import kopf

from almoner_operator.handlers import (
    agent,
    cluster_model_provider,
    cluster_tool_provider,
    execution,
    model_provider,
    pod,
    resource_quota,
    tool_provider,
    training_job,
)


def register_all(registry: kopf.OperatorRegistry) -> None:
    """Watch every kind that the operator needs."""
    for module in (
        agent,
        execution,
        cluster_model_provider,
        cluster_tool_provider,
        model_provider,
        tool_provider,
        pod,
        resource_quota,
        training_job,
    ):
        module.register(registry)
