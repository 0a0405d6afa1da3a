"""Recall: who is refused what others hold asks them, by a mark on the account, to return what is idle.

Role: a refusal that says `may_free_up` marks the accounts that had no room, at most once a second each, so that
refusals stay cheap; the mark is all that a refusal writes. Meters that wait for signals and hold something there are
told (`attention`), for as long as the mark is fresh.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.errors import LedgerError
from almoner_ledger.store.books import Books
from almoner_ledger.store.granting import Tracked, current_windows

MARK_MS: Final = 1000
"""An account is marked at most once in so long."""
FRESH_MS: Final = 5000
"""A mark older than that says nothing any more: whoever was refused has come back, or has gone."""


def mark(books: Books, tracked: Tracked, error: LedgerError) -> None:
    """After a refusal: mark the accounts of `tracked` that others may free up."""
    refusal = error.refusal
    if refusal is None or not refusal.may_free_up or refusal.rate_seconds is not None:
        return
    for account, window, limit in current_windows(books, tracked):
        if limit is None or window.dimension is not refusal.dimension or not window.reserved:
            continue
        short = limit - window.spent - window.reserved < refusal.needed
        if short and abs(books.now_ms - account.recall_ms) >= MARK_MS:
            account.recall_ms = books.now_ms
            account.dirty = True


class Attention(NamedTuple):
    """What a waiting meter's allotment stands at. `recall_ms`: the newest fresh mark where it holds something, or 0."""

    state: str
    pod_uid: str | None
    exchanged_ms: int
    recall_ms: int


def attention(connection: Connection, ids: Collection[str], now_ms: int) -> dict[str, Attention]:
    """Look at many allotments in one query."""
    table, holds, accounts = schema.allotments, schema.holds, schema.accounts
    marked = (
        sa.select(sa.func.max(accounts.c.recall_ms))
        .select_from(holds.join(accounts, accounts.c.id == holds.c.account_id))
        .where(
            holds.c.allotment_id == table.c.id,
            holds.c.granted > holds.c.used,
            accounts.c.recall_ms > now_ms - FRESH_MS,
        )
        .scalar_subquery()
    )
    query: Any = sa.select(
        table.c.id,
        table.c.state,
        table.c.pod_uid,
        table.c.exchanged_ms,
        sa.func.coalesce(marked, 0).label("recall_ms"),
    ).where(table.c.id.in_(sorted(ids)))
    return {
        row.id: Attention(row.state, row.pod_uid, row.exchanged_ms, row.recall_ms) for row in connection.execute(query)
    }
