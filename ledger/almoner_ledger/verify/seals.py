"""Invariant 5: entries are append-only: numbered without gaps, and what the seals say they were when they were sealed.

Role: recomputes the chain that `almoner_ledger.sealing` describes. The lines of entries are made by the database, a
month after the other, and hashed here. Months that retention dropped are checked as far as their seals and closings go.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema, sealing
from almoner_ledger.store.flushing import ENTRIES
from almoner_ledger.verify.findings import Check, Violation

ROWS: Final = 2000
"""Lines in memory at once."""
NAMED_MAX: Final = 10
"""Numbers in one message."""

CHAIN: Final = "seals-chain"
NUMBERED: Final = "entries-numbered"
SEALED: Final = "entries-as-sealed"
CLOSED: Final = "closings-as-sealed"
EXPECTED: Final = "chain-holds-expected-seal"

Seal = sa.RowMapping


def _seals(connection: Connection) -> list[Seal]:
    return list(connection.execute(sa.select(schema.seals).order_by(schema.seals.c.number)).mappings())


def _counter(connection: Connection, name: str) -> int:
    table = schema.counters
    return int(connection.execute(sa.select(table.c.value).where(table.c.name == name)).scalar_one_or_none() or 0)


def chain(connection: Connection) -> Iterator[Violation]:
    """Every seal follows the one before it and has the digest that its columns give; none is missing."""
    seals = _seals(connection)
    number, previous, sealed = 0, sealing.GENESIS, 0
    for index, seal in enumerate(seals):
        name = f"seal {seal['number']}"
        if seal["number"] != number + 1:
            yield Violation(CHAIN, _span("seal", "seals", number + 1, seal["number"] - 1), "removed")
        elif seal["previous"] != previous:
            yield Violation(CHAIN, name, f"it follows {seal['previous']}, and the seal before it is {previous}")
        if seal["form"] not in sealing.ENTRY_FORMS:
            yield Violation(CHAIN, name, f"its form {seal['form']} is not known")
        if seal["digest"] != sealing.digest_of(seal):
            yield Violation(CHAIN, name, "edited: its digest is not that of its columns")
        first, last = seal["first_number"], seal["last_number"]
        same_range = index > 0 and last == sealed and first == seals[index - 1]["first_number"]
        if seal["number"] == number + 1 and not same_range and first != sealed + 1:
            yield Violation(CHAIN, name, f"it covers entries from {first}, and the seal before it ends at {sealed}")
        number, previous, sealed = seal["number"], seal["digest"], last
    counted = _counter(connection, sealing.SEALS)
    if counted != number:
        yield Violation(CHAIN, _span("seal", "seals", number + 1, counted), f"removed: {counted} seals were made")


def _span(one: str, many: str, first: int, last: int) -> str:
    return f"{one} {first}" if first >= last else f"{many} {first} to {last}"


def numbered(connection: Connection) -> Iterator[Violation]:
    """Entries count from 1 to the counter's value; each number is there once, or was in a month that was dropped."""
    seals = [seal for seal in _seals(connection) if seal["kind"] == "entries"]
    covered: dict[tuple[int, int], int] = {}
    for seal in seals:
        key = (seal["first_number"], seal["last_number"])
        covered[key] = covered.get(key, 0) + seal["entries"]
    for (first, last), entries in covered.items():
        if entries != last - first + 1:
            found = f"{entries} were there when they were sealed"
            yield Violation(NUMBERED, _span("entry", "entries", first, last), found)
    table = schema.records
    sealed, newest = max((last for _, last in covered), default=0), _counter(connection, ENTRIES)
    count, different, least, most = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.count(table.c.number.distinct()),
            sa.func.min(table.c.number),
            sa.func.max(table.c.number),
        ).where(table.c.number > sealed)
    ).one()
    if sealed > newest or (count and (count, different, least, most) != (newest - sealed,) * 2 + (sealed + 1, newest)):
        yield from _misnumbered(connection, sealed, newest)
    elif not count and newest > sealed:
        yield Violation(NUMBERED, _span("entry", "entries", sealed + 1, newest), "missing, and not sealed yet")
    below = connection.execute(sa.select(sa.func.count()).where(table.c.number < 1)).scalar_one()
    if below:
        yield Violation(NUMBERED, "entries", f"{below} have numbers below 1")


def _misnumbered(connection: Connection, sealed: int, newest: int) -> Iterator[Violation]:
    """Name what is wrong among the entries that are not sealed yet."""
    table = schema.records
    if sealed > newest:
        yield Violation(NUMBERED, f"entry {sealed}", f"it is sealed, and only {newest} were counted")
    numbers = connection.execute(
        sa.select(table.c.number, sa.func.count().label("count"))
        .where(table.c.number > sealed)
        .group_by(table.c.number)
        .order_by(table.c.number)
    )
    expected, named = sealed + 1, 0
    for number, count in numbers:
        if number > expected:
            yield Violation(NUMBERED, _span("entry", "entries", expected, number - 1), "missing, and not sealed yet")
        if count > 1:
            yield Violation(NUMBERED, f"entry {number}", f"there are {count} of them")
        if number > newest:
            yield Violation(NUMBERED, f"entry {number}", f"it was never counted: the newest is {newest}")
        named += number != expected or count > 1 or number > newest
        if named > NAMED_MAX:
            return
        expected = number + 1
    if expected <= newest:
        yield Violation(NUMBERED, _span("entry", "entries", expected, newest), "missing, and not sealed yet")


