from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.time_zones import zone
from almoner_ledger.windows import TOTAL, span_at

HOURLY, DAILY, WEEKLY, MONTHLY = (
    BudgetPeriod.HOURLY,
    BudgetPeriod.DAILY,
    BudgetPeriod.WEEKLY,
    BudgetPeriod.MONTHLY,
)
ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Asia/Beirut",
    "America/Havana",
    "Pacific/Apia",
    # Changes of half an hour, of two hours, and offsets that are no whole hours.
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Pacific/Chatham",
    "Asia/Kathmandu",
    "America/St_Johns",
    "Asia/Pyongyang",
    "America/Caracas",
    # Clocks of the past: of the sun, by the second (Amsterdam), and changed by 20 minutes (Monrovia, Accra).
    "Europe/Amsterdam",
    "Africa/Monrovia",
    "Africa/Accra",
    "Asia/Singapore",
]


def utc(text: str) -> int:
    return int(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp())


@pytest.mark.parametrize(
    ("period", "time_zone", "now", "starts", "ends"),
    [
        (HOURLY, "UTC", "2026-11-21T10:59:59", "2026-11-21T10:00:00", "2026-11-21T11:00:00"),
        (HOURLY, "UTC", "2026-11-21T11:00:00", "2026-11-21T11:00:00", "2026-11-21T12:00:00"),
        (HOURLY, "Asia/Kolkata", "2026-11-21T10:15:00", "2026-11-21T09:30:00", "2026-11-21T10:30:00"),
        # Lord Howe's clock is changed by half an hour: windows of 90 minutes, which join.
        (HOURLY, "Australia/Lord_Howe", "2026-04-04T14:45:00", "2026-04-04T14:00:00", "2026-04-04T15:30:00"),
        (HOURLY, "Australia/Lord_Howe", "2026-04-04T15:00:00", "2026-04-04T14:00:00", "2026-04-04T15:30:00"),
        (HOURLY, "Australia/Lord_Howe", "2026-04-04T15:30:00", "2026-04-04T15:30:00", "2026-04-04T16:30:00"),
        (HOURLY, "Australia/Lord_Howe", "2026-10-03T15:15:00", "2026-10-03T14:30:00", "2026-10-03T16:00:00"),
        (HOURLY, "Australia/Lord_Howe", "2026-10-03T15:30:00", "2026-10-03T14:30:00", "2026-10-03T16:00:00"),
        (HOURLY, "Antarctica/Troll", "2026-03-29T01:10:00", "2026-03-29T01:00:00", "2026-03-29T02:00:00"),
        (DAILY, "UTC", "2026-11-21T23:59:59", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
        (DAILY, "Europe/Berlin", "2026-11-21T23:30:00", "2026-11-21T23:00:00", "2026-11-22T23:00:00"),
        # Summer time begins: a day of 23 hours; it ends: one of 25.
        (DAILY, "Europe/Berlin", "2026-03-29T12:00:00", "2026-03-28T23:00:00", "2026-03-29T22:00:00"),
        (DAILY, "Europe/Berlin", "2026-10-25T12:00:00", "2026-10-24T22:00:00", "2026-10-25T23:00:00"),
        # No midnight on that day: the clock goes from 24:00 to 1:00.
        (DAILY, "Asia/Beirut", "2024-03-31T05:00:00", "2024-03-30T22:00:00", "2024-03-31T21:00:00"),
        # Two midnights: the day begins with the first.
        (DAILY, "America/Havana", "2024-11-03T04:30:00", "2024-11-03T04:00:00", "2024-11-04T05:00:00"),
        (DAILY, "America/Havana", "2024-11-03T05:30:00", "2024-11-03T04:00:00", "2024-11-04T05:00:00"),
        (WEEKLY, "UTC", "2026-11-22T23:00:00", "2026-11-16T00:00:00", "2026-11-23T00:00:00"),
        (WEEKLY, "UTC", "2026-11-23T00:00:00", "2026-11-23T00:00:00", "2026-11-30T00:00:00"),
        (WEEKLY, "Europe/Berlin", "2026-03-29T12:00:00", "2026-03-22T23:00:00", "2026-03-29T22:00:00"),
        (MONTHLY, "UTC", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        (MONTHLY, "UTC", "2028-02-29T00:00:00", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        (MONTHLY, "America/New_York", "2026-03-01T04:59:59", "2026-02-01T05:00:00", "2026-03-01T05:00:00"),
        (MONTHLY, "America/New_York", "2026-03-15T00:00:00", "2026-03-01T05:00:00", "2026-04-01T04:00:00"),
    ],
)
def test_windows_follow_the_calendar_of_the_time_zone(
    period: BudgetPeriod, time_zone: str, now: str, starts: str, ends: str
) -> None:
    span = span_at(period, time_zone, utc(now))
    assert (span.starts_at, span.ends_at) == (utc(starts), utc(ends))


def test_total_never_ends() -> None:
    assert span_at(BudgetPeriod.TOTAL, "UTC", 1_800_000_000) == TOTAL
    assert TOTAL.ends_at is None


@pytest.mark.parametrize(
    "name",
    [
        "Nowhere/Land",
        "Europe/Berlim",
        "US/Pacific-New",
        "GMT+1",
        "UTC+2",
        "europe/berlin",
        "",
        "../../etc/passwd",
        "Europe/Berlin\0",
        "/etc/localtime",
        "localtime",
        "right/UTC",
    ],
)
def test_an_unknown_time_zone_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone"):
        zone(name)


@given(
    st.sampled_from([HOURLY, DAILY, WEEKLY, MONTHLY]),
    st.sampled_from(ZONES),
    st.integers(utc("1890-01-01T00:00:00"), utc("2060-01-01T00:00:00")),
)
def test_every_instant_is_in_one_window_and_windows_join(period: BudgetPeriod, time_zone: str, now: int) -> None:
    span = span_at(period, time_zone, now)
    assert span.ends_at is not None
    assert span.starts_at <= now < span.ends_at
    assert span_at(period, time_zone, span.starts_at) == span
    assert span_at(period, time_zone, span.ends_at - 1) == span
    assert span_at(period, time_zone, span.ends_at).starts_at == span.ends_at
    if period is not HOURLY:
        local = dt.datetime.fromtimestamp(span.starts_at, ZoneInfo(time_zone))
        before = dt.datetime.fromtimestamp(span.starts_at - 1, ZoneInfo(time_zone))
        assert before.date() < local.date()


@pytest.mark.parametrize("time_zone", ZONES)
@pytest.mark.parametrize("year", [1916, 1937, 1942, 1972, 1981, 2015, 2026])
def test_a_year_of_windows_has_neither_gaps_nor_overlaps(time_zone: str, year: int) -> None:
    """Every change of the clock, which random instants seldom meet."""
    for period, least, most in ((HOURLY, 0, 7200), (DAILY, 0, 49 * 3600)):
        at, end = utc(f"{year}-01-01T00:00:00"), utc(f"{year + 1}-01-01T00:00:00")
        while at < end:
            span = span_at(period, time_zone, at)
            assert span.ends_at is not None
            assert span.starts_at <= at
            assert least < span.ends_at - span.starts_at < most
            assert span_at(period, time_zone, span.ends_at).starts_at == span.ends_at
            at = span.ends_at
