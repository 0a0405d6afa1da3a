"""The real meter, and all that a provider may do to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anthropic
import openai
import pytest

from almoner_dev import processes
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import BROKEN, HI, MICRO, anthropic_client, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config


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
