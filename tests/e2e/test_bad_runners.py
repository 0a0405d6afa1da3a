"""A runner that does what it must not harms itself alone; what is missing is said, and heals when it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.e2e import MODEL, USAGE, Site, World, cost_of
from tests.support.e2e_scripts import SPENDER

ONE = cost_of(USAGE)
LIMITS = {"maxCost": "0.10"}

BAD = {
    "crashes": 'print("the last line", file=sys.stderr)\nsys.exit(3)',
    "hangs": "time.sleep(600)",
    "babbles": """
sys.stdout.buffer.write(os.urandom(1000) + b"\\n" + b"x" * 300_000 + b"\\n")
for number in range(20_000):
    print(number, "garbage" * 20)
answer("babbled")
""",
    "too-much": "answer('y' * (5 * 1024 * 1024))",
    "symlink": """
os.symlink("/etc/passwd", os.environ["ALMONER_OUTPUT_FILE"])
""",
    "fifo": 'os.mkfifo(os.environ["ALMONER_OUTPUT_FILE"])',
    "not-text": 'open(os.environ["ALMONER_OUTPUT_FILE"], "wb").write(bytes(range(256)) + b"end")',
    "floods": """
codes = {}
def flood():
    for _ in range(40):
        for path in ("/openai/v1/chat/completions", "/tools/calculator/calls", "/progress", "/nowhere"):
            try:
                code, _ = post(os.environ["ALMONER_METER_URL"] + path, ["nonsense"] * 50)
            except (OSError, ValueError):
                code = "cut"
            codes[str(code)] = codes.get(str(code), 0) + 1
