"""Slow processing through the real meter: bounded by the dearer price, settled by what the provider says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from almoner_core.contract import MeterModel
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CARD, DOLLAR, MODEL, Meter
from tests.support.polling import until

HALF = tuple(tier.model_copy(update={"input": tier.input // 2, "output": tier.output // 2}) for tier in CARD.tiers)
SLOW = MeterModel(name=MODEL, price=CARD.model_copy(update={"batch": HALF}), context_window=8000)
PLAIN = MeterModel(name=MODEL, price=CARD, context_window=8000)
HI: Any = [{"role": "user", "content": "hi"}]
FULL = 10 * 1000 + 5 * 2000  # nano-dollars: what the scripted usage costs at list price


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider([]) as scripted:
        yield scripted


def ask(meter: Meter, **more: Any) -> Any:
    client = openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0)
    return client.chat.completions.create(model=MODEL, messages=HI, max_tokens=50, service_tier="flex", **more)


@pytest.mark.parametrize(("served", "nanos"), [("flex", FULL // 2), ("default", FULL), (None, FULL)])
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_billed_as_it_was_served(
    start: Callable[..., Meter], provider: ScriptedProvider, served: str | None, nanos: int, stream: bool
) -> None:
    provider.load([Reply(usage=Usage(input_tokens=10, output_tokens=5), service_tier=served)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        answer = ask(start(ledger, SLOW), stream=stream)
        if stream:
            assert list(answer)
        until(lambda: len(ledger.records) == 1, 10, "the record")
    assert ledger.used()["usd"] == nanos
    assert ledger.records[1].metadata["service_tier"] == served


def test_without_a_price_for_it_the_tier_is_refused(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    provider.load([Reply()])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger, PLAIN)
        with pytest.raises(openai.BadRequestError, match="service_tier"):
            ask(meter)
        assert not ledger.records
