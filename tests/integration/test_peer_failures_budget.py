"""What broke elsewhere about budgets and holds (docs/peer-failures.md), each named after what must hold instead.

Where the failure is a meter's, real meters call a scripted provider, and the books are those of a real ledger service;
where it is a ledger's, two replicas share a database and are asked at once.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anthropic
import httpx
import openai
import pytest

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.contract import MeterModel
from almoner_core.wire import ErrorCode
from almoner_dev.scripted import Reply, Usage
from tests.support.books import TOKENS, USD, Books, Clock, code, key, record, replica
from tests.support.books import refused as refusal_of
from tests.support.meter import MODEL, Meter
from tests.support.metered import HI, MICRO, Team, chat, cost, message, refused, together, tried

FULL = Usage(input_tokens=60, output_tokens=500)
LEAST = Usage(input_tokens=60, output_tokens=16)
# What a call may use at most is what it uses, so that a hold that was too small would show.
GREEDY = [
    Reply(text="x " * 20, usage=FULL, latency_ms=20, match='"max_tokens":500[,}]'),
    Reply(text="x", usage=LEAST, latency_ms=20),
]


# --- parallel calls, and calls by other ways ------------------------------------------------------------------------


# BerriAI/litellm 34732
def test_parallel_calls_of_one_run_never_pass_its_budget(team: Team) -> None:
    team.provider.load(GREEDY)
    team.limit()
    budget = 12_000 * MICRO
    meter = team.run(limits={"usd": budget})
    calls = [partial((chat, message)[n % 2], meter, 500, stream=n % 4 > 1) for n in range(60)]
    answers = together(calls, 24)
    turned_away = refused(answers)
    assert 0 < len(turned_away) < 60
    # Anthropic's clients are told 402 where waiting is vain.
    assert {error.status_code for error in turned_away} <= {402, 429}
    assert team.asked() == 60 - len(turned_away), "what was refused never reached the provider"
    team.finish()
    state = team.account()
    assert state.spent == sum(row.cost_nanos for row in team.records()) <= budget
    assert (state.reserved, state.excess) == (0, 0)
    # Nor was it guarded to death: what is left does not pay for one more such call.
    assert budget - state.spent < cost(FULL) + 300 * MICRO


# BerriAI/litellm 12977, 13882
def test_every_client_and_every_path_spends_from_the_one_budget(team: Team) -> None:
    team.provider.load([Reply(usage=LEAST)])
    budget = 4000 * MICRO
    team.limit({"usd": budget})
    meter = team.run()
    roads = _roads(meter)
    refusals: dict[str, Any] = {}
    # Whatever the others have left over, each is used until it is refused.
    for name, call in roads.items():
        while name not in refusals:
            answer = tried(call)
            if isinstance(answer, Exception):
                refusals[name] = answer
    assert set(refusals) == set(roads)
    before = team.asked()
    again = together([call for call in roads.values() for _ in range(3)], 12)
    assert len(refused(again)) == len(again), "who has no money on one road has none on another"
    assert team.asked() == before
    for strange in ("audio/speech", "images/generations", "responses/../files", "batches"):
        assert httpx.post(f"{meter.url}/openai/v1/{strange}", json={"model": MODEL}).status_code in (400, 404)
    assert team.asked() == before, "what cannot be metered is not forwarded"
    team.finish()
    embedded = sum(request["path"].endswith("/embeddings") for request in team.provider.requests)
    bill = (before - embedded) * cost(LEAST) + embedded * 60 * MICRO
    assert team.account().spent == bill <= budget


def _roads(meter: Meter) -> dict[str, Callable[[], Any]]:
    """Ways to spend by, each with a client of its own."""

    def by_name() -> Any:
        with openai.OpenAI(base_url=f"{meter.url}/p/scripted/v1", api_key="x", max_retries=0) as client:
            return client.chat.completions.create(model=MODEL, messages=HI, max_tokens=16)

    def message_by_name() -> Any:
        with anthropic.Anthropic(base_url=f"{meter.url}/p/scripted", api_key="x", max_retries=0) as client:
            return client.messages.create(model=MODEL, messages=HI, max_tokens=16)

    def embeddings() -> Any:
        with openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0) as client:
            return client.embeddings.create(model=MODEL, input="hi", encoding_format="float")

    def plain(**headers: str) -> Any:
        body = {"model": MODEL, "messages": HI, "max_tokens": 16}
        answer = httpx.post(f"{meter.url}/openai/v1/chat/completions", json=body, headers=headers)
        return answer.raise_for_status().json()

    return {
        "chat": partial(chat, meter),
        "chat, streamed": partial(chat, meter, stream=True),
        "chat by the provider's name": by_name,
        "messages": partial(message, meter),
        "messages, streamed": partial(message, meter, stream=True),
        "messages by the provider's name": message_by_name,
        "embeddings": embeddings,
        "plain HTTP": plain,
        "plain HTTP with a key of one's own": partial(plain, authorization="Bearer sk-mine"),
        "plain HTTP with the other dialect's key": partial(plain, **{"x-api-key": "sk-mine"}),
    }


# BerriAI/litellm 40095
def test_first_requests_of_an_unknown_owner_at_once_pass_no_budget(books: Books) -> None:
    other = replica(books)
    account = key("each-owner", "newcomer")
    opens = [(books, other)[n % 2].open_command(accounts=[account], need={USD: 30}) for n in range(40)]
    assert {code(answer) for answer in books.run_all(opens[:8])} == {ErrorCode.NOT_FOUND}
    begin = threading.Barrier(9)

    def ask(number: int) -> list[Any]:
        begin.wait()
        return [(books, other)[number % 2].run_all([each])[0] for each in opens[number::8]]

    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask, number) for number in range(8)]
        begin.wait()
        books.limits("each-owner", subject="newcomer", limits={USD: 100})
        answers = [answer for each in asked for answer in each.result()]
    granted = [answer for answer in answers if isinstance(answer, wire.OpenAnswer)]
    turned_away = {code(answer) for answer in answers if not isinstance(answer, wire.OpenAnswer)}
    assert turned_away <= {ErrorCode.NOT_FOUND, ErrorCode.INSUFFICIENT}
    assert len(granted) <= 3
    assert books.state("each-owner", subject="newcomer").reserved == 30 * len(granted)
    other.close()


# kelos task budget admission
def test_runs_under_way_count_before_any_of_them_ends(books: Books) -> None:
    other = replica(books)
    books.limits(limits={USD: 1000, TOKENS: 500})
    begin = threading.Barrier(8)

    def ask(number: int) -> list[Any]:
        replicas = (books, other)
        begin.wait()
        return [replicas[number % 2].open(need={USD: 40, TOKENS: 10}) for _ in range(5)]

    with ThreadPoolExecutor(8) as pool:
        answers = [answer for each in pool.map(ask, range(8)) for answer in each]
    granted = [answer for answer in answers if isinstance(answer, wire.OpenAnswer)]
    # Nothing was spent yet, and none has ended: 25 fit, and the other 15 do not.
    assert len(granted) == 25
    assert {code(answer) for answer in answers if answer not in granted} == {ErrorCode.INSUFFICIENT}
    assert (books.state().spent, books.state().reserved) == (0, 1000)
    other.close()


# --- holds ----------------------------------------------------------------------------------------------------------


# BerriAI/litellm 30522, 27639
def test_clients_that_hang_up_leave_no_hold(team: Team) -> None:
    usage = Usage(input_tokens=10, output_tokens=30)
    team.provider.load([Reply(text="word " * 30, chunk_ms=10, latency_ms=100, usage=usage)])
    team.limit()
    meter = team.run()
    ways = [_read_one_piece, _lose_patience, _reset_after_sending, _reset_while_sending]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda number: ways[number % len(ways)](meter), range(48)))
    assert chat(meter) is not None
    team.finish()
    calls = team.asked()
    assert calls >= 12
    records = team.records()
    # Who hangs up is billed what the provider billed, once, and holds nothing afterwards.
    assert len(records) == calls
    assert {row.outcome for row in records} == {"cancelled", "ok"}
    state = team.account()
    assert (state.spent, state.reserved, state.excess) == (calls * cost(usage), 0, 0)


def _read_one_piece(meter: Meter) -> None:
    with openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0) as client:
        stream = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=50, stream=True)
        next(iter(stream))
        stream.close()


def _lose_patience(meter: Meter) -> None:
    with (
        contextlib.suppress(anthropic.APITimeoutError),
        anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="x", max_retries=0, timeout=0.05) as client,
    ):
        client.messages.create(model=MODEL, max_tokens=50, messages=HI)


_BODY = b'{"model":"test-model","max_tokens":50,"messages":[{"role":"user","content":"hi"}]}'


def _reset_after_sending(meter: Meter, share: float = 1.0) -> None:
    head = "POST /openai/v1/chat/completions HTTP/1.1\r\nHost: meter\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", meter.port)) as connection:
        # Closed with nothing to linger for: the peer gets a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        connection.sendall(f"{head}Content-Length: {len(_BODY)}\r\n\r\n".encode())
        connection.sendall(_BODY[: int(len(_BODY) * share)])


def _reset_while_sending(meter: Meter) -> None:
    _reset_after_sending(meter, 0.5)


# BerriAI/litellm 38647
def test_worst_case_holds_starve_no_budget_of_which_little_is_spent(team: Team) -> None:
    usage = Usage(input_tokens=10, output_tokens=5)
    team.provider.load([Reply(usage=usage, latency_ms=20)])
    # Room for two calls at their worst; 48 of them at what they really cost.
    budget = 3000 * MICRO
    team.limit({"usd": budget})
    meter = team.run()
    answers = together([partial(chat, meter, 500) for _ in range(48)], 12)
    assert refused(answers) == []
    assert {request["body"]["max_tokens"] for request in team.provider.requests} == {500}, "nobody had to ask for less"
    team.finish()
    assert (team.account().spent, team.account().reserved) == (48 * cost(usage), 0)
    assert 10 * budget < 48 * 1000 * MICRO


# BerriAI/litellm 35525
def test_an_unpriced_model_is_never_taken_for_free(team: Team) -> None:
    unpriced = [MeterModel(name="unpriced")]
    team.limit()
    under_money = team.run(models=unpriced)
    for call in (chat, message):
        for stream in (False, True):
            answer = tried(partial(call, under_money, stream=stream, model="unpriced"))
            assert isinstance(answer, Exception)
            assert "no known price" in str(answer)
    assert team.asked() == 0
    team.limit({"tokens": 10_000})
    without_money = team.run(models=unpriced)
    assert chat(without_money, model="unpriced").usage.total_tokens == 15
    team.finish()
    (entry,) = team.records()
    assert entry.cost_nanos is None, "unknown is not zero"
    assert (entry.total_tokens, team.account("tokens").spent) == (15, 15)


# --- windows --------------------------------------------------------------------------------------------------------


# BerriAI/litellm 22013, 7129
@pytest.mark.parametrize("period", BudgetPeriod)
def test_a_budget_resets_at_its_windows_end_and_neither_before_nor_never(
    books: Books, clock: Clock, period: BudgetPeriod
) -> None:
    zone: Any = {"period": period, "time_zone": "America/New_York"}
    books.limits(limits={USD: 100}, **zone)
    allotment = books.active(need={USD: 100})
    books.post(allotment, [record(1, 100)])
    # Created, told again, changed, started anew: what was spent stays spent.
    books.limits(limits={USD: 100}, generation=2, **zone)
    books.limits(limits={USD: 90}, generation=3, **zone)
    other = replica(books)
    books.limits(limits={USD: 100}, generation=4, **zone)
    for each in (books, other):
        seen = refusal_of(each.extend(allotment, {USD: 1})).refusal
        assert seen is not None
        assert seen.spent == 100
        left = seen.retry_after_seconds
    if period is BudgetPeriod.TOTAL:
        assert left is None
        clock.now += 10 * 366 * 86_400
        assert code(other.open(need={USD: 1})) is ErrorCode.INSUFFICIENT
    else:
        assert left is not None
        clock.now += left - 1
        assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT
        clock.now += 1
        assert other.extend(allotment, {USD: 100}).granted == {USD: 100}
        assert code(books.extend(allotment, {USD: 1})) is ErrorCode.INSUFFICIENT
        # Nobody looked for two windows and more: the next one is empty all the same.
        books.give_back(allotment, 1, {USD: 100}, final=True)
        clock.now += 2 * 32 * 86_400
        assert books.open(need={USD: 100}).granted == {USD: 100}
    other.close()


# envoyproxy/ai-gateway 2394
def test_a_stream_that_would_pass_the_limit_does_not_begin(team: Team) -> None:
    team.provider.load(GREEDY)
    budget = 2800 * MICRO
    team.limit({"usd": budget})
    meter = team.run()
    answers = [tried(partial((chat, message)[n % 2], meter, 500, stream=True)) for n in range(8)]
    turned_away = refused(answers)
    assert 0 < len(turned_away) < 6
    # Once refused, always refused; and a stream that began went to its end.
    assert turned_away == answers[-len(turned_away) :]
    assert team.asked() == 8 - len(turned_away)
    team.finish()
    state = team.account()
    assert state.spent == sum(row.cost_nanos for row in team.records()) <= budget
    assert (state.reserved, state.excess) == (0, 0)
