"""The life of an Execution and of a TrainingJob, from the user's side, with real pods."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from almoner_dev.scripted import Reply
from tests.support.e2e import USAGE, PodDiary, World, conditions, cost_of, nanos

ONE = cost_of(USAGE)
LIMITS = {"maxCost": "0.10"}
# Ends when its attempt's number is in its input's list, else sleeps on until it is told to stop.
WAITER = """
chat("begin")
if int(os.environ["ALMONER_ATTEMPT"]) not in json.loads(given()).get("ends", []):
    time.sleep(600)
answer("attempt " + os.environ["ALMONER_ATTEMPT"])
"""


def run(world: World, name: str, agent: str, given: Any = None, **spec: Any) -> None:
    spec = {"agentRef": {"name": agent}, "input": {"json": given or {}}, "limits": LIMITS, **spec}
    world.apply(world.manifest("Execution", name, spec))


def change(world: World, name: str, kind: str = "execution", **spec: Any) -> None:
    world.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}))


def seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_cancel_stops_it_for_good(world: World) -> None:
    world.script("waiter", WAITER)
    with PodDiary(world) as diary:
        run(world, "one", "waiter")
        world.wait_phase("one", "Running", seconds=60)
        world.wait(lambda: world.model.requests, "its call")
        change(world, "one", cancel=True)
        status = world.ended("one", "Cancelled")
        assert [each["outcome"] for each in status["attempts"]] == ["Cancelled"]
        assert conditions(status)["Ready"] == "True"
        assert conditions(status)["Stalled"] == "False"
        change(world, "one", cancel=False)
        run(world, "after", "waiter", {"ends": [1]})
        world.succeeded("after")
        assert world.status("one")["phase"] == "Cancelled"
        uids = {world.get("Execution", name)["metadata"]["uid"] for name in ("one", "after")}
        assert diary.attempts() == dict.fromkeys(((uid, "1") for uid in uids), 1)
    assert world.settled() == 2 * ONE
    refused = world.kubectl("patch", "execution", "one", "--type=merge", "-p", '{"spec":{"owner":"else"}}', check=False)
    assert "immutable" in refused


def test_suspend_stops_and_resume_goes_on_with_a_new_attempt(world: World) -> None:
    world.script("waiter", WAITER)
    run(world, "one", "waiter", {"ends": [2]}, timeoutSeconds=300)
    world.wait(lambda: world.model.requests, "its call", 60)
    change(world, "one", suspend=True)
    world.wait(lambda: world.condition("Execution", "one", "Suspended").get("status") == "True", "it is suspended", 60)
    world.nothing_open()
    assert world.status("one")["phase"] == "Queued"
    change(world, "one", suspend=False)
    (status,) = world.succeeded("one")
    assert [each["outcome"] for each in status["attempts"]] == ["Suspended", "Succeeded"]
    assert status["output"] == "attempt 2"
    assert world.settled() == 2 * ONE
    assert [nanos(each["usage"]["cost"]) for each in world.status("one")["attempts"]] == [ONE, ONE]


def test_a_retry_waits_and_runs_the_agent_as_it_was_pinned(world: World) -> None:
    script = 'chat("begin")\nanswer("{0}")\nsys.exit(3 if os.environ["ALMONER_ATTEMPT"] == "1" else 0)'
    world.script("changing", script.replace("{0}", "old"))
    run(world, "one", "changing", retry={"limit": 2, "backoffSeconds": 3, "backoffMaxSeconds": 3})
    world.wait(lambda: world.status("one").get("attempts", [{}])[0].get("outcome") == "Failed", "the first failure", 60)
    world.wait_reason("one", "Backoff")
    world.apply(world.script_manifest("changing", script.replace("{0}", "new")))
    (status,) = world.succeeded("one")
    first, second = status["attempts"]
    assert first["reason"] == "AgentFailed"
    assert first["exitCode"] == 3
    assert seconds(first["finishTime"], second["admittedTime"]) >= 1.5
    assert status["output"] == "old"
    run(world, "two", "changing")
    world.failed("two", "AgentFailed")
    world.wait(lambda: world.status("two").get("output") == "new", "the new agent's output")
    assert world.status("two")["agent"]["hash"] != status["agent"]["hash"]
    assert world.settled() == 3 * ONE


def test_the_timeout_counts_all_attempts(world: World) -> None:
    world.script("slow", 'time.sleep(2.2)\nif os.environ["ALMONER_ATTEMPT"] == "1":\n    sys.exit(3)\ntime.sleep(600)')
    run(world, "one", "slow", timeoutSeconds=4, retry={"limit": 5, "backoffSeconds": 1, "backoffMaxSeconds": 1})
    world.failed("one", "Timeout")
    status = world.status("one")
    assert [each["reason"] for each in status["attempts"]] == ["AgentFailed", "Timeout"]
    last = status["attempts"][1]
    assert seconds(last["startTime"], last["finishTime"]) < 30
    world.settled()


def test_the_ttl_deletes_the_object_and_keeps_its_cost(world: World) -> None:
    world.script("waiter", WAITER)
    run(world, "short", "waiter", {"ends": [1]}, ttlSecondsAfterFinished=2)
    world.wait(lambda: not world.exists("Execution", "short"), "its deletion", 60)
    world.wait(lambda: not world.pods(), "its pod's", 30)
    world.nothing_open()
    assert world.ledger_nanos() == ONE
    (told,) = world.history("executions", "short")
    assert (told["kind"], told["agent"], told["attempts"]) == ("Execution", "waiter", 1)
    assert (told["state"], nanos(told["cost_usd"])) == ("closed", ONE)
    (entry,) = [each for each in world.history("records", "short") if each["resource_type"] == "llm"]
    assert (entry["execution_uid"], entry["cost_nanos"], entry["outcome"]) == (told["uid"], ONE, "ok")


def test_a_raised_priority_overtakes(world: World) -> None:
    world.script("waiter", WAITER)
    world.apply(world.manifest("ResourceQuota", "one-at-a-time", {"hard": {"executions": 1}}))
    world.wait_ready("ResourceQuota", "one-at-a-time")
    run(world, "blocker", "waiter")
    world.wait_phase("blocker", "Running", seconds=60)
    for name in ("first", "second", "third"):
        run(world, name, "waiter", {"ends": [1]})
        world.wait_reason(name, "WaitingForQuota")
    world.wait(lambda: world.status("third")["queue"]["position"] == 3, "its place in the queue")
    change(world, "third", priority=10)
    world.wait(lambda: world.status("third")["queue"]["position"] == 1, "its new place")
    change(world, "blocker", cancel=True)
    third, *others = world.succeeded("third", "first", "second")
    admitted = [each["attempts"][0]["admittedTime"] for each in others]
    assert third["attempts"][0]["admittedTime"] < min(admitted)


TRAINER = """
task = json.loads(given())
steps = task["steps"]
for step in range(1, steps + 1):
    loss = 1.0 / (step * task["hyperparameters"]["rate"])
    status, _ = post(os.environ["ALMONER_METER_URL"] + "/progress",
                     {"step": step, "message": f"step {step}",
                      "metrics": {"loss": f"{loss:.4f}", "accuracy": "0.5"}})
    assert status == 202, status
    time.sleep(0.15)
