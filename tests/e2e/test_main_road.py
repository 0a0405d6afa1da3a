"""From `kubectl apply` to a status whose cost is exact, for each way to bring an agent."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import urllib.request
from typing import Any

import pytest

from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.scripted import Reply, ToolCall, Usage
from tests.support.cluster import verify_ledger
from tests.support.e2e import (
    CACHED_NANOS,
    INPUT_NANOS,
    MODEL,
    OUTPUT_NANOS,
    USAGE,
    Site,
    World,
    conditions,
    cost_of,
    nanos,
)
from tests.support.e2e_scripts import ANTHROPIC_SDK, OPENAI_SDK

CACHED = Usage(input_tokens=53, cached_input_tokens=20, output_tokens=7, reasoning_tokens=3)


def execution(world: World, name: str, agent: str, given: Any = "hello", **spec: Any) -> dict[str, Any]:
    """A manifest; `given` is text, or a whole input."""
    asked = {"text": given} if isinstance(given, str) else given
    return world.manifest("Execution", name, {"agentRef": {"name": agent}, "input": asked, **spec})


def agent_has_spent(world: World, agent: str, spent: int) -> bool:
    return nanos(world.status(agent, "Agent")["usage"]["cost"]) == spent


def test_three_runners_from_apply_to_exact_costs(world: World) -> None:
    budget = {"budget": {"amount": "1.00"}}
    world.model.load([Reply(text="done", usage=CACHED)])
    world.apply(
        *world.provider_manifests(),
        world.manifest("ResourceQuota", "money", budget),
        world.loop_manifest("by-openai", "OpenAI"),
        world.loop_manifest("by-anthropic", "Anthropic"),
        world.script_manifest("sdk-openai", OPENAI_SDK, prelude=False),
        world.script_manifest("sdk-anthropic", ANTHROPIC_SDK, prelude=False),
        *(execution(world, f"run-{agent}", agent) for agent in ("by-openai", "by-anthropic")),
        *(execution(world, f"run-{agent}", agent) for agent in ("sdk-openai", "sdk-anthropic")),
    )
    calls = {"run-by-openai": 1, "run-by-anthropic": 1, "run-sdk-openai": 2, "run-sdk-anthropic": 2}
    world.succeeded(*calls)
    total = world.settled()
    one = 33 * INPUT_NANOS + 20 * CACHED_NANOS + 7 * OUTPUT_NANOS
    assert total == 6 * one
    for name, count in calls.items():
        status = world.status(name)
        usage = status["usage"]
        assert nanos(usage["cost"]) == count * one
        assert usage["requests"] == count
        expected = {"input": 53, "cachedInput": 20, "output": 7, "total": 60}
        if "anthropic" not in name:
            expected["reasoning"] = 3
        assert {key: usage["tokens"].get(key, 0) for key in expected} == {k: v * count for k, v in expected.items()}
        assert status["output"] == ("done" if count == 1 else "done|done")
        assert conditions(status)["Ready"] == conditions(status)["Complete"] == "True"
    assert len(world.model.requests) == 6
    by_agent = {
        r["agent"]: nanos(r["cost_usd"]) for r in world.ledger_rows("agent") if r["namespace"] == world.namespace
    }
    assert by_agent == {"by-openai": one, "by-anthropic": one, "sdk-openai": 2 * one, "sdk-anthropic": 2 * one}
    world.wait(lambda: nanos(world.limit("money")["used"]) == total, "the quota's use")
    assert nanos(world.limit("money")["remaining"]) == 10**9 - total
    for agent, spent in by_agent.items():
        world.wait(functools.partial(agent_has_spent, world, agent, spent), f"{agent}'s use")
    table = world.kubectl("get", "executions")
    assert "run-sdk-openai" in table
    assert "Succeeded" in table


def test_keys_reach_the_provider_and_nobody_else(world: World) -> None:
    world.script(
        "spy",
        """
import pathlib
facts = {"env": dict(os.environ), "cmdline": open("/proc/self/environ", errors="replace").read()}
seen = []
roots = [f"/proc/{pid}/root/almoner" for pid in os.listdir("/proc") if pid.isdigit()]
for folder in ("/almoner", "/var/run/secrets", "/run/secrets", *roots):
    for place, _, names in os.walk(folder):
        for path in (pathlib.Path(place) / name for name in names):
            try:
                seen.append([str(path), path.read_text(errors="replace")])
            except OSError as error:
                seen.append([str(path), None])
facts["files"] = seen
processes = {}
for pid in os.listdir("/proc"):
    if pid.isdigit():
        try:
            processes[pid] = open(f"/proc/{pid}/environ", errors="replace").read()
        except OSError as error:
            processes[pid] = ""