threads = [threading.Thread(target=flood) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
answer(codes)
""",
}


def run(world: World, name: str, agent: str, given: Any = None, **spec: Any) -> None:
    spec = {"agentRef": {"name": agent}, "input": {"json": given or {}}, "limits": LIMITS, **spec}
    world.apply(world.manifest("Execution", name, spec))


def test_each_harms_itself_alone(world: World) -> None:
    world.ready(
        world.script_manifest("neighbour", SPENDER),
        *(world.script_manifest(name, script) for name, script in BAD.items()),
    )
    for name in BAD:
        run(world, name, name, timeoutSeconds=5 if name == "hangs" else 60)
    run(world, "neighbour", "neighbour", {"calls": 3, "pause": 0.5})
    (neighbour,) = world.succeeded("neighbour")
    assert len(json.loads(neighbour["output"])) == 3
    assert "the last line" in world.failed("crashes", "AgentFailed")["message"]
    assert world.status("crashes")["attempts"][0]["exitCode"] == 3
    world.failed("hangs", "Timeout")
    (babbled,) = world.succeeded("babbles")
    assert babbled["output"] == "babbled"
    (much,) = world.succeeded("too-much")
    assert much["output"] == "y" * 4096
    assert much["outputTruncated"] is True
    for name in ("symlink", "fifo"):
        (status,) = world.succeeded(name)
        assert not status.get("output")
    (strange,) = world.succeeded("not-text")
    assert strange["output"].endswith("end")
    (flooded,) = world.succeeded("floods")
    # Calls of a tool are granted, since nothing limits them here; nonsense gets no further than the meter.
    codes = json.loads(flooded["output"])
    assert codes["400"] >= 320
    assert sum(codes.values()) == 8 * 40 * 4
    assert len(world.model.requests) == 3
    assert world.settled() == 3 * ONE
    assert {name for name, s in world.statuses().items() if (s.get("usage") or {}).get("requests")} == {"neighbour"}


def test_another_executions_allotment_cannot_be_touched(world: World) -> None:
    script = """
asked = json.loads(given())
said = {}
def attempt(name, path, sent, headers, method="POST"):
    request = urllib.request.Request(asked["ledger"] + path, json.dumps(sent).encode() if sent else None,
                                     {"content-type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            said[name] = reply.status
    except urllib.error.HTTPError as error:
        said[name] = error.code
operation = {"operation_id": "0190a7c0-0000-7000-8000-000000000001"}
record = {"id": operation["operation_id"], "sequence": 1, "provider": "p", "model": "m", "operation": "chat",
          "cost_nanos": 10**9, "started_unix_ms": 0, "duration_ms": 1, "outcome": "ok", "requests": 1}
for kind, headers in {"no token": {}, "a forged one": {"authorization": "Bearer eyJhbGciOiJub25lIn0.e30."}}.items():
    path = "/v1/allotments/" + asked["allotment"]
    attempt(kind + ": records", path + "/records", {**operation, "records": [record]}, headers)
    attempt(kind + ": extend", path + "/extend", {**operation, "need": {"usd": 1}}, headers)
    attempt(kind + ": output", path + "/output", {**operation, "content": "forged"}, headers, "PUT")
    attempt(kind + ": close", "/v1/allotments:close", {"epoch": 1, "items": [
        {**operation, "allotment": asked["allotment"]}]}, headers)
    attempt(kind + ": costs", "/v1/costs", None, headers, "GET")
answer(said)
"""
    world.ready(
        world.script_manifest("victim", 'chat("mine")\ntime.sleep(4)\nanswer("mine")'),
        world.script_manifest("thief", script),
    )
    run(world, "victim", "victim")
    attempt = world.wait(lambda: world.status("victim").get("attempts"), "the victim's attempt")[0]
    world.wait(lambda: world.model.requests, "the victim's call", 60)
    run(world, "thief", "thief", {"ledger": world.site.stack.ledger_url, "allotment": attempt["allotment"]})
    (thief,) = world.succeeded("thief")
    codes = json.loads(thief["output"])
    assert len(codes) == 10
    assert set(codes.values()) == {401}, codes
    (victim,) = world.succeeded("victim")
    assert victim["output"] == "mine"
    assert world.settled() == ONE


def test_with_a_token_of_its_own_a_pod_speaks_for_itself_alone(world: World) -> None:
    """The strongest thief: a meter's own token, which agents never have, used on a neighbour's allotment."""
    import urllib.error
    import urllib.request

    world.script("sleeper", 'chat("x")\ntime.sleep(6)\nanswer("ok")')
    for name in ("victim", "thief"):
        run(world, name, "sleeper")
    world.wait(lambda: len(world.model.requests) == 2, "both to run", 60)
    (pod,) = world.pods_of("thief")
    token = world.core.create_namespaced_service_account_token(
        "default",
        world.namespace,
        {
            "spec": {
                "audiences": ["almoner-ledger"],
                "expirationSeconds": 600,
                "boundObjectRef": {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "name": pod.metadata.name,
                    "uid": pod.metadata.uid,
                },
            }
        },
    ).status.token
    answers = {}
    for name in ("victim", "thief"):
        allotment = world.status(name)["attempts"][0]["allotment"]
        body = {"operation_id": "0190a7c0-0000-7000-8000-00000000000a", "need": {"usd": 1}}
        request = urllib.request.Request(
            f"{world.site.stack.ledger_url}/v1/allotments/{allotment}/extend",
            json.dumps(body).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answered:
                answers[name] = answered.status
        except urllib.error.HTTPError as error:
            answers[name] = error.code
    assert answers == {"victim": 403, "thief": 200}
    world.succeeded("victim", "thief")
    assert world.settled() == 2 * ONE


def heals(world: World, *documents: dict[str, Any]) -> None:
    world.apply(*documents)
    world.succeeded("one")


def test_a_missing_agent_is_said_and_heals(world: World) -> None:
    world.apply(*world.provider_manifests())
    run(world, "one", "late")
    assert "late" in world.wait_reason("one", "AgentNotFound")["message"]
    assert not world.pods()
    heals(world, world.script_manifest("late", 'answer("ok")'))


def test_a_missing_provider_is_said_and_heals(world: World) -> None:
    world.apply(world.script_manifest("agent", 'answer("ok")'))
    run(world, "one", "agent")
    condition = world.wait_ready("Agent", "agent", "ProviderNotFound")
    assert "spec.model.provider" in condition["message"]
    world.wait_reason("one", "ProviderNotReady")
    heals(world, *world.provider_manifests())


def test_a_missing_secret_is_said_and_heals(world: World) -> None:
    secret, provider = world.provider_manifests()
    world.apply(provider, world.script_manifest("agent", 'chat("x")\nanswer("ok")'))
    run(world, "one", "agent")
    condition = world.wait_ready("ModelProvider", "scripted", "SecretNotFound")
    assert "scripted-key" in condition["message"]
    world.wait_ready("Agent", "agent", "ProviderNotReady")
    world.wait_reason("one", "ProviderNotReady")
    world.apply(secret)
    world.wait_ready("ModelProvider", "scripted", seconds=45)
    world.succeeded("one")
    assert world.settled() == ONE


def test_a_handoff_is_refused_by_name_and_the_agent_heals_without_it(world: World) -> None:
    plain = world.script_manifest("agent", 'answer("ok")')
    asks = world.script_manifest(
        "agent", 'answer("ok")', handoffs=[{"agent": "colleague", "description": "knows more"}]
    )
    world.apply(*world.provider_manifests(), asks)
    run(world, "one", "agent")
    assert "spec.handoffs[0]" in world.wait_ready("Agent", "agent", "NotSupported")["message"]
    world.wait_reason("one", "AgentNotReady")
    heals(world, plain)


@pytest.mark.parametrize(
    ("kind", "name", "reason"), [("Execution", "one", "AgentNotFound"), ("Agent", "agent", "ProviderNotFound")]
)
def test_what_is_missing_is_told_by_an_event(world: World, kind: str, name: str, reason: str) -> None:
    if kind == "Agent":
        world.apply(world.manifest("Agent", name, {"type": "Evaluation", "model": {"provider": "no", "name": MODEL}}))
    else:
        run(world, name, "nobody")
    world.wait(lambda: [e for e in world.events(name) if e["reason"] == reason], f"an event with {reason}", 20)


def test_after_all_that_the_operator_is_the_same_process(site: Site) -> None:
    assert site.stack.operator is not None
    assert site.stack.operator.running()
    assert site.stack.operator_state().get("synced")
    log = site.stack.operator_log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
