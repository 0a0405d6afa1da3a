"""ToolProviders as the cache keeps them: what was read of each, and what was last said of it.

Boundary: reading and facts; who judges them and what the meter is told is tool_providers' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from almoner_core.api.tool_provider import ToolProviderReason, ToolProviderSpec, ToolProviderStatus
from almoner_core.contract import MeterTool
from almoner_core.price_data import meter_tool
from almoner_operator.records import explain, version_of


@dataclass(slots=True)
class ToolProviderRecord:
    """A ToolProvider."""

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
    wrote: int = 0
    writing: bool = False
    rank: int = 9
    successor: ToolProviderRecord | None = None
    """The record that took its place when the spec changed."""

    def meter_tool(self, tool: str) -> MeterTool | None:
        """Give what the meter is told of a tool; None where the stored spec cannot be read."""
        if self.spec is None:
            return None
        return meter_tool(self.spec, f"{self.namespace}/{self.name}", tool, self.generation)


def parse(raw: Mapping[str, Any]) -> ToolProviderRecord:
    """Read a ToolProvider."""
    metadata = raw.get("metadata") or {}
    spec, invalid = None, ""
    try:
        spec = ToolProviderSpec.model_validate(raw.get("spec") or {})
    except ValidationError as error:
        invalid = explain(error)
    try:
        status = ToolProviderStatus.model_validate(raw.get("status") or {})
    except ValidationError:
        status = ToolProviderStatus()
    return ToolProviderRecord(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        version=version_of(raw),
        generation=int(metadata.get("generation") or 0),
        spec=spec,
        invalid=invalid,
        status=status,
        written=status,
    )
