"""The columns of an exported entry, in every format.

Money is exact twice: `cost_nanos` (integer) and `cost_usd` (decimal, nine places).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from almoner_ledger.history import entries

MOMENTS: Final = {"counted_unix_ms": "counted", "started_unix_ms": "started", "posted_unix_ms": "posted"}
"""Instants: what a page calls them (Unix milliseconds), and an export (a time in UTC)."""
COLUMNS: Final = (*(MOMENTS.get(name, name) for name in entries.COLUMNS), "cost_usd")

Rows = Sequence[Sequence[Any]]
