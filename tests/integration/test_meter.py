"""The real meter process between the real SDKs, unmodified, and a provider whose every byte is known.

The ledger beside it is a double with one account, so that a test can look into the books at any moment; it reads every
message with the wire's own models. What broke elsewhere (design: peer-failures) must hold here, under the same names.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from almoner_core.contract import MeterModel
from almoner_dev import processes
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CARD, DOLLAR, KEY, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

HI: Any = [{"role": "user", "content": "hi"}]
# A body that ends too early, in the words of whichever HTTP library an SDK brings.
BROKEN = (httpx.TransportError, httpx2.TransportError, openai.APIConnectionError, anthropic.APIConnectionError)
MICRO = 1000  # nano-dollars: the price of one token of input; output costs two


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider([Reply(text="one two three", usage=Usage(input_tokens=10, output_tokens=5))]) as scripted:
        yield scripted


@pytest.fixture
def start(tmp_path: Path, provider: ScriptedProvider) -> Iterator[Callable[..., Meter]]:
    """Starts a meter for a ledger; everything is stopped afterwards."""
    meters: list[Meter] = []

    def make(ledger: LedgerDouble, *, ready: bool = True, model: Any = None, **changes: Any) -> Meter:
        models = {} if model is None else {"models": (model,)}
        config = meter_config(ledger.url, provider_config(provider.base_url, **models), **changes)
        meter = Meter(tmp_path, config)
        meters.append(meter)
        if ready:
            meter.start()
        return meter

    yield make
    for meter in meters:
        meter.discard()  # the ledger is gone already, and a last word to nobody takes its time


def openai_client(meter: Meter, *, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="placeholder", max_retries=retries)


def anthropic_client(meter: Meter, *, retries: int = 0) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="placeholder", max_retries=retries)


def settled(meter: Meter, ledger: LedgerDouble, calls: int) -> None:
    """Waits until the ledger has so many records, and nothing is in flight any more."""
    until(lambda: len(ledger.records) == calls, 10, f"{calls} records in the ledger")
    until(lambda: not any(meter.get("/usage")["in_flight"].values()), 5, "nothing in flight")


# --- the main road ----------------------------------------------------------------------------------------------------


def test_unmodified_sdks_plain_and_streamed(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        plain = openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert plain.choices[0].message.content == "one two three"
        chunks = list(openai_client(meter).chat.completions.create(model=MODEL, messages=HI, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "one two three"
        message = anthropic_client(meter).messages.create(model=MODEL, max_tokens=50, messages=HI)
        assert message.content[0].text == "one two three"  # type: ignore[union-attr]
        with anthropic_client(meter).messages.stream(model=MODEL, max_tokens=50, messages=HI) as stream:
            assert "".join(stream.text_stream) == "one two three"
        settled(meter, ledger, 4)
        assert meter.stop() == 0
    assert ledger.used() == {"usd": 4 * (10 + 2 * 5) * MICRO, "tokens": 60, "tool_calls": 0, "requests": 4}
    assert [record.outcome for record in ledger.records.values()] == ["ok"] * 4
    assert ledger.final is not None
    assert ledger.final.settled == ledger.used()
    assert meter.last_word["totals"]["cost_nanos"] == ledger.used()["usd"]
    assert meter.last_word["final"] is True


def test_the_usage_event_is_hidden_unless_it_was_asked_for(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        create = openai_client(meter).chat.completions.create
        hidden = list(create(model=MODEL, messages=HI, stream=True))
        assert all(chunk.choices for chunk in hidden)
        shown = list(create(model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}))
        assert shown[-1].usage is not None
        assert shown[-1].usage.total_tokens == 15
        settled(meter, ledger, 2)
    assert ledger.used()["usd"] == 2 * 20 * MICRO


def test_embeddings_are_metered(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        answer = openai_client(meter).embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
        assert len(answer.data) == 2
        settled(meter, ledger, 1)
    assert ledger.records[1].resource_type == "embedding"
    assert ledger.used()["usd"] == 10 * MICRO


def test_models_and_count_tokens_cost_nothing(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": 0}) as ledger:
        meter = start(ledger)
        assert [model.id for model in openai_client(meter).models.list()] == [MODEL]
        assert [model.id for model in anthropic_client(meter).models.list()] == [MODEL]
        assert openai_client(meter).models.retrieve(MODEL).id == MODEL
        assert anthropic_client(meter).messages.count_tokens(model=MODEL, messages=HI).input_tokens > 0
    assert not ledger.records


def test_a_provider_is_reached_by_its_name(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        by_name = openai.OpenAI(base_url=f"{meter.url}/p/scripted/v1", api_key="x", max_retries=0)
        assert by_name.chat.completions.create(model=MODEL, messages=HI).usage is not None
        claude = anthropic.Anthropic(base_url=f"{meter.url}/p/scripted", api_key="x", max_retries=0)
        assert claude.messages.create(model=MODEL, max_tokens=20, messages=HI).usage.input_tokens == 10
        settled(meter, ledger, 2)


def test_the_key_stays_in_the_meter_and_is_read_again(
    start: Callable[..., Meter], provider: ScriptedProvider, tmp_path: Path
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI, extra_headers={"cookie": "a=b"})
        anthropic_client(meter).messages.create(model=MODEL, max_tokens=20, messages=HI)
        first, second = (request["headers"] for request in provider.requests)
        assert first["authorization"] == f"Bearer {KEY}"
        assert second["x-api-key"] == KEY
        assert "placeholder" not in json.dumps([first, second])
        assert "cookie" not in first
        (tmp_path / "providers" / "scripted" / "key").write_text("sk-rotated-key")
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert provider.requests[-1]["headers"]["authorization"] == "Bearer sk-rotated-key"
        (tmp_path / "providers" / "scripted" / "key").unlink()
        with pytest.raises(openai.InternalServerError, match="cannot be read"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        meter.stop()
    assert ledger.tokens == {"Bearer the-token"}
    everything = meter.log + json.dumps(meter.last_word) + "".join(r.model_dump_json() for r in ledger.records.values())
    spooled = (tmp_path / "spool" / "spool.jsonl").read_text()
    for secret in (KEY, "sk-rotated-key", "the-token"):
        assert secret not in everything
        assert secret not in spooled


# --- what broke elsewhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("limit", [{"usd": 30_000 * MICRO}, {"tokens": 20_000}, {"requests": 7}])
def test_parallel_calls_never_pass_the_budget(
    start: Callable[..., Meter], provider: ScriptedProvider, limit: dict[str, int], streamed: bool
) -> None:
    # Every call uses all that its bound allows of output, so that a hold that was too small would show. Towards the end
    # the meter lowers the maximum.
    full = Reply(text="x " * 20, usage=Usage(input_tokens=60, output_tokens=500), latency_ms=20)
    full = full.model_copy(update={"match": '"max_tokens":500[,}]'})
    provider.load([full, Reply(usage=Usage(input_tokens=60, output_tokens=16), latency_ms=20)])
    with LedgerDouble(limit) as ledger:
        ledger.chunk = 0
        meter = start(ledger)
        client = openai_client(meter)
        refusals: list[str | None] = []

        def call(_: int) -> bool:
            try:
                answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=500, stream=streamed)
                if streamed:
                    list(answer)
            except openai.RateLimitError as error:
                refusals.append(error.code)
                return False
            return True

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(call, range(40)))
        settled(meter, ledger, sum(answers))
        (dimension, most), *_ = limit.items()
        assert 0 < ledger.used()[dimension] <= most
        assert len(provider.requests) == sum(answers), "what was refused never reached the provider"
        assert set(refusals) == {"insufficient_quota"}
        # Nothing of the budget was starved: what is left does not cover one more call.
        one = {"usd": 300 * MICRO, "tokens": 200, "requests": 1}[dimension]
        assert most - ledger.used()[dimension] < one


def test_cancelled_clients_leave_no_hold_and_their_call_is_billed(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    slow = Reply(text="word " * 30, chunk_ms=20, usage=Usage(input_tokens=10, output_tokens=30))
    provider.load([slow])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        stream = openai_client(meter).chat.completions.create(model=MODEL, messages=HI, stream=True)
        next(iter(stream))
        stream.close()
        settled(meter, ledger, 1)
        assert ledger.records[1].outcome == "cancelled"
        assert ledger.records[1].tokens.output == 30
        provider.load([Reply(latency_ms=400, usage=Usage(input_tokens=10, output_tokens=30))])
        with pytest.raises(openai.APITimeoutError):
            openai_client(meter).with_options(timeout=0.1).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 2)
        assert ledger.records[2].outcome == "cancelled"
        assert ledger.used()["usd"] == 2 * (10 + 60) * MICRO


def test_an_unpriced_model_is_refused_under_a_money_budget(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger, model=MeterModel(name="unpriced"))
        for name in ("unpriced", "never-heard-of"):
            with pytest.raises(openai.NotFoundError, match="no known price"):
                openai_client(meter).chat.completions.create(model=name, messages=HI)
            with pytest.raises(anthropic.NotFoundError, match="no known price"):
                anthropic_client(meter).messages.create(model=name, max_tokens=20, messages=HI)
    assert not provider.requests
    assert not ledger.records


def test_unknown_cost_is_not_zero(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"tokens": 100_000}) as ledger:
        meter = start(ledger, model=MeterModel(name="unpriced"))
        openai_client(meter).chat.completions.create(model="unpriced", messages=HI)
        settled(meter, ledger, 1)
    assert ledger.records[1].cost_nanos is None
    assert ledger.records[1].tokens.input == 10


def test_retries_do_not_double_count(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    provider.load([Reply(status=500), Reply(status=429, headers={"retry-after": "0"}), Reply()])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        answer = openai_client(meter, retries=3).chat.completions.create(model=MODEL, messages=HI)
        assert answer.usage is not None
        settled(meter, ledger, 3)
    assert [record.outcome for record in ledger.records.values()] == ["error", "error", "ok"]
    assert [record.cost_nanos for record in ledger.records.values()] == [0, 0, 20 * MICRO]
    assert ledger.used()["tokens"] == 15
    assert ledger.records[1].error == "HTTP 500"


def test_a_limit_stops_the_stream_before_the_call_and_not_after(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": 100 * MICRO}) as ledger:
        meter = start(ledger)
        with pytest.raises(openai.RateLimitError) as refused:
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, stream=True)
        assert refused.value.code == "insufficient_quota"
        assert "team/budget" in str(refused.value)
        with (
            pytest.raises(anthropic.RateLimitError, match="insufficient_quota"),
            anthropic_client(meter).messages.stream(model=MODEL, max_tokens=500, messages=HI),
        ):
            pass
    assert not provider.requests


def test_sdks_do_not_retry_a_refusal_in_vain(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": 100 * MICRO}) as ledger:
        meter = start(ledger)
        with pytest.raises(openai.RateLimitError) as refused:
            openai_client(meter, retries=5).chat.completions.create(model=MODEL, messages=HI)
        assert refused.value.response.headers["x-should-retry"] == "false"
        with pytest.raises(anthropic.RateLimitError):
            anthropic_client(meter, retries=5).messages.create(model=MODEL, max_tokens=100, messages=HI)
        metrics = meter.get_health("/metrics")[1]
        assert 'almoner_meter_refused_total{code="insufficient_quota"} 2' in metrics


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_cached_tokens_are_billed_once(
    start: Callable[..., Meter], provider: ScriptedProvider, dialect: str, streamed: bool
) -> None:
    usage = Usage(input_tokens=1000, cached_input_tokens=900, output_tokens=10)
    provider.load([Reply(text="cached", usage=usage)])
    text: Any = [{"role": "user", "content": "x" * 1000}]
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        if dialect == "openai":
            answer = openai_client(meter).chat.completions.create(model=MODEL, messages=text, stream=streamed)
            if streamed:
                list(answer)
        elif streamed:
            with anthropic_client(meter).messages.stream(model=MODEL, max_tokens=50, messages=text) as stream:
                stream.get_final_message()
        else:
            anthropic_client(meter).messages.create(model=MODEL, max_tokens=50, messages=text)
        settled(meter, ledger, 1)
    assert ledger.records[1].tokens.cached_input == 900
    assert ledger.records[1].tokens.input == 1000
    assert ledger.used()["usd"] == 100 * 1000 + 900 * 100 + 10 * 2000


def test_parallel_tool_calls_never_pass_the_tool_limit(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"tool_calls": 10}) as ledger:
        ledger.chunk = 3
        meter = start(ledger)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: meter.post("/tools/calculator/calls", {}), range(48)))
        granted = [body for status, body in answers if status == 200]
        refused = [body for status, body in answers if status == 429]
        assert len(granted) == 10
        assert len(refused) == 38
        assert granted[0] == {"granted": True}
        assert refused[0]["error"]["code"] == "insufficient_quota"
        settled(meter, ledger, 10)
        assert meter.post("/tools/web_search/calls", {})[0] == 404
    assert ledger.used()["tool_calls"] == 10
    assert ledger.used()["requests"] == 0


# --- what a provider may do -------------------------------------------------------------------------------------------


def test_a_stream_that_breaks_is_estimated_and_looks_broken(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    provider.load([Reply(text="one two three four", break_after=3)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        with pytest.raises(BROKEN):
            list(openai_client(meter).chat.completions.create(model=MODEL, messages=HI, stream=True, max_tokens=100))
        settled(meter, ledger, 1)
        record = ledger.records[1]
        assert record.outcome == "estimated"
        assert record.tokens.output == 100
        with (
            pytest.raises(BROKEN),
            anthropic_client(meter).messages.stream(model=MODEL, max_tokens=100, messages=HI) as stream,
        ):
            stream.get_final_message()
        settled(meter, ledger, 2)
        # Anthropic says the input first: only the output is taken from the hold.
        assert ledger.records[2].outcome == "estimated"
        assert (ledger.records[2].tokens.input, ledger.records[2].tokens.output) == (10, 100)
        assert ledger.records[2].cost_nanos == (10 + 200) * MICRO


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_without_usage_is_estimated(
    start: Callable[..., Meter], provider: ScriptedProvider, streamed: bool
) -> None:
    provider.load([Reply(usage=None)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        answer = openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=40, stream=streamed)
        if streamed:
            list(answer)
        settled(meter, ledger, 1)
    assert ledger.records[1].outcome == "estimated"
    assert ledger.records[1].tokens.output == 40
    assert "usage" in (ledger.records[1].error or "")


def test_errors_pass_through_unchanged_and_cost_nothing(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        provider.load([Reply(status=401, message="bad key", headers={"x-request-id": "abc"})])
        with pytest.raises(openai.AuthenticationError, match="bad key") as wrong:
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert wrong.value.request_id == "abc"
        provider.load([Reply(status=529, message="busy")])
        with pytest.raises(anthropic.InternalServerError, match="busy"):
            anthropic_client(meter).messages.create(model=MODEL, max_tokens=20, messages=HI)
        settled(meter, ledger, 2)
    assert ledger.used() == {"usd": 0, "tokens": 0, "tool_calls": 0, "requests": 2}


def test_what_a_gateway_lost_sight_of_may_be_billed_and_is_held(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        provider.load([Reply(status=504, message="upstream timed out")])
        with pytest.raises(openai.InternalServerError, match="upstream timed out"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=40)
        settled(meter, ledger, 1)
    assert ledger.records[1].outcome == "estimated"
    assert ledger.records[1].tokens.output == 40
    assert ledger.used()["usd"] > 0


def test_a_provider_that_cannot_be_reached_costs_nothing(start: Callable[..., Meter], tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{processes.free_port('127.0.0.1')}"
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = Meter(tmp_path, meter_config(ledger.url, provider_config(gone)))
        with meter:
            with pytest.raises(openai.InternalServerError, match="cannot be reached"):
                openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
            settled(meter, ledger, 1)
    assert ledger.used() == {"usd": 0, "tokens": 0, "tool_calls": 0, "requests": 0}
    assert ledger.records[1].outcome == "error"


def test_a_bill_above_the_bound_is_recorded_and_stops_the_run(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    provider.load([Reply(usage=Usage(input_tokens=10, output_tokens=5_000_000))])
    with LedgerDouble({"usd": 2000 * MICRO}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=100)
        settled(meter, ledger, 1)
        assert ledger.used()["usd"] == (10 + 10_000_000) * MICRO
        with pytest.raises(openai.RateLimitError, match="above"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=1)


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_lower_output_maximum_before_a_refusal(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": 1000 * MICRO}) as ledger:
        meter = start(ledger)
        raw = openai_client(meter).chat.completions.with_raw_response.create(model=MODEL, messages=HI, max_tokens=900)
        limited = int(raw.headers["x-almoner-output-limited"])
        assert 16 <= limited < 500
        assert provider.requests[-1]["body"]["max_tokens"] == limited
        settled(meter, ledger, 1)
        assert ledger.records[1].metadata["output_limited_from"] == 900


def test_a_call_waits_for_calls_in_flight_to_settle(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    provider.load([Reply(latency_ms=300, usage=Usage(input_tokens=10, output_tokens=5))])
    with LedgerDouble({"usd": 1500 * MICRO}) as ledger:
        ledger.chunk = 0
        meter = start(ledger)
        client = openai_client(meter)
        with ThreadPoolExecutor(2) as pool:
            # Each could use about 1,200: the second fits only once the first has settled to 20.
            calls = [
                pool.submit(client.chat.completions.with_raw_response.create, model=MODEL, messages=HI, max_tokens=500)
                for _ in range(2)
            ]
            answers = [call.result() for call in calls]
        assert not any("x-almoner-output-limited" in answer.headers for answer in answers)
        settled(meter, ledger, 2)
    assert ledger.used()["usd"] == 40 * MICRO


def test_a_cap_on_one_request(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.max_per_request = {"tokens": 300}
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=900)
        assert provider.requests[-1]["body"]["max_tokens"] < 300
        with pytest.raises(openai.RateLimitError, match="one call may use at most 300 of tokens"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 400}])


def test_idle_money_goes_back_after_a_second_but_not_before_the_first_call(start: Callable[..., Meter]) -> None:
    first = 5_000 * MICRO
    with LedgerDouble({"usd": DOLLAR}, first={"usd": first}) as ledger:
        meter = start(ledger)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.6, 3, "more than a second without a call")
        assert ledger.held["usd"] == first
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        until(lambda: ledger.held["usd"] == 0, 5, "the idle money in the ledger again")
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 2)


def test_a_recall_returns_what_is_idle_at_once(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        ledger.recall = True
        until(lambda: ledger.held["usd"] == 0, 3, "the recalled money in the ledger")


def test_cancel_starts_no_further_call(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        ledger.cancel = True

        def refused() -> bool:
            try:
                openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
            except openai.RateLimitError as error:
                return "being stopped" in str(error)
            return False

        until(refused, 5, "the cancelled run's calls to be refused")
        before = len(provider.requests)
        assert refused()
        assert len(provider.requests) == before


def test_a_window_that_ended_is_left_before_the_next_call(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}, first={"usd": 10_000 * MICRO}) as ledger:
        ledger.window_ends_in = 1
        meter = start(ledger)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1.1, 3, "the window's end")
        ledger.window_ends_in = 3600
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert ledger.calls.index("return") < ledger.calls.index("extend"), "the old grant went back first"
        settled(meter, ledger, 1)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_kill_9_and_restart_post_what_was_in_flight_as_estimated(
    start: Callable[..., Meter], provider: ScriptedProvider, tmp_path: Path
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 1)
        provider.load([Reply(hang=True)])
        thread = threading.Thread(target=_ignoring_errors(meter), daemon=True)
        thread.start()
        until(lambda: len(provider.requests) == 2, 5, "the call at the provider")
        meter.kill()
        thread.join(5)
        meter.start()
        settled(meter, ledger, 2)
        record = ledger.records[2]
        assert record.outcome == "estimated"
        assert record.tokens.output == 77
        # The hold in full: all input at its dearest rate, that of a cache write.
        assert record.cost_nanos == record.tokens.input * 1250 + 2 * 77 * MICRO
        provider.load([Reply()])
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 3)
        meter.stop()
    assert meter.last_word["last_sequence"] == 3
    assert meter.last_word["totals"]["cost_nanos"] == ledger.used()["usd"]


def _ignoring_errors(meter: Meter) -> Callable[[], None]:
    def call() -> None:
        try:
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=77)
        except openai.APIConnectionError:
            return

    return call


def test_kill_9_before_the_records_are_posted_loses_none(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}, first={"usd": 100_000 * MICRO}) as ledger:
        meter = start(ledger)
        ledger.away = True
        for _ in range(5):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert not ledger.records
        meter.kill()
        ledger.away = False
        meter.start()
        settled(meter, ledger, 5)
    assert ledger.used()["usd"] == 5 * 20 * MICRO


def test_lost_answers_of_the_ledger_change_nothing(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.chunk = 0
        meter = start(ledger)
        for _ in range(6):
            ledger.lose_answers = 1
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        ledger.lose_answers = 0
        settled(meter, ledger, 6)
        until(lambda: ledger.held["usd"] == 0, 5, "everything back")
        meter.stop()
    assert ledger.used()["usd"] == 6 * 20 * MICRO


def test_without_its_lease_the_meter_starts_no_call(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": DOLLAR}, first={"usd": 100_000 * MICRO}) as ledger:
        ledger.lease_seconds = 1
        meter = start(ledger)
        ledger.away = True

        def refused() -> bool:
            try:
                openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
            except openai.InternalServerError as error:
                return "ledger" in str(error)
            return False

        until(refused, 5, "calls to be refused without a lease")
        before = len(provider.requests)
        assert refused()
        assert len(provider.requests) == before
        ledger.away = False
        until(lambda: not refused(), 5, "calls once the ledger is back")


def test_the_probe_waits_for_the_allotment_and_the_input(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.bound = False
        meter = start(ledger, ready=False)
        meter.spawn()
        until(lambda: "activate" in ledger.calls, 10, "the first try")
        assert meter.get_health("/healthz")[0] == 503
        assert not (tmp_path / "input" / "input").exists()
        ledger.bound = True
        until(meter.healthy, 10, "health")
        assert (tmp_path / "input" / "input").read_text() == "the input"
        assert httpx.get(f"{meter.url}/input").text == "the input"


def test_a_superseded_meter_ends_and_says_why(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.state = "void"
        meter = start(ledger, ready=False)
        child = meter.spawn()
        until(lambda: not child.running(), 10, "the end of the meter")
        assert child.stop() == 69
        assert "wrong_state" in meter.last_word["error"]
        assert not (meter.folder / "input" / "input").exists()


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_settles_sends_the_output_and_returns_everything(
    start: Callable[..., Meter], provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.load([Reply(latency_ms=500, usage=Usage(input_tokens=10, output_tokens=5))])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        (tmp_path / "output" / "output").write_bytes("the answer: 42 \xff é".encode("latin-1"))
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(openai_client(meter).chat.completions.create, model=MODEL, messages=HI)
            until(lambda: len(provider.requests) == 1, 5, "the call at the provider")
            assert meter.stop() == 0
            assert call.result().usage is not None
    assert ledger.records[1].outcome == "ok"
    assert ledger.output == "the answer: 42 \ufffd \ufffd"
    assert ledger.final is not None
    assert ledger.final.last_sequence == 1
    assert ledger.state == "closed"


def test_an_output_that_is_a_link_is_not_read(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        (tmp_path / "output" / "output").symlink_to(tmp_path / "token")
        assert meter.stop() == 0
    assert ledger.output is None
    assert "output cannot be opened" in meter.log


def test_an_output_that_blocks_is_not_waited_for(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        os.mkfifo(tmp_path / "output" / "output")
        assert meter.stop() == 0
    assert ledger.output is None
    assert "not a regular file" in meter.log


def test_after_prestop_calls_are_refused_only_when_time_is_short(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 1, "prestop_token": "abc"})
        assert meter.get_health("/prestop")[0] == 403
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert meter.get_health("/prestop", {"x-almoner-prestop": "abc"})[0] == 200
        with pytest.raises(openai.InternalServerError, match="ending"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)


def test_progress_is_forwarded_at_most_once_a_second_and_the_last_is_not_lost(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        for step in range(50):
            status, _ = meter.post("/progress", {"step": step, "total": 50, "metrics": {"loss": 0.5}})
            assert status == 202
        assert meter.post("/progress", {"step": -1})[0] == 400
        assert meter.post("/progress", {"steps": 1})[0] == 400
        until(lambda: bool(ledger.progress) and ledger.progress[-1].step == 49, 5, "the last report")
        assert len(ledger.progress) <= 4
        meter.post("/progress", {"step": 50, "message": "done"})
        meter.stop()
    assert ledger.progress[-1].step == 50
    assert ledger.progress[0].metrics == {"loss": "0.5"}


# --- bad input --------------------------------------------------------------------------------------------------------


def test_what_is_unknown_is_refused_by_name(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        status, body = meter.post("/openai/v1/audio/speech", {})
        assert (status, body["error"]["code"]) == (404, "unknown_route")
        assert "audio/speech" in body["error"]["message"]
        status, body = meter.post("/anthropic/v1/messages/batches", {})
        assert (status, body["type"]) == (404, "error")
        chat = {"model": MODEL, "messages": HI}
        status, body = meter.post("/openai/v1/chat/completions", {**chat, "web_search_options": {}})
        assert (status, body["error"]["param"]) == (400, "web_search_options")
        status, body = meter.post("/openai/v1/chat/completions", {**chat, "max_tokens": "many"})
        assert (status, body["error"]["param"]) == (400, "max_tokens")
        status, body = meter.post("/anthropic/v1/messages", {**chat, "max_tokens": 5, "mcp_servers": []})
        assert status == 400
        assert "mcp_servers" in body["error"]["message"]
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b"\xff{").status_code == 400
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b"[1]").status_code == 400
        huge = httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b" " * (9 * 1024 * 1024))
        assert huge.status_code == 413
        assert huge.json()["error"]["code"] == "body_too_large"
    assert not provider.requests


def test_a_key_given_twice_means_what_was_bounded(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    body = b'{"model":"test-model","max_tokens":100000,"messages":[{"role":"user","content":"hi"}],"max_tokens":7}'
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=body).status_code == 200
    assert provider.requests[0]["body"]["max_tokens"] == 7


def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path) -> None:
    meter = Meter(tmp_path, meter_config("http://127.0.0.1:1", provider_config("http://127.0.0.1:1")))
    broken = json.loads(meter.environment["ALMONER_METER_CONFIG"])
    del broken["allotment"]
    child = processes.start(
        "meter",
        [sys.executable, "-m", "almoner_runner.meter"],
        log_path=tmp_path / "meter-1.log",
        env={"PATH": os.environ["PATH"], **meter.environment, "ALMONER_METER_CONFIG": json.dumps(broken)},
    )
    until(lambda: not child.running(), 10, "the end of the meter")
    assert child.stop() == 78
    assert "config.allotment: is needed" in meter.log


def test_prices_of_the_test_card_are_as_the_tests_say() -> None:
    assert CARD.tiers[0].input == 1000 * 1_000_000
    assert CARD.tiers[0].output == 2000 * 1_000_000
