"""Regular expressions that users write: compiled by RE2, so that no pattern can hang a run.

Role: the one place that compiles a user's pattern, for guardrails and for `pattern` in JSON Schemas; the operator
judges with it and the agent loop runs it. Syntax: RE2's, which has no look-around and no back references.

Boundary: RE2 is imported at the first pattern. Its time is linear, and pattern and memory are bounded.
"""

from __future__ import annotations

import functools
from typing import Any, Final

PATTERN_CHARS_MAX: Final = 1024
MEMORY_BYTES_MAX: Final = 8 * 1024 * 1024
"""What RE2 may take for one compiled pattern; it refuses larger ones."""


class PatternError(ValueError):
    """No regular expression of RE2; the message says why."""


class Pattern:
    """One compiled pattern."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def found_in(self, text: str) -> bool:
        """Whether the pattern matches anywhere in the text."""
        return self._compiled.search(_encodable(text)) is not None

    def replace(self, text: str, replacement: str) -> str:
        """Replace every match by the replacement as it is: a backslash in it means a backslash."""
        return str(self._compiled.sub(lambda _match: replacement, _encodable(text)))


@functools.lru_cache(maxsize=256)
def compile_pattern(pattern: str) -> Pattern:
    """Compile a user's pattern. Raises PatternError."""
    import re2  # noqa: PLC0415 - only where there are patterns

    if len(pattern) > PATTERN_CHARS_MAX:
        raise PatternError(f"longer than {PATTERN_CHARS_MAX} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MEMORY_BYTES_MAX
    try:
        return Pattern(re2.compile(pattern, options))
    except re2.error as error:
        said = error.args[0] if error.args else error
        raise PatternError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from error
    except UnicodeEncodeError as error:
        raise PatternError("no Unicode text") from error


def _encodable(text: str) -> str:
    """Replace half a surrogate pair, which no UTF-8 can say, by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
