"""How calls that do not fit share what is left: the real books and holds over a ledger in memory, in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from almoner_core.pricing import TokenCounts
from almoner_core.refusals import BUDGET_IN_USE
from almoner_dev.simulate.bounding import Account
from almoner_dev.simulate.clockwork import Clock, Ids, VirtualLoop, installed
from almoner_dev.simulate.schedule import end_loop
from almoner_runner.meter.body import read_body
from almoner_runner.meter.books import Books
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.holds import Holds
from almoner_runner.meter.openai import chat
from almoner_runner.meter.refusals import RefusedError
from almoner_runner.meter.spool import Spool

DOLLAR = 10**9
# $3 and $15 a million tokens.
CARD = Card("v", (Tier(3 * DOLLAR, 3 * DOLLAR, 3 * DOLLAR, 15 * DOLLAR),))
PROVIDER = Provider("p", "OpenAI", "http://p/v1", ("OpenAI",), {"m": Model("m", CARD)})
STRICT = Rules(strict=True, priced=True)
INPUT, OUTPUT = 20, 100
COST = INPUT * 3_000 + OUTPUT * 15_000


def call_of(maximum: int | None, text: str = "hi") -> Call:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}]}
    if maximum is not None:
        body["max_tokens"] = maximum
    return chat(PROVIDER, read_body(json.dumps(body).encode()), STRICT)


class Run:
    """One meter on a budget of `limit` nano-dollars; calls take `seconds`, and cost little."""

    def __init__(self, holds: Holds, account: Account) -> None:
        self.holds = holds
        self.account = account
        self.sent: list[int] = []
        self.under_way = self.most_under_way = 0
        self.hopeless = 0

    async def call(self, maximum: int | None, seconds: float, text: str = "hi") -> None:
        """Make a call. Raises RefusedError."""
        call = call_of(maximum, text)
        tried = await self.holds.begin(call)
        self.sent.append(call.output_max)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(seconds)
        self.under_way -= 1
        self.holds.settle(tried, "ok", TokenCounts(input=INPUT, output=OUTPUT))


def run(folder: Path, limit: int, body: Callable[[Run], Awaitable[None]], seed: int = 1) -> Run:
    """Live through it in virtual time."""
    loop = VirtualLoop()

    async def live() -> Run:
        with installed(Clock(asyncio.get_running_loop()), Ids(random.Random(seed)), f"jitter {seed}"):
            account = Account(limit, random.Random(seed))
            account.most = {}
            spool = Spool(folder, "allotment")
            books = Books(account, spool)
            await books.activate(spool.open())
            run = Run(Holds(books), account)
            background = asyncio.create_task(books.run())
            await body(run)
            background.cancel()
            await asyncio.wait([background])
            assert await books.close(30)
            spool.close()
            return run

    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(live())
    finally:
        end_loop(loop)


@pytest.mark.parametrize("seconds", [4, 35])
def test_f4_sixteen_calls_share_a_dollar_of_which_each_could_take_all(tmp_path: Path, seconds: float) -> None:
    async def body(run: Run) -> None:
        await asyncio.gather(*(run.call(64_000, seconds) for _ in range(16)))

    seen = run(tmp_path, DOLLAR, body)
    assert seen.account.spent == 16 * COST
    assert max(seen.sent) == 64_000
    assert min(seen.sent) >= 4_096
    # Once the first has settled the rest go together.
    assert seen.most_under_way == 15


def test_who_waited_in_vain_is_told_to_come_again(tmp_path: Path) -> None:
    async def body(run: Run) -> None:
        first = asyncio.create_task(run.call(64_000, 200))
        await asyncio.sleep(1)
        with pytest.raises(RefusedError) as refused:
            await run.call(64_000, 1)
        assert (refused.value.code, refused.value.retry_after) == (BUDGET_IN_USE, 2)
        assert "calls under way hold the rest" in refused.value.message
        await first

    run(tmp_path, 970_000_000, body)


def test_where_nothing_is_under_way_the_last_of_the_budget_is_used(tmp_path: Path) -> None:
    async def body(run: Run) -> None:
        await run.call(64_000, 1)
        with pytest.raises(RefusedError) as refused:
            await run.call(64_000, 1, text="x" * 10_000)
        assert (refused.value.code, refused.value.retry_after) == ("insufficient_quota", None)

    seen = run(tmp_path, 5_000_000, body)
    assert 16 <= seen.sent[0] < 400


def test_newcomers_do_not_overtake_those_in_line(tmp_path: Path) -> None:
    async def body(run: Run) -> None:
        calls = [asyncio.create_task(run.call(64_000, 5)) for _ in range(8)]
        for _ in range(20):
            await asyncio.sleep(0.5)
            calls.append(asyncio.create_task(run.call(64_000, 5)))
        await asyncio.gather(*calls)

    seen = run(tmp_path, DOLLAR, body)
    assert sorted(seen.sent)[-3] < 64_000  # the first, and one that came when nobody stood in line


@pytest.mark.parametrize("seed", range(20))
def test_no_call_whose_cost_fits_is_lost_and_nothing_is_overspent(tmp_path: Path, seed: int) -> None:
    """Clients that come again when they are told to, as SDKs do, all get their answer."""
    chance = random.Random(seed)
    count = chance.randint(2, 40)
    limit = count * COST + chance.randint(70_000_000, 2 * DOLLAR)

    async def client(run: Run) -> None:
        await asyncio.sleep(chance.uniform(0, 20))
        while True:
            try:
                await run.call(chance.choice((None, 200, 8_000, 64_000)), chance.uniform(0.1, 90))
            except RefusedError as error:
                run.hopeless += error.retry_after is None
                await asyncio.sleep(error.retry_after or 1)
            else:
                return

    async def body(run: Run) -> None:
        await asyncio.gather(*(client(run) for _ in range(count)))

    seen = run(tmp_path, limit, body, seed)
    assert seen.account.spent == count * COST <= limit
    assert not seen.hopeless
