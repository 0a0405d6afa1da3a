"""The real meter, real SDKs, and answers as providers and gateways were seen to give them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from almoner_core.usage import UsageRecord
from tests.support.calls import HI, MICRO, anthropic_client, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.odd_provider import OddProvider

STREAM = "text/event-stream"
COUNTS = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": "end_turn"}


def chat(**fields: Any) -> bytes:
    choices = [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices, **fields}
    return json.dumps(whole).encode()


def chunk(**fields: Any) -> bytes:
    choices = [{"index": 0, "delta": {"content": "x"}}]
    whole = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices, **fields}
    return b"data: " + json.dumps(whole).encode() + b"\n\n"


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    with OddProvider() as provider:
        yield provider


class Calls:
    """A meter before the odd provider, and what its ledger has."""

    def __init__(self, meter: Meter, ledger: LedgerDouble) -> None:
        self.meter = meter
        self.ledger = ledger
        self.made = 0

    def record(self) -> UsageRecord:
        """The newest call's record."""
        self.made += 1
        settled(self.meter, self.ledger, self.made)
        return self.ledger.records[self.made]


@contextmanager
def running(folder: Path, odd: OddProvider, limits: dict[str, int]) -> Iterator[Calls]:
    with LedgerDouble(limits) as ledger, Meter(folder, meter_config(ledger.url, provider_config(odd.url))) as meter:
        yield Calls(meter, ledger)


@pytest.fixture
def limited(tmp_path: Path, odd: OddProvider) -> Iterator[Calls]:
    with running(tmp_path, odd, {"usd": 100 * DOLLAR}) as calls:
        yield calls


@pytest.fixture
def watched(tmp_path: Path, odd: OddProvider) -> Iterator[Calls]:
    """No limit governs."""
    with running(tmp_path, odd, {}) as calls:
        yield calls


def ask(calls: Calls, **more: Any) -> Any:
    return openai_client(calls.meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=40, **more)


@pytest.mark.parametrize("status", [408, 499, 502, 504, 520, 524])
def test_what_a_gateway_lost_sight_of_may_be_billed(odd: OddProvider, limited: Calls, status: int) -> None:
    """Case C09."""
    odd.say(b"<html>the origin did not answer in time</html>", status=f"{status} Lost", kind="text/html")
    with pytest.raises(openai.APIStatusError) as failed:
        ask(limited)
    assert failed.value.status_code == status
    record = limited.record()
    assert (record.outcome, record.tokens.output) == ("estimated", 40)
    assert record.cost_nanos


@pytest.mark.parametrize("status", [400, 429, 500, 503, 521, 522, 523, 525, 526, 529])
def test_what_reached_no_provider_is_free(odd: OddProvider, limited: Calls, status: int) -> None:
    odd.say(b"<html>the web server is down</html>", status=f"{status} Down", kind="text/html")
    with pytest.raises(openai.APIStatusError):
        ask(limited)
    record = limited.record()
    assert (record.outcome, record.cost_nanos, record.tokens.input, record.tokens.output) == ("error", 0, 0, 0)


@pytest.mark.parametrize("kind", [STREAM, "application/json", "text/plain; charset=utf-8"])
@pytest.mark.parametrize("usage", [{"choices": [], "usage": COUNTS}, {"usage": COUNTS}])
def test_a_stream_is_read_whatever_it_calls_itself(
    odd: OddProvider, limited: Calls, kind: str, usage: dict[str, Any]
) -> None:
    odd.say(b"\xef\xbb\xbf: hi\r\n\r\n" + chunk() + chunk(**usage) + b"data: [DONE]\n\n", kind=kind)
    assert "".join(each.choices[0].delta.content or "" for each in ask(limited, stream=True)).startswith("x")
    record = limited.record()
    assert (record.outcome, record.tokens.input, record.tokens.output) == ("ok", 1000, 500)


def test_an_object_in_place_of_a_stream_is_read_too(odd: OddProvider, limited: Calls) -> None:
    odd.say(chat(usage=COUNTS))
    list(ask(limited, stream=True))
    record = limited.record()
    assert (record.outcome, record.tokens.input, record.tokens.output) == ("ok", 1000, 500)


def test_a_stream_that_is_over_ends_though_its_connection_stays_open(odd: OddProvider, limited: Calls) -> None:
    odd.say(chunk() + chunk(choices=[], usage=COUNTS) + b"data: [DONE]\n\n", kind=STREAM, stay=True)
    assert len(list(ask(limited, stream=True))) == 1
    record = limited.record()
    assert (record.outcome, record.error, record.tokens.output) == ("ok", None, 500)


def test_an_answer_that_is_an_error_is_no_success(odd: OddProvider, limited: Calls) -> None:
    """Case C21: with the provider's counts where it told them, else the hold."""
    error = {"message": "upstream error", "code": 502}
    odd.say(chat(choices=None, error=error, usage={"prompt_tokens": 3, "completion_tokens": 5}))
    ask(limited)
    record = limited.record()
    assert (record.outcome, record.tokens.output) == ("error", 5)
    assert record.cost_nanos == (3 + 2 * 5) * MICRO
    assert record.error == "the provider answered with an error: upstream error"
    odd.say(json.dumps({"error": error}).encode())
    ask(limited)
    record = limited.record()
    assert (record.outcome, record.tokens.output) == ("estimated", 40)


def test_where_the_output_is_not_told_only_the_output_is_estimated(odd: OddProvider, limited: Calls) -> None:
    """Case C08: never zero."""
    odd.say(chat(usage={"prompt_tokens": 7, "completion_tokens": None}))
    ask(limited)
    record = limited.record()
    assert (record.outcome, record.tokens.input, record.tokens.output) == ("estimated", 7, 40)
    assert record.cost_nanos == (7 + 2 * 40) * MICRO


def test_what_no_card_prices_is_never_called_exact(odd: OddProvider, watched: Calls) -> None:
    """Case C22: where no money limit governs the cost is unknown, and the record says of what."""
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_creation_input_tokens": 2000,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2000},
        "server_tool_use": {"web_search_requests": 3},
    }
    odd.say(json.dumps({**MESSAGE, "usage": usage}).encode())
    anthropic_client(watched.meter).messages.create(model=MODEL, max_tokens=20, messages=HI)
    record = watched.record()
    assert (record.outcome, record.cost_nanos, record.tokens.input) == ("ok", None, 2010)
    assert record.metadata["beyond_card"] == "cache writes of an hour, web searches"


def test_under_a_budget_what_no_card_prices_takes_the_hold(odd: OddProvider, limited: Calls) -> None:
    odd.say(chat(usage={**COUNTS, "completion_tokens_details": {"audio_tokens": 500}}, service_tier="priority"))
    ask(limited)
    record = limited.record()
    assert (record.outcome, record.cost_nanos) == ("estimated", (1000 + 2 * 500) * MICRO)
    assert record.metadata["beyond_card"] == "audio tokens, service tier priority"
