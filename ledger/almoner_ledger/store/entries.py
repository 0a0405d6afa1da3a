"""Entries that commands correct: read with the corrections they had, under the lock of their allotment.

Boundary: reads. Entries never change, so the lock of the allotment, which every poster takes first, is enough for the
sum of corrections to stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema

CORRECTION = "correction"
# What the column `digest` of a correction says: whether the cost was unknown until then. Only records of usage have a
# real digest.
WAS_KNOWN = "corrected"
WAS_UNKNOWN = "priced"

COLUMNS = (
    "id",
    "allotment_id",
    "kind",
    "corrects",
    "resource_type",
    "provider",
    "model",
    "operation",
    "outcome",
    "cost_nanos",
    "started_ms",
    "posted_ms",
    "price_version",
)


@dataclass(slots=True)
class StoredEntry:
    """An entry, what its corrections sum to (nano-dollars), how many there are, and whether a person made one."""

    row: dict[str, Any]
    corrected_nanos: int = 0
    corrections: int = 0
    by_hand: bool = False

    @property
    def cost(self) -> int | None:
        """What it costs with its corrections; None: unknown."""
        own: int | None = self.row["cost_nanos"]
        if own is None and not self.corrections:
            return None
        return (own or 0) + self.corrected_nanos


def read(connection: Connection, ids: Sequence[str]) -> dict[str, StoredEntry]:
    """Give the entries with these ids, those that exist."""
    if not ids:
        return {}
    table = schema.records
    found: dict[str, StoredEntry] = {}
    query = sa.select(*(table.c[name] for name in COLUMNS)).where(table.c.id.in_(sorted(set(ids))))
    for row in connection.execute(query).mappings():
        found[row["id"]] = StoredEntry(dict(row))
    allotments = sorted({entry.row["allotment_id"] for entry in found.values()})
    sums = (
        sa.select(
            table.c.corrects,
            sa.cast(sa.func.sum(table.c.cost_nanos), sa.BigInteger).label("nanos"),
            sa.func.count().label("corrections"),
            # Those of a price list name its version.
            sa.func.count(table.c.price_version).label("rated"),
        )
        # By allotment, since that is what an index knows.
        .where(
            table.c.allotment_id.in_(allotments), table.c.kind == CORRECTION, table.c.corrects.in_(sorted(set(found)))
        )
        .group_by(table.c.corrects)
    )
    for each in connection.execute(sums):
        found[each.corrects].corrected_nanos = int(each.nanos)
        found[each.corrects].corrections = each.corrections
        found[each.corrects].by_hand = each.rated < each.corrections
    return found
