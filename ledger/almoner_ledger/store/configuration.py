"""The log of changes of the cluster's configuration: compares what the operator sees with what was seen last.

Role: what is known already is no change, so a leader may tell of everything again, and what changed while no operator
lived is found by the next one. Boundary: decides on what `load` read; the texts and their differences are
`almoner_core.configuration`'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from almoner_core import configuration
from almoner_core.configuration import EMPTY, Managed
from almoner_core.wire import ErrorCode, KnownObject, KnownObjects, Observed, ObservedObject, RefusedObject
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError, invalid
from almoner_ledger.store.books import Books
from almoner_ledger.store.bulk import Writer
from almoner_ledger.store.commands import Command, Verb

COUNTER: Final = "configuration"
PAGE: Final = 500
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def load(books: Books, commands: Sequence[Command]) -> None:
    """Load and lock what is known of the objects that commands tell of."""
    uids = {each.uid for c in commands if c.verb is Verb.OBSERVE for each in c.body.objects}
    if not uids:
        return
    table = schema.configured
    query = sa.select(table).where(table.c.uid.in_(sorted(uids))).order_by(table.c.uid).with_for_update()
    for row in books.connection.execute(query).mappings():
        books.configured[row["uid"]] = dict(row)


def observe(books: Books, command: Command) -> Observed:
    """Enter what changed, each object on its own."""
    refused: list[RefusedObject] = []
    before = len(books.new_configuration)
    books.mutations += 1
    for index, seen in enumerate(command.body.objects):
        try:
            _take(books, seen)
        except LedgerError as error:
            refused.append(RefusedObject(index=index, error=error.to_wire()))
    return Observed(changes=len(books.new_configuration) - before, refused=refused)


def _take(books: Books, seen: ObservedObject) -> None:
    if seen.kind not in configuration.KINDS:
        raise invalid("kind", f"write one of {', '.join(configuration.KINDS)}")
    if seen.spec is not None and not _is_spec(seen.spec):
        raise invalid("spec", "write a JSON object")
    known = books.configured.get(seen.uid)
    last = None if known is None or known["deleted"] else known["spec"]
    if known is not None and (known["kind"], known["namespace"], known["name"]) != (
        seen.kind,
        seen.namespace,
        seen.name,
    ):
        raise LedgerError(ErrorCode.INVALID, "uid: it is another object's", field="uid")
    if last == seen.spec:
        return
    found = configuration.difference(last, seen.spec)
    after = None if seen.spec is None else configuration.digest(seen.spec)
    managed = [Managed(each.name, each.operation, each.changed_unix_ms, tuple(each.paths)) for each in seen.managers]
    whose = configuration.changed_by(managed, found.fields) if seen.spec is not None else []
    action = _action(seen, last)
    moments = [each.changed_ms for each in whose if each.changed_ms is not None]
    books.new_configuration.append(
        {
            "kind": seen.kind,
            "namespace": seen.namespace,
            "name": seen.name,
            "uid": seen.uid,
            "action": action,
            "generation": seen.generation,
            "changed_ms": seen.created_unix_ms if action == "created" else max(moments, default=None),
            "seen_ms": books.now_ms,
            "managers": _encode([[each.name, each.operation, each.changed_ms] for each in whose]),
            "fields": _encode([[*each] for each in found.fields]),
            "left_out": found.left_out,
            "before_digest": None if last is None else configuration.digest(last),
            "after_digest": after,
        }
    )
    books.configured[seen.uid] = {
        "uid": seen.uid,
        "kind": seen.kind,
        "namespace": seen.namespace,
        "name": seen.name,
        "generation": seen.generation,
        "spec": EMPTY if seen.spec is None else seen.spec,
        "digest": configuration.digest(EMPTY) if after is None else after,
        "deleted": seen.spec is None,
        "seen_ms": books.now_ms,
    }
    books.configured_dirty.add(seen.uid)


def _is_spec(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _action(seen: ObservedObject, last: str | None) -> str:
    if seen.spec is None:
        return "deleted"
    if last is not None:
        return "changed"
    # An object that was changed before it was ever seen: how it began is not known.
    return "created" if seen.generation == 1 else "found"


def flush(books: Books, writer: Writer) -> None:
    """Write what is known now."""
    writer.upsert(schema.configured, [books.configured[uid] for uid in sorted(books.configured_dirty)])


def flush_changes(books: Books, writer: Writer) -> None:
    """Write the changes, numbered; their counter is the last that is taken."""
    first = writer.take(COUNTER, len(books.new_configuration))
    rows = [{"number": first + index, **row} for index, row in enumerate(books.new_configuration)]
    writer.insert(schema.configuration_changes, rows, numbered=("number", COUNTER))


def known(connection: sa.Connection, after: str, limit: int) -> KnownObjects:
    """The objects that were there when last told of, in order of uid, after `after`."""
    table = schema.configured
    columns = (table.c.kind, table.c.namespace, table.c.name, table.c.uid, table.c.generation, table.c.digest)
    query = sa.select(*columns).where(~table.c.deleted, table.c.uid > after).order_by(table.c.uid).limit(limit + 1)
    rows: list[Any] = [*connection.execute(query).mappings()]
    return KnownObjects(
        objects=[KnownObject(**row) for row in rows[:limit]],
        next=rows[limit - 1]["uid"] if len(rows) > limit else None,
    )
