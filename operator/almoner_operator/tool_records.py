"""ToolProviders as the cache keeps them: what was read of each, and what was last said of it.

Boundary: reading and facts; who judges them and what the meter is told is tool_providers' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from almoner_core.api.cluster_tool_provider import ClusterToolProviderSpec
from almoner_core.api.tool_provider import ToolProviderReason, ToolProviderSpec, ToolProviderStatus
from almoner_core.contract import MeterTool
from almoner_core.price_data import meter_tool
from almoner_operator.records import read_object


@dataclass(slots=True)
class ToolProviderRecord:
    """A ToolProvider, or a ClusterToolProvider: it has no namespace."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    spec: ToolProviderSpec | None
    invalid: str
    status: ToolProviderStatus
    written: ToolProviderStatus
    reason: ToolProviderReason = ToolProviderReason.READY
    message: str = ""
    base: int = 0
    writing: bool = False
    rank: int = 9
    successor: ToolProviderRecord | None = None
    """The record that took its place when the spec changed."""

    @property
    def kind(self) -> str:
        """What it is."""
        return "ToolProvider" if self.namespace else "ClusterToolProvider"

    def meter_tool(self, tool: str) -> MeterTool | None:
        """Give what the meter is told of a tool; None where the stored spec cannot be read."""
        if self.spec is None:
            return None
        return meter_tool(self.spec, f"{self.namespace or self.kind}/{self.name}", tool, self.generation)


def parse(raw: Mapping[str, Any]) -> ToolProviderRecord:
    """Read a ToolProvider, or a ClusterToolProvider: that has no namespace."""
    spec = ToolProviderSpec if raw["metadata"].get("namespace") else ClusterToolProviderSpec
    return ToolProviderRecord(**read_object(raw, spec, ToolProviderStatus))
