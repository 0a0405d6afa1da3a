"""The real meter and the smaller routes of OpenAI's API: what is free, what is stored, and legacy completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.calls import openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.odd_provider import OddProvider

USAGE = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
TEXT_USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def response(response_id: str) -> bytes:
    head: dict[str, Any] = {"id": response_id, "object": "response", "created_at": 1, "model": MODEL, "output": []}
    more = {"status": "completed", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "usage": USAGE}
    return json.dumps(head | more).encode()


def completion(**fields: Any) -> bytes:
    choices = [{"index": 0, "text": "on", "finish_reason": "stop", "logprobs": None}]
    head = {"id": "c", "object": "text_completion", "created": 1, "model": MODEL, "choices": choices}
    return json.dumps(head | fields).encode()


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    with OddProvider() as provider:
        yield provider


@pytest.fixture
def ledger() -> Iterator[LedgerDouble]:
    with LedgerDouble({"usd": DOLLAR}) as double:
        yield double


@pytest.fixture
def meter(tmp_path: Path, odd: OddProvider, ledger: LedgerDouble) -> Iterator[Meter]:
    config = provider_config(odd.url, type="OpenAI")
    with Meter(tmp_path, meter_config(ledger.url, config)) as started:
        yield started


def test_what_is_free_passes_and_has_no_record(meter: Meter, odd: OddProvider, ledger: LedgerDouble) -> None:
    client = openai_client(meter)
    odd.say(b'{"id":"m","model":"omni-moderation-latest","results":[]}')
    assert client.moderations.create(input="hello").results == []
    odd.say(b'{"object":"response.input_tokens","input_tokens":11}')
    assert client.responses.input_tokens.count(model=MODEL, input="hello").input_tokens == 11
    assert [line.split()[1] for line in odd.asked] == ["/v1/moderations", "/v1/responses/input_tokens"]
    assert meter.get("/usage")["used"]["requests"] == 0
    assert not ledger.records


def test_only_responses_that_this_run_made_are_given(meter: Meter, odd: OddProvider, ledger: LedgerDouble) -> None:
    client = openai_client(meter)
    with pytest.raises(openai.NotFoundError, match="was not made by this run"):
        client.responses.retrieve("resp_ours")
    assert not odd.asked
    odd.say(response("resp_ours"))
    assert client.responses.create(model=MODEL, input="hello", max_output_tokens=20).id == "resp_ours"
    settled(meter, ledger, 1)
    assert client.responses.retrieve("resp_ours").id == "resp_ours"
    assert odd.asked[-1].startswith("GET /v1/responses/resp_ours ")
    with pytest.raises(openai.NotFoundError, match="was not made by this run"):
        client.responses.retrieve("resp_theirs")
    with pytest.raises(openai.BadRequestError, match="leave the query out"):
        client.responses.retrieve("resp_ours", include=["reasoning.encrypted_content"])
    with pytest.raises(openai.NotFoundError, match="is not let through"):
        client.responses.delete("resp_ours")
    assert len(odd.asked) == 2
    assert meter.get("/usage")["used"]["requests"] == 1


def test_legacy_completions_are_priced(meter: Meter, odd: OddProvider, ledger: LedgerDouble) -> None:
    client = openai_client(meter)
    odd.say(completion(usage=TEXT_USAGE))
    assert client.completions.create(model=MODEL, prompt="go", max_tokens=5).choices[0].text == "on"
    events = [completion(), completion(choices=[], usage=TEXT_USAGE), b"[DONE]"]
    odd.say(b"".join(b"data: " + event + b"\n\n" for event in events), kind="text/event-stream")
    stream = client.completions.create(model=MODEL, prompt="go", max_tokens=5, stream=True)
    assert [each.choices[0].text for each in stream] == ["on"]
    settled(meter, ledger, 2)
    for record in ledger.records.values():
        assert (record.outcome, record.operation, record.cost_nanos) == ("ok", "text_completion", 13_000)


def test_another_server_may_bill_what_is_free_at_openai(tmp_path: Path, odd: OddProvider, ledger: LedgerDouble) -> None:
    refused = pytest.raises(openai.NotFoundError, match="to OpenAI alone")
    with Meter(tmp_path, meter_config(ledger.url, provider_config(odd.url))) as meter, refused:
        openai_client(meter).moderations.create(input="hello")
    assert not odd.asked
