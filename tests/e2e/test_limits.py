"""Limits hold: nothing is overspent, whatever runs at once, and what is refused says so with the numbers."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from almoner_dev.scripted import Reply, ToolCall
from tests.support.e2e import MODEL, USAGE, World, cost_of, nanos
from tests.support.e2e_scripts import RUDE, SPENDER

ONE = cost_of(USAGE)


def run(world: World, name: str, agent: str, given: Any, **spec: Any) -> None:
    world.apply(world.manifest("Execution", name, {"agentRef": {"name": agent}, "input": {"json": given}, **spec}))


def quota(world: World, name: str, **spec: Any) -> None:
    world.apply(world.manifest("ResourceQuota", name, spec))
    world.wait_ready("ResourceQuota", name)


def results(status: dict[str, Any]) -> list[tuple[int, str]]:
    return [(code, said) for code, said in json.loads(status["output"])]


def test_what_has_spent_its_own_budget_ends_whatever_retries_are_left(world: World) -> None:
    """It went back to Queued for ever, since the ledger refused every further attempt."""
    world.script("crasher", SPENDER + "\nsys.exit(1)\n")
    retry = {"limit": 2, "backoffSeconds": 600, "backoffMaxSeconds": 600, "reasons": ["BudgetExhausted"]}
    run(world, "one", "crasher", {"calls": 100}, limits={"maxCost": "0.003"}, retry=retry)
    condition = world.failed("one", "BudgetExhausted")
    assert "limits.maxCost has no room for another attempt" in condition["message"]
    assert "of 0.003 USD spent" in condition["message"]
    (attempt,) = world.status("one")["attempts"]
    assert attempt["reason"] == "BudgetExhausted"


def test_f5_a_refused_call_is_why_an_agent_of_any_framework_failed_and_marks_one_that_made_do(world: World) -> None:
    world.script("crasher", SPENDER + "\nsys.exit(1)\n")
    world.script("stoic", SPENDER)
    run(world, "dies", "crasher", {"calls": 100}, limits={"maxCost": "0.003"}, retry={"limit": 2})
    condition = world.failed("dies", "BudgetExhausted")
    assert condition["message"].startswith("a call was refused: no room for this call in")
    assert "of $0.003 are left (exit code 1" in condition["message"]
    status = world.status("dies")
    (attempt,) = status["attempts"]  # not the agent's fault, and not tried again
    assert (attempt["reason"], attempt["refusedCalls"], status["refusedCalls"]) == ("BudgetExhausted", 1, 1)
    run(world, "lives", "stoic", {"calls": 100, "threads": 2}, limits={"maxCost": "0.003"})
    (status,) = world.succeeded("lives")
    assert status["refusedCalls"] == 2
    assert "2 calls were refused, the last: no room for this call" in status["message"]
    assert "CallsRefused" in {event["reason"] for event in world.events("lives")}


def test_what_the_provider_refuses_is_not_tried_again(world: World) -> None:
    world.model.load([Reply(status=401, message="that key is no more", usage=None)])
    world.script("crasher", SPENDER + "\nsys.exit(1)\n")
    run(world, "refused", "crasher", {"calls": 1}, retry={"limit": 2}, limits={"maxCost": "1"})
    condition = world.failed("refused", "ProviderRefused")
    assert condition["message"].startswith("provider scripted refused the last call (HTTP 401): exit code 1")
    assert len(world.status("refused")["attempts"]) == 1


CALLER = """
url = os.environ["OPENAI_BASE_URL"]
results = []
for model, more in json.loads(given()):
    if model.startswith("text-embedding"):
        status, said = post(url + "/embeddings", {"model": model, "input": "some text", **more})
    else:
        status, said = chat("hi", **{"model": model, **more})
    results.append([status, "" if status == 200 else said["error"]["message"]])
