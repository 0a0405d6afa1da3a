"""What broke elsewhere (design: peer-failures) holds in the real meter, under the same names."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import httpx
import openai
import pytest

from almoner_core.contract import MeterModel
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import HI, MICRO, anthropic_client, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter


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
            pytest.raises(anthropic.APIStatusError, match=r"402.*billing_error.*insufficient_quota"),
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
        with pytest.raises(anthropic.APIStatusError, match="402"):
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


def test_a_refusal_speaks_of_dollars_and_of_what_is_truly_left(start: Callable[..., Meter]) -> None:
    """Fault F5: what this run holds and does not use is left for it as well."""
    with LedgerDouble({"usd": 5000 * MICRO}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=1000)
        long: Any = [{"role": "user", "content": "x" * 9000}]
        with pytest.raises(openai.RateLimitError) as refused:
            openai_client(meter).chat.completions.create(model=MODEL, messages=long, max_tokens=16)
        settled(meter, ledger, 1)
        spent = ledger.used()["usd"]
    said = str(refused.value)
    assert re.search(r"of money it could use up to \$0\.0\d+, and \$0\.00\d+ of \$0\.005 are left", said), said
    left = re.search(r"and \$([0-9.]+) of", said)
    assert left is not None
    assert round(float(left[1]) * 10**9) == 5000 * MICRO - spent


def test_every_line_of_a_header_that_is_a_list_reaches_the_provider(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    """Case C19."""
    lines = ["context-1m-2025-08-07", "interleaved-thinking-2025-05-14"]
    with LedgerDouble({"usd": DOLLAR * 100}) as ledger:
        meter = start(ledger)
        body = {"model": MODEL, "max_tokens": 16, "messages": HI}
        headers = [("anthropic-beta", line) for line in lines]
        answer = httpx.post(f"{meter.url}/anthropic/v1/messages?beta=true", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    assert provider.requests[-1]["headers"]["anthropic-beta"] == ",".join(lines)


@pytest.mark.parametrize(
    "path", ["/anthropic/messages", "/anthropic//v1/messages", "/anthropic/v1/messages/", "//anthropic/messages//"]
)
def test_slashes_and_a_base_with_v1_lead_to_the_same_route(start: Callable[..., Meter], path: str) -> None:
    """Faults F8 and F13."""
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        assert meter.post(path, {"model": MODEL, "max_tokens": 16, "messages": HI})[0] == 200


def test_a_client_that_asks_for_a_websocket_is_told_to_use_http(start: Callable[..., Meter]) -> None:
    """Fault F10: answered otherwise, Codex tries again for seconds."""
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        answer = httpx.get(f"{meter.url}/openai/v1/responses", headers={**headers, "sec-websocket-key": "AAAA"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "no_websockets")
