"""The ledger away for longer than meters wait while runs end: no call is lost, charged twice, or charged in a lump."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from almoner_dev.scripted import Reply
from tests.support.cluster import verify_ledger
from tests.support.e2e import USAGE, Site, World, nanos

LARGE = 20_000
# The second call is under way when the ledger goes; the third is made without one.
SCRIPT = """
told = json.loads(given())
for text in ("first", "second", "third"):
    status, _ = chat(text)
    assert status == 200, status
answer(told["letter"] * told["length"])
"""


@pytest.fixture
def fragile(site: Site, world: World) -> Iterator[World]:
    """A world whose ledger runs again when the test is over."""
    yield world
    if site.stack.ledger is None:
        site.stack.start_ledger()


def test_runs_that_end_without_a_ledger_lose_no_call_and_say_what_is_lost_of_their_output(fragile: World) -> None:
    world, stack = fragile, fragile.site.stack
    world.model.load(
        [
            Reply(text="quick", usage=USAGE, match="first"),
            Reply(text="slow", usage=USAGE, match="second", latency_ms=4000),
            Reply(text="quick", usage=USAGE, match="third"),
        ]
    )
    world.script("worker", SCRIPT)
    world.apply(world.manifest("ResourceQuota", "team", {"budget": {"amount": "10.00"}}))
    world.wait_ready("ResourceQuota", "team")
    lengths = {"one": 10, "two": 300, "three": 2000, "large": LARGE}
    for number, (name, length) in enumerate(lengths.items()):
        given = {"letter": "abcd"[number], "length": length}
        limits = {"maxCost": "1.00"}
        spec = {"agentRef": {"name": "worker"}, "input": {"json": given}, "limits": limits}
        world.apply(world.manifest("Execution", name, spec))
    world.wait(lambda: len(world.model.calls("second")) == len(lengths), "every second call", 90)
    stack.kill_ledger()
    world.wait(
        lambda: all(pod.status.phase == "Succeeded" for pod in world.pods()), "the pods to end without a ledger", 90
    )
    assert len(world.model.billed) == 3 * len(lengths)
    stack.start_ledger()
    world.succeeded(*lengths)
    # Every billed call, exactly, in the statuses, the ledger and its audit.
    world.settled()
    statuses = world.statuses()
    for number, (name, length) in enumerate(lengths.items()):
        status = statuses[name]
        assert status["usage"].get("unaccounted") is None
        assert status["usage"]["requests"] == 3
        assert "last word" in status["attempts"][0]["message"]
        assert status["output"] == "abcd"[number] * length or (name == "large" and status["outputTruncated"])
        assert ("outputIssue" in status) is (name == "large")
    issue = statuses["large"]["outputIssue"]
    assert issue["reason"] == "NotStored"
    assert str(LARGE) in issue["message"]
    assert any(each["reason"] == "OutputNotKept" for each in world.events("large"))
    kinds = {each["kind"] for name in lengths for each in world.history("records", name)}
    assert kinds == {"usage", "last_word"}
    assert nanos(world.limit("team")["reserved"]) == 0
    verify_ledger(stack)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param('os.mkfifo(os.environ["ALMONER_OUTPUT_FILE"])', "NotRegular", id="a pipe"),
        pytest.param('open(os.environ["ALMONER_OUTPUT_FILE"], "wb").write(b"\\xff")', "NotUTF8", id="not UTF-8"),
    ],
)
def test_what_is_wrong_with_an_output_stands_in_the_status_by_name(world: World, script: str, reason: str) -> None:
    world.script("odd", script)
    spec = {"agentRef": {"name": "odd"}, "input": {"json": {}}, "limits": {"maxCost": "1.00"}}
    world.apply(world.manifest("Execution", "one", spec))
    (status,) = world.succeeded("one")
    assert status["outputIssue"]["reason"] == reason, json.dumps(status)
    assert status["outputIssue"]["message"]
