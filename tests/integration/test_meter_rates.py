"""Rates through the real meter and the real ledger service: what they let through is what a provider sees."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from almoner_core import wire
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.books import new_id
from tests.support.ledger_double import LedgerDouble
from tests.support.ledger_service import LedgerService, account_key, meter_token, open_item
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

HI: Any = [{"role": "user", "content": "hi"}]
PODS = ["pod-uid-1", "pod-uid-2", "pod-uid-3"]
PROVIDER_KEY = {"kind": "provider", "namespace": "team", "quota": "scripted"}
HOUR, MINUTE = 3600, 60
Rate = dict[str, Any]
MeterFor = Callable[..., Meter]


def rate(dimension: str, amount: int, per_seconds: int, capacity: int | None = None) -> Rate:
    return {"dimension": dimension, "amount": amount, "per_seconds": per_seconds, "capacity": capacity or amount}


class Ledger:
    """A ledger, the operator that leads it, and how far its limits' generations are."""

    def __init__(self, service: LedgerService) -> None:
        self.service = service
        self.epoch = service.epoch()
        self.generation = 0

    def limit(self, *rates: Rate, key: dict[str, str] | None = None) -> None:
        self.generation += 1
        account = {"key": key or account_key(), "generation": self.generation, "rates": list(rates)}
        if key is None:
            account["limits"] = {"usd": DOLLAR}
        body = {"epoch": self.epoch, "operation_id": new_id(), "accounts": [account]}
        self.service.ask("POST", "/v1/accounts:update", body)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with sqlite3.connect(self.service.directory / "ledger.db") as connection:
            return connection.execute(statement).fetchall()

    def bucket(self, dimension: str = "tokens") -> tuple[int, int]:
        """What was debited in all, and refunded."""
        ((debited, refunded),) = self.rows(f"SELECT debited, refunded FROM buckets WHERE dimension = '{dimension}'")
        return debited, refunded

    def audit(self) -> None:
        command = [sys.executable, "-m", "almoner_ledger", "verify"]
        environment = ledger_environment(self.service.database)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=PODS)
    try:
        running = Ledger(service.start())
        yield running
        running.audit()
    finally:
        service.close()


@pytest.fixture
def meter_for(tmp_path: Path, ledger: Ledger, provider: ScriptedProvider) -> Iterator[MeterFor]:
    """Opens and binds an allotment as the operator would, and starts the meter of its pod."""
    meters: list[Meter] = []

    def make(pod: str = PODS[0], **more: Any) -> Meter:
        item = open_item({"usd": 1000}, **more)
        (answer,) = ledger.service.open_items(ledger.epoch, [item])
        assert answer["error"] is None, answer
        ledger.service.bind(ledger.epoch, item["allotment"], pod)
        folder = tmp_path / pod
        folder.mkdir()
        config = meter_config(
            ledger.service.url,
            provider_config(provider.base_url),
            allotment=item["allotment"],
            execution_uid=item["execution"]["uid"],
        )
        meter = Meter(folder, config)
        (folder / "token").write_text(meter_token(pod))
        meters.append(meter)
        return meter.start()

    yield make
    for meter in meters:
        meter.discard()


def call(meter: Meter, output: int = 30, retries: int = 0) -> Any:
    with openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=retries) as client:
        return client.chat.completions.with_raw_response.create(model=MODEL, messages=HI, max_tokens=output)


def bound_of(ledger: Ledger, meter: Meter, output: int) -> int:
    """How many tokens the meter takes a call for: debited for one, as the ledger has it."""
    before = ledger.bucket()[0]
    call(meter, output)
    return ledger.bucket()[0] - before


def tried(meter: Meter, output: int = 30) -> int | openai.APIStatusError:
    """How many tokens a call used, or its refusal."""
    try:
        return int(call(meter, output).parse().usage.total_tokens)
    except openai.APIStatusError as error:
        return error


def refusals(answers: list[int | openai.APIStatusError]) -> list[openai.APIStatusError]:
    return [answer for answer in answers if not isinstance(answer, int)]


def test_five_parallel_calls_never_pass_the_tokens_of_a_minute(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    """Elsewhere five parallel calls under a limit of 100 tokens a minute used 663."""
    provider.load([Reply(usage=Usage(input_tokens=150, output_tokens=40), latency_ms=100)])
    ledger.limit(rate("tokens", 200, MINUTE))
    meter = meter_for()
    began = time.time()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: tried(meter), range(5)))
    used = sum(answer for answer in answers if isinstance(answer, int))
    assert 0 < used <= 200 + 200 * (time.time() - began) / MINUTE
    assert used == 190 * len(provider.requests)
    refused = refusals(answers)
    assert len(refused) == 5 - len(provider.requests) >= 3
    for error in refused:
        assert error.status_code == 429
        assert error.code == "rate_limit_exceeded"
        assert "team/quota lets 200 tokens through at once" in error.message
        assert error.response.headers["x-should-retry"] == "true"
        assert 1 <= int(error.response.headers["retry-after"]) <= MINUTE
    assert meter.stop() == 0, meter.log


