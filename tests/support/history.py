"""A past for tests of history: many attempts over weeks, and what their entries sum to, reckoned in Python."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from almoner_core import wire
from almoner_core.identity import compute_allotment_id
from almoner_core.usage import Outcome, ResourceType
from almoner_ledger import schema
from almoner_ledger.history import sources
from almoner_ledger.schema import COMPUTE_COLUMNS, USAGE_COLUMNS
from almoner_ledger.store import Verb
from tests.support.books import USD, Books, Clock, new_id, record, tokens

Entry = Mapping[str, Any]
HOUR = 3600


def live(books: Books, clock: Clock, *, seed: int, executions: int = 14) -> None:
    """Run executions over some weeks: retries, vanished and late ones, machine time, corrections, across midnights."""
    chance = random.Random(seed)
    books.limits(limits={USD: 10**15})
    for number in range(executions):
        name, uid = f"run-{number}", new_id()
        more = {"agent": chance.choice("abc"), "owner": chance.choice(("ann", "bob", ""))}
        for attempt in range(1, chance.choice((2, 2, 3))):
            _attempt(books, clock, chance, uid=uid, name=name, attempt=attempt, **more)
            clock.now += chance.randrange(20 * HOUR)


def _attempt(books: Books, clock: Clock, chance: random.Random, **more: Any) -> None:
    machine = chance.random() < 0.4
    allotment = books.active(need={USD: 100_000}, compute={USD: 5000} if machine else {}, **more)
    sent: list[Any] = []
    for sequence in range(1, chance.randrange(2, 7)):
        clock.now += chance.randrange(5 * HOUR)
        sent.append(_record(clock, chance, sequence))
        if chance.random() < 0.8:
            _post(books, allotment, sent[-1:])
    if machine:
        _accrue(books, clock, chance, allotment)
    end = chance.random()
    if end < 0.3:
        assert isinstance(books.end(allotment), wire.ItemAnswer)
        clock.now += chance.randrange(3 * HOUR)
        _post(books, allotment, sent)
    else:
        _post(books, allotment, sent)
        settled = {USD: sum(each.cost_nanos or 0 for each in sent)}
        assert isinstance(books.give_back(allotment, len(sent), settled, final=True), wire.Returned)
    if end > 0.6:
        clock.now += chance.randrange(40 * HOUR)
        known = [each for each in sent if chance.random() < 0.5]
        corrections = [wire.NewCost(record=each.id, cost_nanos=chance.randrange(900)) for each in known]
        if corrections:
            body = wire.CorrectEntries(operation_id=new_id(), corrections=corrections, reason="test")
            answer = books.run(Verb.CORRECT, body, allotment=allotment)
            assert isinstance(answer, wire.Corrected), answer


def _post(books: Books, allotment: str, records: Sequence[Any]) -> None:
    answer = books.post(allotment, records)
    assert isinstance(answer, wire.Posted), answer


def _accrue(books: Books, clock: Clock, chance: random.Random, allotment: str) -> None:
    used = record(
        1,
        chance.randrange(900),
        resource_type=ResourceType.COMPUTE,
        provider="cluster",
        model="cpu",
        operation="run",
        requests=0,
        units=chance.randrange(5000),
        started_unix_ms=(clock.now - 30 * HOUR) * 1000,
    )
    body = wire.AccrueAllotment(
        operation_id=new_id(), allotment=compute_allotment_id(allotment), records=[used], final=True
    )
    answer = books.run(Verb.ACCRUE, body, epoch=books.epoch)
    assert isinstance(answer, wire.ItemAnswer), answer


def _record(clock: Clock, chance: random.Random, sequence: int) -> Any:
    changes: dict[str, Any] = {
        "provider": chance.choice(("one", "two")),
        "model": chance.choice(("small", "large")),
        "operation": chance.choice(("chat", "embeddings")),
        "outcome": chance.choice((Outcome.OK, Outcome.OK, Outcome.ERROR)),
        # A meter's clock may be wrong, and records may come late.
        "started_unix_ms": (clock.now - chance.randrange(-HOUR, 30 * HOUR)) * 1000 + chance.randrange(1000),
        "tokens": tokens(chance.randrange(50), chance.randrange(50)),
    }
    if chance.random() < 0.2:
        changes |= {"resource_type": ResourceType.TOOL, "provider": "", "model": "", "operation": "search"}
        changes |= {"tool_calls": 1, "requests": 0, "tokens": tokens(0)}
    cost = None if chance.random() < 0.1 else chance.randrange(1000)
    return record(sequence, cost, **changes)


def entries(books: Books) -> list[Entry]:
    """Every entry, with what its allotment says and the keys that usage is grouped by."""
    allotments = schema.allotments.c
    names = ("kind", "namespace", "name", "execution_uid", "attempt", "agent", "owner", "opened_ms")
    query = sa.select(schema.records, *(allotments[name].label(f"of_{name}") for name in names)).join(schema.allotments)
    found: list[dict[Any, Any]] = books.store.read(lambda c: [dict(row) for row in c.execute(query).mappings()])
    for row in found:
        row["counted_ms"] = min(max(row["started_ms"], row["of_opened_ms"]), row["posted_ms"])
        row |= {name: row[f"of_{name}"] for name in ("namespace", "name", "execution_uid", "agent", "owner")}
        at = dt.datetime.fromtimestamp(row["counted_ms"] // 1000, dt.UTC)
        year, week, _ = at.isocalendar()
        row |= {
            "hour": at.strftime("%Y-%m-%dT%H:00Z"),
            "day": at.strftime("%Y-%m-%d"),
            "week": f"{year}-W{week:02d}",
            "month": at.strftime("%Y-%m"),
        }
    return [*found]


def summed(
    found: Sequence[Entry], columns: Sequence[str], keep: Callable[[Entry], bool] = lambda _: True
) -> dict[tuple[str, ...], dict[str, int]]:
    """Sum entries as usage does: totals by key."""
    groups: dict[tuple[str, ...], dict[str, int]] = {}
    for entry in filter(keep, found):
        totals = groups.setdefault(tuple(entry[name] for name in columns), dict.fromkeys(USAGE_COLUMNS, 0))
        cost = entry["cost_nanos"]
        totals["cost_nanos"] += cost or 0
        totals["unaccounted_nanos"] += cost if entry["kind"] == "unaccounted" else 0
        totals["unpriced"] += int(cost is None) - int(entry["digest"] == "priced")
        if entry["kind"] == "usage":
            for name in USAGE_COLUMNS:
                totals[name] += entry.get(name) or 0 if name not in ("cost_nanos", "unpriced") else 0
            if entry["resource_type"] == "compute":
                totals[COMPUTE_COLUMNS[entry["model"]]] += entry["units"]
    return groups


def rows(page: wire.UsagePage) -> dict[tuple[str, ...], dict[str, int]]:
    """The rows of an answer, as `summed` gives them."""
    found = {tuple(row.key): row.totals.model_dump() for row in page.rows}
    assert len(found) == len(page.rows)
    return found


def rollups(books: Books) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What is summed by day, with empty rows left out."""
    query = sa.select(schema.rollups)
    found = books.store.read(lambda c: [row._asdict() for row in c.execute(query)])
    sums = {tuple(row[n] for n in schema.ROLLUP_KEY): tuple(row[n] for n in USAGE_COLUMNS) for row in found}
    return {key: values for key, values in sums.items() if any(values)}


def rollups_of_entries(books: Books) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What the sums by day have to be."""
    found = summed(entries(books), schema.ROLLUP_KEY)
    sums = {(int(key[0].replace("-", "")), *key[1:]): tuple(values.values()) for key, values in found.items()}
    return {key: values for key, values in sums.items() if any(values)}


KEY_COLUMNS = sources.KEY_COLUMNS
