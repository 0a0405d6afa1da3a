"""The API reference as Markdown."""

from __future__ import annotations


def pages() -> dict[str, str]:
    """Give the pages by file name."""
    return {}
