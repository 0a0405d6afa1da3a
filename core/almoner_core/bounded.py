"""Values of a metric's label, bounded: whoever makes up names must not make a time series of each."""

from __future__ import annotations

import threading
from typing import Final

OTHER: Final = "other"


class Bounded:
    """Gives the first `most` different values as they are, and `other` for all that are met later. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Give what the label says for a value."""
        if value in self._known:
            return value
        with self._lock:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(value)
            return value
