"""Machine time: what pods requested is charged by the second, held ahead, and nobody runs on without paying."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from almoner_dev.controlplane import API_SERVER
from almoner_operator import failpoints
from tests.support.cluster import verify_ledger
from tests.support.e2e import NANOS, USAGE, Site, World, cost_of, meter_pids, nanos
from tests.support.e2e_scripts import SPENDER

ONE = cost_of(USAGE)
SECONDS_PER_HOUR = 3600
# What the pods of these tests request, the meter's 50m and 96Mi included.
CPU, MEMORY = 550, 224
RESOURCES = {"resources": {"requests": {"cpu": "500m", "memory": "128Mi"}}, "terminationGracePeriodSeconds": 1}
PRICES = {
    "ALMONER_COMPUTE_PRICE_CPU_HOUR": "0.031",
    "ALMONER_COMPUTE_PRICE_MEMORY_GIB_HOUR": "0.0042",
    "ALMONER_COMPUTE_INTERVAL_SECONDS": "1",
}
# A dollar a second for a core.
DEAR = {
    "ALMONER_COMPUTE_PRICE_CPU_HOUR": "3600",
    "ALMONER_COMPUTE_INTERVAL_SECONDS": "1",
    "ALMONER_COMPUTE_OUTAGE_SECONDS": "2",
    "ALMONER_COMPUTE_PROBE_SECONDS": "1",
    "ALMONER_METER_GRACE_SECONDS": "5",
}


SLEEPER = """
chat("hello")
print("so far, so good", flush=True)
time.sleep(600)
"""


@pytest.fixture
def billed(site: Site, world: World) -> Iterator[World]:
    """A world whose operator charges for machine time; it is the others' operator again when the test is over."""
    site.stack.restart_operator(env=PRICES)
    yield world
    site.stack.restart_operator()


def run(world: World, name: str, agent: str, given: Any, **spec: Any) -> str:
    """Apply an execution; gives its uid."""
    spec = {"agentRef": {"name": agent}, "input": {"json": given}, **spec}
    world.apply(world.manifest("Execution", name, spec))
    return str(world.get("Execution", name)["metadata"]["uid"])


def charged(world: World, uid: str) -> list[tuple[str, int, int, int, int]]:
    """The ledger's entries of machine time: resource, start and end (Unix seconds), units, nano-dollars."""
    database = str(world.site.stack.directory / "ledger.db")
    query = (
        "SELECT r.model, r.started_ms / 1000, (r.started_ms + r.duration_ms) / 1000, r.units, r.cost_nanos "
        "FROM records r JOIN allotments a ON a.id = r.allotment_id "
        "WHERE a.execution_uid = ? AND r.resource_type = 'compute' ORDER BY a.attempt, r.sequence"
    )
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(query, (uid,)).fetchall()


def check_seamless(entries: list[tuple[str, int, int, int, int]], requested: dict[str, int]) -> int:
    """See that every second was charged once, for what the pod requests; gives for how many seconds."""
    total = 0
    for resource, amount in requested.items():
        mine = [each for each in entries if each[0] == resource]
        assert mine, f"no {resource} was charged"
        for (_, _, end, _, _), (_, start, _, _, _) in itertools.pairwise(mine):
            assert start == end, f"{resource}: charged until {end}, and again from {start}"
        for _, start, end, units, _ in mine:
            assert units == amount * (end - start)
        total = mine[-1][2] - mine[0][1]
    return total


