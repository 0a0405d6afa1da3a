"""History on both databases: any dimension and time, and that what was outlives what it was about."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.wire import ErrorCode, UsageBy, UsageSource
from almoner_ledger import schema
from almoner_ledger.errors import LedgerError
from almoner_ledger.history import asking, entries, executions, reading
from almoner_ledger.history.asking import By, Question, Times
from almoner_ledger.history.sources import KEY_COLUMNS
from tests.support import history
from tests.support.books import DOLLAR, EVERYTHING, USD, Books, Clock, new_id, record

DAY_MS = asking.DAY_MS
SEED = 4
ONE_OR_TWO = [",".join(by) for size in (1, 2) for by in itertools.combinations(UsageBy, size)]
THREE = [",".join(by) for by in itertools.combinations(UsageBy, 3)]


@pytest.fixture
def past(books: Books, clock: Clock) -> list[history.Entry]:
    print(f"seed {SEED}")  # noqa: T201 - what a failure is reproduced with
    history.live(books, clock, seed=SEED)
    return history.entries(books)


def columns_of(by: str) -> list[str]:
    return [*dict.fromkeys(name for each in by.split(",") for name in KEY_COLUMNS[UsageBy(each)])]


def without_empty(sums: dict[tuple[str, ...], dict[str, int]]) -> dict[tuple[str, ...], dict[str, int]]:
    return {key: totals for key, totals in sums.items() if any(totals.values())}


def middle(past: list[history.Entry], *, whole_days: bool) -> Times:
    """A span that begins and ends in the midst of attempts."""
    moments = sorted(entry["counted_ms"] for entry in past)
    since, until = moments[len(moments) // 3], moments[2 * len(moments) // 3]
    if whole_days:
        return Times(since // DAY_MS * DAY_MS, until // DAY_MS * DAY_MS)
    return Times(since, until)


@pytest.mark.parametrize("span", ["ever", "days", "instants", "since", "until"])
def test_every_grouping_of_every_span_sums_what_its_entries_sum_to(
    books: Books, past: list[history.Entry], span: str
) -> None:
    times = {
        "ever": Times(),
        "days": middle(past, whole_days=True),
        "instants": middle(past, whole_days=False),
        "since": Times(since_ms=middle(past, whole_days=True).since_ms),
        "until": Times(until_ms=middle(past, whole_days=False).until_ms),
    }[span]
    since, until = times.since_ms or 0, times.until_ms or 2**62
    kept = [entry for entry in past if since <= entry["counted_ms"] < until]
    assert kept
    assert span == "ever" or len(kept) < len(past)
    seen = set()
    for by in [*ONE_OR_TWO, *random.Random(f"{SEED} {span}").sample(THREE, 20)]:
        found = books.usage(by, Question(times=times), limit=10_000)
        seen.add(found.source)
        assert without_empty(history.rows(found)) == without_empty(history.summed(kept, columns_of(by))), by
    whole = span in ("ever", "days", "since")
    assert seen == ({*UsageSource} if whole else {UsageSource.ATTEMPTS, UsageSource.RECORDS})


@pytest.mark.parametrize("by", ["agent", "day,operation", "execution", "execution,model", "hour,owner"])
def test_filters_are_alternatives_of_one_name_and_all_names_hold(
    books: Books, past: list[history.Entry], by: str
) -> None:
    uid = past[0]["execution_uid"]
    asked: list[tuple[dict[By, list[str]], Any]] = [
        ({By.AGENT: ["a", "team/b"]}, lambda e: e["agent"] in "ab"),
        ({By.AGENT: ["elsewhere/a"]}, lambda e: False),
        ({By.OWNER: [""], By.OUTCOME: ["error", "cancelled"]}, lambda e: e["owner"] == "" and e["outcome"] == "error"),
        ({By.MODEL: ["small"], By.PROVIDER: ["one"]}, lambda e: (e["model"], e["provider"]) == ("small", "one")),
        ({By.RESOURCE_TYPE: ["unaccounted"]}, lambda e: e["resource_type"] == "unaccounted"),
        ({By.OPERATION: ["search"]}, lambda e: e["operation"] == "search"),
        ({By.EXECUTION: ["team/run-3", "run-4"]}, lambda e: e["name"] in ("run-3", "run-4")),
        ({By.UID: [uid], By.NAMESPACE: ["team"]}, lambda e: e["execution_uid"] == uid),
    ]
    for given, keep in asked:
        found = books.usage(by, Question(asking.read_filters(given)), limit=10_000)
        expected = history.summed(past, columns_of(by), keep)
        assert without_empty(history.rows(found)) == without_empty(expected), given


@pytest.mark.parametrize("order", [None, "key", "cost_nanos", "output_tokens"])
@pytest.mark.parametrize("by", ["day,model", "execution", "hour", "outcome,operation"])
def test_pages_give_every_group_once_in_order(
    books: Books, past: list[history.Entry], by: str, order: str | None
) -> None:
    whole = books.usage(by, order=order, limit=10_000)
    rows, after = [], None
    while True:
        page = books.usage(by, order=order, limit=3, after=after)
        rows += page.rows
        after = page.next
        if after is None:
            break
        assert len(page.rows) == 3
    assert rows == whole.rows
    timed = by.startswith(("day", "hour"))
    if order == "key" or (order is None and timed):
        assert [row.key for row in rows] == sorted(row.key for row in rows)
    else:
        values = [getattr(row.totals, order or "cost_nanos") for row in rows]
        assert values == sorted(values, reverse=True)


def test_sums_by_day_are_those_of_the_entries_in_every_dimension(books: Books, past: list[history.Entry]) -> None:
    assert history.rollups(books) == history.rollups_of_entries(books)


def test_sums_by_day_stay_true_while_replicas_post_at_once(ledger_url: str) -> None:
    """Reseeding or losing an addition is how others' counters drop real cost."""
    replicas = [Books(ledger_url, migrate=number == 0) for number in range(2)]
    replicas[0].epoch = replicas[1].epoch
    replicas[0].limits(limits={USD: DOLLAR})
    allotments = [replicas[0].active(need={USD: 100_000}, agent=f"agent-{number % 2}") for number in range(4)]
    start = threading.Barrier(4)
    failures: list[BaseException] = []

    def post(number: int) -> None:
        books = replicas[number % 2]
        try:
            start.wait(30)
            for sequence in range(1, 41):
                sent = record(sequence, 10 + number, operation="chat" if sequence % 3 else "search")
                assert isinstance(books.post(allotments[number], [sent]), wire.Posted)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=post, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    try:
        assert failures == []
        assert history.rollups(replicas[0]) == history.rollups_of_entries(replicas[0])
        total = 40 * (10 + 11 + 12 + 13)
        for by in ("agent", "execution", "hour"):
            assert sum(row.totals.cost_nanos for row in replicas[1].usage(by).rows) == total
        assert replicas[0].violations() == []
    finally:
        for books in replicas:
            books.close()


