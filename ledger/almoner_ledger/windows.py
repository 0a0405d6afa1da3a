"""Budget windows: where the calendar window that holds an instant begins and ends; and the numbers of days and months.

PURE: no clock. The store passes the database's clock in, and never lets an account's window go backwards.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.time_zones import zone

HOUR_SECONDS = 3600
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open: `starts_at` <= t < `ends_at`, in Unix seconds. `ends_at` None never ends."""

    starts_at: int
    ends_at: int | None


TOTAL = Span(0, None)


def span_at(period: BudgetPeriod, time_zone: str, now: int) -> Span:
    """Give the window of `period` that holds `now` (Unix seconds) on the calendar of `time_zone`.

    Days begin at the first instant of the local date, so a day of a clock change has 23 or 25 hours; weeks begin on
    Monday, months on the 1st. Hours begin where the local clock shows a full hour and end where it does so again: after
    3600 s, but for changes of the clock by a part of an hour. So windows join.
    """
    if period is BudgetPeriod.TOTAL:
        return TOTAL
    tz = zone(time_zone)
    if period is BudgetPeriod.HOURLY:
        return _hour(tz, now)
    local = dt.datetime.fromtimestamp(now, tz)
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


def _hour(tz: dt.tzinfo, now: int) -> Span:
    """The window between the full hours of the local clock before and after `now`."""
    offset = _offset(tz, now)
    begin = _full_hour(now, offset)
    end = begin + HOUR_SECONDS
    if _offset(tz, begin) != offset:
        # The clock was changed in between: the last full hour is one of the clock before the change.
        changed = _change(tz, begin, now)
        begin = _full_hour(changed - 1, _offset(tz, changed - 1))
    if _offset(tz, end) != offset:
        # It will be changed before that: the next full hour is the first one of the clock after the change.
        changed = _change(tz, now, end)
        end = _full_hour(changed + HOUR_SECONDS - 1, _offset(tz, changed))
    return Span(begin, end)


def _offset(tz: dt.tzinfo, second: int) -> int:
    offset = dt.datetime.fromtimestamp(second, tz).utcoffset() or dt.timedelta(0)
    return int(offset.total_seconds())


def _full_hour(second: int, offset: int) -> int:
    """The last full hour up to `second` on a clock that is `offset` ahead of UTC."""
    return (second + offset) // HOUR_SECONDS * HOUR_SECONDS - offset


def _change(tz: dt.tzinfo, before: int, after: int) -> int:
    """The first second of the clock that holds at `after`, where another one held at `before`."""
    offset = _offset(tz, after)
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(tz, middle) == offset:
            after = middle
        else:
            before = middle
    return after


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
