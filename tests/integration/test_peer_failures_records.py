"""What broke elsewhere about records and what they sum to (docs/peer-failures.md), each named after what must hold.

Two replicas share a database and are asked at once; where the failure is a meter's, it is a real one.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg2
import sqlalchemy as sa

from almoner_core import wire
from almoner_dev.scripted import Reply, Usage
from almoner_ledger import schema
from almoner_ledger.store import Verb
from tests.support.books import DOLLAR, USD, Books, key, new_id, record, replica
from tests.support.metered import MICRO, Team, chat, message, refused, tried
from tests.support.polling import until

THREADS = 8


def at_once(act: Callable[[int], Any]) -> list[Any]:
    """Run `act` in threads that begin together; gives what each gave."""
    begin = threading.Barrier(THREADS)

    def one(number: int) -> Any:
        begin.wait()
        return act(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


# --- nothing is lost ------------------------------------------------------------------------------------------------


# BerriAI/litellm 35567
def test_records_posted_at_once_lose_no_increment(books: Books) -> None:
    replicas = (books, replica(books))
    books.limits(limits={USD: DOLLAR})
    uids = [new_id() for _ in range(THREADS)]
    allotments = [books.active(uid=uid, need={USD: 1_000_000}) for uid in uids]

    def report(number: int) -> int:
        # Several meters of an execution are none; what they share is quota, agent, owner, model and day.
        costs = random.Random(number)
        total = 0
        for sequence in range(1, 41, 2):
            pair = [record(sequence + each, costs.randrange(1000)) for each in range(2)]
            replicas[number % 2].post(allotments[number], pair)
            total += sum(each.cost_nanos or 0 for each in pair)
        return total

    totals = at_once(report)
    assert [books.totals(uid).totals.cost_nanos for uid in uids] == totals
    assert books.state().spent == sum(totals)
    for by in ("agent", "owner", "model", "day"):
        (row,) = books.usage(by).rows
        assert (row.totals.cost_nanos, row.totals.requests) == (sum(totals), THREADS * 40)
    (agent,) = books.changes().agents
    assert agent.totals.cost_nanos == sum(totals)
    replicas[1].close()


# BerriAI/litellm 35531, 33872
def test_a_commit_that_fails_loses_no_record(team: Team) -> None:
    team.provider.load([Reply(usage=Usage(input_tokens=10, output_tokens=5))])
    team.limit()
    meter = team.run(need={"usd": 5000 * MICRO})
    chat(meter)
    team.posted(1)
    log = team.metered.folder / "ledger.log"
    break_, mend, sign = _SQLITE if not team.metered.database.is_postgresql else _POSTGRESQL
    seen = log.read_text().count(sign)
    team.metered.execute(*break_)
    try:
        for _ in range(5):
            chat(meter)
        until(lambda: log.read_text().count(sign) >= seen + 2, 30, "commits to fail")
        assert len(team.records()) == 1
    finally:
        team.metered.execute(*mend)
    team.posted(6)
    team.finish()
    assert [row.sequence for row in team.records()] == [1, 2, 3, 4, 5, 6]
    assert (team.account().spent, team.account().reserved) == (6 * 20 * MICRO, 0)


# Constraints that are only looked at when the transaction commits, and then never hold.
_POSTGRESQL = (
    (
        """CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RAISE EXCEPTION ''no space left'' USING ERRCODE = ''53100''; END'""",
        """CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT OR UPDATE ON rollups
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no_space()""",
    ),
    ("DROP TRIGGER at_commit ON rollups", "DROP FUNCTION no_space()"),
    "no space left",
)
_SQLITE = (
    (
        "CREATE TABLE nobody (id INTEGER PRIMARY KEY)",
        "CREATE TABLE orphans (id INTEGER REFERENCES nobody (id) DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TRIGGER at_commit AFTER INSERT ON records BEGIN INSERT INTO orphans VALUES (1); END",
    ),
    ("DROP TRIGGER at_commit", "DROP TABLE orphans", "DROP TABLE nobody"),
    "FOREIGN KEY constraint failed",
)


