"""`almoner ledger rerate`: rates the records of a period again, and corrects those that cost something else by that.

Role: pages through the records in the order of their ids; each page is a few bounded transactions of corrections, one
command an allotment. It can be stopped and started anew at any moment: what costs what the new prices say already is
left alone. Boundary: corrections are the store's. Left alone too: what a person corrected (that word stands), records
without a price in the new list, and calls for which nothing was billed.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from almoner_core import wire
from almoner_core.contract import PriceCard
from almoner_core.money import Money
from almoner_core.pricing import LONG_CACHE_ASKED, LONG_CACHE_WRITES, SLOW_TIERS, TokenCounts, bound_nanos, cost_nanos
from almoner_core.usage import Outcome, ResourceType
from almoner_ledger import schema
from almoner_ledger.correcting import operation_id
from almoner_ledger.errors import LedgerError
from almoner_ledger.history import tables
from almoner_ledger.history.asking import DAY_MS
from almoner_ledger.price_lists import Prices
from almoner_ledger.store import Store, Verb, command
from almoner_ledger.store.entries import StoredEntry, read
from almoner_ledger.windows import month_of

PAGE_RECORDS: Final = 500
TRANSACTION_RECORDS: Final = 200
"""At most so many corrections at once: others wait for the accounts that they lock."""
SHOWN: Final = (
    "provider",
    "model",
    "records",
    "corrected",
    "before_usd",
    "after_usd",
    "unknown",
    "no_price",
    "by_hand",
)
RATED: Final = (ResourceType.LLM.value, ResourceType.EMBEDDING.value)


@dataclass(frozen=True, slots=True)
class Period:
    """Days (UTC, both included) and what of them; None: all."""

    since: dt.date
    until: dt.date
    provider: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        if self.since > self.until:
            raise ValueError(f"--from: {self.since} is after --to {self.until}")

    @property
    def bounds_ms(self) -> tuple[int, int]:
        """From and to (excluded), in Unix milliseconds."""
        first = int(dt.datetime.combine(self.since, dt.time(), dt.UTC).timestamp()) * 1000
        last = int(dt.datetime.combine(self.until, dt.time(), dt.UTC).timestamp()) * 1000
        return first, last + DAY_MS


@dataclass(slots=True)
class Sums:
    """Sums of one model in nano-dollars. Records of unknown cost are counted (`unknown_*`), not summed."""

    records: int = 0
    corrected: int = 0
    unknown_before: int = 0
    unknown_after: int = 0
    before_nanos: int = 0
    after_nanos: int = 0
    kept_by_hand: int = 0
    without_price: int = 0


@dataclass(slots=True)
class Rerated:
    """What was found: sums by (provider, model), and what was refused."""

    models: dict[tuple[str, str], Sums] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Change:
    """A record that costs something else."""

    allotment: str
    record: str
    revision: int
    cost_nanos: int
    version: str


def rerate(store: Store, period: Period, prices: Prices, *, dry_run: bool = False) -> Rerated:
    """Rate a period again. `dry_run`: only sum what would be. Raises DatabaseUnavailableError."""
    found = Rerated()
    after = ""
    while True:
        page, entries = store.read(lambda connection, last=after: _page(connection, period, last))  # type: ignore[misc]
        if not page:
            return found
        after = page[-1]["id"]
        changes = [
            change for row in page if (change := _rated(found, row, entries[row["id"]], prices, period)) is not None
        ]
        if not dry_run:
            for group in _transactions(changes):
                answers = store.execute([_command(each) for each in group])
                found.refusals += [str(answer) for answer in answers if isinstance(answer, LedgerError)]


def _page(connection: Connection, period: Period, after: str) -> tuple[list[dict[str, Any]], dict[str, StoredEntry]]:
    """Read the next records, and what they cost now."""
    records, allotments = schema.records, schema.allotments
    first, last = period.bounds_ms
    query = (
        sa.select(records, allotments.c.opened_ms)
        .join(allotments, allotments.c.id == records.c.allotment_id)
        .where(
            records.c.id > after,
            records.c.kind == "usage",
            records.c.resource_type.in_(RATED),
            # An entry counts within its allotment's life: never after it was posted, never before the opening.
            records.c.posted_ms >= first,
            allotments.c.opened_ms < last,
            records.c.month <= month_of(last - 1),
        )
        .order_by(records.c.id)
        .limit(PAGE_RECORDS)
    )
    if period.provider is not None:
        query = query.where(records.c.provider == period.provider)
    if period.model is not None:
        query = query.where(records.c.model == period.model)
    page = [dict(row) for row in connection.execute(query).mappings()]
    return page, read(connection, [row["id"] for row in page])


def _rated(found: Rerated, row: dict[str, Any], entry: StoredEntry, prices: Prices, period: Period) -> Change | None:
    """Sum one record, and give what is to be corrected about it."""
    first, last = period.bounds_ms
    when = min(max(row["started_ms"], row["opened_ms"]), row["posted_ms"])
    if not first <= when < last:
        return None
    sums = found.models.setdefault((row["provider"], row["model"]), Sums())
    sums.records += 1
    before = entry.cost
    day = dt.datetime.fromtimestamp(when / 1000, dt.UTC).date()
    card = prices.card(row["provider"], row["model"], day)
    cost = before
    if entry.by_hand:
        sums.kept_by_hand += 1
    elif card is None:
        sums.without_price += 1
    elif not _nothing_billed(row):
        cost = _cost(row, card)
        found.versions.add(card.version)
    sums.before_nanos += before or 0
    sums.after_nanos += cost or 0
    sums.unknown_before += before is None
    sums.unknown_after += cost is None
    if card is None or cost is None or cost == before:
        return None
    sums.corrected += 1
    return Change(row["allotment_id"], row["id"], entry.corrections, cost, card.version)


def _nothing_billed(row: dict[str, Any]) -> bool:
    """Whether the provider refused the call, or never got it."""
    return not row["total_tokens"] and (not row["requests"] or row["outcome"] == Outcome.ERROR.value)


def _cost(row: dict[str, Any], card: PriceCard) -> int:
    """What a record's tokens cost; of an estimate, which holds a bound, the most that they can cost."""
    metadata = json.loads(row["metadata"])
    if row["outcome"] == Outcome.ESTIMATED.value and metadata.get("estimated") != "output":
        long = LONG_CACHE_ASKED in metadata
        return bound_nanos(card, row["input_tokens"], row["output_tokens"], batch=bool(card.batch), long=long)
    tokens = TokenCounts(
        input=row["input_tokens"],
        cached_input=row["cached_input_tokens"],
        cache_write=row["cache_write_tokens"],
        output=row["output_tokens"],
        reasoning=row["reasoning_tokens"],
        cache_write_long=metadata.get(LONG_CACHE_WRITES, 0),
    )
    plain = cost_nanos(card, tokens)
    if "service_tier" not in metadata:
        return plain
    slow = cost_nanos(card, tokens, batch=True)
    served = metadata["service_tier"]
    if served is None:
        return max(plain, slow)
    return slow if served in SLOW_TIERS else plain


