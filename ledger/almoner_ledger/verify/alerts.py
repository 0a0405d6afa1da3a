"""Alerts: none without a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.verify.findings import Check, Violation


def alerts_were_reached(connection: Connection) -> Iterator[Violation]:
    """What fired had been reached by what was spent of the limit at that moment."""
    table = schema.alerts
    # Divided, since a product may pass BIGINT.
    wrong = table.c.spent // table.c.percent < table.c.limit // 100
    for row in connection.execute(sa.select(table).where(sa.or_(wrong, table.c.spent <= 0))):
        subject = f"{row.account_id} {row.dimension} {row.period} from {row.starts_at}"
        yield Violation("alerts-were-reached", subject, f"{row.percent} % of {row.limit} at {row.spent}")


CHECKS: Final[tuple[Check, ...]] = (alerts_were_reached,)