def listed(books: Books, question: Question = EVERYTHING, limit: int = 100) -> list[wire.ExecutionHistory]:
    found: list[wire.ExecutionHistory] = []
    after: str | None = None
    while True:
        page = reading.read(
            books.database,
            lambda c, after=after: executions.executions(c, question, limit, after),  # type: ignore[misc]
        )
        found += page.executions
        after = page.next
        if after is None:
            return found
        assert len(page.executions) == limit


def test_executions_are_listed_the_newest_first_with_what_they_used(books: Books, past: list[history.Entry]) -> None:
    found = listed(books, limit=4)
    assert found == listed(books)
    assert len({each.uid for each in found}) == len(found) == 14
    moments = [each.created_unix_ms for each in found]
    assert moments == sorted(moments, reverse=True)
    sums = history.summed(past, ["execution_uid"])
    for each in found:
        assert each.totals.model_dump() == sums.get((each.uid,), wire.UsageTotals().model_dump())
        assert each.state is wire.AllotmentState.CLOSED
        assert each.ended_unix_ms is not None
        assert each.attempts in (1, 2)


def test_executions_are_filtered_by_what_is_known_of_them(books: Books, past: list[history.Entry]) -> None:
    everything = listed(books)

    def names(given: dict[By, list[str]], times: Times = asking.EVER) -> list[str]:
        return [each.name for each in listed(books, Question(asking.read_filters(given), times))]

    def expected(keep: Any) -> list[str]:
        return [each.name for each in everything if keep(each)]

    assert names({By.AGENT: ["a", "team/b"]}) == expected(lambda e: e.agent in "ab")
    assert names({By.OWNER: ["ann"], By.NAMESPACE: ["team"]}) == expected(lambda e: e.owner == "ann")
    assert names({By.OWNER: ["ann"], By.NAMESPACE: ["other"]}) == []
    assert names({By.EXECUTION: ["run-7", "team/run-8"]}) == ["run-8", "run-7"]
    assert names({By.UID: [everything[3].uid]}) == [everything[3].name]
    assert names({By.KIND: ["TrainingJob"]}) == []
    assert names({By.STATE: ["offered", "active"]}) == []
    assert names({By.STATE: ["closed"], By.KIND: ["Execution"]}) == expected(lambda e: True)
    middle_ms = everything[10].created_unix_ms
    assert names({}, Times(since_ms=middle_ms)) == expected(lambda e: e.created_unix_ms >= middle_ms)
    assert names({}, Times(until_ms=middle_ms)) == expected(lambda e: e.created_unix_ms < middle_ms)