def _transactions(changes: list[Change]) -> Iterator[list[list[Change]]]:
    """Give the changes as commands (one allotment and price version each), as many as one transaction takes."""
    commands: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        commands.setdefault((change.allotment, change.version), []).append(change)
    group: list[list[Change]] = []
    size = 0
    for key in sorted(commands):
        for start in range(0, len(commands[key]), TRANSACTION_RECORDS):
            part = commands[key][start : start + TRANSACTION_RECORDS]
            if group and size + len(part) > TRANSACTION_RECORDS:
                yield group
                group, size = [], 0
            group.append(part)
            size += len(part)
    if group:
        yield group


def _command(changes: list[Change]) -> Any:
    version = changes[0].version
    body = wire.CorrectEntries(
        # A retry is the same operation; rating to and fro between two versions is not.
        operation_id=operation_id("rerate", [asdict(change) for change in changes]),
        corrections=[wire.NewCost(record=change.record, cost_nanos=change.cost_nanos) for change in changes],
        reason=f"rated again by {version}"[:256],
        price_version=version,
    )
    return command(Verb.CORRECT, body, allotment=changes[0].allotment)


def show(found: Rerated, output: str, *, dry_run: bool) -> int:
    """Write the sums to standard output, as `table` or `json`; gives the exit code."""
    rows = [
        {"provider": provider, "model": model, **asdict(sums)}
        for (provider, model), sums in sorted(found.models.items())
    ]
    if output == "json":
        content = {
            "dry_run": dry_run,
            "versions": sorted(found.versions),
            "models": rows,
            "refusals": found.refusals[:100],
        }
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        sys.stdout.write(_table(rows))
    for refusal in found.refusals[:10]:
        sys.stderr.write(f"almoner ledger: {refusal}\n")
    return 1 if found.refusals else 0


def _table(rows: Sequence[dict[str, Any]]) -> str:
    shown = [
        {
            "provider": row["provider"],
            "model": row["model"],
            "records": row["records"],
            "corrected": row["corrected"],
            "before_usd": Money(row["before_nanos"]),
            "after_usd": Money(row["after_nanos"]),
            "unknown": f"{row['unknown_before']} -> {row['unknown_after']}",
            "no_price": row["without_price"],
            "by_hand": row["kept_by_hand"],
        }
        for row in rows
    ]
    return tables.table(shown, SHOWN, numbers=("unknown",))
