"""Seals: a chain of digests over the entries, so that whoever changes one shows.

Role: one sealer at a time (an advisory lock on PostgreSQL, the write lock on SQLite) takes committed entries in the
order of their numbers, at most BATCH of them, and writes one seal for every month among them. Entries are numbered at
commit, under a lock that is held until then, so what has a number up to the counter's value is all there. Boundary:
seals; what does not match is named by `almoner_ledger.verify`.

The protocol, form 1, so that others can check it:

- The canonical form of an entry is a line: the columns ENTRY_FORMS[1] of the table `records`, in that order, joined by
  commas, and a line feed. A column is `-` where it is NULL, and else the number of characters of its text, a colon, and
  the text; integers are written in decimal. UTF-8.
- `content` of a seal is the SHA-256 (hexadecimal) of the lines of its entries, in the order of their numbers: those of
  its `month` among the numbers `first_number`..`last_number`; there are `entries` of them. All seals of one such range
  follow each other, months ascending, and their `entries` sum to the size of the range; the next range begins where the
  one before ended.
- `digest` is the SHA-256 of the seal's own line, written like that of an entry from its columns SEAL_FORM, `previous`
  among them: the digest of the seal before it, or 64 zeros for seal 1. So a digest fixes everything before it, and the
  chain can be checked even where retention dropped the entries of a month.
- A seal of kind `closing` covers no entries: its `content` is the SHA-256 of the lines of what retention kept of a
  month, in the order of their text, each led by its table's name (CLOSING_FORMS).
- A seal of kind `configuration` covers the next `entries` rows of `configuration_changes`, in the order of their
  numbers: those that follow what the seals of this kind before it cover. Its `content` is the SHA-256 of their lines
  (CONFIGURATION_FORM). Its month is 0.

A chain that is rewritten whole still matches itself. Against that, auditors keep a digest elsewhere: `almoner ledger
verify --head` prints it, and `--expect-head` finds out whether the chain still holds it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_ledger import schema
from almoner_ledger.store import Store
from almoner_ledger.store.configuration import COUNTER
from almoner_ledger.store.flushing import ENTRIES
from almoner_ledger.windows import month_of

log = logging.getLogger(__name__)

FORM: Final = 1
BATCH: Final = 5000
"""Entries in one transaction: that bounds what a seal leaves open about the place of a change."""
SEALS: Final = "seals"
GENESIS: Final = "0" * 64

# Any number that nothing else locks in this database.
_ADVISORY_LOCK: Final = 0x416C6D71

ENTRY_FORMS: Final = {
    1: (
        "id",
        "month",
        "number",
        "kind",
        "corrects",
        "allotment_id",
        "sequence",
        "digest",
        "posted_ms",
        "resource_type",
        "provider",
        "model",
        "operation",
        "cost_nanos",
        "total_tokens",
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "requests",
        "tool_calls",
        "units",
        "price_version",
        "started_ms",
        "duration_ms",
        "outcome",
        "error",
        "metadata",
    )
}
"""The columns of an entry by the form of its seal. A new column of `records` makes a new form."""

SEAL_FORM: Final = (
    "number",
    "kind",
    "form",
    "month",
    "first_number",
    "last_number",
    "entries",
    "content",
    "previous",
    "sealed_ms",
)

CONFIGURATION: Final = "configuration"
CONFIGURATION_FORM: Final = (
    "number",
    "kind",
    "namespace",
    "name",
    "uid",
    "action",
    "generation",
    "changed_ms",
    "seen_ms",
    "managers",
    "fields",
    "left_out",
    "before_digest",
    "after_digest",
)

CLOSING_FORMS: Final[dict[str, tuple[str, ...]]] = {
    "closings": ("month", "allotments", "executions", "entries", "first_number", "last_number", "closed_ms"),
    "closing_windows": ("month", "account_id", "dimension", "period", "starts_at", "used", "charged", "excess"),
    "closing_agents": (
        "month",
        "namespace",
        "agent",
        "cost_nanos",
        "unaccounted_nanos",
        "unpriced",
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "requests",
        "tool_calls",
        "cpu_milli_seconds",
        "memory_mebibyte_seconds",
        "gpu_milli_seconds",
    ),
}


@dataclass(frozen=True, slots=True)
class Head:
    """The newest seal. `sealed` is the number of the last entry that is sealed."""

    number: int = 0
    digest: str = GENESIS
    sealed: int = 0

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


def parse_head(text: str) -> tuple[int, str]:
    """Read NUMBER:DIGEST. Raises ValueError."""
    number, _, digest = text.strip().partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise ValueError(
            f"--expect-head: {text[:80]!r} is no NUMBER:DIGEST as `almoner ledger verify --head` prints it"
        )
    return int(number), digest.lower()


def line(values: Iterable[object]) -> str:
    """The canonical form of some values, without the line feed."""
    texts = (None if value is None else str(value) for value in values)
    return ",".join("-" if text is None else f"{len(text)}:{text}" for text in texts)


def line_of(table: sa.Table, names: Iterable[str]) -> sa.ColumnElement[str]:
    """The same in SQL, so that a million rows are written by the database: an expression that gives a row's line."""
    fields: list[sa.ColumnElement[str]] = []
    for name in names:
        text = sa.cast(table.c[name], sa.Text)
        field: sa.ColumnElement[str] = sa.cast(sa.func.length(text), sa.Text) + ":" + text
        fields.append(sa.func.coalesce(field, "-") if table.c[name].nullable else field)
    joined = fields[0]
    for field in fields[1:]:
        joined = joined + "," + field
    return joined.label("line")


