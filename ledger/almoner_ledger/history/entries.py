"""Entries, one by one: records of meters, charges and corrections, in pages or as a stream.

Role: the columns of an entry that people see. Content, metadata and digests are left out. Boundary: entries are given
as they were posted; a correction is an entry of its own, so that their costs sum to what was spent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.wire import Entry, EntryPage
from almoner_ledger import schema
from almoner_ledger.history import sources
from almoner_ledger.history.asking import Question, read_cursor, write_cursor

_OF_ALLOTMENTS: Final = {"execution_kind": "kind"}
_OF_RECORDS: Final = {"started_unix_ms": "started_ms", "posted_unix_ms": "posted_ms"}
_ATTEMPT: Final = ("namespace", "name", "execution_uid", "attempt", "agent", "owner")
COLUMNS: Final = tuple(Entry.model_fields)


def _column(name: str) -> Any:
    if name == "counted_unix_ms":
        return sources.COUNTED_MS.label(name)
    if name in _ATTEMPT or name in _OF_ALLOTMENTS:
        return schema.allotments.c[_OF_ALLOTMENTS.get(name, name)].label(name)
    return schema.records.c[_OF_RECORDS.get(name, name)].label(name)


def select(question: Question, *, postgresql: bool) -> sa.Select[Any]:
    """Select the entries of a question, in no order; columns as COLUMNS."""
    source = sources.of_records(postgresql=postgresql)
    return sa.select(*map(_column, COLUMNS)).select_from(source.selectable).where(*source.where(question))


def page(connection: Connection, question: Question, limit: int, after: str | None) -> EntryPage:
    """Give entries, the newest first, at most `limit`, after a page's `next`."""
    number = schema.records.c.number
    query = select(question, postgresql=connection.dialect.name == "postgresql").order_by(number.desc())
    if after is not None:
        query = query.where(number < read_cursor(after, [int])[0])
    rows = connection.execute(query.limit(limit + 1)).all()
    shown = rows[:limit]
    return EntryPage(
        records=[Entry.model_construct(**row._mapping) for row in shown],  # noqa: SLF001 - its public name has an underscore
        next=write_cursor([shown[-1].number]) if len(rows) > limit else None,
    )


def stream(connection: Connection, question: Question, rows: int) -> Iterator[Sequence[Sequence[Any]]]:
    """Give all entries in the order of their numbers, `rows` at a time, without holding more than those."""
    query = select(question, postgresql=connection.dialect.name == "postgresql").order_by(schema.records.c.number)
    with connection.execute(query, execution_options={"stream_results": True, "yield_per": rows}) as result:
        yield from result.partitions(rows)
