"""The log of changes of the configuration: without gaps, as it was sealed, and what is known follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.configuration import digest
from almoner_ledger import schema, sealing
from almoner_ledger.store.configuration import COUNTER
from almoner_ledger.verify.findings import Check, Violation

NUMBERED: Final = "changes-numbered"
SEALED: Final = "changes-as-sealed"
KNOWN: Final = "configuration-as-changed"

_changes = schema.configuration_changes


def numbered(connection: Connection) -> Iterator[Violation]:
    """Changes count from 1 to the counter's value, each number once."""
    counters = schema.counters
    counted = connection.execute(sa.select(counters.c.value).where(counters.c.name == COUNTER)).scalar_one_or_none()
    count, least, most = connection.execute(
        sa.select(sa.func.count(), sa.func.min(_changes.c.number), sa.func.max(_changes.c.number))
    ).one()
    expected = (counted or 0, 1, counted) if counted else (0, None, None)
    if (count, least, most) != expected:
        found = f"{counted} were counted, and there are {count}, numbered {least} to {most}"
        yield Violation(NUMBERED, "changes of the configuration", found)


def as_sealed(connection: Connection) -> Iterator[Violation]:
    """The changes that each seal covers are those that it was made of, to the letter."""
    seals, first = schema.seals, 1
    query = sa.select(seals).where(seals.c.kind == sealing.CONFIGURATION).order_by(seals.c.number)
    for seal in connection.execute(query).mappings().all():
        last = first + seal["entries"] - 1
        count, content = sealing.changes_content(connection, first, last)
        if content != seal["content"]:
            what = "changed" if count == seal["entries"] else f"{count}, not the {seal['entries']} that were sealed"
            yield Violation(SEALED, f"seal {seal['number']}", f"changes {first} to {last} of the configuration: {what}")
        first = last + 1


def known(connection: Connection) -> Iterator[Violation]:
    """What is known of each object is what its last change made of it."""
    table, last = schema.configured, sa.func.max(_changes.c.number).label("last")
    newest = sa.select(_changes.c.uid, last).group_by(_changes.c.uid).subquery()
    query = (
        sa.select(table, _changes.c.after_digest, _changes.c.uid.label("logged"))
        .select_from(table)
        .outerjoin(newest, newest.c.uid == table.c.uid)
        .outerjoin(_changes, _changes.c.number == newest.c.last)
    )
    for row in connection.execute(query.execution_options(stream_results=True, yield_per=100)):
        subject = f"{row.kind} {row.namespace}/{row.name}"
        if digest(row.spec) != row.digest:
            yield Violation(KNOWN, subject, "its last spec is not that of its digest")
        if row.logged is None:
            yield Violation(KNOWN, subject, "no change of it is there")
        elif row.after_digest != (None if row.deleted else row.digest):
            yield Violation(KNOWN, subject, "it is not as its last change left it")
    lost = sa.select(newest.c.uid).where(newest.c.uid.not_in(sa.select(table.c.uid)))
    for uid in connection.execute(lost).scalars():
        yield Violation(KNOWN, f"object {uid}", "its last spec is gone")


CHECKS: Final[tuple[Check, ...]] = (numbered, as_sealed, known)
