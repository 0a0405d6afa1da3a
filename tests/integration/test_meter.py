"""The real meter process between the real SDKs, unmodified, and a provider whose every byte is known.

The ledger beside it is a double with one account, so that a test can look into the books at any moment; it reads every
message with the wire's own models.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from almoner_dev import processes
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from almoner_runner.meter.free import AT_ONCE_MAX
from tests.support.calls import HI, MICRO, anthropic_client, openai_client, refused, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CARD, DOLLAR, KEY, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

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


def test_counting_tokens_is_paced(start: Callable[..., Meter]) -> None:
    """One pod's agent cannot hammer a provider for free; what costs money is not paced by it."""
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        body = {"model": MODEL, "messages": HI}
        with httpx.Client() as client:
            url = f"{meter.url}/anthropic/v1/messages/count_tokens"
            answers = [client.post(url, json=body) for _ in range(AT_ONCE_MAX * 4)]
        refusals = [answer for answer in answers if answer.status_code == 429]
        assert all(answer.status_code == 200 for answer in answers if answer not in refusals)
        assert len(answers) - len(refusals) >= AT_ONCE_MAX
        assert refusals, "four times what passes at once, faster than the bucket fills"
        assert {answer.headers["retry-after"] for answer in refusals} == {"1"}
        assert "cost nothing" in refusals[0].json()["error"]["message"]
        assert anthropic_client(meter).messages.create(model=MODEL, max_tokens=20, messages=HI).usage.input_tokens == 10
        settled(meter, ledger, 1)


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

        def is_refused() -> bool:
            return refused(meter, openai.RateLimitError, "being stopped")

        until(is_refused, 5, "the cancelled run's calls to be refused")
        before = len(provider.requests)
        assert is_refused()
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
        status, body = meter.post("/anthropic/v1/messages", {**chat, "max_tokens": 5, "mcp_servers": ["x"]})
        assert status == 400
        assert "mcp_servers" in body["error"]["message"]
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b"\xff{").status_code == 400
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b"[1]").status_code == 400
        huge = httpx.post(f"{meter.url}/openai/v1/chat/completions", content=b" " * 50_000_001)
        assert huge.status_code == 413
        assert huge.json()["error"]["code"] == "body_too_large"
    assert not provider.requests


def test_a_request_with_two_meanings_is_refused_before_anything_is_held(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    twice = b'{"model":"test-model","max_tokens":100000,"messages":[{"role":"user","content":"hi"}],"max_tokens":7}'
    deep = b'{"model":"test-model","max_tokens":7,"messages":[],"tools":[' + b'{"a":[' * 5000 + b"]}" * 5000 + b"]}"
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        for route in (
            "/openai/v1/chat/completions",
            "/openai/v1/responses",
            "/openai/v1/embeddings",
            "/anthropic/v1/messages",
            "/anthropic/v1/messages/count_tokens",
            "/p/scripted/v1/chat/completions",
        ):
            answer = httpx.post(meter.url + route, content=twice)
            assert (answer.status_code, "'max_tokens' is given twice" in answer.text) == (400, True), route
            answer = httpx.post(meter.url + route, content=deep)
            assert (answer.status_code, "nested deeper than 128 levels" in answer.text) == (400, True), route
        for route in ("/tools/calculator/calls", "/progress"):
            answer = httpx.post(meter.url + route, content=b'{"units":' + b"[" * 500 + b"]" * 500 + b"}")
            assert (answer.status_code, "nested deeper" in answer.text) == (400, True), route
        assert meter.get("/usage")["used"]["requests"] == 0
    assert not provider.requests
    assert not ledger.records


def test_a_larger_window_that_a_header_asks_for_is_held(start: Callable[..., Meter]) -> None:
    stored = [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]
    body = {"model": MODEL, "max_tokens": 16, "messages": stored}
    with LedgerDouble({"usd": 500_000 * MICRO}) as ledger:
        meter = start(ledger)
        assert meter.post("/anthropic/v1/messages", body)[0] == 200
        for lines in (["context-1m-2025-08-07"], ["files-api-2025-04-14", "context-1m-2025-08-07"]):
            headers = [("anthropic-beta", line) for line in lines]
            answer = httpx.post(f"{meter.url}/anthropic/v1/messages", json=body, headers=headers)
            assert (answer.status_code, "it could use up to $1.25" in answer.text) == (402, True), answer.text
        settled(meter, ledger, 1)


def test_the_clients_spelling_reaches_the_provider(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    """Found by a trial: numbers that were written anew grew fourfold after the call was bounded."""
    numbers = b"[" + b",".join([b"1e15"] * 1000) + b"]"
    tool = b'{"type":"function","function":{"name":"f","parameters":{"type":"object","enum":' + numbers + b"}}}"
    body = b'{"model":"test-model","messages":[{"role":"user","content":"\\u00e9"}],"tools":[' + tool + b"]}"
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=body).status_code == 200
        settled(meter, ledger, 1)
    sent = body[:-1] + b',"max_tokens":2000}'
    assert provider.requests[0]["text"].encode() == sent


# C07 A
def test_half_an_emoji_is_replaced_and_charged_as_what_it_was(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    content = r'{"model":"test-model","max_tokens":50,"messages":[{"role":"user","content":"abc \ud83d"}]}'
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        assert httpx.post(f"{meter.url}/openai/v1/chat/completions", content=content.encode()).status_code == 200
        settled(meter, ledger, 1)
        assert ledger.records[1].outcome == "ok"
        # And in a report, where it would end the meter.
        assert httpx.post(f"{meter.url}/progress", content=rb'{"step":1,"message":"abc \ud83d"}').status_code == 202
        until(lambda: ledger.progress, 5, "the report in the ledger")
        assert ledger.progress[0].message == "abc \ufffd"
    assert provider.requests[0]["body"]["messages"][0]["content"] == "abc \ufffd"
    assert ledger.used()["usd"] == (10 + 2 * 5) * MICRO


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