def test_an_execution_that_is_made_anew_under_its_name_is_another(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    for cost in (5, 7):
        allotment = books.active(name="again", need={USD: 100})
        books.post(allotment, [record(1, cost)])
        books.give_back(allotment, 1, {USD: cost}, final=True)
    found = listed(books, Question({By.EXECUTION: ("again",)}))
    assert sorted(each.totals.cost_nanos for each in found) == [5, 7]
    assert [len(row.key) for row in books.usage("execution").rows] == [3, 3]


def test_entries_come_in_pages_the_newest_first_and_without_content(books: Books, past: list[history.Entry]) -> None:
    secret = "not for listing"
    books.execute(sa.update(schema.outputs).values(content=secret))
    found: list[wire.Entry] = []
    after = None
    while True:
        page = reading.read(books.database, lambda c, after=after: entries.page(c, EVERYTHING, 7, after))  # type: ignore[misc]
        found += page.records
        after = page.next
        if after is None:
            break
    assert [each.number for each in found] == sorted((entry["number"] for entry in past), reverse=True)
    by_number = {entry["number"]: entry for entry in past}
    for each in found:
        entry = by_number[each.number]
        assert each.execution_kind == entry["of_kind"]
        assert each.started_unix_ms == entry["started_ms"]
        assert each.counted_unix_ms == entry["counted_ms"]
        for name in ("id", "kind", "corrects", "cost_nanos", "attempt", "agent", "sequence", "units", "price_version"):
            assert getattr(each, name) == entry.get(name, entry.get(f"of_{name}")), name
    assert not {"metadata", "digest", "content"} & set(wire.Entry.model_fields)
    assert any(each.cost_nanos is None for each in found)


def test_entries_of_a_span_and_of_filters(books: Books, past: list[history.Entry]) -> None:
    times = middle(past, whole_days=False)
    assert times.since_ms is not None
    assert times.until_ms is not None
    question = Question({By.OUTCOME: ("error",)}, times)
    page = reading.read(books.database, lambda c: entries.page(c, question, 1000, None))
    expected = [
        entry["id"]
        for entry in past
        if entry["outcome"] == "error" and times.since_ms <= entry["counted_ms"] < times.until_ms
    ]
    assert sorted(each.id for each in page.records) == sorted(expected)
    assert expected


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, (None, None)),
        ("1970-01-01", "1970-01-01", (0, DAY_MS)),
        ("1970-01-02", None, (DAY_MS, None)),
        ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.5Z", (0, 500)),
        ("1970-01-01T02:00:00+02:00", "9999-12-30", (0, 253402214400000)),
    ],
)
def test_times_are_days_with_their_end_or_instants(
    since: str | None, until: str | None, expected: tuple[int | None, int | None]
) -> None:
    times = asking.read_times(since, until)
    assert (times.since_ms, times.until_ms) == expected


