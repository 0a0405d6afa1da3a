"""Calls of tools that run in the agent: what they cost is known before they are made.

Pure. The agent asks before each call (POST /tools/{tool}/calls, with `units` where the price counts those); what the
call costs is held and recorded at once, so calls made at the same time cannot pass a limit together. A tool whose price
is unknown is refused where money is limited.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from almoner_core.pricing import tool_nanos
from almoner_runner.meter.body import read_json
from almoner_runner.meter.config import Config, Tool, ToolPrice
from almoner_runner.meter.refusals import InvalidCallError, RefusedError, amount

LOCAL_TOOLS: Final = ("calculator",)
UNITS_MAX: Final = 10**9
CALL_BYTES_MAX: Final = 1024
# What the ledger takes as one record's cost.
NANOS_MAX: Final = 10**18
_FREE: Final = ToolPrice(version="")


def tools_of(config: Config) -> dict[str, Tool]:
    """Give the tools that calls are counted of, by name: the free ones, and those of the agent's ToolProviders."""
    return {name: free_tool(name) for name in LOCAL_TOOLS} | {tool.name: tool for tool in config.tools}


def free_tool(name: str) -> Tool:
    """Give a tool whose calls are counted and cost nothing."""
    return Tool(name, "almoner", "tool", _FREE)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool."""

    tool: Tool
    units: int = 0

    def bound(self) -> dict[str, int]:
        """Give what the call uses, by dimension; `usd` is absent where the price is unknown."""
        price = self.tool.price
        amounts = {"tool_calls": 1}
        if price is not None:
            amounts["usd"] = tool_nanos(price, self.units)
        return amounts

    def check(self, limited: Collection[str], max_per_request: Mapping[str, int]) -> None:
        """Refuse what no budget could bound, and what is more than one call may use. Raises RefusedError."""
        name, nanos = self.tool.name, self.bound().get("usd")
        if nanos is None:
            if "usd" in limited:
                raise RefusedError(
                    404,
                    "tool_unpriced",
                    f"tool {name!r} has no known price at ToolProvider {self.tool.provider!r}, so no budget can bound "
                    "it: add it to spec.prices there",
                )
            return
        most = min(NANOS_MAX, max_per_request.get("usd", NANOS_MAX))
        if nanos > most:
            raise RefusedError(
                429,
                "insufficient_quota",
                f"one call may use at most {amount('usd', most)}, this one would use {amount('usd', nanos)}",
            )

    def record(self) -> dict[str, Any]:
        """Give the fields of its record."""
        price = self.tool.price
        return {
            "tool_calls": 1,
            "requests": 0,
            "units": self.units,
            "cost_nanos": self.bound().get("usd"),
            "price_version": price.version or None if price is not None else None,
        }


def read_call(tool: Tool, body: bytes) -> ToolCall:
    """Read the body of a call: nothing, or `{"units": n}`. Raises InvalidCallError."""
    if len(body) > CALL_BYTES_MAX:
        raise RefusedError(413, "body_too_large", f"at most {CALL_BYTES_MAX} bytes")
    given = read_json(body) if body else {}
    if not isinstance(given, dict) or set(given) - {"units"}:
        raise InvalidCallError('the call\'s body must be an object with "units" alone')
    counted = tool.price is not None and tool.price.per_unit > 0
    units = given.get("units")
    if units is None:
        if counted:
            raise InvalidCallError(f"units: tool {tool.name!r} is priced by the unit: say how many", param="units")
        return ToolCall(tool)
    if not isinstance(units, int) or isinstance(units, bool) or not 0 <= units <= UNITS_MAX:
        raise InvalidCallError(f"units: must be a whole number from 0 to {UNITS_MAX}", param="units")
    return ToolCall(tool, units)
