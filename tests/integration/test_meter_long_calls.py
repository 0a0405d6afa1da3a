"""The real meter and calls that are cut: by the run's own deadline, by the provider, by the meter's end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from almoner_core import contract
from almoner_runner.meter.came import BLOCK_TOKENS, MARGIN_TOKENS
from tests.support.calls import HI, anthropic_client, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CARD, DOLLAR, Meter, meter_config, provider_config
from tests.support.odd_provider import OddProvider

STREAM = "text/event-stream"
MODEL = "gpt-4.1"
MAXIMUM = 64_000
MODELS = (contract.MeterModel(name=MODEL, price=CARD, context_window=200_000),)


def events(*data: dict[str, Any]) -> bytes:
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in data)


def text(said: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said}}


START = {
    "type": "message_start",
    "message": {
        "id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None,
        "usage": {"input_tokens": 24, "output_tokens": 1},
    },
}  # fmt: skip
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
THINKING = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
CHUNK = {"type": "x", "choices": [{"index": 0, "delta": {"content": "hello"}}]}


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    with OddProvider() as provider:
        yield provider


@contextmanager
def running(folder: Path, odd: OddProvider, **extra: Any) -> Iterator[tuple[Meter, LedgerDouble]]:
    provider = provider_config(odd.url, models=MODELS)
    with (
        LedgerDouble({"usd": 100 * DOLLAR}) as ledger,
        Meter(folder, meter_config(ledger.url, provider, extra=extra)) as meter,
    ):
        yield meter, ledger


def stream_message(meter: Meter, **more: Any) -> str:
    """Stream a message to its end; gives what came before it broke."""
    came: list[str] = []
    client = anthropic_client(meter)

    def read() -> None:
        stream = client.messages.create(model=MODEL, max_tokens=MAXIMUM, messages=HI, stream=True, **more)
        came.extend(each.delta.text for each in stream if each.type == "content_block_delta")

    with pytest.raises((anthropic.APIConnectionError, httpx2.HTTPError)):
        read()
    return "".join(came)


def test_c31_a_plain_call_ends_with_its_run_and_is_not_repeated(tmp_path: Path, odd: OddProvider) -> None:
    odd.say(b"", stay=True)
    odd.answer = b""  # not even a status
    with running(tmp_path, odd, call_seconds=1) as (meter, ledger):
        client = openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="any", max_retries=2)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=MODEL, messages=HI, max_tokens=40)
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "longer than the run may" in caught.value.message
        settled(meter, ledger, 1)
        (record,) = ledger.records.values()
    assert (record.outcome, record.tokens.output) == ("estimated", 40)


@pytest.mark.parametrize("stay", [True, False], ids=["the run is over", "the provider breaks off"])
def test_f7_a_stream_that_is_cut_is_charged_for_what_came(tmp_path: Path, odd: OddProvider, *, stay: bool) -> None:
    odd.say(events(START, BLOCK, *[text("hello ") for _ in range(600)]), kind=STREAM, stay=stay)
    if not stay:
        odd.answer = odd.answer.replace(b"Connection: close", b"Connection: close\r\nContent-Length: 999999")
    with running(tmp_path, odd, **({"call_seconds": 2} if stay else {})) as (meter, ledger):
        assert stream_message(meter) == "hello " * 600
        settled(meter, ledger, 1)
        (record,) = ledger.records.values()
    output = 600 * 6 + BLOCK_TOKENS + MARGIN_TOKENS
    assert (record.outcome, record.tokens.input, record.tokens.output) == ("estimated", 24, output)
    assert record.cost_nanos == 24 * 1000 + output * 2000
    assert record.metadata["estimated"] == "output"


def test_f7_where_a_model_thinks_the_hold_is_taken(tmp_path: Path, odd: OddProvider) -> None:
    odd.say(events(START, THINKING, text("hello")), kind=STREAM)
    odd.answer = odd.answer.replace(b"Connection: close", b"Connection: close\r\nContent-Length: 999999")
    with running(tmp_path, odd) as (meter, ledger):
        stream_message(meter)
        stream_message(meter, thinking={"type": "enabled", "budget_tokens": 2000})
        settled(meter, ledger, 2)
        records = list(ledger.records.values())
    assert [(each.tokens.input, each.tokens.output) for each in records] == [(24, MAXIMUM)] * 2


def test_f7_a_chat_that_is_cut_before_its_usage_is_charged_its_input_bound_and_what_came(
    tmp_path: Path, odd: OddProvider
) -> None:
    odd.say(events(*[CHUNK] * 10), kind=STREAM)
    odd.answer = odd.answer.replace(b"Connection: close", b"Connection: close\r\nContent-Length: 999999")
    with running(tmp_path, odd) as (meter, ledger):
        with pytest.raises((openai.APIConnectionError, httpx2.HTTPError)):
            list(openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=9000, stream=True))
        settled(meter, ledger, 1)
        (record,) = ledger.records.values()
    assert record.outcome == "estimated"
    assert record.tokens.output == 10 * 5 + MARGIN_TOKENS
    # The dearest kind of input, as in the hold.
    assert record.cost_nanos == record.tokens.input * 1250 + record.tokens.output * 2000


def test_f7_a_meter_that_ends_counts_what_came_and_never_takes_a_part_for_the_whole(
    tmp_path: Path, odd: OddProvider
) -> None:
    delta = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 2}}
    odd.say(events(START, BLOCK, text("hello"), delta), kind=STREAM, stay=True)
    with running(tmp_path, odd, grace_period_seconds=2, ledger_wait_seconds=1) as (meter, ledger):
        answer = anthropic_client(meter).messages.create(model=MODEL, max_tokens=MAXIMUM, messages=HI, stream=True)
        for each in answer:
            if each.type == "message_delta":
                break
        meter.stop()
        (record,) = ledger.records.values()
    assert record.outcome == "estimated"
    assert record.tokens.output == 5 + BLOCK_TOKENS + MARGIN_TOKENS
