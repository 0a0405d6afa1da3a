"""Leases on the books: who may still be spending, renewals, and the end of attempts that fell silent.

Role: `exchanged_ms` is the last moment at which a meter is known to have been told anything; a meter counts its lease
from before it asked, so the ledger's reckoning is never ahead of the meter's. Whatever renews the lease on the meter's
side is committed here first. An active allotment ends by its meter's return, by the operator who saw its containers
end, or by silence (LeasePolicy): whoever comes first, and each only once.

An allotment that is only offered has no meter that speaks: it is the operator's to void, and it reconciles what it
finds. Boundary: whether the silence is real is judged by two clocks (see almoner_ledger.signals), not here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import AllotmentState, Dimension, ErrorCode, ItemAnswer, Purpose
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.store import charging
from almoner_ledger.store.books import Books
from almoner_ledger.store.commands import Command
from almoner_ledger.store.state import Allotment

EXPIRED: Final = "expired"
SILENT_MAX: Final = 200
"""How many silent allotments one sweep takes up."""
AHEAD_MS: Final = 1000
"""A clock that went back by less is not worth a write."""


def check_silent(books: Books, allotment: Allotment, *, field: str = "terminated") -> None:
    """Refuse to give up an active attempt whose meter may still be spending. Raises LedgerError `leased`."""
    left_ms = books.lease.silence_left_ms(allotment.exchanged_ms, books.now_ms)
    if left_ms and allotment.purpose is Purpose.RUN and allotment.state is AllotmentState.ACTIVE:
        seconds = -(-left_ms // 1000)
        raise LedgerError(
            ErrorCode.LEASED,
            f"{field}: attempt {allotment.execution.attempt} may still be spending: its lease, the longest call and a "
            f"margin are over in {seconds} s; say terminated where its containers are known to have ended",
            field=field,
            retry_after_seconds=seconds,
        )


def check_no_other_active(books: Books, uid: str, attempt: int) -> None:
    """Refuse to open an attempt while a lower one is active. Raises LedgerError `leased`."""
    for other in books.of_execution(uid):
        if other.state is AllotmentState.ACTIVE and other.purpose is Purpose.RUN and other.execution.attempt < attempt:
            left_ms = books.lease.silence_left_ms(other.exchanged_ms, books.now_ms)
            raise LedgerError(
                ErrorCode.LEASED,
                f"execution.attempt: attempt {other.execution.attempt} of this execution is active; close it first",
                field="execution.attempt",
                retry_after_seconds=max(1, -(-left_ms // 1000)),
            )


def give_up(books: Books, allotment: Allotment, reason: str) -> dict[Dimension, int]:
    """Charge off what an active attempt could still have spent, and close it. Gives what was charged."""
    charged = charging.charge_off(books, allotment)
    charging.end(books, allotment, AllotmentState.CLOSED, reason)
    return charged


def expire(books: Books, command: Command) -> ItemAnswer:
    """End an attempt that fell silent, unless it was heard of meanwhile. Raises LedgerError `leased`."""
    allotment = books.allotment(command)
    if allotment.state is AllotmentState.ACTIVE:
        check_silent(books, allotment, field="allotment")
        give_up(books, allotment, EXPIRED)
    return ItemAnswer(allotment=allotment.id, state=allotment.state.value)


# -- without books in hand: many allotments at once, none of their amounts -----------------------------------------


def silent(connection: Connection, now_ms: int, policy: LeasePolicy) -> dict[str, int]:
    """Active attempts that were not heard of for so long that they are to be given up, and when each was last heard."""
    table = schema.allotments
    query = (
        sa.select(table.c.id, table.c.exchanged_ms)
        .where(
            table.c.state == AllotmentState.ACTIVE.value,
            table.c.purpose == Purpose.RUN.value,
            table.c.exchanged_ms <= now_ms - policy.silence_seconds * 1000,
        )
        .order_by(table.c.exchanged_ms)
        .limit(SILENT_MAX)
    )
    return {row.id: row.exchanged_ms for row in connection.execute(query)}


def ahead(connection: Connection, now_ms: int) -> bool:
    """Whether an active attempt was heard of later than now: the clock has gone back."""
    return connection.execute(sa.select(_ahead(now_ms).exists())).scalar_one()


def set_back(connection: Connection, now_ms: int) -> int:
    """After the clock went back: count the silence of such attempts from now on, later than they were heard of.

    Else nobody could give them up before the clock is where it was, an hour later or a year. Gives how many they are.
    """
    rows = _ahead(now_ms).order_by(schema.allotments.c.id).with_for_update()
    statement = sa.update(schema.allotments).where(schema.allotments.c.id.in_(rows)).values(exchanged_ms=now_ms)
    return int(connection.execute(statement).rowcount)


def _ahead(now_ms: int) -> sa.Select[Any]:
    table = schema.allotments
    return sa.select(table.c.id).where(
        table.c.state == AllotmentState.ACTIVE.value,
        table.c.purpose == Purpose.RUN.value,
        table.c.exchanged_ms > now_ms + AHEAD_MS,
    )


def renew(connection: Connection, ids: Collection[str], now_ms: int) -> set[str]:
    """Note that these meters were heard of just now, in one statement; gives those for which that is so.

    Rows are locked in the order in which groups of commands lock them, and nothing else is: no deadlock comes of it.
    """
    table = schema.allotments
    rows = (
        sa.select(table.c.id)
        .where(table.c.id.in_(sorted(ids)), table.c.state == AllotmentState.ACTIVE.value)
        .order_by(table.c.id)
        .with_for_update()
    )
    statement: Any = sa.update(table).where(table.c.id.in_(rows)).values(exchanged_ms=now_ms).returning(table.c.id)
    return set(connection.execute(statement).scalars())
