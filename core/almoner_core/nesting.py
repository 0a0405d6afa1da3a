"""Bounds of JSON that may have any shape: how deep it may nest, how large it may be, and how to read what is deeper.

Role: the API server takes 10,000 levels, Python's decoder and pydantic's serializer raise RecursionError after a few
hundred. Whoever reads a stored object uses `loads`, and every open field of the API types is checked by `bounded`.

Boundary: standard library alone; nothing here recurses.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

DEPTH_MAX: Final = 64
"""Most levels of an open value: a scalar has none, an object of scalars one."""
BYTES_MAX: Final = 98_304
"""Most bytes of an open value, as JSON."""
CUT_DEPTH: Final = 200
"""Where `loads` cuts. The envelope of an object (items, spec, field) has far fewer levels than lie between the two."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class TooDeepError(ValueError):
    """A value nests deeper than DEPTH_MAX."""


class TooLargeError(ValueError):
    """A value has more than BYTES_MAX bytes as JSON."""


def depth_of(value: Any, stop: int = DEPTH_MAX + 1) -> int:
    """Return how many levels a value nests, at most `stop`."""
    level: list[Any] = [value]
    depth = 0
    while depth < stop:
        below: list[Any] = []
        nested = False
        for each in level:
            if isinstance(each, dict):
                nested = True
                below.extend(each.values())
            elif isinstance(each, list):
                nested = True
                below.extend(each)
        if not nested:
            return depth
        depth, level = depth + 1, below
    return depth


def bounded(value: Any) -> Any:
    """Return the value. Raises TooDeepError or TooLargeError."""
    if depth_of(value) > DEPTH_MAX:
        raise TooDeepError(f"nested deeper than {DEPTH_MAX} levels")
    # Only now: the encoder recurses.
    size = len(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    if size > BYTES_MAX:
        raise TooLargeError(f"{size} bytes as JSON, at most {BYTES_MAX}")
    return value


def loads(text: str | bytes) -> Any:
    """Decode JSON of any depth. What lies deeper than CUT_DEPTH is replaced by null. Raises ValueError for no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        pass
    try:
        return json.loads(cut(text.decode("utf-8") if isinstance(text, bytes) else text))
    except RecursionError as error:  # What is never closed is never cut.
        raise ValueError("no JSON: objects or lists are not closed") from error


def cut(text: str, depth: int = CUT_DEPTH) -> str:
    """Replace every object and array that lies deeper than `depth` levels by null."""
    kept: list[str] = []
    level = 0
    start = 0  # of what is kept next
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark in ("{", "["):
            level += 1
            if level == depth + 1:
                kept.append(text[start : token.start()])
        elif mark in ("}", "]"):
            if level == depth + 1:
                kept.append("null")
                start = token.end()
            level -= 1
    kept.append(text[start:])
    return "".join(kept)