def test_what_calls_did_not_use_lets_the_waiting_ones_go(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    provider.load([Reply(usage=Usage(input_tokens=10, output_tokens=5), latency_ms=50)])
    ledger.limit(rate("tokens", 360, HOUR))
    meter = meter_for()
    bound = bound_of(ledger, meter, 30)
    assert 180 < bound < 360
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: tried(meter), range(10)))
    # An hour's bucket does not refill in this test: only refunds let ten calls of that bound through.
    assert answers == [15] * 10, answers
    assert 11 * bound > 360 > 11 * 15
    assert meter.stop() == 0, meter.log
    debited, refunded = ledger.bucket()
    assert debited == 11 * bound
    assert debited - refunded == 11 * 15


def test_a_call_waits_for_the_bucket_and_the_pace_is_kept(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    ledger.limit(rate("requests", 5, 1, capacity=1))
    meter = meter_for()
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: tried(meter), range(6))) == [15] * 6
    # Seven calls in all take a second and a fifth to refill six of them; slowness can only make it longer.
    began = time.monotonic()
    for _ in range(6):
        assert tried(meter) == 15
    assert time.monotonic() - began > 0.9
    assert ledger.bucket("requests") == (12, 0)
    assert meter.stop() == 0, meter.log


def test_the_output_is_lowered_to_what_a_full_bucket_lets_through(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    ledger.limit(rate("tokens", 10_000, MINUTE, capacity=300))
    meter = meter_for()
    answer = call(meter, 500)
    lowered = int(answer.headers["x-almoner-output-limited"])
    assert 16 <= lowered < 300
    assert provider.requests[0]["body"]["max_tokens"] == lowered
    long: Any = [{"role": "user", "content": "word " * 100}]
    client = openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model=MODEL, messages=long, max_tokens=500)
    assert caught.value.code == "request_exceeds_rate"
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(provider.requests) == 1
    # A smaller bucket in mid-run: the ledger's refusal is how the meter learns of it.
    ledger.limit(rate("tokens", 10_000, MINUTE, capacity=200))
    assert int(call(meter, 500).headers["x-almoner-output-limited"]) < lowered
    assert meter.stop() == 0, meter.log


def test_tool_calls_have_rates_of_their_own(ledger: Ledger, meter_for: MeterFor) -> None:
    ledger.limit(rate("tool_calls", 3, HOUR))
    meter = meter_for()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: meter.post("/tools/calculator/calls", {}), range(8)))
    assert sorted(status for status, _ in answers) == [200] * 3 + [429] * 5
    assert {body["error"]["code"] for status, body in answers if status == 429} == {"rate_limit_exceeded"}
    # Model calls are not counted by it.
    assert tried(meter) == 15
    assert meter.stop() == 0, meter.log


def test_a_providers_rate_is_shared_by_all_runs(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    ledger.limit()
    ledger.limit(rate("requests", 4, HOUR), key=PROVIDER_KEY)
    meters = [meter_for(pod, accounts=[account_key(), PROVIDER_KEY]) for pod in PODS]
    with ThreadPoolExecutor(9) as pool:
        answers = list(pool.map(lambda number: tried(meters[number % 3]), range(9)))
    assert len(provider.requests) == 4
    refused = refusals(answers)
    assert len(refused) == 5
    assert all("provider team/scripted" in error.message for error in refused)
    claude = anthropic.Anthropic(base_url=f"{meters[0].url}/anthropic", api_key="x", max_retries=0)
    with pytest.raises(anthropic.RateLimitError) as caught:
        claude.messages.create(model=MODEL, max_tokens=50, messages=HI)
    assert json.loads(caught.value.response.text)["error"]["type"] == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) > 60
    for meter in meters:
        assert meter.stop() == 0, meter.log


