"""Whatever is killed, at any moment: one pod an attempt, nothing runs twice or is held for ever, the books agree."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from almoner_dev.node import ProcessNode
from almoner_dev.postgres import Postgres
from almoner_dev.scripted import Reply
from almoner_dev.stack import Stack
from almoner_operator import failpoints
from tests.support.e2e import USAGE, PodDiary, Site, World, cost_of, meter_pids, nanos
from tests.support.e2e_scripts import ANTHROPIC_SDK, SPENDER

ONE = cost_of(USAGE)
LIMITS = {"maxCost": "0.10"}


def run(world: World, name: str, agent: str, given: Any = None, **spec: Any) -> str:
    """Apply an execution; gives its uid."""
    spec = {"agentRef": {"name": agent}, "input": {"json": given or {"calls": 1}}, "limits": LIMITS, **spec}
    world.apply(world.manifest("Execution", name, spec))
    return str(world.get("Execution", name)["metadata"]["uid"])


@pytest.fixture
def fragile(site: Site, world: World) -> Iterator[World]:
    """A world whose operator and ledger run again when the test is over, whatever it did to them."""
    yield world
    if site.stack.ledger is None:
        site.stack.start_ledger()
    if site.stack.operator is None or not site.stack.operator.running():
        site.stack.operator = None
        site.stack.start_operator()


@pytest.mark.parametrize("point", failpoints.ALL)
def test_the_operator_killed_at_every_point_runs_nothing_twice(fragile: World, point: str) -> None:
    world, stack = fragile, fragile.site.stack
    world.script("spender", SPENDER)
    world.apply(world.manifest("ResourceQuota", "team", {"hard": {"executions": 2}, "budget": {"amount": "1.00"}}))
    world.wait_ready("ResourceQuota", "team")
    stack.stop_operator()
    uids = [run(world, name, "spender") for name in ("one", "two")]
    with PodDiary(world) as diary:
        stack.start_operator(env={failpoints.ENV_FAILPOINT: point}, wait=False)
        assert stack.wait_operator_died() == -signal.SIGKILL
        stack.start_operator()
        for status in world.succeeded("one", "two"):
            assert [each["outcome"] for each in status["attempts"] if each["outcome"] != "Failed"] == ["Succeeded"]
            assert len(status["attempts"]) == 1
            assert json.loads(status["output"]) == [[200, ""]], "its one call was refused"
        attempts = diary.attempts()
    assert {uid for uid, _ in attempts} == set(uids)
    assert set(attempts.values()) == {1}, "an attempt had more than one pod"
    assert len(attempts) == 2
    assert world.settled() == 2 * ONE
    assert len(world.model.requests) == 2
    world.wait(lambda: world.limit("team", "executions").get("used") == "0", "the quota to be free")
    assert nanos(world.limit("team")["reserved"]) == 0


def test_the_ledger_killed_under_a_running_execution_loses_nothing(fragile: World) -> None:
    world, stack = fragile, fragile.site.stack
    world.script("spender", SPENDER)
    run(world, "long", "spender", {"calls": 6, "pause": 0.3})
    world.wait(lambda: len(world.model.requests) >= 2, "the second call", 60)
    stack.kill_ledger()
    run(world, "later", "spender")
    world.wait_reason("later", "LedgerUnavailable", seconds=30)
    stack.start_ledger()
    for status in world.succeeded("long", "later"):
        assert len(status["attempts"]) == 1
    assert world.settled() == 7 * ONE
    assert len(world.model.requests) == 7


def test_a_meter_killed_under_a_call_charges_what_the_call_may_have_cost(world: World) -> None:
    world.model.load([Reply(text="slow", usage=USAGE, latency_ms=4000), Reply(text="quick", usage=USAGE)])
    world.script(
        "stubborn",
        """
import http.client
for _ in range(200):
    try:
        if chat("again")[0] == 200:
            answer("got it")
            sys.exit(0)
    except (OSError, http.client.HTTPException):
        time.sleep(0.1)
