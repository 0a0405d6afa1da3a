"""Whether an Agent or a ModelProvider can be used, and what limits govern a run: pure functions over cached facts."""

from __future__ import annotations

from almoner_core.api.agent import Limits


def effective_limits(agent: Limits, own: Limits, own_timeout_seconds: int | None = None) -> Limits:
    """Tighten: each limit is the smaller of the agent's and the execution's own."""
    raise NotImplementedError