# BerriAI/litellm 6895
def test_a_deadlock_drops_no_record(postgres_url: str) -> None:
    plain = postgres_url.replace("+psycopg2", "")
    name = plain.rsplit("/", 1)[1]
    with psycopg2.connect(plain) as setup, setup.cursor() as cursor:
        # The ledger's sessions look for deadlocks first, and so are the ones to be ended.
        cursor.execute(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '2s'")
    setup.close()
    books = Books(postgres_url)
    for quota in ("one", "two"):
        books.limits(quota, limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, accounts=[key("one"), key("two")], need={USD: 1000})
    accounts = [row.id for row in books.store.read(lambda c: c.execute(sa.select(schema.accounts.c.id)).all())]
    lock = "SELECT 1 FROM accounts WHERE id = %s FOR UPDATE"
    other = psycopg2.connect(plain, options="-c deadlock_timeout=60s")
    watcher = psycopg2.connect(plain)
    watcher.autocommit = True
    try:
        with other.cursor() as cursor, ThreadPoolExecutor(1) as pool:
            cursor.execute(lock, (max(accounts),))
            posting = pool.submit(books.post, allotment, [record(1, 30), record(2, 12)])
            until(lambda: _waiting(watcher), 30, "the ledger to wait for the lock")
            # Held the other way round: who locks in another order than the ledger makes a deadlock.
            cursor.execute(lock, (min(accounts),))
            other.commit()
            assert posting.result(60).last_sequence == 2
        until(lambda: _deadlocks(watcher), 30, "the database to have counted the deadlock")
    finally:
        other.close()
        watcher.close()
    assert books.database.retries > 0
    assert (books.totals(uid).totals.cost_nanos, books.state("two").spent) == (42, 42)
    assert books.violations() == []
    books.close()


def _waiting(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(cursor.fetchone()[0])


def _deadlocks(connection: Any) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return bool(cursor.fetchone()[0])


# BerriAI/litellm 6895
def test_a_database_that_another_writer_holds_drops_no_record(tmp_path: Any) -> None:
    path = tmp_path / "ledger.db"
    books = Books(f"sqlite:///{path}")
    books.limits(limits={USD: DOLLAR})
    allotment = books.active(need={USD: 1000})
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        posting = pool.submit(books.post, allotment, [record(1, 42)])
        until(lambda: books.database.retries, 30, "the ledger to have lost its patience once")
        holder.execute("ROLLBACK")
        assert posting.result(60).last_sequence == 1
    holder.close()
    assert books.state().spent == 42
    assert books.violations() == []
    books.close()


# BerriAI/litellm 35570
def test_limits_that_are_told_again_drop_no_cost(books: Books) -> None:
    books.limits(limits={USD: DOLLAR})
    allotments = [books.active(need={USD: 1_000_000}) for _ in range(THREADS - 1)]
    told = threading.Event()

    def act(number: int) -> int:
        if number == THREADS - 1:
            # Operators that start, lead and tell what they know, again and again.
            for generation in range(2, 22):
                books.limits(limits={USD: DOLLAR - generation}, generation=generation, enforced=generation % 5 != 0)
                if generation % 7 == 0:
                    books.store.migrate()
                    books.epoch = books.take_epoch()
            told.set()
            return 0
        sequence = total = 0
        while sequence < 30 or not told.is_set():
            sequence += 1
            total += 10 + sequence
            assert isinstance(books.post(allotments[number], [record(sequence, 10 + sequence)]), wire.Posted)
        return total

    totals = at_once(act)
    state = books.state()
    assert (state.spent, state.limit) == (sum(totals), DOLLAR - 21)
    later = Books(books.url, books.clock)
    later.limits(limits={USD: DOLLAR}, generation=22)
    assert later.state().spent == sum(totals)
    later.close()


# --- nothing counts twice -------------------------------------------------------------------------------------------


# BerriAI/litellm 35569
def test_a_settlement_that_is_repeated_counts_once(books: Books) -> None:
    replicas = (books, replica(books))
    books.limits(limits={USD: DOLLAR})
    uid = new_id()
    allotment = books.active(uid=uid, need={USD: 1000})
    records = [record(number, 100 * number) for number in (1, 2, 3)]
    operation = new_id()

    def post(number: int) -> Any:
        # Half of them are the same request once more, half have forgotten that they ever sent it.
        again = operation if number < THREADS // 2 else new_id()
        return replicas[number % 2].post(allotment, records, operation_id=again)

    assert [answer.last_sequence for answer in at_once(post)] == [3] * THREADS
    assert (books.state().spent, books.state().reserved) == (600, 400)
    last = wire.Return(operation_id=new_id(), last_sequence=3, settled={USD: 600}, amounts={}, final=True)

    def give_back(number: int) -> Any:
        return replicas[number % 2].run(Verb.RETURN, last, allotment=allotment, pod_uid="pod-uid")

    answers = at_once(give_back)
    assert all(answer == answers[0] for answer in answers), answers
    assert at_once(post)[-1].last_sequence == 3
    totals = books.totals(uid).totals
    assert (totals.cost_nanos, totals.requests) == (600, 3)
    assert (books.state().spent, books.state().reserved) == (600, 0)
    replicas[1].close()


# BerriAI/litellm 14849, 11789, 36168
def test_cached_tokens_are_billed_once_streamed_or_not(team: Team) -> None:
    usage = Usage(input_tokens=1000, cached_input_tokens=900, output_tokens=10)
    written = Usage(input_tokens=1000, cached_input_tokens=600, cache_write_tokens=300, output_tokens=10)
    team.limit()
    meter = team.run()
    for call in (chat, message):
        for stream in (False, True):
            team.provider.load([Reply(text="cached", usage=usage)])
            call(meter, 50, stream=stream, text="x" * 1000)
            if call is message:
                team.provider.load([Reply(text="written", usage=written)])
                call(meter, 50, stream=stream, text="x" * 1000)
    team.finish()
    plain, write = (1000, 900, 0, 10), (1000, 600, 300, 10)
    tokens = [
        (row.input_tokens, row.cached_input_tokens, row.cache_write_tokens, row.output_tokens) for row in team.records()
    ]
    assert tokens == [plain, plain, plain, write, plain, write]
    # A tenth for what was read from the cache, a quarter more for what was written to it, each token once.
    once, and_written = (100 + 90 + 20) * MICRO, (100 + 60 + 375 + 20) * MICRO
    assert [row.cost_nanos for row in team.records()] == [once, once, once, and_written, once, and_written]
    assert team.account().spent == 4 * once + 2 * and_written


# BerriAI/litellm 39455, 19985
def test_every_try_is_one_record_and_counts_against_the_one_limit(team: Team) -> None:
    team.provider.load([Reply(status=500, message="try again")])
    team.limit()
    meter = team.run(limits={"requests": 8})
    first = tried(partial(chat, meter, retries=2))
    assert isinstance(first, Exception)
    assert team.asked() == 3, "the client's tries, and none of the meter's own"
    assert len(team.posted(3)) == 3
    # A fallback begins no count of its own: it goes on where the first client gave up.
    for call in (message, chat, message):
        assert refused([tried(partial(call, meter, retries=2))])
    assert team.asked() == 8
    team.finish()
    records = team.records()
    assert [row.sequence for row in records] == list(range(1, 9))
    assert {(row.outcome, row.requests, row.cost_nanos) for row in records} == {("error", 1, 0)}
    assert (team.account().spent, team.account().reserved) == (0, 0)
