"""How long to wait before asking again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MOST_S: Final = 5.0


def backoff() -> Iterator[float]:
    """Give waits in seconds without end: doubling, with jitter."""
    wait = BACKOFF_FIRST_S
    while True:
        yield wait * (0.5 + random.random() / 2)  # noqa: S311 - jitter
        wait = min(wait * 2, BACKOFF_MOST_S)