@pytest.mark.parametrize(
    ("since", "until", "field"),
    [
        ("yesterday", None, "from"),
        ("2026-02-30", None, "from"),
        ("20260101", None, "from"),
        ("2026-01-01T12:00:00", None, "from"),
        ("1969-12-31", None, "from"),
        (None, "9999-12-31", "to"),
        (None, "", "to"),
        ("2026-01-02", "2026-01-01", "to"),
        ("2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z", "to"),
    ],
)
def test_times_that_are_none_are_refused_by_name(since: str | None, until: str | None, field: str) -> None:
    with pytest.raises(LedgerError) as caught:
        asking.read_times(since, until)
    assert (caught.value.code, caught.value.field) == (ErrorCode.INVALID, field)


@pytest.mark.parametrize("text", ["", "colour", "day,day", "day,", "day,agent,owner,model", "DAY", "day;agent"])
def test_dimensions_that_are_none_are_refused_by_name(text: str) -> None:
    with pytest.raises(LedgerError) as caught:
        asking.read_by(text)
    assert caught.value.field == "by"


@pytest.mark.parametrize(
    ("by", "values"),
    [
        (By.OUTCOME, ["fine"]),
        (By.RESOURCE_TYPE, ["llm", "gold"]),
        (By.STATE, ["open"]),
        (By.AGENT, ["a/b/c"]),
        (By.OWNER, ["nul\0"]),
        (By.MODEL, ["\ud800"]),
        (By.OWNER, ["x" * 508]),
        (By.OWNER, ["x"] * 101),
    ],
)
def test_filters_that_are_none_are_refused_by_name(by: By, values: list[str]) -> None:
    with pytest.raises(LedgerError) as caught:
        asking.read_filters({by: values})
    assert caught.value.field == by.value


@pytest.mark.parametrize(
    "after", ["", "x", "!!!!", "bnVsbA", "WzFd", "WyIxIl0", "WzEsMl0", "W3RydWVd", "W1sxXV0", "W" * 5000]
)
def test_cursors_that_are_none_are_refused_by_name(books: Books, after: str) -> None:
    with pytest.raises(LedgerError) as caught:
        books.usage("agent", after=after)
    assert caught.value.field == "after"


def test_a_question_that_takes_too_long_is_ended_and_the_connection_is_good_again(books: Books) -> None:
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(LedgerError) as caught:
        reading.read(books.database, lambda c: c.exec_driver_sql(forever), seconds=0.2)
    assert caught.value.code is ErrorCode.TOO_LARGE
    assert "ask for less" in caught.value.message
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    assert isinstance(books.post(allotment, [record(1, 5)]), wire.Posted)


def test_days_of_years_of_weeks(books: Books) -> None:
    """Weeks and months come from integers: compare them with the calendar's over years, leap years among them."""
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 10})
    books.post(allotment, [record(1, 5)])
    first = dt.date(2023, 12, 20)
    days = [first + dt.timedelta(days=number) for number in range(0, 1200, 1)]
    rows = [
        {"day": (day.year * 100 + day.month) * 100 + day.day, "cost_nanos": 1, "records": 1}
        | dict.fromkeys(("namespace", "agent", "owner", "provider", "model", "resource_type", "operation"), "x")
        | {"outcome": "ok"}
        for day in days
    ]
    books.execute(sa.insert(schema.rollups).values(rows))
    expected: dict[tuple[str, str], int] = {}
    for day in days:
        year, week, _ = day.isocalendar()
        key = (f"{year}-W{week:02d}", day.strftime("%Y-%m"))
        expected[key] = expected.get(key, 0) + 1
    question = Question({By.NAMESPACE: ("x",)})
    found = {tuple(row.key): row.totals.cost_nanos for row in books.usage("week,month", question, limit=10_000).rows}
    assert found == expected
    books.execute(sa.delete(schema.rollups).where(schema.rollups.c.namespace == "x"))


def test_history_needs_nothing_but_the_books(books: Books) -> None:
    """The accounts' windows may roll over and quotas may go: what was used stays told."""
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 100})
    books.post(allotment, [record(1, 5)])
    books.end(allotment)
    (told,) = listed(books, Question({By.UID: (uid,)}))
    assert (told.name, told.totals.cost_nanos) == ("run", 100)
