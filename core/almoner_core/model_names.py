"""Names of models: one that is dated means the same model as the one without the date.

Pure and light. OpenAI dates a name as `gpt-4.1-mini-2025-04-14`, Anthropic as `claude-sonnet-4-5-20250929`. The name
without the date, or with `-latest`, or with `-0` of a first version, is the alias. A dated model that costs something
else has an entry of its own in the public price data, and is known by that.
"""

from __future__ import annotations

import re
from typing import Final

_DATE: Final = re.compile(r"-(?:20\d\d-\d\d-\d\d|20\d{6}|latest)$")
_ALIASES: Final = ("", "-latest", "-0")


def undated(name: str) -> str:
    """Give a name without its date."""
    return _DATE.sub("", name)


def same_model(name: str) -> tuple[str, ...]:
    """Give the names that may stand for a dated one, the likeliest first; none for a name without a date."""
    base = undated(name)
    return () if base == name else tuple(base + ending for ending in _ALIASES if base + ending != name)