sys.exit(1)
""",
    )
    uid = run(world, "one", "stubborn")
    world.wait(lambda: len(world.model.requests) == 1, "the first call", 60)
    (pid,) = meter_pids(uid)
    os.kill(pid, signal.SIGKILL)
    (status,) = world.succeeded("one")
    assert len(status["attempts"]) == 1
    world.nothing_open()
    records = world_records(world)
    assert sorted(outcome for outcome, _ in records) == ["estimated", "ok"]
    charged = dict(records)
    assert charged["ok"] == ONE
    assert charged["estimated"] >= ONE, "an unsettled call is never charged less than what it may have cost"
    assert world.settled(bill=ONE + charged["estimated"])
    assert world.status("one")["usage"]["requests"] == 2
    (pod,) = world.pods_of("one")
    (meter,) = pod.status.init_container_statuses
    assert meter.restart_count == 1


@pytest.mark.parametrize("podless", [False, True], ids=["its pod is there", "its pod is gone"])
def test_a_run_whose_status_was_wiped_while_no_operator_looked_is_not_run_again(fragile: World, podless: bool) -> None:
    world, stack = fragile, fragile.site.stack
    world.script("spender", SPENDER)
    run(world, "one", "spender", retry={"limit": 3})
    (before,) = world.succeeded("one")
    stack.stop_operator()
    world.custom.patch_namespaced_custom_object_status(
        "almoner.dev", "v1alpha1", world.namespace, "executions", "one", {"status": None}
    )
    if podless:
        pod = before["attempts"][0]["pod"]
        world.core.delete_namespaced_pod(pod, world.namespace, grace_period_seconds=0)
    stack.start_operator()
    status = world.ended("one", "Failed")
    failed = next(each for each in status["conditions"] if each["type"] == "Failed")
    assert failed["reason"] == "StatusLost"
    assert "attempt 1 has run" in failed["message"]
    assert world.settled() == ONE, "and the status has what the ledger charged"
    assert len(world.model.requests) == 1


def world_records(world: World) -> list[tuple[str, int]]:
    """Outcome and nano-dollars of every call that the ledger has for the namespace; machine time is no call."""
    database = world.site.stack.directory / "ledger.db"
    query = (
        "SELECT r.outcome, r.cost_nanos FROM records r JOIN allotments a ON a.id = r.allotment_id "
        "WHERE a.namespace = ? AND r.resource_type <> 'compute'"
    )
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return list(connection.execute(query, (world.namespace,)))


def test_a_killed_node_loses_the_attempt_not_the_run_and_the_money_is_accounted_for(world: World) -> None:
    world.model.load(
        [Reply(text="first", usage=USAGE), Reply(hang=True, usage=None, match="second call"), Reply(usage=USAGE)]
    )
    name = f"doomed-{world.namespace}"
    place = {"nodeSelector": {"kubernetes.io/hostname": name}}
    # Without networks of its own: its pods have to reach the ledger, which listens for the other node's.
    with ProcessNode(world.site.plane.kubeconfig, name, isolation="none") as node:
        world.ready(
            world.script_manifest(
                "unlucky",
                'chat("first call")\nif os.environ["ALMONER_ATTEMPT"] == "1":\n    chat("second call")\nanswer("done")',
                runner=place,
            )
        )
        run(world, "one", "unlucky", retry={"limit": 1, "backoffSeconds": 1})
        run(world, "two", "unlucky")
        world.wait(lambda: len(world.model.calls("second call")) == 2, "both to hang", 60)
        node.kill()
        node.start()
        (status,) = world.succeeded("one", seconds=90)
        assert [(each["outcome"], each.get("reason")) for each in status["attempts"]] == [
            ("Failed", "NodeLost"),
            ("Succeeded", None),
        ]
        world.failed("two", "NodeLost", seconds=90)
        world.nothing_open(30)
        world.wait(lambda: world.status("two").get("usage", {}).get("unaccounted"), "what was charged off", 30)
        for each in ("one", "two"):
            usage = world.status(each)["usage"]
            # What hung may have been billed: it is charged, and told apart.
            assert nanos(usage["unaccounted"]) > 0
            assert nanos(usage["cost"]) >= nanos(usage["unaccounted"])
        billed = 3 * ONE
        world.settled(bill=world.ledger_nanos())
        assert world.ledger_nanos() >= billed


def test_deleting_a_running_execution_stops_it_and_keeps_its_cost(world: World) -> None:
    world.model.load([Reply(text="first", usage=USAGE)])
    world.script("sleeper", 'chat("first")\ntime.sleep(600)')
    world.apply(world.manifest("ResourceQuota", "team", {"hard": {"executions": 1}, "budget": {"amount": "1.00"}}))
    world.wait_ready("ResourceQuota", "team")
    run(world, "one", "sleeper")
    world.wait(lambda: world.model.requests, "its call", 60)
    (pod,) = world.pods_of("one")
    world.kubectl("delete", "execution", "one", "--wait=true", "--timeout=60s")
    world.wait(lambda: not world.pods(), "the pod to be gone", 60)
    world.nothing_open()
    assert world.ledger_nanos() == ONE
    world.wait(lambda: world.limit("team", "executions").get("used") == "0", "the quota to be free")
    world.wait(lambda: nanos(world.limit("team")["used"]) == ONE, "the budget's use")
    assert pod.metadata.name


def test_the_main_road_with_postgresql(site: Site, postgres_server: Postgres) -> None:
    site.stack.stop_operator()
    url = postgres_server.create_database("e2e")
    world = World(site)
    try:
        with Stack(
            site.plane, database=url, host_address=site.node.host_address, namespaces=[world.namespace]
        ) as stack:
            world.site = Site(site.plane, site.node, stack)
            world.ready(
                world.loop_manifest("loop", limits=LIMITS),
                world.script_manifest("sdk", ANTHROPIC_SDK, prelude=False, limits=LIMITS),
                world.script_manifest("spender", SPENDER),
            )
            world.apply(world.manifest("ResourceQuota", "money", {"budget": {"amount": "0.008"}}))
            world.wait_ready("ResourceQuota", "money")
            run(world, "by-loop", "loop")
            run(world, "by-sdk", "sdk")
            world.succeeded("by-loop", "by-sdk")
            run(world, "greedy", "spender", {"calls": 50, "threads": 4, "strict": True})
            world.failed("greedy", "BudgetExhausted")
            stack.kill_ledger()
            stack.start_ledger()
            assert 4 * ONE < world.settled() <= 8_000_000
    finally:
        world.close()
        site.stack.start_operator()
