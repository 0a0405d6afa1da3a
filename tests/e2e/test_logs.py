"""Why a run was stopped and the end of its agent's log can be read after every end, though its pod is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.e2e import World

SAYS = 'print("step one", flush=True)\nprint("step two", flush=True)\nanswer("begun")\n'
KILLED = f"{SAYS}time.sleep(600)"
# It ends well when it is told to stop: the kubelet then says nothing of its log.
POLITE = f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n{SAYS}time.sleep(600)"


def cancel(world: World) -> None:
    world.kubectl("patch", "execution", "one", "--type=merge", "-p", '{"spec": {"cancel": true}}')


def suspend(world: World) -> None:
    world.kubectl("patch", "execution", "one", "--type=merge", "-p", '{"spec": {"suspend": true}}')


def nothing(_: World) -> None:
    """Its time runs out."""


@pytest.mark.parametrize(
    ("stop", "script", "outcome", "says"),
    [
        pytest.param(cancel, KILLED, "Cancelled", "cancelled", id="cancelled"),
        pytest.param(cancel, POLITE, "Cancelled", "cancelled", id="cancelled and polite"),
        pytest.param(suspend, KILLED, "Suspended", "suspended", id="suspended"),
        pytest.param(nothing, POLITE, "Failed", "timeoutSeconds", id="timed out and polite"),
    ],
)
def test_the_end_of_the_log_outlives_the_pod(
    world: World, stop: Callable[[World], None], script: str, outcome: str, says: str
) -> None:
    world.script("talker", script)
    limits = {"maxCost": "0.10"}
    more = {"timeoutSeconds": 3} if stop is nothing else {}
    spec = {"agentRef": {"name": "talker"}, "input": {"json": {}}, "limits": limits, **more}
    world.apply(world.manifest("Execution", "one", spec))
    world.wait(lambda: world.status("one").get("phase") == "Running", "it to run", 60)
    if stop is not nothing:
        world.wait(lambda: "step two" in world.log(world.pods_of("one")[0].metadata.name), "its log", 30)
    stop(world)
    world.wait(lambda: world.status("one")["attempts"][0]["outcome"] == outcome, f"it to be {outcome}", 90)
    world.wait(lambda: not world.pods(), "the pod to be gone", 60)
    attempt = world.status("one")["attempts"][0]
    assert says in attempt["message"]
    assert "step one\nstep two" in attempt["logTail"]
