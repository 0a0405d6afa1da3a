"""What a meter knows of rates, and how its calls wait for them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core.wire import PostRecords, RateInForce
from almoner_runner.meter.pacing import Pacing, limited
from almoner_runner.meter.rates import REFUNDED_PROVIDERS_MAX, Rates
from almoner_runner.meter.refusals import RefusedError

Rate = dict[str, Any]


def rate(dimension: str, capacity: int, provider: str = "", per_seconds: int = 60) -> Rate:
    return {
        "dimension": dimension,
        "provider": provider,
        "amount": capacity,
        "per_seconds": per_seconds,
        "capacity": capacity,
    }


def rates(*told: Rate) -> Rates:
    made = Rates()
    made.learn(list(told))
    return made


BOUND = {"tokens": 90, "requests": 1, "usd": 5}


def test_nothing_is_in_force_until_the_ledger_says_so() -> None:
    made = Rates()
    assert not made.in_force
    made.learn(None)
    assert (made.in_force, made.version) == (False, 0)
    made.learn([rate("tokens", 100)])
    assert (made.in_force, made.version) == (True, 1)
    made.learn([rate("tokens", 100)])
    assert made.version == 1
    made.learn([])
    assert (made.in_force, made.version) == (False, 2)


def test_what_is_counted_depends_on_the_provider() -> None:
    made = rates(rate("tokens", 100), rate("tokens", 80, per_seconds=3600), rate("requests", 5, "openai"))
    assert made.counted("openai", BOUND) == {"tokens": 90, "requests": 1}
    assert made.counted("local", BOUND) == {"tokens": 90}
    assert made.counted("", {"tool_calls": 1}) == {}
    assert made.too_large("local", BOUND) == ("tokens", 80)
    assert made.too_large("local", {"tokens": 80}) is None
    assert made.counts("usd", "tokens")
    assert not made.counts("usd", "tool_calls")


def test_a_bucket_that_shrank_is_remembered_until_the_next_word() -> None:
    made = rates(rate("tokens", 100))
    made.shrunk("local", "tokens", 40)
    assert made.too_large("local", {"tokens": 50}) == ("tokens", 40)
    made.learn([rate("tokens", 60)])
    assert made.too_large("local", {"tokens": 50}) is None


def test_what_a_call_did_not_use_is_refunded_once() -> None:
    made = rates(rate("tokens", 100), rate("requests", 5))
    asked = {"tokens": 90, "requests": 1}
    debit = made.debited("local", asked, {"debited": asked, "slice_ms": 0}, sent=0.0)
    assert (made.in_flight, made.take("local", asked, 0.0)) == (1, None)
    made.settle(debit, {"tokens": 15, "requests": 1}, now=1.0)
    assert (made.in_flight, made.refunds) == (0, {"local": {"tokens": 75}})
    due = made.due()
    assert (due, made.refunds) == ({"local": {"tokens": 75}}, {})
    made.keep(due)
    made.keep({"local": {"tokens": 5, "requests": 1}})
    assert made.due() == {"local": {"tokens": 80, "requests": 1}}


def test_a_call_that_used_more_than_its_bound_refunds_nothing() -> None:
    made = rates(rate("tokens", 100))
    debit = made.debited("local", {"tokens": 50}, {"debited": {"tokens": 50}}, sent=0.0)
    made.settle(debit, {"tokens": 70}, now=1.0)
    assert made.refunds == {}


def test_a_slice_serves_its_provider_for_its_time_and_is_not_refunded() -> None:
    made = rates(rate("tokens", 10_000), rate("requests", 1000))
    asked = {"tokens": 100, "requests": 1}
    answer = {"debited": {"tokens": 300, "requests": 3}, "slice_ms": 1000}
    first = made.debited("local", asked, answer, sent=10.0)
    assert made.take("openai", asked, 10.1) is None
    leased = made.take("local", asked, 10.1)
    assert leased is not None
    # What it did not use serves the next: two calls are left of three, and some tokens of the third.
    made.settle(leased, {"tokens": 40, "requests": 1}, now=10.2)
    assert made.take("local", {"tokens": 160, "requests": 1}, 10.9) is not None
    assert made.take("local", {"tokens": 1, "requests": 1}, 10.9) is None
    assert made.refunds == {}
    made.settle(first, {"tokens": 100, "requests": 1}, now=11.0)
    answer = {"debited": {"tokens": 300, "requests": 3}, "slice_ms": 1000}
    made.debited("local", asked, answer, sent=20.0)
    late = made.take("local", asked, 20.999)
    assert late is not None
    assert made.take("local", asked, 21.0) is None
    made.settle(late, {}, now=21.5)
    assert (made.refunds, made.take("local", asked, 21.6)) == ({}, None)


def test_refunds_of_many_providers_go_in_bounded_messages() -> None:
    made = rates(rate("tokens", 100))
    count = REFUNDED_PROVIDERS_MAX + 3
    made.keep({f"provider-{number}": {"tokens": 1} for number in range(count)})
    sent = [made.due(), made.due(), made.due()]
    assert [len(each) for each in sent] == [REFUNDED_PROVIDERS_MAX, 3, 0]
    field = PostRecords.model_fields["refunds"]
    assert any(getattr(each, "max_length", None) == REFUNDED_PROVIDERS_MAX for each in field.metadata)
    assert set(rate("tokens", 1)) == set(RateInForce.model_fields)


# --- waiting ----------------------------------------------------------------------------------------------------------


class Loop:
    """As much of the books as waiting looks at."""

    def __init__(self, in_flight: int = 0) -> None:
        self.rates = Rates()
        self.rates.in_flight = in_flight
        self.spool = SimpleNamespace(pending={})
        self.waiting = 0
        self.waiting_for_rates = 0
        self.posted = 0

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def post_pending(self) -> None:
        self.posted += 1
        self.spool.pending.clear()
        self.rates.due()


def refused(milliseconds: int | None) -> dict[str, Any]:
    return {
        "account": "team/pace",
        "dimension": "tokens",
        "limit": 100,
        "spent": 90,
        "needed": 50,
        "rate_seconds": 60,
        "retry_after_ms": milliseconds,
    }


def test_who_waits_waits_in_turn() -> None:
    async def play() -> list[str]:
        books: Any = Loop()
        pacing = Pacing()
        order: list[str] = []

        async def wait(name: str) -> None:
            turn = pacing.turn("local", books.now + 10)
            books.waiting += 1
            try:
                await turn.join(books)
                await turn.wait(books, refused(20), asyncio.Event())
                order.append(name)
            finally:
                turn.leave()
                books.waiting -= 1

        tasks = [asyncio.create_task(wait(name)) for name in "abc"]
        await asyncio.sleep(0)
        assert (books.waiting, books.waiting_for_rates) == (0, 3)
        await asyncio.gather(*tasks)
        assert (books.waiting, books.waiting_for_rates) == (0, 0)
        return order

    assert asyncio.run(play()) == ["a", "b", "c"]


def test_a_settlement_ends_a_wait_and_what_it_freed_is_posted_first() -> None:
    async def play() -> None:
        books: Any = Loop(in_flight=1)
        turn = Pacing().turn("local", books.now + 20)
        settlement = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, settlement.set)
        began = books.now
        # The bucket alone would take longer than anybody waits; the call in flight may refund.
        await turn.wait(books, refused(3_600_000), settlement)
        assert books.now - began < 10
        books.rates.keep({"local": {"tokens": 40}})
        books.spool.pending[1] = {}
        await turn.wait(books, refused(3_600_000), asyncio.Event())
        assert books.posted == 1
        turn.leave()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("milliseconds", "code", "retry_after"),
    [(90_001, "rate_limit_exceeded", 91), (20_000, "rate_limit_exceeded", 20), (None, "request_exceeds_rate", None)],
)
def test_what_waiting_does_not_help_is_refused(milliseconds: int | None, code: str, retry_after: int | None) -> None:
    async def play() -> None:
        books: Any = Loop()
        turn = Pacing().turn("local", books.now + 10)
        try:
            await turn.wait(books, refused(milliseconds), asyncio.Event())
        finally:
            turn.leave()

    with pytest.raises(RefusedError, match="team/pace") as caught:
        asyncio.run(play())
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (429, code, retry_after)


def test_who_stands_in_line_too_long_is_told_what_the_first_waits_for() -> None:
    async def play() -> None:
        books: Any = Loop()
        pacing = Pacing()
        first, second = pacing.turn("local", books.now + 10), pacing.turn("local", books.now + 0.02)
        event = asyncio.Event()
        waiting = asyncio.create_task(first.wait(books, refused(5000), event))
        await asyncio.sleep(0)
        try:
            await second.join(books)
        finally:
            event.set()
            await waiting
            first.leave()

    with pytest.raises(RefusedError, match="team/pace") as caught:
        asyncio.run(play())
    assert caught.value.retry_after == 5


def test_a_refusal_of_which_nothing_is_known_says_to_try_again() -> None:
    assert limited({}).retry_after == 1