answer(results)
"""


def test_f6_f11_under_a_budget_code_calls_what_has_a_price_and_sends_what_its_provider_allows(world: World) -> None:
    public: dict[str, Any] = {"type": "OpenAI", "apis": [], "models": [], "prices": [], "allowFields": ["guided_json"]}
    listing = public | {"models": [{"name": "gpt-4.1-mini"}]}
    model = {"name": "gpt-4.1-mini-2025-04-14", "settings": {"maxOutputTokens": 64}}
    world.apply(*world.provider_manifests("public", **public), *world.provider_manifests("listing", **listing))
    agents = [world.script_manifest(name, CALLER, model={"provider": name, **model}) for name in ("public", "listing")]
    world.more(*agents)
    limit: dict[str, Any] = {"limits": {"maxCost": "1"}}
    asked: list[Any] = [("gpt-4.1-mini", {}), ("gpt-4.1-mini-2025-04-14", {"guided_json": {"a": 1}})]
    run(world, "public", "public", [*asked, ("text-embedding-3-small", {}), ("gpt-5-codex", {}), ("mine", {})], **limit)
    run(world, "listing", "listing", [*asked, ("gpt-4.1", {}), ("gpt-4.1-mini", {"guided_regex": "a"})], **limit)
    first, second = (results(status) for status in world.succeeded("public", "listing"))
    assert [status for status, _ in first] == [200, 200, 200, 200, 404]
    assert "model 'mine' has no known price at provider 'public'" in first[4][1]
    assert [status for status, _ in second] == [200, 200, 404, 400]
    assert "model 'gpt-4.1' is not listed: to let it be called, list it in spec.models" in second[2][1]
    assert "guided_regex" in second[3][1]


def test_a_budget_that_runs_out_midway_is_spent_and_not_overspent(world: World) -> None:
    world.script("spender", SPENDER)
    quota(world, "money", budget={"amount": "0.003"})
    run(world, "first", "spender", {"calls": 100, "strict": True})
    condition = world.failed("first", "BudgetExhausted")
    assert "money" in condition["message"]
    spent = world.settled()
    calls = len(world.model.requests)
    assert spent == calls * ONE
    # What is left does not pay for one more such call: the budget was used, not only guarded.
    assert calls >= 5
    books = world.books()["money"]
    assert books == {"limit": 3_000_000, "spent": spent, "reserved": 0, "excess": 0}
    run(world, "second", "spender", {"calls": 1})
    condition = world.wait_reason("second", "BudgetExhausted")
    assert f"{spent / 10**9:.9f}".rstrip("0") in condition["message"]
    assert "of 0.003 USD" in condition["message"]
    quota(world, "now-or-never", budget={"amount": "0.000001"}, onLimit={"action": "Reject"})
    run(world, "third", "spender", {"calls": 1})
    condition = world.failed("third", "Rejected")
    assert "now-or-never" in condition["message"] or "money" in condition["message"]
    assert len(world.model.requests) == calls
    assert not world.pods_of("second")
    assert not world.pods_of("third")
    world.wait(lambda: nanos(world.limit("money")["used"]) == spent, "the quota's status")
    assert world.limit("money")["reserved"] in ("0", "0.00")


def test_limits_of_one_execution_hold_in_parallel(world: World) -> None:
    world.ready(
        world.script_manifest("spender", SPENDER),
        world.script_manifest(
            "tooler",
            """