def digest_of(seal: Any) -> str:
    """The digest that a seal must have, from its other columns."""
    return hashlib.sha256((line(seal[name] for name in SEAL_FORM) + "\n").encode()).hexdigest()


def closing_content(connection: Connection, month: int) -> str:
    """The content of a closing's seal, from the rows that retention kept of a month."""
    lines: list[str] = []
    for name, columns in CLOSING_FORMS.items():
        table = schema.metadata.tables[name]
        found = connection.execute(sa.select(line_of(table, columns)).where(table.c.month == month)).scalars()
        lines.extend(f"{name},{text}\n" for text in found)
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def head(connection: Connection) -> Head:
    """The newest seal."""
    table = schema.seals
    query = sa.select(table.c.number, table.c.digest, table.c.last_number).order_by(table.c.number.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return Head() if row is None else Head(*row)


def lock(connection: Connection, *, wait: bool) -> bool:
    """Be the only sealer until the transaction ends; False where another is and `wait` is not asked."""
    if connection.dialect.name != "postgresql":
        return True
    if wait:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
        return True
    return bool(connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({_ADVISORY_LOCK})").scalar_one())


def seal_all(store: Store, *, wait: bool, stop: Callable[[], bool] = lambda: False) -> int:
    """Seal what is committed and not sealed yet, a batch in each transaction; gives how many entries were sealed."""
    sealed = 0
    while not stop():
        count = store.database.write(
            lambda connection: seal(connection, store.now_ms(connection)) if lock(connection, wait=wait) else 0
        )
        sealed += count
        if count < BATCH:
            break
    store.database.write(
        lambda connection: (
            seal_configuration(connection, store.now_ms(connection)) if lock(connection, wait=wait) else 0
        )
    )
    return sealed


def sealed_changes(connection: Connection) -> int:
    """The number of the last change of the configuration that is sealed."""
    table = schema.seals
    query = sa.select(sa.cast(sa.func.coalesce(sa.func.sum(table.c.entries), 0), sa.BigInteger))
    return int(connection.execute(query.where(table.c.kind == CONFIGURATION)).scalar_one())


def changes_content(connection: Connection, first: int, last: int) -> tuple[int, str]:
    """How many changes of the configuration there are among some numbers, and the SHA-256 of their lines."""
    table = schema.configuration_changes
    query = (
        sa.select(line_of(table, CONFIGURATION_FORM))
        .where(table.c.number.between(first, last))
        .order_by(table.c.number)
    )
    count, content = 0, hashlib.sha256()
    for text in connection.execute(query.execution_options(stream_results=True, yield_per=100)).scalars():
        content.update(f"{text}\n".encode())
        count += 1
    return count, content.hexdigest()


def seal_configuration(connection: Connection, now_ms: int) -> int:
    """Seal the next batch of changes of the configuration; gives their number. The caller holds the lock."""
    counters = schema.counters
    counted = sa.select(counters.c.value).where(counters.c.name == COUNTER)
    sealed, newest = sealed_changes(connection), int(connection.execute(counted).scalar_one())
    last = min(newest, sealed + BATCH)
    if last <= sealed:
        return 0
    count, content = changes_content(connection, sealed + 1, last)
    if count != last - sealed:
        log.error("changes %d to %d are not all there: run `almoner ledger verify`", sealed + 1, last)
    chain = head(connection)
    row = {"kind": CONFIGURATION, "month": 0, "entries": last - sealed, "content": content}
    _append(connection, chain, [row], (chain.sealed + 1, chain.sealed), now_ms)
    return last - sealed


def seal(connection: Connection, now_ms: int) -> int:
    """Seal the next batch of entries; gives their number. The caller holds the lock."""
    counters, records = schema.counters, schema.records
    newest = head(connection)
    last = connection.execute(sa.select(counters.c.value).where(counters.c.name == ENTRIES)).scalar_one()
    last = min(last, newest.sealed + BATCH)
    if last <= newest.sealed:
        return 0
    query = (
        sa.select(records.c.month, line_of(records, ENTRY_FORMS[FORM]))
        .where(records.c.number > newest.sealed, records.c.number <= last)
        .order_by(records.c.number)
    )
    contents: dict[int, Any] = {}
    counts: dict[int, int] = {}
    for month, text in connection.execute(query):
        contents.setdefault(month, hashlib.sha256()).update(f"{text}\n".encode())
        counts[month] = counts.get(month, 0) + 1
    if sum(counts.values()) != last - newest.sealed:
        # What there is gets sealed: the audit names the gap.
        log.error("entries %d to %d are not all there: run `almoner ledger verify`", newest.sealed + 1, last)
    if not contents:
        # All of them are gone. A seal of nothing says so for ever, and those that follow get theirs.
        contents[month_of(now_ms)] = hashlib.sha256()
    rows = [
        {"kind": "entries", "month": month, "entries": counts.get(month, 0), "content": contents[month].hexdigest()}
        for month in sorted(contents)
    ]
    _append(connection, newest, rows, (newest.sealed + 1, last), now_ms)
    return int(last - newest.sealed)


def seal_closing(connection: Connection, month: int, now_ms: int) -> None:
    """Seal what retention kept of a month. The caller holds the lock."""
    newest = head(connection)
    row = {"kind": "closing", "month": month, "entries": 0, "content": closing_content(connection, month)}
    _append(connection, newest, [row], (newest.sealed + 1, newest.sealed), now_ms)


def _append(
    connection: Connection, newest: Head, rows: list[dict[str, Any]], numbers: tuple[int, int], now_ms: int
) -> None:
    """Write seals after the newest one."""
    counters = schema.counters
    # The counter outlives seals that somebody takes from the end, so that their numbers are missed.
    counted = connection.execute(
        sa.select(counters.c.value).where(counters.c.name == SEALS).with_for_update()
    ).scalar_one()
    number, previous = max(newest.number, counted), newest.digest
    first, last = numbers
    for row in rows:
        number += 1
        row.update(number=number, form=FORM, first_number=first, last_number=last, previous=previous, sealed_ms=now_ms)
        previous = row["digest"] = digest_of(row)
    connection.execute(sa.insert(schema.seals), rows)
    connection.execute(sa.update(counters).where(counters.c.name == SEALS).values(value=number))