def test_a_rate_that_comes_in_mid_run_binds(ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor) -> None:
    ledger.limit()
    meter = meter_for()
    assert tried(meter) == 15
    assert meter.get("/usage")["rates"] == []
    until(lambda: ledger.rows("SELECT count(*) FROM records") == [(1,)], 10, "the first record in the books")
    ledger.limit(rate("requests", 3, HOUR))
    # The answer to the next records tells of it; until then what is used counts all the same.
    assert tried(meter) == 15
    until(lambda: meter.get("/usage")["rates"], 10, "the meter to be told of the rate")
    answers = [tried(meter) for _ in range(4)]
    assert len(refusals(answers)) == 2
    ledger.limit()
    assert tried(meter) == 15
    assert meter.get("/usage")["rates"] == []
    assert meter.stop() == 0, meter.log


def test_a_slice_spares_exchanges_where_the_bucket_is_large(ledger: Ledger, meter_for: MeterFor) -> None:
    ledger.limit(rate("requests", 1000, MINUTE))
    meter = meter_for()
    began = time.monotonic()
    for _ in range(32):
        assert tried(meter) == 15
    seconds = time.monotonic() - began
    assert meter.stop() == 0, meter.log
    ((asked,),) = ledger.rows("SELECT count(*) FROM operations WHERE verb = 'extend' AND answer LIKE '%slice_ms%'")
    ((slices,),) = ledger.rows("SELECT count(*) FROM operations WHERE answer LIKE '%\"slice_ms\":1000%'")
    # Eight calls a slice, or as many as fit into its second; exchanges for money come on top.
    assert 4 <= slices <= 4 + seconds + 1
    assert asked >= slices
    debited, refunded = ledger.bucket("requests")
    assert (debited, refunded) == (8 * slices, 0)


def test_calls_that_fail_are_refunded(ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor) -> None:
    provider.load([Reply(status=500)])
    ledger.limit(rate("tokens", 500, HOUR))
    meter = meter_for()
    for _ in range(6):
        failure = tried(meter)
        assert isinstance(failure, openai.APIStatusError)
        assert failure.status_code == 500
    assert meter.stop() == 0, meter.log
    debited, refunded = ledger.bucket()
    assert debited == refunded > 500


def test_an_unmodified_client_comes_through_by_its_own_retries(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    ledger.limit(rate("requests", 1, 2, capacity=1))
    meter = meter_for()
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: call(meter, retries=2).parse().usage.total_tokens, range(3)))
    assert answers == [15] * 3
    assert meter.stop() == 0, meter.log


def test_a_ledger_that_is_killed_in_mid_run_neither_lets_calls_past_nor_refunds_twice(
    ledger: Ledger, provider: ScriptedProvider, meter_for: MeterFor
) -> None:
    ledger.limit(rate("tokens", 10_000, HOUR))
    meter = meter_for()
    bound = bound_of(ledger, meter, 30)
    ledger.service.kill()
    away = tried(meter, 29)
    # What is left of a slice serves for its second; nothing else goes through.
    if isinstance(away, openai.APIStatusError):
        assert away.status_code == 503
        assert away.code == "ledger_unreachable"
    ledger.service.start()
    assert tried(meter) == 15
    assert meter.stop() == 0, meter.log
    debited, refunded = ledger.bucket()
    assert refunded <= debited - 15 * len(provider.requests)
    assert bound > 15


class LosingLedger(LedgerDouble):
    """Counts tokens by a rate, and loses its answers to the first records, twice."""

    def __init__(self) -> None:
        super().__init__({"usd": DOLLAR}, first={"usd": DOLLAR // 2})
        self.debited = 0
        self.refunds: list[int] = []

    def _activate(self) -> dict[str, Any]:
        return {**super()._activate(), "rates": [{"provider": "", **rate("tokens", 10**6, HOUR)}]}

    def _extend(self, ask: wire.Extend) -> dict[str, Any]:
        debit = {str(dimension): amount for dimension, amount in ask.debit.items()}
        self.debited += debit.get("tokens", 0)
        return {**super()._extend(ask), "debited": debit, "slice_ms": 0}

    def _post(self, post: wire.PostRecords) -> dict[str, Any]:
        if not self.refunds:
            self.lose_answers = 2
        self.refunds += [sum(amounts.values()) for amounts in post.refunds.values()]
        return super()._post(post)


def test_refunds_whose_answer_is_lost_are_given_once(tmp_path: Path, provider: ScriptedProvider) -> None:
    with LosingLedger() as double:
        meter = Meter(tmp_path, meter_config(double.url, provider_config(provider.base_url)))
        with meter:
            assert tried(meter) == 15
            until(lambda: double.calls.count("records") >= 3, 10, "the records to be posted for the third time")
            assert tried(meter) == 15
            assert meter.stop() == 0, meter.log
    assert double.debited - sum(double.refunds) == 2 * 15
    assert len(double.refunds) == 2
