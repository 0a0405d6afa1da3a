"""Which tools there are, by name.

Role: from a manifest's list of tools to tools that can be called. Boundary: an unknown name ends the run before it has
spent anything. Why imports inside: a run pays only for the tools that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from almoner_core.api.agent import Tool
from almoner_runner.tools.base import BuiltinTool
from almoner_runner.tools.errors import ToolError, ToolErrorCode


def _calculator() -> type[BuiltinTool]:
    from almoner_runner.tools.calculator import Calculator  # noqa: PLC0415 - only where it is named

    return Calculator


KNOWN: Final[dict[str, Callable[[], type[BuiltinTool]]]] = {"calculator": _calculator}


def known_names() -> list[str]:
    """Names of all tools of this version, sorted."""
    return sorted(KNOWN)


def build(tools: Sequence[Tool]) -> list[tuple[Tool, BuiltinTool]]:
    """Give every tool of the manifest, with its settings.

    Raises ToolError (ToolNotFound, with the list of known tools) and ToolConfigError.
    """
    built: list[tuple[Tool, BuiltinTool]] = []
    for tool in tools:
        loader = KNOWN.get(tool.name)
        if loader is None:
            raise ToolError(
                ToolErrorCode.TOOL_NOT_FOUND,
                f"there is no tool named {tool.name!r}; this version has: {', '.join(known_names())}",
            )
        built.append((tool, loader()(tool.config or {})))
    return built
