"""Invariants 4, 6 and 7: operations and their results; what is known of every entry; what vanished is charged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.history.sources import entry_usage
from almoner_ledger.store import last_words
from almoner_ledger.store.charging import UNACCOUNTED
from almoner_ledger.store.flushing import CHANGES
from almoner_ledger.store.state import Word
from almoner_ledger.verify.findings import AMOUNTS, Check, Violation, total
from almoner_ledger.windows import month_of


def opened_by_operations(connection: Connection) -> Iterator[Violation]:
    """Invariant 4: every allotment was opened by one operation whose answer is stored, as far as these are kept."""
    table, operations = schema.allotments, schema.operations
    opened: dict[str, int] = {}
    unreadable = False
    query = sa.select(operations.c.id, operations.c.answer).where(operations.c.verb == "open")
    for row in connection.execute(query):
        try:
            allotment = json.loads(row.answer)["allotment"]
        except (ValueError, KeyError, TypeError):
            unreadable = True
            yield Violation("operations-have-results", f"operation {row.id}", f"its answer is {row.answer:.80}")
            continue
        opened[allotment] = opened.get(allotment, 0) + 1
    horizon = connection.execute(sa.select(sa.func.min(operations.c.created_ms))).scalar_one()
    known = set()
    run = sa.select(table.c.id, table.c.opened_ms).where(table.c.purpose == "run")
    for row in connection.execute(run):
        known.add(row.id)
        count = opened.get(row.id, 0)
        # Operations are forgotten, the oldest first.
        missing = count == 0 and horizon is not None and row.opened_ms > horizon and not unreadable
        if count > 1 or missing:
            yield Violation("opened-once", f"allotment {row.id}", f"{count} operations opened it")
    if nothing_was_dropped(connection):
        for allotment in sorted(opened.keys() - known):
            yield Violation("opened-once", f"allotment {allotment}", "an operation opened it, and it is not there")


def nothing_was_dropped(connection: Connection) -> bool:
    """Say whether no month was dropped yet, so that every allotment must be there."""
    return connection.execute(sa.select(sa.func.count()).select_from(schema.closings)).scalar_one() == 0


def in_their_month(connection: Connection) -> Iterator[Violation]:
    """Invariant 5: an entry is in the month in which its allotment was opened, whenever it was made."""
    table, records = schema.allotments, schema.records
    query = (
        sa.select(records.c.allotment_id, records.c.month, table.c.opened_ms, sa.func.count().label("count"))
        .join(table, table.c.id == records.c.allotment_id)
        .group_by(records.c.allotment_id, records.c.month, table.c.opened_ms)
    )
    for row in connection.execute(query):
        if row.month != month_of(row.opened_ms):
            found = f"{row.count} entries are in {row.month}, it was opened in {month_of(row.opened_ms)}"
            yield Violation("entries-in-their-month", f"allotment {row.allotment_id}", found)


def rated_by_version(connection: Connection) -> Iterator[Violation]:
    """Invariant 6: an entry of usage that costs something says by which price version."""
    records = schema.records
    query = sa.select(records.c.id, records.c.cost_nanos).where(
        records.c.kind == "usage", records.c.cost_nanos > 0, records.c.price_version.is_(None)
    )
    for row in connection.execute(query):
        yield Violation(
            "rated-by-version", f"entry {row.id}", f"it costs {row.cost_nanos}, and no price version is kept"
        )


def charged_is_entered(connection: Connection) -> Iterator[Violation]:
    """Invariant 7: what attempts are charged without a record is entered, as `unaccounted` or as `last_word`."""
    holds, records = schema.holds, schema.records
    charged = (
        sa.select(holds.c.allotment_id, holds.c.account_id, holds.c.dimension, total(holds.c.charged).label("charged"))
        .group_by(holds.c.allotment_id, holds.c.account_id, holds.c.dimension)
        .having(total(holds.c.charged) != 0)
    )
    most: dict[tuple[str, str], int] = {}
    for row in connection.execute(charged):
        key = (row.allotment_id, row.dimension)
        most[key] = max(row.charged, most.get(key, 0))
    entered = (
        sa.select(records.c.allotment_id, *(total(column).label(each.value) for each, column in AMOUNTS.items()))
        .where(records.c.resource_type.in_((UNACCOUNTED, last_words.KIND)))
        .group_by(records.c.allotment_id)
    )
    uncounted = _uncounted(connection)
    for entry in connection.execute(entered).mappings():
        for each in AMOUNTS:
            key = (entry["allotment_id"], each.value)
            amount = most.pop(key, 0)
            if amount != entry[each.value] and key not in uncounted:
                found = f"{amount} {each.value} charged, entries sum to {entry[each.value]}"
                yield Violation("charges-are-entered", f"allotment {entry['allotment_id']}", found)
    for (allotment, dimension), amount in sorted(most.items()):
        yield Violation(
            "charges-are-entered", f"allotment {allotment}", f"{amount} {dimension} charged without an entry"
        )


def _uncounted(connection: Connection) -> set[tuple[str, str]]:
    """Dimensions of attempts with a last word that no account counts: the word says them, nothing is charged there."""
    holds, allotments = schema.holds, schema.allotments
    heard = sa.select(allotments.c.id).where(allotments.c.last_word.is_not(None))
    ids = connection.execute(heard).scalars().all()
    query = sa.select(holds.c.allotment_id, holds.c.dimension).where(holds.c.allotment_id.in_(heard)).distinct()
    counted = {(row.allotment_id, row.dimension) for row in connection.execute(query)}
    return {(each, dimension.value) for each in ids for dimension in AMOUNTS} - counted


def last_words_are_entered(connection: Connection) -> Iterator[Violation]:
    """What stands in for an attempt's records is what its `last_word` entries sum to: nothing once all have come."""
    records, allotments = schema.records, schema.allotments
    word = entry_usage()
    sums = (
        sa.select(records.c.allotment_id, *(total(column).label(name) for name, column in word.items()))
        .where(records.c.kind == last_words.KIND)
        .group_by(records.c.allotment_id)
    )
    entered = {row["allotment_id"]: dict(row) for row in connection.execute(sums).mappings()}
    kept = sa.select(allotments.c.id, allotments.c.last_word, allotments.c.contiguous, allotments.c.final_sequence)
    for row in connection.execute(kept.where(allotments.c.last_word.is_not(None))):
        found = entered.pop(row.id, {})
        try:
            usage = Word.of_json(row.last_word).usage.to_row()
        except (ValueError, KeyError, TypeError):
            yield Violation("last-words-are-entered", f"allotment {row.id}", f"it keeps {row.last_word:.80}")
            continue
        for name, amount in usage.items():
            if amount != found.get(name, 0):
                text = f"{name} {amount}, entries sum to {found.get(name, 0)}"
                yield Violation("last-words-are-entered", f"allotment {row.id}", text)
        if any(usage.values()) and row.final_sequence is not None and row.contiguous >= row.final_sequence:
            yield Violation("last-words-are-entered", f"allotment {row.id}", "every record is here, and a word beside")
    for allotment in sorted(entered):
        yield Violation("last-words-are-entered", f"allotment {allotment}", "entered, and not kept")


def feed_is_numbered(connection: Connection) -> Iterator[Violation]:
    """The feed of changes has no number that was never given out: readers would skip what comes up to it."""
    feed, counters = schema.feed, schema.counters
    newest = connection.execute(sa.select(sa.func.max(feed.c.changed))).scalar_one() or 0
    given = connection.execute(sa.select(counters.c.value).where(counters.c.name == CHANGES)).scalar_one_or_none() or 0
    if newest > given:
        yield Violation("feed-is-numbered", f"change {newest}", f"only {given} were counted")


CHECKS: Final[tuple[Check, ...]] = (
    opened_by_operations,
    in_their_month,
    rated_by_version,
    charged_is_entered,
    last_words_are_entered,
    feed_is_numbered,
)
