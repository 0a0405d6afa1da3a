"""Runs of each Agent by phase, and the newest, kept as they change: for Agents' statuses.

Boundary: no I/O. Each change names the agents whose numbers are other than before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from almoner_operator.scheduling.model import WorkloadKey

AgentKey = tuple[str, str]
"""Namespace and name."""


class Counts:
    """How many runs each Agent has in each phase."""

    def __init__(self) -> None:
        self._phases: dict[AgentKey, Counter[str]] = {}
        self._counted: dict[str, tuple[AgentKey, str]] = {}
        self._newest: dict[AgentKey, tuple[datetime, str]] = {}

    def of(self, namespace: str, agent: str) -> Mapping[str, int]:
        """Give an agent's runs by phase."""
        return self._phases.get((namespace, agent), {})

    def newest(self, namespace: str, agent: str) -> tuple[datetime, str] | None:
        """Give when an agent's newest run was created, and its name."""
        return self._newest.get((namespace, agent))

    def count(self, key: WorkloadKey, agent: str | None, phase: str, created: datetime) -> set[AgentKey]:
        """Count a run under a phase, and no longer under the one before; gives the agents whose counts changed."""
        if agent is None:
            return set()
        place = (key.namespace, agent)
        if self._counted.get(key.uid) == (place, phase):
            return set()
        changed = self.forget(key.uid) | {place}
        self._counted[key.uid] = (place, phase)
        self._phases.setdefault(place, Counter())[phase] += 1
        newest = self._newest.get(place)
        if newest is None or (created, key.name) > newest:
            self._newest[place] = (created, key.name)
        return changed

    def forget(self, uid: str) -> set[AgentKey]:
        """Count a run no more; gives the agents whose counts changed."""
        previous = self._counted.pop(uid, None)
        if previous is None:
            return set()
        self._phases[previous[0]][previous[1]] -= 1
        return {previous[0]}