def as_sealed(connection: Connection) -> Iterator[Violation]:
    """The entries of every month are those that were sealed, in their order and to the letter."""
    by_month: dict[int, list[Seal]] = {}
    sealed = 0
    for seal in _seals(connection):
        if seal["kind"] == "entries":
            by_month.setdefault(seal["month"], []).append(seal)
            sealed = max(sealed, seal["last_number"])
    records = schema.records
    months = set(connection.execute(sa.select(records.c.month).distinct()).scalars())
    dropped = set(connection.execute(sa.select(schema.closings.c.month)).scalars())
    for month in sorted(dropped & months):
        yield Violation(SEALED, f"month {month}", "it was dropped, and has entries")
    for month in sorted(months | (by_month.keys() - dropped)):
        yield from _month_as_sealed(connection, month, by_month.get(month, []), sealed)


def _month_as_sealed(connection: Connection, month: int, seals: list[Seal], sealed: int) -> Iterator[Violation]:
    lines = _lines(connection, month, sealed)
    number, text = next(lines, (None, ""))
    for seal in seals:
        content, found = hashlib.sha256(), 0
        while number is not None and number < seal["first_number"]:
            yield Violation(SEALED, f"entry {number} of {month}", "no seal covers it")
            number, text = next(lines, (None, ""))
        while number is not None and number <= seal["last_number"]:
            content.update(f"{text}\n".encode())
            found += 1
            number, text = next(lines, (None, ""))
        if content.hexdigest() != seal["content"]:
            yield Violation(SEALED, f"seal {seal['number']}", _difference(connection, seal, found))
    while number is not None:
        yield Violation(SEALED, f"entry {number} of {month}", "no seal covers it")
        number, text = next(lines, (None, ""))


def _lines(connection: Connection, month: int, sealed: int) -> Iterator[tuple[int, str]]:
    table = schema.records
    query = (
        sa.select(table.c.number, sealing.line_of(table, sealing.ENTRY_FORMS[sealing.FORM]))
        .where(table.c.month == month, table.c.number <= sealed)
        .order_by(table.c.number, table.c.id)
    )
    for row in connection.execute(query.execution_options(stream_results=True, yield_per=ROWS)):
        yield row.number, row.line


def _difference(connection: Connection, seal: Seal, found: int) -> str:
    first, last, month = seal["first_number"], seal["last_number"], seal["month"]
    where = f"entries of {month} among {first} to {last}"
    if found == seal["entries"]:
        return f"{where} are not what was sealed: changed or reordered"
    table = schema.records
    there = set(connection.execute(sa.select(table.c.number).where(table.c.number.between(first, last))).scalars())
    missing = [number for number in range(first, last + 1) if number not in there]
    named = ", ".join(map(str, missing[:NAMED_MAX])) + (" and more" if len(missing) > NAMED_MAX else "")
    return f"{where} are {found}, not the {seal['entries']} that were sealed" + (
        f": {named} missing" if missing else ""
    )


def closings(connection: Connection) -> Iterator[Violation]:
    """What retention kept of a month is what was sealed of it, and has as many entries as the month's seals covered."""
    table = schema.closings
    entries: dict[int, int] = {}
    closing: dict[int, Seal] = {}
    for seal in _seals(connection):
        entries[seal["month"]] = entries.get(seal["month"], 0) + seal["entries"]
        if seal["kind"] == "closing":
            closing[seal["month"]] = seal
    kept = {row.month: row.entries for row in connection.execute(sa.select(table.c.month, table.c.entries))}
    for month in sorted(kept.keys() | closing.keys()):
        subject = f"closing of {month}"
        if month not in kept or month not in closing:
            yield Violation(CLOSED, subject, "removed" if month in closing else "it has no seal")
            continue
        if sealing.closing_content(connection, month) != closing[month]["content"]:
            yield Violation(CLOSED, subject, "it is not what was sealed: edited")
        if kept[month] != entries[month]:
            yield Violation(CLOSED, subject, f"{kept[month]} entries, and the month's seals covered {entries[month]}")


def expected_heads(connection: Connection, expected: Mapping[int, str]) -> Iterator[Violation]:
    """Seals that somebody kept elsewhere are still in the chain."""
    table = schema.seals
    query = sa.select(table.c.number, table.c.digest).where(table.c.number.in_(sorted(expected)))
    found = {row.number: row.digest for row in connection.execute(query)}
    for number, digest in sorted(expected.items()):
        if found.get(number) != digest:
            yield Violation(EXPECTED, f"seal {number}", f"it is {found.get(number, 'not there')}, not {digest}")


CHECKS: Final[tuple[Check, ...]] = (chain, numbered, as_sealed, closings)
