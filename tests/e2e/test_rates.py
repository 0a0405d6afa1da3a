"""Rates on the whole road: from a quota's manifest through operator, ledger and meters to what a provider is asked."""

from __future__ import annotations

import json
from typing import Any

from almoner_dev.scripted import Reply, Usage
from tests.support.e2e import World
from tests.support.e2e_scripts import SPENDER

BIG = Usage(input_tokens=150, output_tokens=50)
TOOLER = """
url = os.environ["ALMONER_METER_URL"] + "/tools/calculator/calls"
codes = []
threads = [threading.Thread(target=lambda: codes.append(post(url, {})[0])) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(sorted(codes))
"""


def run(world: World, name: str, agent: str, given: Any) -> None:
    spec = {"agentRef": {"name": agent}, "input": {"json": given}, "limits": {"maxCost": "1.00"}}
    world.apply(world.manifest("Execution", name, spec))


def test_runs_at_once_never_pass_a_quotas_rates(world: World) -> None:
    world.model.load([Reply(text="done", usage=BIG, latency_ms=50)])
    world.ready(
        world.script_manifest("spender", SPENDER),
        world.script_manifest("tooler", TOOLER),
        world.loop_manifest("loop"),
    )
    # An hour's bucket: what it refills while the test runs does not pay for one more call of 200.
    rates = {"tokensPerHour": 1000, "toolCallsPerHour": 5}
    world.apply(world.manifest("ResourceQuota", "pace", {"rates": rates}))
    world.wait_ready("ResourceQuota", "pace")
    for name in ("first", "second"):
        run(world, name, "spender", {"calls": 3, "threads": 4})
    run(world, "tools", "tooler", {})
    first, second, tools = world.succeeded("first", "second", "tools")
    results = [result for status in (first, second) for result in json.loads(status["output"])]
    went = sum(1 for code, _ in results if code == 200)
    refused = [said for code, said in results if code != 200]
    assert went == len(world.model.requests)
    assert 200 <= went * 200 <= 1000
    assert refused
    assert all("rate limit" in said and "pace" in said for said in refused), refused
    assert json.loads(tools["output"]) == [200] * 5 + [429] * 3
    tokens = world.wait(lambda: (row := world.limit("pace", "tokensPerHour")).get("resetTime") and row, "its status")
    assert tokens["limit"] == "1000"
    assert int(tokens["used"]) + int(tokens["remaining"]) == 1000
    # What is left pays for no call of the loop, whose output has no smaller maximum: it says by what it was stopped.
    run(world, "loop", "loop", "hello")
    failed = world.failed("loop", "RateLimited")
    assert "pace" in failed["message"] or "rate" in failed["message"]
    world.settled()
