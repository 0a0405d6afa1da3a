"""Keeps a log readable when something fails again and again: each place in the code has so many lines a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

LINES: Final = 10
SECONDS: Final = 60.0


class Quiet(logging.Filter):
    """Lets LINES records a minute through from one place; the next one after that says how many were left out."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._since: dict[tuple[str, int], tuple[float, int]] = {}
        """Of each place, when its minute began, and how many records it had since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a record is written."""
        place = (record.pathname, record.lineno)
        now = self._monotonic()
        with self._lock:
            began, count = self._since.get(place, (now, 0))
            if now - began >= SECONDS:
                left_out, began, count = max(0, count - LINES), now, 0
            else:
                left_out = 0
            self._since[place] = (began, count + 1)
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} like it were left out before)"
            record.args = None
        return count < LINES
