"""Calls at the same time on a small budget get fair shares of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from almoner_core.contract import MeterModel
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import HI, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import CLAUDE_CARD, DOLLAR, Meter, meter_config, provider_config

# 64,000 tokens of output are $0.96.
MODEL = MeterModel(name="claude-sonnet-5", price=CLAUDE_CARD, context_window=200_000)
AT_ONCE = 16


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider([Reply(usage=Usage(input_tokens=20, output_tokens=100), latency_ms=700)]) as scripted:
        yield scripted


async def all_at_once(meter: Meter, count: int, **more: Any) -> list[int]:
    """The output maxima that were sent, as the answers say them; whoever is refused raises."""
    async with anthropic.AsyncAnthropic(base_url=f"{meter.url}/anthropic", api_key="any", max_retries=0) as client:

        async def one() -> int:
            answer = await client.messages.with_raw_response.create(
                model=MODEL.name, max_tokens=64_000, messages=HI, **more
            )
            return int(answer.headers.get("x-almoner-output-limited", 64_000))

        return await asyncio.gather(*(one() for _ in range(count)))


def test_f4_sixteen_calls_that_could_cost_a_dollar_each_all_pass_on_a_dollar(
    tmp_path: Path, provider: ScriptedProvider
) -> None:
    config = provider_config(provider.base_url, models=(MODEL,))
    with LedgerDouble({"usd": DOLLAR}) as ledger, Meter(tmp_path, meter_config(ledger.url, config)) as meter:
        maxima = asyncio.run(all_at_once(meter, AT_ONCE, timeout=120))
        settled(meter, ledger, AT_ONCE)
        assert ledger.used()["usd"] == AT_ONCE * (20 * 3_000 + 100 * 15_000)
        assert len([asked for asked in provider.requests if asked["path"] == "/v1/messages"]) == AT_ONCE
    # The first takes what it asks for; the others share what it leaves, and none of them is cut to crumbs.
    assert max(maxima) == 64_000
    assert min(maxima) >= 4_000
