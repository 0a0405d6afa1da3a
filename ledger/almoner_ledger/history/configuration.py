"""The log of changes of the configuration, as people read it: the newest first, in pages."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core.configuration import KINDS, NAMESPACED
from almoner_core.wire import ConfigurationChange, ConfigurationChanges, FieldChange, FieldManager
from almoner_ledger import schema
from almoner_ledger.errors import invalid
from almoner_ledger.history.asking import By, Question, read_cursor, write_cursor

_table = schema.configuration_changes
_COLUMNS = {By.NAMESPACE: _table.c.namespace, By.KIND: _table.c.kind, By.NAME: _table.c.name, By.UID: _table.c.uid}


def kinds_of(question: Question) -> tuple[str, ...]:
    """Give the kinds that a question is about: those that it names, else all there can be. Raises LedgerError."""
    usual = tuple(KINDS) if question.namespaces() is None else NAMESPACED
    asked = question.filters.get(By.KIND, usual)
    for kind in asked:
        if kind not in KINDS:
            raise invalid("kind", f"write one of {', '.join(KINDS)}")
    return asked


def changes(connection: Connection, question: Question, limit: int, after: str | None) -> ConfigurationChanges:
    """Give changes, the newest first, at most `limit`, after a page's `next`. Times are those of their entry."""
    kinds_of(question)
    found: list[sa.ColumnElement[bool]] = [_COLUMNS[by].in_(values) for by, values in question.filters.items()]
    times = question.times
    if times.since_ms is not None:
        found.append(_table.c.seen_ms >= times.since_ms)
    if times.until_ms is not None:
        found.append(_table.c.seen_ms < times.until_ms)
    if after is not None:
        found.append(_table.c.number < read_cursor(after, [int])[0])
    query = sa.select(_table).where(*found).order_by(_table.c.number.desc()).limit(limit + 1)
    rows = connection.execute(query).all()
    shown = rows[:limit]
    return ConfigurationChanges(
        changes=[_change(row) for row in shown],
        next=write_cursor([shown[-1].number]) if len(rows) > limit else None,
    )


def _change(row: Any) -> ConfigurationChange:
    return ConfigurationChange(
        number=row.number,
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        uid=row.uid,
        action=row.action,
        generation=row.generation,
        changed_unix_ms=row.changed_ms,
        seen_unix_ms=row.seen_ms,
        managers=[
            FieldManager(name=name, operation=operation, changed_unix_ms=moment)
            for name, operation, moment in json.loads(row.managers)
        ],
        fields=[FieldChange(path=path, before=before, after=now) for path, before, now in json.loads(row.fields)],
        fields_left_out=row.left_out,
        before_sha256=row.before_digest,
        after_sha256=row.after_digest,
    )
