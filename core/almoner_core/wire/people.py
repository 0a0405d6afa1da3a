"""For people: sums of what was used."""

from __future__ import annotations

from almoner_core.wire.common import UsageTotals, WireModel


class CostRow(WireModel):
    """One group's sums: `key` has a value for each of the table's columns."""

    key: list[str]
    totals: UsageTotals


class Costs(WireModel):
    """Sums by one dimension (`by`), the dearest first; `columns` names the parts of each row's key."""

    by: str
    columns: list[str]
    rows: list[CostRow]
    truncated: bool = False
