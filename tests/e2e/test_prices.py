"""Prices on the whole road: a paid tool in a pod, under a limit of money; and a correction up to the status."""

from __future__ import annotations

import json
from typing import Any

from tests.support.e2e import World, nanos

SEARCHES = """
url = os.environ["ALMONER_METER_URL"] + "/tools/web_search/calls"
codes = []
threads = [threading.Thread(target=lambda: codes.append(post(url, {"units": 2})[0])) for _ in range(30)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(sorted(codes))
"""


def almoner(world: World, *arguments: str) -> str:
    return str(world.site.almoner("ledger", *arguments))


def cost(world: World, name: str) -> int:
    return nanos((world.status(name).get("usage") or {}).get("cost"))


def test_a_paid_tool_is_priced_limited_and_corrected(world: World) -> None:
    prices = [{"tool": "web_search", "perCall": "0.001", "perUnit": "0.0005", "unit": "page"}]
    world.apply(world.manifest("ToolProvider", "searches", {"type": "DuckDuckGo", "prices": prices}))
    world.wait_ready("ToolProvider", "searches")
    world.script("searcher", SEARCHES, tools=[{"name": "web_search", "provider": "searches"}])
    spec: dict[str, Any] = {"agentRef": {"name": "searcher"}, "limits": {"maxCost": "0.0119"}}
    world.apply(world.manifest("Execution", "search", spec))
    (status,) = world.succeeded("search")
    # Five calls of 0.002 fit, a sixth does not: however many ask at once.
    assert json.loads(status["output"]) == [200] * 5 + [429] * 25
    world.wait(lambda: cost(world, "search") == 10_000_000, "the status")
    assert world.status("search")["usage"]["toolCalls"] == 5
    records = [each for each in world.history("records", "search") if each["resource_type"] != "compute"]
    assert {record["price_version"] for record in records} == {f"override {world.namespace}/searches generation 1"}
    assert {(record["resource_type"], record["units"]) for record in records} == {("web_search", 2)}

    said = almoner(world, "correct", records[0]["id"], "--cost", "0.0005", "--reason", "one page came")
    assert "0.002 -> 0.0005" in said
    world.wait(lambda: cost(world, "search") == 8_500_000, "the corrected status")
    world.wait(lambda: nanos(world.get("Agent", "searcher")["status"]["usage"]["cost"]) == 8_500_000, "the agent's")
    assert world.ledger_nanos() == 8_500_000
    assert "every invariant holds" in almoner(world, "verify")
