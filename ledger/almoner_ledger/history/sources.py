"""Where the dimensions of usage are: in the sums by day, in the attempts, in the entries.

Role: for each source, the columns of every dimension, the filters, and the usage that can be summed, as SQL that both
databases know; calendar arithmetic is on integers, because the two have no date function in common. Boundary: builds
expressions, runs nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from almoner_core.wire import UsageBy, UsageSource
from almoner_ledger import schema
from almoner_ledger.history.asking import DAY_MS, By, Filters, Question, Times
from almoner_ledger.schema import COMPUTE_COLUMNS, USAGE_COLUMNS
from almoner_ledger.store.entries import CORRECTION, WAS_UNKNOWN
from almoner_ledger.windows import day_of, month_of

Column = sa.ColumnElement[Any]

KEY_COLUMNS: Final[Mapping[UsageBy, tuple[str, ...]]] = {
    **{by: (by.value,) for by in UsageBy},
    UsageBy.AGENT: ("namespace", "agent"),
    UsageBy.MODEL: ("provider", "model"),
    UsageBy.EXECUTION: ("namespace", "name", "execution_uid"),
}
"""The columns that name a group. An agent is only known with its namespace, a model with its provider."""

HOUR_MS: Final = 3_600_000
UNIX_JULIAN: Final = 2_440_588
"""The Julian day number of 1970-01-01. Julian day 0 was a Monday."""
_EPOCH: Final = dt.date(1970, 1, 1)

records, allotments, rollups, feed = schema.records, schema.allotments, schema.rollups, schema.feed


def _least(one: Column, other: Column) -> Column:
    return sa.case((one < other, one), else_=other)


_began = sa.case((records.c.started_ms < allotments.c.opened_ms, allotments.c.opened_ms), else_=records.c.started_ms)
COUNTED_MS: Final = _least(_began, records.c.posted_ms)
"""When an entry counts: the same as charging.effective_ms, so that sums over entries and sums by day agree."""

ENTRIES: Final = records.join(allotments, allotments.c.id == records.c.allotment_id)


def entry_usage() -> dict[str, Column]:
    """What one entry adds to each sum. Only the money of a charge or a correction is known, and only that counts."""
    is_usage = records.c.kind.in_(("usage", "last_word"))
    priced_late = sa.and_(records.c.kind.in_((CORRECTION, "last_word")), records.c.digest == WAS_UNKNOWN)
    special: dict[str, Column] = {
        "cost_nanos": records.c.cost_nanos,
        "unaccounted_nanos": sa.case((records.c.kind == "unaccounted", records.c.cost_nanos), else_=0),
        "unpriced": sa.case((records.c.cost_nanos.is_(None), 1), (priced_late, -1), else_=0),
        **{
            column: sa.case(
                (sa.and_(is_usage, records.c.resource_type == "compute", records.c.model == model), records.c.units),
                else_=0,
            )
            for model, column in COMPUTE_COLUMNS.items()
        },
    }
    return {
        name: special[name] if name in special else sa.case((is_usage, records.c[name]), else_=0)
        for name in USAGE_COLUMNS
    }


@dataclass(frozen=True, slots=True)
class Source:
    """One place to sum from. `keys` has an expression for each key column that it knows."""

    name: UsageSource
    selectable: sa.FromClause
    keys: Mapping[str, Column]
    usage: Mapping[str, Column]
    times: Callable[[Times], list[Column]]

    def where(self, question: Question) -> list[Column]:
        """The conditions of a question."""
        return [*self.times(question.times), *filtered(question.filters, self.keys)]


def choose(by: Sequence[UsageBy], question: Question) -> UsageSource:
    """Say which source can answer: the smallest that knows all the dimensions."""
    wanted = {name for each in by for name in KEY_COLUMNS[each]}
    wanted |= {name for each in question.filters for name in _FILTER_COLUMNS[each]}
    if wanted <= _ROLLUP_KEYS and question.times.whole_days:
        return UsageSource.ROLLUPS
    if wanted <= _ATTEMPT_KEYS:
        return UsageSource.ATTEMPTS
    return UsageSource.RECORDS


_FILTER_COLUMNS: Final[Mapping[By, tuple[str, ...]]] = {
    **{by: (by.value,) for by in By},
    By.EXECUTION: ("name",),
    By.UID: ("execution_uid",),
}
_ROLLUP_KEYS: Final = frozenset(schema.ROLLUP_KEY) | {"week", "month"}
_ATTEMPT_KEYS: Final = frozenset({"namespace", "agent", "owner", "name", "execution_uid"})


def filtered(filters: Filters, keys: Mapping[str, Column]) -> list[Column]:
    """Say in SQL which attempts or entries pass; executions are looked for in their own table, which is small."""
    found = conditions({by: values for by, values in filters.items() if by is not By.EXECUTION}, keys)
    if By.EXECUTION in filters:
        table = schema.executions.c
        named = conditions({By.EXECUTION: filters[By.EXECUTION]}, {"namespace": table.namespace, "name": table.name})
        found.append(keys["execution_uid"].in_(sa.select(table.uid).where(*named)))
    return found


def conditions(filters: Filters, keys: Mapping[str, Column]) -> list[Column]:
    """Say in SQL which rows pass: values of one filter are alternatives, filters all have to hold."""
    found: list[Column] = []
    for by, values in filters.items():
        column = keys[_FILTER_COLUMNS[by][0]]
        plain = [value for value in values if by not in (By.AGENT, By.EXECUTION) or "/" not in value]
        alternatives: list[Column] = [column.in_(plain)] if plain else []
        for value in values:
            if value not in plain:
                namespace, _, name = value.partition("/")
                alternatives.append(sa.and_(keys["namespace"] == namespace, column == name))
        found.append(sa.or_(*alternatives))
    return found


def of_rollups() -> Source:
    """The sums by day."""
    table = rollups.c
    keys: dict[str, Column] = {name: table[name] for name in schema.ROLLUP_KEY}
    keys["week"] = _julian(table.day) // 7
    keys["month"] = table.day // 100
    return Source(UsageSource.ROLLUPS, rollups, keys, {name: table[name] for name in USAGE_COLUMNS}, _rollup_times)


def _rollup_times(times: Times) -> list[Column]:
    found: list[Column] = []
    if times.since_ms is not None:
        found.append(rollups.c.day >= day_of(times.since_ms))
    if times.until_ms is not None:
        found.append(rollups.c.day <= day_of(times.until_ms - 1))
    return found


def _julian(day: Column) -> Column:
    """Turn YYYYMMDD into a Julian day number (Richards, in the Explanatory Supplement to the Astronomical Almanac)."""
    year, month, number = day // 10_000, day // 100 % 100, day % 100
    shift = (14 - month) // 12
    years = year + 4800 - shift
    months = month + 12 * shift - 3
    return number + (153 * months + 2) // 5 + 365 * years + years // 4 - years // 100 + years // 400 - 32_045


def of_records(*, postgresql: bool) -> Source:
    """Every entry, with what its allotment says of it."""
    keys: dict[str, Column] = {
        name: records.c[name] for name in ("provider", "model", "resource_type", "operation", "outcome")
    }
    keys |= {name: allotments.c[name] for name in _ATTEMPT_KEYS}
    days = COUNTED_MS // DAY_MS
    keys["hour"] = COUNTED_MS // HOUR_MS
    keys["day"] = _calendar(days, "YYYYMMDD", "%Y%m%d", postgresql=postgresql)
    keys["month"] = _calendar(days, "YYYYMM", "%Y%m", postgresql=postgresql)
    keys["week"] = (days + UNIX_JULIAN) // 7
    return Source(UsageSource.RECORDS, ENTRIES, keys, entry_usage(), entry_times)


def _calendar(days: Column, of_postgresql: str, of_sqlite: str, *, postgresql: bool) -> Column:
    """Give a number such as YYYYMMDD of a count of days since 1970."""
    if postgresql:
        day = sa.cast(sa.literal_column("'1970-01-01'"), sa.Date) + sa.cast(days, sa.Integer)
        return sa.cast(sa.func.to_char(day, of_postgresql), sa.Integer)
    return sa.cast(sa.func.strftime(of_sqlite, days * 86_400, "unixepoch"), sa.Integer)


def entry_times(times: Times) -> list[Column]:
    """The conditions on entries that count within a span of time."""
    found: list[Column] = []
    if times.since_ms is not None:
        # Posted later than it counts, and counted no earlier than its allotment was opened: cheaper to see.
        found += [records.c.posted_ms >= times.since_ms, times.since_ms <= COUNTED_MS]
    if times.until_ms is not None:
        month = month_of(times.until_ms - 1)
        found += [records.c.month <= month, times.until_ms > COUNTED_MS]
    return found


def of_attempts() -> Source:
    """The sums of attempts; in a span of time, of those alone that lie wholly in it."""
    table = allotments.c
    keys: dict[str, Column] = {name: table[name] for name in _ATTEMPT_KEYS}
    usage = {name: table[name] for name in USAGE_COLUMNS}
    return Source(UsageSource.ATTEMPTS, ATTEMPTS, keys, usage, _attempt_times)


_changed = sa.and_(feed.c.kind == "execution", feed.c.key == allotments.c.execution_uid)
ATTEMPTS: Final = allotments.outerjoin(feed, _changed)
LAST_MS: Final = sa.func.coalesce(feed.c.changed_ms, allotments.c.exchanged_ms)
"""Nothing was entered for an attempt after it: every command that touches one writes the feed."""


def _attempt_times(times: Times) -> list[Column]:
    found: list[Column] = []
    if times.since_ms is not None:
        found.append(allotments.c.opened_ms >= times.since_ms)
    if times.until_ms is not None:
        found += [allotments.c.opened_ms < times.until_ms, times.until_ms > LAST_MS]
    return found


def across(times: Times) -> Column:
    """Whether an attempt reaches across an end of a span of time, so that its sums say too much."""
    ends = [end for end in (times.since_ms, times.until_ms) if end is not None]
    return sa.or_(*(sa.and_(allotments.c.opened_ms < end, end <= LAST_MS) for end in ends))


def show(name: str, value: Any) -> str:
    """Write a key's value as people read it."""
    if name == "hour":
        return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=value)).strftime("%Y-%m-%dT%H:00Z")
    if name == "day":
        return f"{value // 10_000:04d}-{value // 100 % 100:02d}-{value % 100:02d}"
    if name == "month":
        return f"{value // 100:04d}-{value % 100:02d}"
    if name == "week":
        year, week, _ = (_EPOCH + dt.timedelta(days=value * 7 - UNIX_JULIAN)).isocalendar()
        return f"{year:04d}-W{week:02d}"
    return str(value)
