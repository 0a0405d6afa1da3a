"""Errors of tools, by name: what the model is told when a call of a tool does not work out.

Role: the one shape in which every tool fails. Boundary: no I/O; the time stamp is the caller's. Why: a model can only
mend a call whose error says what was wrong, and a person reading a transcript needs the same five fields every time.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

MESSAGE_CHARS_MAX: Final = 512


class ToolErrorCode(StrEnum):
    """Names of a tool's errors."""

    TOOL_NOT_FOUND = "ToolNotFound"
    """No tool has that name. Met at the start of a run, before anything is spent."""
    TOOL_INPUT_INVALID = "ToolInputInvalid"
    """The arguments do not fit the tool's schema, or have no answer (such as a division by zero)."""
    TOOL_EXECUTION_FAILED = "ToolExecutionFailed"
    """The tool itself went wrong."""
    TOOL_TIMEOUT = "ToolTimeout"
    """The call took longer than the agent allows."""
    RATE_LIMIT_EXCEEDED = "RateLimitExceeded"
    """The tool was called too often; the message says when to call again."""
    PERMISSION_DENIED = "PermissionDenied"
    """The agent may not do that with this tool."""
    CONTEXT_LENGTH_EXCEEDED = "ContextLengthExceeded"
    """What the tool found is too long to be given to the model."""


class ToolError(Exception):
    """A call of a tool failed; the model is told so and may try otherwise."""

    def __init__(self, code: ToolErrorCode, message: str) -> None:
        super().__init__(message[:MESSAGE_CHARS_MAX])
        self.code = code

    def answer(self, tool_name: str, now: datetime) -> dict[str, Any]:
        """Give what the model sees: success, error, tool_name, code, timestamp (RFC 3339, UTC, seconds)."""
        return {
            "success": False,
            "error": str(self),
            "tool_name": tool_name,
            "code": self.code.value,
            "timestamp": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
