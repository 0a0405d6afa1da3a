"""Rates on the books, on both databases, by a clock that the tests turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from almoner_core import wire
from almoner_core.wire import AccountKey, AccountKind, Amounts, Dimension, ErrorCode, RateLimit
from almoner_ledger import schema
from almoner_ledger.store import Database, Store, Verb, command
from almoner_ledger.store.state import quota_account_id
from tests.support.books import (
    DOLLAR,
    NAMESPACE,
    REQUESTS,
    TOKENS,
    TOOL_CALLS,
    USD,
    Books,
    Clock,
    code,
    key,
    new_id,
    record,
    refused,
    tokens,
)

PROVIDER = AccountKey(kind=AccountKind.PROVIDER, namespace=NAMESPACE, quota="provider")


def rate(dimension: Dimension, amount: int, per_seconds: int = 60, capacity: int | None = None) -> RateLimit:
    return RateLimit(dimension=dimension, amount=amount, per_seconds=per_seconds, capacity=capacity or amount)


def limit(books: Books, *rates: RateLimit, account: AccountKey | None = None, **more: Any) -> Any:
    values = {"generation": 1, "rates": list(rates), **more}
    return books.update_account(wire.AccountLimits(key=account or key(), **values))


def extend_body(debit: Amounts, provider: str, need: Amounts | None = None) -> wire.Extend:
    return wire.Extend(operation_id=new_id(), need=need or {}, debit=debit, provider=provider)


def debit(
    books: Books, allotment: str, amounts: Amounts, provider: str = "provider", need: Amounts | None = None
) -> Any:
    body = extend_body(amounts, provider, need)
    return books.run(Verb.EXTEND, body, allotment=allotment, pod_uid="pod-uid")


def post(books: Books, allotment: str, sequence: int, used: int, refund: int = 0, **more: Any) -> Any:
    refunds = {"provider": {TOKENS: refund}} if refund else {}
    made = record(sequence, **{"tokens": tokens(used), **more})
    body = wire.PostRecords(operation_id=new_id(), records=[made], refunds=refunds)
    return books.run(Verb.POST, body, allotment=allotment, pod_uid="pod-uid")


def state(books: Books, dimension: Dimension = TOKENS, account: AccountKey | None = None) -> wire.AccountState:
    from almoner_ledger.store import queries

    found = books.store.read(
        lambda c: queries.account_states(c, [quota_account_id(account or key())], books.store.now_ms(c) // 1000)
    )
    return next(each for each in found if each.rate_seconds is not None and each.dimension is dimension)


def missing(books: Books, dimension: Dimension = TOKENS, account: AccountKey | None = None) -> int:
    return state(books, dimension, account).spent


def refusal(answer: Any) -> wire.Refusal:
    error = refused(answer)
    assert error.code is ErrorCode.INSUFFICIENT
    assert error.refusal is not None
    return error.refusal


def outstanding(books: Books, allotment: str) -> str:
    table = schema.allotments
    with books.database.engine.connect() as connection:
        return str(connection.execute(sa.select(table.c.debits).where(table.c.id == allotment)).scalar_one())


# --- debits -----------------------------------------------------------------------------------------------------------


def test_a_meter_learns_at_activation_what_it_must_debit(books: Books) -> None:
    limit(books, rate(TOKENS, 100), rate(TOOL_CALLS, 5, 3600))
    limit(books, rate(REQUESTS, 10), account=PROVIDER)
    opened = books.open(accounts=[key(), PROVIDER])
    books.bind(opened.allotment)
    activated = books.activate(opened.allotment)
    told = [(each.dimension, each.provider, each.per_seconds, each.capacity) for each in activated.rates]
    assert sorted(told) == [(REQUESTS, "provider", 60, 10), (TOKENS, "", 60, 100), (TOOL_CALLS, "", 3600, 5)]
    assert activated.limited == []


def test_debits_are_taken_until_the_bucket_is_empty_and_time_refills_it(books: Books, clock: Clock) -> None:
    limit(books, rate(TOKENS, 60))
    allotment = books.active()
    assert debit(books, allotment, {TOKENS: 40}).debited == {TOKENS: 40}
    found = refusal(debit(books, allotment, {TOKENS: 30}))
    assert (found.dimension, found.limit, found.spent, found.needed) == (TOKENS, 60, 40, 30)
    assert (found.rate_seconds, found.retry_after_ms, found.retry_after_seconds) == (60, 10_000, 10)
    assert found.account == f"{NAMESPACE}/quota"
    clock.now += 9
    assert refusal(debit(books, allotment, {TOKENS: 30})).retry_after_ms == 1000
    clock.now += 1
    assert debit(books, allotment, {TOKENS: 30}).debited == {TOKENS: 30}
    assert missing(books) == 60


def test_what_was_not_used_is_refunded_and_never_more(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 80})
    post(books, allotment, 1, used=30, refund=50)
    assert (missing(books), outstanding(books, allotment)) == (30, "{}")
    # Nothing is outstanding any more: a refund of what was never debited puts nothing back.
    post(books, allotment, 2, used=0, refund=20)
    assert missing(books) == 30


def test_use_beyond_what_was_debited_takes_the_bucket_into_debt(books: Books, clock: Clock) -> None:
    limit(books, rate(TOKENS, 60))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 50})
    assert post(books, allotment, 1, used=90).last_sequence == 1
    assert missing(books) == 90
    assert refusal(debit(books, allotment, {TOKENS: 1})).retry_after_ms == 31_000
    clock.now += 31
    assert debit(books, allotment, {TOKENS: 1}).debited == {TOKENS: 1}


def test_a_debit_above_capacity_never_fits(books: Books) -> None:
    limit(books, rate(TOKENS, 100, capacity=50))
    allotment = books.active()
    found = refusal(debit(books, allotment, {TOKENS: 51}))
    assert (found.limit, found.retry_after_ms, found.retry_after_seconds) == (50, None, None)
    assert debit(books, allotment, {TOKENS: 50}).debited == {TOKENS: 50}


def test_need_and_debit_are_granted_together_or_not_at_all(books: Books) -> None:
    limit(books, rate(TOKENS, 100), limits={USD: 1000})
    allotment = books.active()
    assert refusal(debit(books, allotment, {TOKENS: 50}, need={USD: 2000})).dimension is USD
    assert missing(books) == 0
    assert refusal(debit(books, allotment, {TOKENS: 101}, need={USD: 500})).dimension is TOKENS
    assert books.state().reserved == 0
    granted = debit(books, allotment, {TOKENS: 50}, need={USD: 500})
    assert (granted.granted, granted.debited) == ({USD: 500}, {TOKENS: 50})


def test_every_rate_of_every_account_must_have_room(books: Books) -> None:
    limit(books, rate(TOKENS, 100), rate(TOKENS, 120, 3600))
    limit(books, rate(TOKENS, 1000), account=key("other"))
    allotment = books.active(accounts=[key(), key("other")])
    debit(books, allotment, {TOKENS: 70})
    found = refusal(debit(books, allotment, {TOKENS: 60}))
    # The one that takes longest is named: an hour's rate refills 120 an hour.
    assert (found.rate_seconds, found.retry_after_ms) == (3600, 300_000)
    assert missing(books, account=key("other")) == 70
    assert debit(books, allotment, {TOKENS: 30}).debited == {TOKENS: 30}
    assert missing(books, account=key("other")) == 100


def test_a_providers_rate_counts_its_calls_alone(books: Books) -> None:
    limit(books)
    limit(books, rate(REQUESTS, 1), account=PROVIDER)
    allotment = books.active(accounts=[key(), PROVIDER])
    for _ in range(5):
        assert debit(books, allotment, {REQUESTS: 1}, provider="elsewhere").debited == {REQUESTS: 1}
    assert debit(books, allotment, {REQUESTS: 1}).debited == {REQUESTS: 1}
    found = refusal(debit(books, allotment, {REQUESTS: 1}))
    assert (found.account, found.retry_after_ms) == (f"provider {NAMESPACE}/provider", 60_000)
    assert missing(books, REQUESTS, PROVIDER) == 1


def test_several_runs_share_one_bucket(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    first, second = books.active(), books.active()
    debit(books, first, {TOKENS: 60})
    assert refusal(debit(books, second, {TOKENS: 60})).spent == 60
    post(books, first, 1, used=10, refund=50)
    assert debit(books, second, {TOKENS: 60}).debited == {TOKENS: 60}


def test_a_group_of_debits_in_one_transaction_is_decided_one_by_one(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    runs = [books.active() for _ in range(5)]
    commands = [
        command(Verb.EXTEND, extend_body({TOKENS: 40}, "provider"), allotment=run, pod_uid="pod-uid") for run in runs
    ]
    answers = books.run_all(commands)
    assert [isinstance(answer, wire.Extended) for answer in answers] == [True, True, False, False, False]
    assert missing(books) == 80


def test_a_repeated_operation_debits_once(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    body = extend_body({TOKENS: 40}, "provider")
    for _ in range(3):
        assert books.run(Verb.EXTEND, body, allotment=allotment, pod_uid="pod-uid").debited == {TOKENS: 40}
    assert missing(books) == 40
    done = wire.PostRecords(
        operation_id=new_id(), records=[record(1, tokens=tokens(10))], refunds={"provider": {TOKENS: 30}}
    )
    for _ in range(3):
        books.run(Verb.POST, done, allotment=allotment, pod_uid="pod-uid")
    assert missing(books) == 10


def test_what_is_outstanding_at_the_close_is_forgotten_unrefunded(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 60})
    books.end(allotment)
    assert (missing(books), outstanding(books, allotment)) == (60, "{}")
    # What comes late was debited in its time: neither refunded, nor taken twice.
    post(books, allotment, 1, used=60, refund=60)
    assert missing(books) == 60


def test_a_final_return_forgets_what_is_outstanding(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 60})
    post(books, allotment, 1, used=20)
    returned = books.give_back(allotment, 1, {TOKENS: 20, REQUESTS: 1}, final=True)
    assert returned.state is wire.AllotmentState.CLOSED
    assert (missing(books), outstanding(books, allotment)) == (60, "{}")


# --- watching, changes, clocks ----------------------------------------------------------------------------------------


def test_a_watched_rate_counts_and_never_refuses(books: Books) -> None:
    limit(books, rate(TOKENS, 100), enforced=False)
    opened = books.open()
    books.bind(opened.allotment)
    assert books.activate(opened.allotment).rates == []
    assert debit(books, opened.allotment, {TOKENS: 1000}).debited == {TOKENS: 1000}
    post(books, opened.allotment, 1, used=250)
    found = state(books)
    assert (found.enforced, found.limit, found.spent, found.resets_in_seconds) == (False, 100, 250, 150)


def test_watching_that_becomes_enforcing_does_not_begin_in_debt(books: Books) -> None:
    limit(books, rate(TOKENS, 60), enforced=False)
    allotment = books.active()
    post(books, allotment, 1, used=6000)
    limit(books, rate(TOKENS, 60), generation=2)
    assert missing(books) == 60
    assert refusal(debit(books, allotment, {TOKENS: 1})).retry_after_ms == 1000


def test_a_changed_rate_keeps_what_is_missing_and_a_removed_one_binds_nobody(books: Books) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 80})
    (changed,) = limit(books, rate(TOKENS, 200), generation=2).accounts
    assert (changed.limit, changed.spent, changed.rate_seconds, changed.resets_in_seconds) == (200, 80, 60, 24)
    assert refusal(debit(books, allotment, {TOKENS: 121})).spent == 80
    limit(books, generation=3)
    gone = debit(books, allotment, {TOKENS: 10_000})
    assert (gone.debited, gone.rates) == ({TOKENS: 10_000}, [])
    # Back again: nothing was refilled by that, and what is still outstanding can be refunded.
    limit(books, rate(TOKENS, 200), generation=4)
    assert missing(books) == 80
    post(books, allotment, 1, used=30, refund=50)
    assert missing(books) == 30


def test_a_meter_is_told_of_rates_that_change_in_mid_run(books: Books) -> None:
    limit(books, limits={USD: DOLLAR})
    allotment = books.active()
    assert books.extend(allotment, {USD: 1}).rates is None
    assert post(books, allotment, 1, used=1).rates is None
    limit(books, rate(TOKENS, 100), limits={USD: DOLLAR}, generation=2)
    (told,) = books.extend(allotment, {USD: 1}).rates
    assert (told.dimension, told.amount, told.capacity) == (TOKENS, 100, 100)
    assert post(books, allotment, 2, used=1).rates == [told]


def test_what_was_used_before_a_meter_was_told_counts_all_the_same(books: Books) -> None:
    limit(books)
    allotment = books.active()
    limit(books, rate(TOKENS, 100), generation=2)
    post(books, allotment, 1, used=70)
    assert missing(books) == 70


@pytest.mark.parametrize("jump", [-3600, 10**6])
def test_a_clock_that_jumps_refills_at_most_once(books: Books, clock: Clock, jump: int) -> None:
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 100})
    clock.now += jump
    if jump < 0:
        assert refusal(debit(books, allotment, {TOKENS: 1})).spent == 100
        clock.now -= jump
        assert refusal(debit(books, allotment, {TOKENS: 1})).spent == 100
    else:
        assert debit(books, allotment, {TOKENS: 100}).debited == {TOKENS: 100}
        assert refusal(debit(books, allotment, {TOKENS: 1})).spent == 100


def test_over_an_hour_no_more_is_used_than_capacity_and_refill(books: Books, clock: Clock) -> None:
    """Five parallel calls under a 100 tokens/minute limit used 663: here they never pass it, whatever they ask."""
    limit(books, rate(TOKENS, 100))
    runs = [books.active() for _ in range(5)]
    used, start, sequences = 0, clock.now, dict.fromkeys(runs, 0)
    for step in range(120):
        for index, run in enumerate(runs):
            answer = debit(books, run, {TOKENS: 60})
            if isinstance(answer, wire.Extended):
                sequences[run] += 1
                spent = 20 + 10 * ((step + index) % 5)
                post(books, run, sequences[run], used=spent, refund=60 - spent)
                used += spent
        clock.now += 5
        assert used * 60 <= 100 * 60 + 100 * (clock.now - start)
    assert used > 900


# --- slices -----------------------------------------------------------------------------------------------------------


def test_a_slice_is_leased_where_a_bucket_holds_many_calls(books: Books) -> None:
    limit(books, rate(TOKENS, 10_000), rate(REQUESTS, 1000))
    allotment = books.active()
    answer = debit(books, allotment, {TOKENS: 100, REQUESTS: 1})
    assert (answer.debited, answer.slice_ms) == ({TOKENS: 800, REQUESTS: 8}, 1000)
    answer = debit(books, allotment, {TOKENS: 101, REQUESTS: 1})
    assert (answer.debited, answer.slice_ms) == ({TOKENS: 101, REQUESTS: 1}, 0)
    assert (missing(books), missing(books, REQUESTS)) == (901, 9)


def test_slices_are_for_as_many_holders_as_the_bucket_serves(books: Books) -> None:
    limit(books, rate(TOKENS, 10_000))
    allotment, _ = books.active(), books.active()
    assert debit(books, allotment, {TOKENS: 100}).slice_ms == 0
    assert debit(books, allotment, {TOKENS: 50}).debited == {TOKENS: 400}


def test_slices_leave_the_lower_half_of_a_bucket_alone(books: Books) -> None:
    limit(books, rate(REQUESTS, 100))
    allotment = books.active()
    taken = [debit(books, allotment, {REQUESTS: 1}).debited[REQUESTS] for _ in range(10)]
    assert taken[:6] == [8] * 6
    assert taken[6:] == [3, 1, 1, 1]


# --- limits and the audit ---------------------------------------------------------------------------------------------


def test_rates_that_cannot_be_kept_are_refused_by_name(books: Books) -> None:
    error = refused(limit(books, rate(TOKENS, 1), rate(TOKENS, 2)))
    assert (error.code, error.field) == (ErrorCode.INVALID, "rates.1")
    error = refused(limit(books, rate(TOKENS, 10**12, 86_400)))
    assert error.field == "rates.0.capacity"
    error = refused(limit(books, account=PROVIDER, limits={USD: 1}))
    assert error.field == "limits"
    assert code(books.open()) is ErrorCode.NOT_FOUND


def test_the_feed_tells_of_every_debit_however_soon_it_comes(books: Books) -> None:
    """Else the last one of a burst would not show until somebody debits again."""
    limit(books, rate(REQUESTS, 100))
    allotment = books.active()
    before = -1
    for _ in range(3):
        after = books.changes().after
        debit(books, allotment, {REQUESTS: 1})
        (told,) = books.changes(after).accounts
        assert (told.dimension, told.rate_seconds, told.limit) == (REQUESTS, 60, 100)
        assert told.spent == missing(books, REQUESTS) > before
        before = told.spent


@pytest.mark.parametrize(
    ("meddle", "invariant"),
    [
        (sa.update(schema.buckets).values(refunded=schema.buckets.c.debited), "debits-outstanding"),
        (sa.update(schema.buckets).values(amount=7), "rates-have-buckets"),
        (sa.delete(schema.buckets), "rates-have-buckets"),
    ],
)
def test_the_audit_names_a_bucket_that_was_meddled_with(
    ledger_url: str, clock: Clock, meddle: sa.Executable, invariant: str
) -> None:
    books = Books(ledger_url, clock)
    limit(books, rate(TOKENS, 100))
    allotment = books.active()
    debit(books, allotment, {TOKENS: 60})
    assert books.violations() == []
    books.execute(meddle)
    assert invariant in {violation.invariant for violation in books.violations()}
    books.close()


def test_replicas_at_once_never_pass_a_rate(books: Books, ledger_url: str, clock: Clock) -> None:
    limit(books, rate(TOKENS, 1000))
    runs = [books.active() for _ in range(8)]
    # The second store is another replica's; it must not take the epoch from the operator.
    other = Store(Database(ledger_url, patience_seconds=20), clock=clock)

    def spend(number: int) -> int:
        store = (books.store, other)[number % 2]
        granted = 0
        for _ in range(8):
            body = extend_body({TOKENS: 30}, "provider")
            (answer,) = store.execute([command(Verb.EXTEND, body, allotment=runs[number], pod_uid="pod-uid")])
            granted += isinstance(answer, wire.Extended)
        return granted

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(spend, range(8)))
    other.database.dispose()
    assert granted == 33
    assert missing(books) == 990
