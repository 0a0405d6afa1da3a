"""Secrets that the operator cannot look at: whoever names one waits, with the HTTP status in the condition."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes import client

from almoner_dev.stack import Stack
from almoner_operator import secret_facts
from almoner_operator.credentials import Credentials
from almoner_operator.kubernetes import KubernetesClient
from almoner_operator.secret_facts import Secrets
from tests.support.cluster import Cluster

KEY_OF = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "key"}}}


@asynccontextmanager
async def answering(handler: Callable[[web.Request], Any]) -> AsyncIterator[KubernetesClient]:
    application = web.Application()
    application.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with KubernetesClient(Credentials(server=f"http://{host}:{port}")) as asked:
            yield asked
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(("status", "forbidden"), [(500, False), (503, False), (403, True)])
async def test_a_secret_behind_an_error_is_not_known_and_says_the_status(status: int, forbidden: bool) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"reason": "Because", "message": "no"}, status=status)

    async with answering(refuse) as asked:
        facts = await Secrets(asked).facts("team", ["mine"])
    assert facts["mine"].unknown == f"{status} Because"
    assert facts["mine"].forbidden is forbidden
    assert not facts["mine"].agent_readable


async def test_a_secret_that_is_not_answered_for_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_facts, "LOOK_SECONDS", 0.2)
    never = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with answering(hang) as asked:
        facts = await Secrets(asked).facts("team", ["mine"])
        never.set()
    assert "no answer" in facts["mine"].unknown


async def test_what_could_not_be_looked_at_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_facts, "FRESH_SECONDS", 0.0)
    answers: list[tuple[int, dict[str, Any]]] = [
        (403, {"reason": "Forbidden"}),
        (200, {"metadata": {"labels": {"almoner.dev/agent-readable": "true"}}}),
        (404, {"reason": "NotFound"}),
    ]

    async def answer(_: web.Request) -> web.Response:
        status, body = answers.pop(0)
        return web.json_response(body, status=status)

    async with answering(answer) as asked:
        secrets = Secrets(asked)
        assert (await secrets.facts("team", ["mine"]))["mine"].forbidden
        assert (await secrets.facts("team", ["mine"]))["mine"].agent_readable
        assert await secrets.facts("team", ["mine"]) == {}


@contextmanager
def blind_operator(cluster: Cluster) -> Iterator[None]:
    """Take the right to look at Secrets away from the running operator."""
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    role = rbac.read_cluster_role("almoner-operator")
    rules = [rule.to_dict() for rule in role.rules]
    assert any("secrets" in (rule["resources"] or []) for rule in rules)
    for rule in role.rules:
        if rule.resources and "secrets" in rule.resources:
            rule.resources = [each for each in rule.resources if each != "secrets"]
    rbac.replace_cluster_role("almoner-operator", role)
    try:
        yield
    finally:
        fresh = rbac.read_cluster_role("almoner-operator")
        for rule, before in zip(fresh.rules, rules, strict=True):
            rule.resources = before["resources"]
        rbac.replace_cluster_role("almoner-operator", fresh)


def test_without_the_right_to_look_nothing_that_names_a_secret_runs(cluster: Cluster, stack: Stack) -> None:
    label = {"almoner.dev/agent-readable": "true"}
    for name, labels in (("mine", label), ("key", {})):
        secret = {"metadata": {"name": name, "labels": labels}, "stringData": {"key": "x"}}
        cluster.core.create_namespaced_secret(cluster.namespace, secret)
    cluster.world()
    runner = {"image": "trainer", "command": ["true"], "env": [KEY_OF]}
    with blind_operator(cluster):

        def refused() -> bool:
            # The right is gone when the API server's authorizer has seen it.
            cluster.agent("curious", runner={"env": [KEY_OF]})
            reason = cluster.wait(lambda: cluster.condition("Agent", "curious", "Ready"), "a verdict")["reason"]
            if reason != "SecretForbidden":
                cluster.delete("Agent", "curious")
            return bool(reason == "SecretForbidden")

        cluster.wait(refused, "the Secret to be out of sight")
        assert (
            "Secret mine may not be looked at (403 Forbidden)"
            in cluster.condition("Agent", "curious", "Ready")["message"]
        )
        assert cluster.condition("Agent", "curious", "Stalled")["status"] == "True"
        cluster.provider("keyed", credentials={"name": "key", "key": "key"})
        cluster.wait_ready("ModelProvider", "keyed", "SecretForbidden")
        tools = {"type": "Serper", "credentials": {"name": "key", "key": "key"}}
        cluster.create("ToolProvider", "search", tools)
        cluster.wait_ready("ToolProvider", "search", "SecretForbidden")
        cluster.execution("waits", agent="curious")
        assert "403" in cluster.wait_reason("waits", "AgentNotReady")["message"]
        cluster.create("TrainingJob", "job", {"runner": runner, "limits": {"maxCost": "1.00"}})

        def why() -> str:
            return str(cluster.condition("TrainingJob", "job", "Admitted").get("message", ""))

        cluster.wait(lambda: "403" in why(), "why the job waits")
        cluster.execution("neighbour")
        cluster.wait_phase("neighbour", "Succeeded")
        assert {pod.metadata.labels["almoner.dev/agent"] for pod in cluster.pods()} == {"agent"}
    # Nothing tells the operator that it may look again; it looks every half minute.
    cluster.wait_phase("waits", "Succeeded", seconds=90)
    cluster.wait_phase("job", "Succeeded", kind="TrainingJob", seconds=90)
    cluster.wait_ready("ModelProvider", "keyed")
    cluster.wait_ready("ToolProvider", "search")
