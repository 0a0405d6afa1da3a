"""What a tool is: a name, words for the model, a schema of its arguments, and a function.

Role: the interface between the agent loop and every tool. Boundary: metering, rates and time limits are the loop's; a
tool only does its work, and raises ToolError where it cannot.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol


class BuiltinTool(Protocol):
    """One tool, ready for one run. `run` is called in a thread, with arguments that fit `input_schema`."""

    name: ClassVar[str]
    description: ClassVar[str]
    input_schema: ClassVar[dict[str, Any]]

    def __init__(self, config: dict[str, Any]) -> None:
        """Take the settings from the manifest. Raises ToolConfigError, which names the setting."""

    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Do the work and give what the model sees. Raises ToolError."""
        ...


class ToolConfigError(ValueError):
    """The manifest's settings of a tool cannot be used; the message names the setting and what would do."""
