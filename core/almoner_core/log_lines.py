"""Log lines of every part, which programs and people can read: one line each, as JSON or as text.

Role: all parts write the same fields under the same names, so that one query follows a run through operator, ledger and
meter: `namespace`, `run` (the Execution or TrainingJob), `attempt`, `allotment`, `trace_id`. Lines hold no content of a
user's and no secrets, and are bounded. Standard library alone: the meter starts with it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LINE_CHARS_MAX: Final = 4000
FIELD_CHARS_MAX: Final = 1000
STYLES: Final = ("json", "text")
_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the process's own `fields`, and whatever `extra` has."""

    def __init__(self, fields: Mapping[str, str | int] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:LINE_CHARS_MAX],
            **self._fields,
            **extra_of(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[-LINE_CHARS_MAX:]
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for people: time, level, logger, message, and the fields of `extra` as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Give the line."""
        line = super().formatMessage(record)
        return line + "".join(f" {name}={value}" for name, value in extra_of(record).items())


def extra_of(record: logging.LogRecord) -> dict[str, str | int | float | bool]:
    """Give the fields that a line was given beside its message; long texts are cut."""
    return {
        name: value[:FIELD_CHARS_MAX] if isinstance(value, str) else value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and isinstance(value, (str, int, float, bool))
    }


def trace_id(allotment: str | None) -> str:
    """Give the trace id of an attempt: the 32 hexadecimal digits of its allotment's UUID, "" where there is none.

    Every part knows the allotment, so that no id needs to be handed about. The form is W3C Trace Context's (32 digits).
    """
    return (allotment or "").replace("-", "").lower()


def configure(
    level: str, style: str, *, stream: TextIO | None = None, fields: Mapping[str, str | int] | None = None
) -> None:
    """Write log lines to standard error, or to `stream`: `style` json or text. `fields` are in every JSON line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(TextFormatter() if style == "text" else JsonFormatter(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "aiohttp", "asyncio", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