def unix(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


def test_machine_time_is_in_every_status_and_in_the_ledger(billed: World) -> None:
    world = billed
    world.script("spender", SPENDER, runner=RESOURCES)
    uid = run(world, "works", "spender", {"calls": 3, "pause": 1}, limits={"maxCost": "0.10"})
    trainer = {
        "runner": {
            "image": "python:3.12-slim",
            "command": ["python", "-c", "import time; time.sleep(2)"],
            **RESOURCES,
        },
        "limits": {"maxCost": "0.10"},
    }
    world.apply(world.manifest("TrainingJob", "trains", trainer))
    works = world.ended("works", "Succeeded")
    trains = world.ended("trains", "Succeeded", kind="TrainingJob")
    world.nothing_open()
    entries = charged(world, uid)
    seconds = check_seamless(entries, {"cpu": CPU, "memory": MEMORY})
    assert seconds >= 2
    cost = sum(each[4] for each in entries)
    exact = seconds * (CPU * 31_000_000 / 1000 + MEMORY * 4_200_000 / 1024) / SECONDS_PER_HOUR
    assert exact <= cost <= exact + len(entries)
    usage = works["usage"]
    assert usage["compute"] == {
        "cpuMilliSeconds": CPU * seconds,
        "memoryMebibyteSeconds": MEMORY * seconds,
        "gpuSeconds": 0,
    }
    assert nanos(usage["cost"]) == 3 * ONE + cost
    assert works["attempts"][0]["usage"] == usage
    assert trains["usage"]["compute"]["cpuMilliSeconds"] >= CPU
    assert world.status_nanos() == world.ledger_nanos()
    by_type = {row["resource_type"] for row in world.ledger_rows("resource_type")}
    assert {"compute", "llm"} <= by_type
    agent = world.wait(
        lambda: (world.status("spender", "Agent").get("usage") or {}).get("compute"), "the agent's usage"
    )
    assert agent["cpuMilliSeconds"] == CPU * seconds
    verify_ledger(world.site.stack)


def test_a_budget_that_runs_out_on_machine_time_stops_the_pod(site: Site, billed: World) -> None:
    world = billed
    site.stack.restart_operator(env=DEAR)
    world.script("sleeper", SLEEPER, runner=RESOURCES)
    world.apply(world.manifest("ResourceQuota", "money", {"budget": {"amount": "20"}}))
    world.wait_ready("ResourceQuota", "money")
    uid = run(world, "sleeps", "sleeper", {})
    condition = world.failed("sleeps", "BudgetExhausted", seconds=120)
    assert "machine time" in condition["message"]
    assert "money" in condition["message"]
    world.nothing_open()
    books = world.books()["money"]
    assert (books["limit"], books["reserved"], books["excess"]) == (20 * NANOS, 0, 0)
    assert books["spent"] == world.status_nanos() == world.ledger_nanos() <= 20 * NANOS
    seconds = check_seamless(charged(world, uid), {"cpu": CPU})
    # Held ahead were an interval, the grace periods of agent and meter, and the margin: it was used until then.
    assert seconds * CPU * NANOS // 1000 + (1 + 6 + 15 + 3) * CPU * NANOS // 1000 >= 20 * NANOS - ONE
    status = world.status("sleeps")
    assert [(each["outcome"], each["logTail"]) for each in status["attempts"]] == [("Failed", "so far, so good")]
    # What is left holds no other pod's machine time ahead.
    run(world, "next", "sleeper", {})
    assert "USD" in world.wait_reason("next", "BudgetExhausted")["message"]
    assert not world.pods_of("next")
    verify_ledger(site.stack)


@pytest.mark.parametrize("away", ["operator", "ledger", "API server"])
def test_nobody_runs_on_unpaid_while_nobody_can_pay(site: Site, billed: World, away: str) -> None:
    """The node ends what is not paid for: 0 over, however long the operator or the ledger is away.

    Where the ledger answers it holds more by itself, as long as there is room.
    """
    world, stack = billed, site.stack
    stack.restart_operator(env=DEAR)
    world.script("sleeper", SLEEPER, runner=RESOURCES)
    world.apply(world.manifest("ResourceQuota", "money", {"budget": {"amount": "24"}}))
    world.wait_ready("ResourceQuota", "money")
    uid = run(world, "sleeps", "sleeper", {})
    world.wait_phase("sleeps", "Running")
    world.wait(lambda: charged(world, uid), "machine time to be charged", 60)

    def agent_ended() -> bool:
        states = [each.state for pod in world.pods_of("sleeps") for each in pod.status.container_statuses or []]
        return any(state.terminated is not None for state in states)

    if away == "operator":
        stack.kill_operator()
        world.wait(agent_ended, "the node to end the pod", 90)
        stack.start_operator(env=DEAR)
        why = "there is no room in the budget to extend it"
    elif away == "ledger":
        stack.kill_ledger()
        world.wait(agent_ended, "the node to end the pod", 90)
        stack.start_ledger()
        why = "the ledger does not answer"
    else:
        # The operator ends by itself, since it cannot know any more whether it leads.
        site.plane.kill(API_SERVER)
        world.wait(lambda: not meter_pids(uid), "the node to end the pod", 90)
        site.plane.restart(API_SERVER)
        stack.kill_operator()
        stack.start_operator(env=DEAR)
        why = "extend it"
    condition = world.failed("sleeps", "BudgetExhausted", seconds=120)
    assert "machine time is not paid for any longer" in condition["message"]
    assert why in condition["message"]
    assert world.status("sleeps")["attempts"][0]["logTail"] == "so far, so good"
    world.nothing_open()
    books = world.books()["money"]
    assert (books["limit"], books["reserved"], books["excess"]) == (24 * NANOS, 0, 0)
    assert books["spent"] == world.status_nanos() == world.ledger_nanos() <= 24 * NANOS
    seconds = check_seamless(charged(world, uid), {"cpu": CPU})
    assert seconds * CPU * NANOS // 1000 + ONE == books["spent"]
    if away == "operator":
        ahead = 1 + 2 + (3 + 4 + 6) + 15
        assert books["spent"] >= 24 * NANOS - (ahead + 5) * CPU * NANOS // 1000, "it ran for as long as there was room"
    verify_ledger(stack)


@pytest.mark.parametrize("point", ["", failpoints.AFTER_ACCRUE, failpoints.BEFORE_CLOSE])
def test_an_operator_that_is_killed_charges_no_second_twice_and_none_never(
    site: Site, billed: World, point: str
) -> None:
    world, stack = billed, site.stack
    world.script("spender", SPENDER, runner=RESOURCES)
    if point:
        stack.stop_operator()
    uid = run(world, "works", "spender", {"calls": 5, "pause": 1}, limits={"maxCost": "0.10"})
    if point:
        stack.start_operator(env={**PRICES, failpoints.ENV_FAILPOINT: point}, wait=False)
        assert stack.wait_operator_died() == -signal.SIGKILL
    else:
        world.wait(lambda: len(charged(world, uid)) >= 4, "machine time to be charged", 60)
        assert stack.operator is not None
        os.kill(stack.operator.process.pid, signal.SIGKILL)
        stack.wait_operator_died()
    stack.start_operator(env=PRICES)
    status = world.ended("works", "Succeeded")
    world.nothing_open()
    entries = charged(world, uid)
    seconds = check_seamless(entries, {"cpu": CPU, "memory": MEMORY})
    attempt = status["attempts"][0]
    assert entries[0][1] <= unix(attempt["startTime"])
    assert entries[-1][2] >= unix(attempt["finishTime"])
    assert status["usage"]["compute"]["cpuMilliSeconds"] == CPU * seconds
    assert nanos(status["usage"]["cost"]) == 5 * ONE + sum(each[4] for each in entries)
    assert world.status_nanos() == world.ledger_nanos()
    verify_ledger(stack)
