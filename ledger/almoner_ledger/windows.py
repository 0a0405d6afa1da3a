"""Budget windows: where the calendar window that holds an instant begins and ends; and the numbers of days and months.

PURE: no clock. The store passes the database's clock in, and never lets an account's window go backwards.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from almoner_core.api.resource_quota import BudgetPeriod

HOUR_SECONDS = 3600
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open: `starts_at` <= t < `ends_at`, in Unix seconds. `ends_at` None never ends."""

    starts_at: int
    ends_at: int | None


TOTAL = Span(0, None)


def zone(name: str) -> ZoneInfo:
    """Look up an IANA time zone. Raises ValueError for a name that the time zone database does not know."""
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"{name[:64]!r} is not a time zone: write an IANA name such as 'Europe/Berlin'") from error


def span_at(period: BudgetPeriod, time_zone: str, now: int) -> Span:
    """Give the window of `period` that holds `now` (Unix seconds) on the calendar of `time_zone`.

    Days begin at the first instant of the local date, so a day of a clock change has 23 or 25 hours; weeks begin on
    Monday, months on the 1st; hours last 3600 s and begin where the local clock shows a full hour.
    """
    if period is BudgetPeriod.TOTAL:
        return TOTAL
    local = dt.datetime.fromtimestamp(now, zone(time_zone))
    if period is BudgetPeriod.HOURLY:
        offset = local.utcoffset() or dt.timedelta(0)
        shift = int(offset.total_seconds()) % HOUR_SECONDS
        starts_at = (now + shift) // HOUR_SECONDS * HOUR_SECONDS - shift
        return Span(starts_at, starts_at + HOUR_SECONDS)
    first = local.date()
    if period is BudgetPeriod.DAILY:
        last = first + dt.timedelta(days=1)
    elif period is BudgetPeriod.WEEKLY:
        first -= dt.timedelta(days=first.weekday())
        last = first + dt.timedelta(days=7)
    else:
        first = first.replace(day=1)
        last = (first + dt.timedelta(days=31)).replace(day=1)
    return Span(_first_instant(first, local.tzinfo), _first_instant(last, local.tzinfo))


def _first_instant(day: dt.date, tz: dt.tzinfo | None) -> int:
    # fold=0: in a gap the offset before the change applies, which names the instant of the change itself; where
    # midnight comes twice, the first.
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=tz, fold=0).timestamp())


def day_of(unix_ms: int) -> int:
    """The day (UTC) of an instant, as YYYYMMDD."""
    day = _EPOCH + dt.timedelta(milliseconds=unix_ms)
    return (day.year * 100 + day.month) * 100 + day.day


def month_of(unix_ms: int) -> int:
    """The month (UTC) of an instant, as YYYYMM."""
    return day_of(unix_ms) // 100
