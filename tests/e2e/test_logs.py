"""Why a run was stopped and the end of its agent's log can be read after every end, though its pod is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.e2e import World

SAYS = 'print("step one", flush=True)\nprint("step two", flush=True)\nanswer("begun")\n'
KILLED = f"{SAYS}time.sleep(600)"
FAILS = f"{SAYS}sys.exit(1)"
# It ends well when it is told to stop: the kubelet then says nothing of its log.
POLITE = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n{SAYS}time.sleep(600)"


def cancel(world: World) -> None:
    world.kubectl("patch", "execution", "one", "--type=merge", "-p", '{"spec": {"cancel": true}}')


def suspend(world: World) -> None:
    world.kubectl("patch", "execution", "one", "--type=merge", "-p", '{"spec": {"suspend": true}}')


def drain(world: World) -> None:
    world.kubectl("patch", "aq", "team", "--type=merge", "-p", '{"spec": {"stopPolicy": "HoldAndDrain"}}')


def preempt(world: World) -> None:
    """There is room for one, and something more important comes."""
    spec = {"agentRef": {"name": "talker"}, "input": {"json": {}}, "limits": {"maxCost": "0.10"}, "priority": 9}
    world.apply(world.manifest("Execution", "urgent", spec))


def delete_its_pod(world: World) -> None:
    """Somebody does, or an eviction."""
    world.kubectl("delete", "pod", world.pods_of("one")[0].metadata.name, "--wait=false")


def nothing(_: World) -> None:
    """Its time runs out, or it ends by itself."""


@pytest.mark.parametrize(
    ("stop", "script", "outcome", "says"),
    [
        pytest.param(cancel, KILLED, "Cancelled", "cancelled", id="cancelled"),
        pytest.param(cancel, POLITE, "Cancelled", "cancelled", id="cancelled and polite"),
        pytest.param(suspend, KILLED, "Suspended", "suspended", id="suspended"),
        pytest.param(drain, KILLED, "Preempted", "HoldAndDrain", id="drained"),
        pytest.param(drain, POLITE, "Preempted", "HoldAndDrain", id="drained and polite"),
        pytest.param(preempt, POLITE, "Preempted", "urgent", id="preempted and polite"),
        pytest.param(delete_its_pod, KILLED, "Failed", "", id="pod deleted"),
        pytest.param(nothing, FAILS, "Failed", "exit", id="exit code 1"),
        pytest.param(nothing, POLITE, "Failed", "timeoutSeconds", id="timed out and polite"),
    ],
)
def test_the_end_of_the_log_outlives_the_pod(
    world: World, stop: Callable[[World], None], script: str, outcome: str, says: str
) -> None:
    world.script("talker", script)
    world.apply(world.manifest("ResourceQuota", "team", {"hard": {"executions": 1}}))
    world.wait_ready("ResourceQuota", "team")
    limits = {"maxCost": "0.10"}
    more = {"timeoutSeconds": 3} if stop is nothing else {"priority": 2, "preemptible": True}
    spec = {"agentRef": {"name": "talker"}, "input": {"json": {}}, "limits": limits, **more}
    world.apply(world.manifest("Execution", "one", spec))
    if stop is not nothing:
        world.wait(lambda: world.status("one").get("phase") == "Running", "it to run", 60)
        world.wait(lambda: "step two" in world.log(world.pods_of("one")[0].metadata.name), "its log", 30)
    stop(world)
    world.wait(lambda: first_attempt(world).get("outcome") == outcome, f"it to be {outcome}", 90)
    if stop is not nothing or script is POLITE:
        world.wait(lambda: not world.pods_of("one"), "the pod to be gone", 60)
    attempt = first_attempt(world)
    assert says in attempt["message"]
    assert "step one\nstep two" in attempt["logTail"]


def first_attempt(world: World) -> dict[str, Any]:
    attempts = world.status("one").get("attempts") or [{}]
    return dict(attempts[0])