facts["processes"] = processes
facts["uid"] = os.getuid()
print(json.dumps(facts))
chat("hi")
answer("seen")
""",
        limits={"maxCost": "0.10"},
    )
    world.apply(execution(world, "look", "spy"))
    world.succeeded("look")
    (pod,) = world.pods_of("look")
    log = world.log(pod.metadata.name)
    facts = json.loads(log[log.index("{") :])
    assert world.key not in json.dumps(facts)
    environment = facts["env"]
    assert environment["OPENAI_API_KEY"] == environment["ANTHROPIC_API_KEY"] == "almoner-metered"
    assert not [name for name in environment if "TOKEN" in name or "LEDGER" in name or "PROVIDERS" in name]
    (asked,) = world.model.requests
    assert asked["headers"]["authorization"] == f"Bearer {world.key}"
    mounts = {mount.mount_path for part in pod.spec.containers for mount in part.volume_mounts or []}
    assert not any("token" in path or "spool" in path or "provider" in path for path in mounts)
    assert pod.spec.automount_service_account_token is False
    if world.site.node.isolation != "namespaces":
        pytest.skip(f"the rest needs a node with namespaces; here: {world.site.node.isolation}")
    assert facts["uid"] not in (0, 10002)
    paths = [path for path, _ in facts["files"]]
    assert paths, "nothing was seen at all: the test looks at the wrong place"
    assert not [path for path in paths if any(f"/almoner/{part}" in path for part in ("token", "providers", "spool"))]


def test_tool_calls_are_counted_and_the_answer_has_its_shape(world: World) -> None:
    first = Usage(input_tokens=41, output_tokens=13)
    call = ToolCall(name="calculator", arguments={"operation": "multiply", "a": "19.99", "b": "3"})
    last = Reply(text='{"total": "59.97", "items": 3}', usage=USAGE)
    world.model.load([Reply(tool_calls=(call, call), usage=first), last])
    shape = {
        "type": "object",
        "properties": {"total": {"type": "string"}, "items": {"type": "integer"}},
        "required": ["total", "items"],
        "additionalProperties": False,
    }
    world.ready(
        world.loop_manifest(
            "sums", tools=[{"name": "calculator"}], output={"jsonSchema": shape}, limits={"maxCost": "0.50"}
        )
    )
    world.apply(execution(world, "bill", "sums", "What are 3 at 19.99?"))
    (status,) = world.succeeded("bill")
    assert json.loads(status["output"]) == {"total": "59.97", "items": 3}
    assert world.settled() == cost_of(first) + cost_of(USAGE)
    usage = world.status("bill")["usage"]
    assert usage["toolCalls"] == 2
    assert usage["requests"] == 2
    results = [m["content"] for m in world.model.requests[-1]["body"]["messages"] if m["role"] == "tool"]
    assert len(results) == 2
    assert all("59.97" in result for result in results)


def test_a_long_output_is_cut_in_the_status_and_whole_in_the_ledger(world: World) -> None:
    world.script("long", 'answer("".join(f"{i:05d} äöü\\n" for i in range(2000)))', limits={"maxCost": "0.10"})
    world.apply(execution(world, "much", "long"))
    (status,) = world.succeeded("much")
    whole = "".join(f"{i:05d} äöü\n" for i in range(2000))
    world.wait(lambda: world.status("much").get("output"), "the output")
    status = world.status("much")
    assert status["output"] == whole[:4096]
    assert status["outputTruncated"] is True
    assert read_output(world, world.get("Execution", "much")["metadata"]["uid"]) == whole


def read_output(world: World, uid: str) -> str:
    token = (world.site.stack.directory / "operator-ledger.token").read_text()
    url = f"{world.site.stack.ledger_url}/v1/executions/{uid}/output"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answered:
        return str(answered.read().decode())


def test_input_as_json_and_from_a_config_map(world: World) -> None:
    world.script("echo", "answer(given())", limits={"maxCost": "0.10"})
    value = {"question": "wie viel?", "list": [1, "zwei", None], "deep": {"x": 1.5}}
    world.apply(
        execution(world, "as-json", "echo", {"json": value}),
        execution(world, "as-map", "echo", {"configMapKeyRef": {"name": "letters", "key": "one.txt"}}),
    )
    (status,) = world.succeeded("as-json")
    assert json.loads(status["output"]) == value
    condition = world.wait_reason("as-map", "InputNotFound")
    assert "letters" in condition["message"]
    text = "Dear $(HOME),\nñ ${X} 'and' \"so\" on\n"
    world.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "letters"}, "data": {"one.txt": text}})
    (status,) = world.succeeded("as-map")
    assert status["output"] == text


def test_the_audit_passes_and_says_what_it_checked(site: Site) -> None:
    assert verify_ledger(site.stack).strip()
    done = subprocess.run(
        [sys.executable, "-m", "almoner_cli.main", "ledger", "verify"],
        env=ledger_environment(site.stack.database),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0


def test_a_model_that_the_provider_does_not_list_is_refused_before_the_call(world: World) -> None:
    world.script("other", 'print(chat("hi", model="another-model"))', limits={"maxCost": "0.10"})
    world.apply(execution(world, "ask", "other"))
    world.succeeded("ask")
    (pod,) = world.pods_of("ask")
    assert "another-model" in world.log(pod.metadata.name)
    assert not world.model.requests
    assert world.settled() == 0
    assert MODEL != "another-model"
