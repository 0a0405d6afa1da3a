"""Alerts: the spent part of a window reached a percentage of its limit.

Role: whatever moves `spent`, the limit or the thresholds (records, charges, corrections, updates), the rows of alerts
are written in the same transaction, one per window and threshold, for ever: a limit that is raised and lowered again,
or a correction, fires nothing a second time. Accounts that only watch fire too; that is what they are for.

A window whose use crossed nothing costs no statement. Boundary: who is told, and how, is the operator's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import FiredAlert
from almoner_ledger import schema
from almoner_ledger.store import bulk
from almoner_ledger.store.state import Account, Window, WindowKey

if TYPE_CHECKING:
    from almoner_ledger.store.books import Books


def reached(spent: int, limit: int | None, percent: int) -> bool:
    """Whether `spent` is at least `percent` of the limit. Nothing spent reaches nothing, also not of a limit of 0."""
    return limit is not None and spent > 0 and spent * 100 >= percent * limit


def watch(books: Books) -> None:
    """After loading: remember where windows stand that can fire."""
    for window in books.windows.values():
        account = books.accounts.get(window.account_id)
        if account is not None:
            books.alert_marks[window.key] = (window.spent, window.limit)


def changed(books: Books, account: Account) -> None:
    """After an update of limits: thresholds may be new, so every one that is reached is looked at."""
    for key in [key for key in books.alert_marks if key[0] == account.id]:
        del books.alert_marks[key]


def flush(books: Books, writer: bulk.Writer) -> None:
    """Write what fired, each once. Call it after the windows were written."""
    rows: list[dict[str, Any]] = []
    for key in sorted(books.windows):
        window = books.windows[key]
        account = books.accounts[window.account_id]
        if account.alert_thresholds and account.period is window.period:
            spent, limit = books.alert_marks.get(key, (0, None))
            rows += [
                _row(books, window, percent)
                for percent in account.alert_thresholds
                if reached(window.spent, window.limit, percent) and not reached(spent, limit, percent)
            ]
    writer.insert_missing(schema.alerts, rows)


def _row(books: Books, window: Window, percent: int) -> dict[str, Any]:
    account_id, dimension, period, starts_at = window.key
    return {
        "account_id": account_id,
        "dimension": dimension.value,
        "period": period.value,
        "starts_at": starts_at,
        "percent": percent,
        "fired_ms": books.now_ms,
        "spent": window.spent,
        "limit": window.limit,
    }


def fired(connection: Connection, windows: Iterable[Window]) -> Mapping[WindowKey, list[FiredAlert]]:
    """What fired in these windows, the lowest percentage first."""
    keys = {(key[0], key[1].value, key[2].value, key[3]): key for key in (window.key for window in windows)}
    if not keys:
        return {}
    table = schema.alerts
    columns = (table.c.account_id, table.c.dimension, table.c.period, table.c.starts_at)
    query = sa.select(table).where(sa.tuple_(*columns).in_(sorted(keys))).order_by(table.c.percent)
    found: dict[WindowKey, list[FiredAlert]] = {}
    for row in connection.execute(query):
        key = keys[row.account_id, row.dimension, row.period, row.starts_at]
        found.setdefault(key, []).append(FiredAlert(percent=row.percent, fired_unix_ms=row.fired_ms))
    return found