chat("how was it?")
answer({"loss": f"{loss:.4f}"})
"""


def test_a_training_job_reports_its_progress(world: World) -> None:
    world.model.load([Reply(text="well", usage=USAGE)])
    world.script("trainer", TRAINER)
    spec = {"agentRef": {"name": "trainer"}, "steps": 20, "hyperparameters": {"rate": 0.5}, "limits": LIMITS}
    world.apply(world.manifest("TrainingJob", "train", spec))

    def progress() -> dict[str, Any]:
        found: dict[str, Any] = world.status("train", "TrainingJob").get("progress") or {}
        return found

    world.wait(lambda: 0 < progress().get("step", 0) < 20, "progress while it runs", 60)
    status = world.ended("train", "Succeeded", kind="TrainingJob")
    world.wait(lambda: progress().get("step") == 20, "the last step")
    status = world.status("train", "TrainingJob")
    assert status["progress"]["percent"] == 100
    assert status["progress"]["total"] == 20
    assert {each["name"]: each["value"] for each in status["metrics"]} == {"loss": "0.1000", "accuracy": "0.5"}
    assert json.loads(status["output"]) == {"loss": "0.1000"}
    assert world.settled() == ONE
    table = world.kubectl("get", "trainingjobs")
    assert "100" in table


def test_a_training_job_that_fails_is_tried_again_and_can_be_cancelled(world: World) -> None:
    world.script("waiter", WAITER)
    runner = {"image": "python:3.12-slim", "command": ["python", "-c", "import os, sys, time; time.sleep(600)"]}
    crash = {**runner, "command": ["sh", "-c", "exit 7"]}
    retry = {"limit": 1, "backoffSeconds": 1, "backoffMaxSeconds": 1}
    world.apply(
        world.manifest("TrainingJob", "crash", {"runner": crash, "steps": 5, "limits": LIMITS, "retry": retry}),
        world.manifest("TrainingJob", "long", {"runner": runner, "episodes": 5, "limits": LIMITS}),
    )
    status = world.ended("crash", "Failed", kind="TrainingJob")
    assert [each["exitCode"] for each in status["attempts"]] == [7, 7]
    world.wait_phase("long", "Running", kind="TrainingJob", seconds=60)
    change(world, "long", kind="trainingjob", cancel=True)
    status = world.ended("long", "Cancelled", kind="TrainingJob")
    assert status["attempts"][0]["outcome"] == "Cancelled"
    assert world.settled() == 0