url = os.environ["ALMONER_METER_URL"] + "/tools/calculator/calls"
codes = []
threads = [threading.Thread(target=lambda: codes.append(post(url, {})[0])) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(sorted(codes))
""",
        ),
        world.loop_manifest("calculating", tools=[{"name": "calculator"}]),
    )
    many = {"calls": 10, "threads": 6}
    run(world, "by-cost", "spender", many, limits={"maxCost": "0.002"})
    run(world, "by-tokens", "spender", many, limits={"maxCost": "1.00", "maxTokens": 400})
    run(world, "by-tools", "tooler", {}, limits={"maxCost": "1.00", "maxToolCalls": 3})
    costs, tokens, tools = world.succeeded("by-cost", "by-tokens", "by-tools")
    for status in (costs, tokens):
        refused = [said for code, said in results(status) if code != 200]
        assert refused
        assert any("execution" in said for said in refused), refused
    world.settled()
    costs, tokens, tools = (world.status(name) for name in ("by-cost", "by-tokens", "by-tools"))
    assert 0 < nanos(costs["usage"]["cost"]) <= 2_000_000
    assert 0 < tokens["usage"]["tokens"]["total"] <= 400
    assert tools["usage"]["toolCalls"] == 3
    assert json.loads(tools["output"]) == [200] * 3 + [429] * 5
    call = ToolCall(name="calculator", arguments={"operation": "add", "a": 1, "b": 2})
    world.model.load([Reply(tool_calls=(call, call, call), usage=USAGE)])
    run(world, "loop", "calculating", "add", limits={"maxCost": "1.00", "maxToolCalls": 2})
    world.failed("loop", "LimitExceeded")
    world.settled()
    assert world.status("loop")["usage"].get("toolCalls", 0) <= 2


def test_one_request_is_bounded_before_it_is_sent(world: World) -> None:
    world.script("spender", SPENDER)
    quota(world, "careful", budget={"amount": "1.00", "maxPerRequest": "0.0012", "maxPerExecution": "0.5"})
    run(world, "ask", "spender", {"calls": 1, "tokens": 500})
    run(world, "vain", "spender", {"calls": 1, "text": "x" * 3000})
    asked, vain = world.succeeded("ask", "vain")
    assert results(asked) == [(200, "")]
    # 500 output tokens alone would cost 0.006: the meter lowered what was asked for.
    (request,) = world.model.requests
    assert 0 < request["body"]["max_tokens"] * 12_345 < 1_200_000
    ((code, said),) = results(vain)
    assert code == 429
    assert "one call" in said
    world.settled()


def test_twenty_at_once_with_streams_and_hang_ups_never_overspend(world: World) -> None:
    world.model.load([Reply(text="a b c d e", usage=USAGE, chunk_ms=5)])
    world.script("rude", RUDE, runner={"resources": {"requests": {"cpu": "10m"}}})
    limit = 20_000_000
    quota(world, "shared", budget={"amount": "0.02"})
    names = [f"rude-{number}" for number in range(20)]
    world.apply(
        *(
            world.manifest("Execution", name, {"agentRef": {"name": "rude"}, "input": {"json": {"rounds": 4}}})
            for name in names
        )
    )

    def over() -> bool:
        books = world.books().get("shared") or {"spent": 0, "reserved": 0, "excess": 0}
        assert books["spent"] + books["reserved"] <= limit, books
        assert books["excess"] == 0
        phases = {name: status.get("phase") for name, status in world.statuses().items()}
        spent_up = not world.open() and all(phase in ("Succeeded", "Queued") for phase in phases.values())
        return len(phases) == 20 and spent_up

    world.wait(over, "all to run, or to wait for money in vain", seconds=120)
    ran = [status for status in world.statuses().values() if status["phase"] == "Succeeded"]
    counts = [json.loads(status["output"]) for status in ran]
    assert sum(count["hung up"] for count in counts) > 0
    assert sum(count["refused"] for count in counts) + (20 - len(ran)) > 0, "the budget never ran out: it tests nothing"
    books = world.books()["shared"]
    # A stream that nobody reads to its end is charged by its bound at most, never by less than what was billed.
    assert world.model.bill <= books["spent"] <= limit
    world.settled(bill=books["spent"])


def test_two_at_a_time_and_the_more_important_first(world: World) -> None:
    world.script("nap", "time.sleep(0.7)")
    quota(world, "two", hard={"executions": 2}, budget={"amount": "1.00"}, stopPolicy="Hold")
    order = {"low-a": 2, "high-a": 9, "middle-a": 5, "low-b": 2, "high-b": 9, "middle-b": 5}
    for name, priority in order.items():
        run(world, name, "nap", {}, priority=priority)
    for name in order:
        world.wait_reason(name, "OnHold")
    world.kubectl("patch", "aq", "two", "--type=merge", "-p", '{"spec":{"stopPolicy":"None"}}')
    statuses = dict(zip(order, world.succeeded(*order), strict=True))
    attempts = {name: status["attempts"][0] for name, status in statuses.items()}
    ran = sorted(order, key=lambda name: attempts[name]["admittedTime"])
    assert [order[name] for name in ran] == [9, 9, 5, 5, 2, 2]
    spans = [(when(each["admittedTime"]), when(each["finishTime"])) for each in attempts.values()]
    at_once = [sum(begin <= moment < end for begin, end in spans) for moment, _ in spans]
    assert max(at_once) == 2, spans
    statuses = {name: status for name, status in statuses.items() if name.startswith("low")}
    assert all("attempts" in status for status in statuses.values())


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_without_a_price_or_a_limit_of_money_nothing_runs(world: World) -> None:
    world.ready(world.script_manifest("spender", SPENDER))
    world.apply(
        *world.provider_manifests("free", prices=[]),
        world.manifest("Agent", "unpriced", {"type": "Evaluation", "model": {"provider": "free", "name": MODEL}}),
    )
    condition = world.wait_ready("Agent", "unpriced", "ModelUnpriced")
    assert MODEL in condition["message"]
    run(world, "no-budget", "spender", {"calls": 1})
    run(world, "no-price", "unpriced", {"calls": 1}, limits={"maxCost": "1.00"})
    assert "limits.maxCost" in world.wait_reason("no-budget", "NoBudget")["message"]
    assert "ModelUnpriced" in world.wait_reason("no-price", "AgentNotReady")["message"]
    assert not world.pods()
    assert not world.model.requests


def test_monitor_watches_and_blocks_nothing(world: World) -> None:
    world.script("spender", SPENDER)
    quota(world, "watch", enforcement="Monitor", hard={"executions": 0}, budget={"amount": "0.000001"})
    for name in ("one", "two"):
        run(world, name, "spender", {"calls": 2}, limits={"maxCost": "0.10"})
    for status in world.succeeded("one", "two"):
        assert results(status) == [(200, ""), (200, "")]
    assert world.settled() == 4 * ONE
    world.wait(lambda: nanos(world.limit("watch").get("used")) == 4 * ONE, "what was watched")
    assert nanos(world.limit("watch")["limit"]) == 1000


def test_an_execution_tightens_its_agents_limits_and_never_widens_them(world: World) -> None:
    world.script("spender", SPENDER, limits={"maxCost": "0.002", "maxTokens": 500})
    run(world, "wider", "spender", {"calls": 50}, limits={"maxCost": "1.00", "maxTokens": 100000})
    run(world, "tighter", "spender", {"calls": 50}, limits={"maxTokens": 300})
    wider, tighter = world.succeeded("wider", "tighter")
    assert results(wider)[-1][0] == results(tighter)[-1][0] == 429
    world.settled()
    wider, tighter = world.status("wider"), world.status("tighter")
    assert 0 < nanos(wider["usage"]["cost"]) <= 2_000_000
    assert 0 < wider["usage"]["tokens"]["total"] <= 500
    assert 0 < tighter["usage"]["tokens"]["total"] <= 300
