"""The real meter where the bytes of a request, or a window, find no room: the provider's own count, for nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from almoner_core.contract import MeterModel
from tests.support.calls import anthropic_client, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CLAUDE_CARD, DOLLAR, Meter, meter_config, provider_config
from tests.support.odd_provider import OddProvider

CLAUDE, GPT = "claude-sonnet-5", "gpt-4.1-mini"
PDF = base64.b64encode(b"%PDF-1.4 one page").decode()
PNG = base64.b64encode(b"\x89PNG" * 3_000).decode()
FIVE_CENTS = DOLLAR // 20
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": CLAUDE,
    "content": [{"type": "text", "text": "x"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 2_500, "output_tokens": 5},
}


def response(name: str, tokens: int) -> bytes:
    usage = {"input_tokens": tokens, "output_tokens": 10, "total_tokens": tokens + 10}
    whole = {"id": name, "object": "response", "created_at": 1, "status": "completed", "model": GPT, "output": []}
    return json.dumps({**whole, "usage": usage}).encode()


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    with OddProvider() as provider:
        yield provider


@contextmanager
def running(folder: Path, odd: OddProvider, kind: str, model: str, limit: int) -> Iterator[tuple[Meter, LedgerDouble]]:
    models = (MeterModel(name=model, price=CLAUDE_CARD, context_window=1_000_000),)
    config = provider_config(odd.url, type=kind, models=models)
    with LedgerDouble({"usd": limit}) as ledger, Meter(folder, meter_config(ledger.url, config)) as meter:
        yield meter, ledger


def ask(meter: Meter, *content: Any) -> Any:
    messages: Any = [{"role": "user", "content": list(content)}]
    return anthropic_client(meter).messages.create(model=CLAUDE, max_tokens=500, messages=messages)


def test_f3_an_image_and_a_page_of_a_pdf_pass_under_five_cents(tmp_path: Path, odd: OddProvider) -> None:
    odd.say(json.dumps(MESSAGE).encode())
    page: Any = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
    picture: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    with running(tmp_path, odd, "Anthropic", CLAUDE, FIVE_CENTS) as (meter, ledger):
        ask(meter, picture)
        assert len(odd.bodies) == 1  # nobody had to count
        odd.say_once(json.dumps({"input_tokens": 2_400}).encode())
        ask(meter, page)
        counted = json.loads(odd.bodies[1])
        assert "max_tokens" not in counted
        assert counted["messages"][0]["content"] == [page]
        settled(meter, ledger, 2)
        assert [record.outcome for record in ledger.records.values()] == ["ok", "ok"]
    assert ledger.used()["usd"] < FIVE_CENTS


def test_where_nobody_counts_the_window_stands(tmp_path: Path, odd: OddProvider) -> None:
    page: Any = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}
    with running(tmp_path, odd, "Anthropic", CLAUDE, FIVE_CENTS) as (meter, _):
        odd.say(b'{"type":"error"}', status="404 Not Found")
        with pytest.raises(anthropic.APIStatusError) as refused:
            ask(meter, page)
        assert refused.value.status_code == 402
        assert len(odd.bodies) == 1


def test_f2_a_long_request_is_counted_and_not_refused(tmp_path: Path, odd: OddProvider) -> None:
    odd.say(json.dumps(MESSAGE).encode())
    odd.say_once(json.dumps({"input_tokens": 3_000}).encode())
    with running(tmp_path, odd, "Anthropic", CLAUDE, FIVE_CENTS) as (meter, ledger):
        ask(meter, {"type": "text", "text": "word " * 4_000})
        settled(meter, ledger, 1)


def test_f3_a_response_that_goes_on_is_bounded_by_the_one_before(tmp_path: Path, odd: OddProvider) -> None:
    with running(tmp_path, odd, "OpenAI", GPT, FIVE_CENTS) as (meter, ledger):
        client = openai_client(meter)
        odd.say(response("resp_1", 1_000))
        client.responses.create(model=GPT, input="hi", max_output_tokens=100)
        client.responses.create(model=GPT, input="go on", max_output_tokens=100, previous_response_id="resp_1")
        settled(meter, ledger, 2)
        assert len(odd.bodies) == 2
        # One that somebody else made: the window has no room, the provider counts, and says too much.
        odd.say(json.dumps({"object": "response.input_tokens", "input_tokens": 900_000}).encode())
        with pytest.raises(openai.RateLimitError, match="no room for this call"):
            client.responses.create(model=GPT, input="go on", max_output_tokens=100, previous_response_id="resp_0")
        assert json.loads(odd.bodies[2]) == {"model": GPT, "input": "go on", "previous_response_id": "resp_0"}
