"""Log lines that programs and people can read: one line each, as JSON or as text. No user content, no secrets."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final

LINE_CHARS_MAX: Final = 4000
_STANDARD: Final = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {
    "message",
    "asctime",
    "taskName",
}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and whatever `extra` has."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:LINE_CHARS_MAX],
        }
        line |= {
            name: value
            for name, value in record.__dict__.items()
            if name not in _STANDARD and isinstance(value, (str, int, float, bool))
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)[-LINE_CHARS_MAX:]
        return json.dumps(line)


def configure(level: str, style: str) -> None:
    """Write log lines to standard error: `style` json or text."""
    handler = logging.StreamHandler(sys.stderr)
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
