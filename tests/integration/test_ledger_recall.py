"""Recall on both databases: a refusal leaves a mark and nothing else; whoever holds something there is told, once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from almoner_core import wire
from almoner_core.wire import ErrorCode
from almoner_ledger import schema
from almoner_ledger.signals import SignalWatch
from almoner_ledger.store.recall import FRESH_MS, MARK_MS
from almoner_ledger.store.state import quota_account_id
from tests.support.books import DOLLAR, TOKENS, USD, Books, Clock, code, key, new_id, refused
from tests.support.polling import until_async


def mark(books: Books, quota: str = "quota") -> int:
    """When an account was marked last, in the ledger's milliseconds; 0 never."""
    table = schema.accounts
    query = sa.select(table.c.recall_ms).where(table.c.id == quota_account_id(key(quota)))
    return int(books.store.read(lambda c: c.execute(query).scalar_one()))


def contents(books: Books) -> dict[str, list[Any]]:
    """Every row of every table, marks apart."""

    def read(connection: sa.Connection) -> dict[str, list[Any]]:
        found = {}
        for table in schema.metadata.sorted_tables:
            columns = [column for column in table.c if column.name != "recall_ms"]
            found[table.name] = sorted(connection.execute(sa.select(*columns)).all(), key=repr)
        return found

    return books.store.read(read)


def look(books: Books, allotments: Sequence[str], *, times: int = 1) -> list[list[bool]]:
    """Which of the allotments are asked to return what is idle, each time that they ask."""

    async def ask() -> list[list[bool]]:
        watch = SignalWatch(books.store)
        watch.start()
        try:
            answers = []
            for _ in range(times):
                waits = (watch.wait(each, "pod-uid", 0) for each in allotments)
                answers.append([signals.recall for signals in await asyncio.gather(*waits)])
            return answers
        finally:
            await watch.close()

    return asyncio.run(ask())


def test_a_refusal_marks_the_account_and_changes_nothing_else(books: Books) -> None:
    books.limits(limits={USD: 1000})
    holder = books.active(need={USD: 900})
    other = books.active(need={USD: 50})
    before = contents(books)
    answer = refused(books.extend(other, {USD: 100}))
    assert answer.code is ErrorCode.INSUFFICIENT
    assert answer.refusal is not None
    assert answer.refusal.may_free_up
    assert mark(books) == books.store.read(books.store.now_ms)
    assert contents(books) == before
    assert look(books, [holder]) == [[True]]


def test_an_open_that_is_refused_recalls_too(books: Books) -> None:
    books.limits(limits={USD: 1000})
    holder = books.active(need={USD: 900})
    assert code(books.open(need={USD: 200})) is ErrorCode.INSUFFICIENT
    assert look(books, [holder]) == [[True]]


def test_refusals_are_cheap_one_mark_a_second(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 1000})
    books.active(need={USD: 900})
    first = clock()
    for _ in range(3):
        books.open(need={USD: 200})
    statements: list[str] = []
    engine = books.database.engine

    def note(*arguments: Any) -> None:
        statements.append(arguments[2])

    sa.event.listen(engine, "before_cursor_execute", note)
    books.open(need={USD: 200})
    sa.event.remove(engine, "before_cursor_execute", note)
    assert not [each for each in statements if each.startswith(("UPDATE", "INSERT"))]
    assert mark(books) == first
    clock.now += MARK_MS // 1000
    books.open(need={USD: 200})
    assert mark(books) == clock()


def test_only_those_are_told_who_hold_something_where_there_was_no_room(books: Books) -> None:
    books.limits("full", limits={USD: 1000})
    books.limits("wide", limits={USD: DOLLAR})
    in_full = books.active(accounts=[key("full"), key("wide")], need={USD: 900})
    in_wide = books.active(accounts=[key("wide")], need={USD: 900})
    empty = books.active(accounts=[key("full")], need={})
    assert code(books.open(accounts=[key("full"), key("wide")], need={USD: 200})) is ErrorCode.INSUFFICIENT
    assert (mark(books, "full") > 0, mark(books, "wide")) == (True, 0)
    assert look(books, [in_full, in_wide, empty]) == [[True, False, False]]


def test_nobody_is_asked_for_what_would_not_help(books: Books) -> None:
    books.limits(limits={USD: 1000, TOKENS: 10})
    holder = books.active(need={USD: 900})
    # More than there ever is; and what it holds itself.
    assert code(books.open(need={USD: 1001})) is ErrorCode.INSUFFICIENT
    assert code(books.extend(holder, {USD: 200})) is ErrorCode.INSUFFICIENT
    assert mark(books) == 0
    assert look(books, [holder]) == [[False]]


def test_each_mark_is_told_once_and_an_old_one_not_at_all(books: Books, clock: Clock) -> None:
    books.limits(limits={USD: 1000})
    holder = books.active(need={USD: 900})
    books.open(need={USD: 200})
    assert look(books, [holder], times=3) == [[True], [False], [False]]
    clock.now += 2
    books.open(need={USD: 200})
    assert look(books, [holder], times=2) == [[True], [False]]
    clock.now += FRESH_MS // 1000
    assert look(books, [holder]) == [[False]]


def test_a_meter_that_waits_is_woken_and_the_refused_get_what_comes_back(books: Books) -> None:
    books.limits(limits={USD: 1000})
    holder = books.active(need={USD: 900})
    uid = new_id()

    async def wait() -> wire.Signals:
        watch = SignalWatch(books.store, round_seconds=0.02)
        watch.start()
        waiting = asyncio.create_task(watch.wait(holder, "pod-uid", 3600))

        async def refuse() -> bool:
            assert code(await asyncio.to_thread(books.open, uid=uid, need={USD: 300})) is ErrorCode.INSUFFICIENT
            return waiting.done()

        await until_async(refuse, 60, "the meter to be woken")
        await watch.close()
        return await waiting

    assert asyncio.run(wait()).recall
    books.give_back(holder, 0, {}, {USD: 900})
    assert books.open(uid=uid, need={USD: 300}).granted == {USD: 300}


def test_a_rate_that_refuses_recalls_nobody(books: Books) -> None:
    """What a bucket lacks comes back with time, not from others."""
    rate = wire.RateLimit(dimension=TOKENS, amount=10, per_seconds=60, capacity=10)
    books.limits(limits={USD: 1000}, rates=[rate])
    holder = books.active(need={USD: 900})
    body = wire.Extend(operation_id=new_id(), need={}, debit={TOKENS: 10})
    from almoner_ledger.store import Verb

    assert isinstance(books.run(Verb.EXTEND, body, allotment=holder, pod_uid="pod-uid"), wire.Extended)
    again = body.model_copy(update={"operation_id": new_id()})
    assert code(books.run(Verb.EXTEND, again, allotment=holder, pod_uid="pod-uid")) is ErrorCode.INSUFFICIENT
    assert mark(books) == 0
