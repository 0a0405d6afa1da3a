"""The whole road of a ClusterModelProvider: its key in Almoner's namespace, the ledger by TLS, real meters."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiException

from almoner_dev.stack import SYSTEM_NAMESPACE
from tests.support.e2e import DONE, MODEL, PRICE, Site, World, cost_of, meter_pids
from tests.support.polling import until

Json = dict[str, Any]


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose ledger serves HTTPS, as an installation's does."""
    from almoner_dev.binaries import BinariesMissing
    from almoner_dev.controlplane import ControlPlane
    from almoner_dev.node import ProcessNode
    from almoner_dev.stack import Stack
    from tests.conftest import missing

    plane = ControlPlane()
    try:
        plane.start()
    except BinariesMissing as error:
        missing(error)
    with (
        plane,
        ProcessNode(plane.kubeconfig) as node,
        Stack(
            plane,
            host_address=node.host_address,
            operator_args=["--lease-seconds", "4", "--meter-grace-seconds", "5"],
            directory=tmp_path_factory.mktemp("stack"),
            tls=True,
        ) as stack,
    ):
        yield Site(plane, node, stack)


@pytest.fixture
def world(encrypted: Site) -> Iterator[World]:
    made = World(encrypted)
    yield made
    made.close()


@pytest.fixture
def other(encrypted: Site) -> Iterator[World]:
    made = World(encrypted)
    yield made
    made.close()


def share(world: World, name: str, key: str | None = None) -> None:
    """Create the provider of a world's scripted model for its namespace alone, and the Secret with its key."""
    body = {
        "metadata": {"name": name, "labels": {"almoner.dev/provider-key": "true"}},
        "stringData": {"key": key or world.key},
    }
    world.core.create_namespaced_secret(SYSTEM_NAMESPACE, body)
    world.create(
        "ClusterModelProvider",
        name,
        {
            "type": "OpenAICompatible",
            "apis": ["OpenAI", "Anthropic"],
            "baseURL": f"{world.model.base_url}/v1",
            "credentials": {"name": name, "key": "key"},
            "models": [{"name": MODEL, "contextWindow": 8000}],
            "prices": [{"model": MODEL, **PRICE}],
            "allow": {"namespaces": [world.namespace]},
        },
    )
    world.wait_ready("ClusterModelProvider", name)


def agent(provider: str) -> Json:
    return {
        "type": "Research",
        "model": {"provider": provider, "providerKind": "ClusterModelProvider", "name": MODEL},
        "instructions": "Be brief.",
    }


def sent(world: World) -> set[str]:
    return {str(each["headers"].get("authorization")) for each in world.model.requests}


def test_a_namespace_without_any_secret_runs_metered(world: World, other: World, encrypted: Site) -> None:
    name = f"shared-{secrets.token_hex(4)}"
    share(world, name)
    assert world.core.list_namespaced_secret(world.namespace).items == []
    world.create("Agent", "agent", agent(name))
    other.create("Agent", "agent", agent(name))
    world.execution("hello")
    other.execution("refused")
    assert world.ended("hello", "Succeeded")["usage"]["requests"] == 1
    assert sent(world) == {f"Bearer {world.key}"}
    # The books, the status and the provider's own bill agree.
    assert world.settled() == cost_of(DONE[0].usage or pytest.fail("a reply without usage"))
    # The key was in no object of the namespace, and is in no file of ledger or operator.
    (pod,) = world.pods_of("hello")
    assert world.key not in json.dumps(world.api.sanitize_for_serialization(pod))
    for part in ("agent", "meter"):
        assert world.key not in world.log(pod.metadata.name, part)
    files = [each for each in Path(encrypted.stack.directory).rglob("*") if each.is_file()]
    assert len(files) > 5
    assert [each for each in files if world.key.encode() in each.read_bytes()] == []
    # Another namespace's provider is refused, by name.
    said = other.wait_reason("refused", "ProviderNotAllowed")["message"]
    assert f"ClusterModelProvider {name} does not allow namespace {other.namespace}" in said
    assert other.pods() == []


def test_the_example_runs(world: World, repository: Path) -> None:
    folder = repository / "examples" / "shared"
    secret, provider = yaml.safe_load_all((folder / "provider.yaml").read_text())
    assert secret["metadata"]["namespace"] == SYSTEM_NAMESPACE
    secret["stringData"]["api-key"] = world.key
    world.core.create_namespaced_secret(SYSTEM_NAMESPACE, secret)
    provider["spec"]["baseURL"] = f"{world.model.base_url}/v1"
    provider["spec"]["allow"]["namespaces"].append(world.namespace)
    world.create("ClusterModelProvider", provider["metadata"]["name"], provider["spec"])
    world.kubectl("apply", "-f", str(folder / "agent.yaml"))
    world.wait_ready("Agent", "shared-reader")
    world.execution("hello", agent="shared-reader")
    world.ended("hello", "Succeeded")
    assert sent(world) == {f"Bearer {world.key}"}


def test_a_run_whose_key_is_not_handed_over_says_whose(world: World, encrypted: Site) -> None:
    """The Secret is there when the run is admitted, and no meter may have it when its pod starts."""
    name = f"shared-{secrets.token_hex(4)}"
    share(world, name, key="two\nlines")
    world.create("Agent", "agent", agent(name))
    made = world.execution("stuck")
    uid = made["metadata"]["uid"]
    until(lambda: meter_pids(uid), 60, "the meter")

    def told() -> bool:
        return any(f"the key of provider {name}" in world.log(pod.metadata.name, "meter") for pod in world.pods())

    until(told, 60, "the meter to say it")
    (pod,) = world.pods_of("stuck")
    said = world.log(pod.metadata.name, "meter")
    assert "it is not one line of at most 16384 characters" in said
    assert "two" not in said.replace(name, "")
    # It is asked for again, and a key that is corrected meanwhile is taken.
    world.core.patch_namespaced_secret(name, SYSTEM_NAMESPACE, {"stringData": {"key": world.key}})
    world.ended("stuck", "Succeeded", seconds=120)
    assert sent(world) == {f"Bearer {world.key}"}
    assert encrypted.stack.ledger is not None


def test_an_editor_of_the_namespace_cannot_enter_the_road(world: World) -> None:
    """The ledger hands keys to the meter's token alone: what an editor can have is refused."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    name = f"shared-{secrets.token_hex(4)}"
    share(world, name)
    stack = world.site.stack
    spec = {"audiences": ["almoner-ledger"], "expirationSeconds": 600}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    made = world.core.create_namespaced_service_account_token("default", world.namespace, body)
    world.create("Agent", "agent", agent(name))
    world.execution("hello")
    world.ended("hello", "Succeeded")
    allotment = world.status("hello")["attempts"][0]["allotment"]
    asked = Request(
        f"{stack.ledger_url}/v1/allotments/{allotment}/keys",
        data=json.dumps({"providers": [name]}).encode(),
        headers={"Authorization": f"Bearer {made.status.token}"},
    )
    with pytest.raises(HTTPError) as refused:
        urlopen(asked, timeout=10, context=stack.ledger_context)
    assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (403, "forbidden")


def test_nobody_can_make_the_provider_name_almoners_own_secrets(world: World) -> None:
    """Who may write providers still cannot have the Secret of something else handed out: it has no label."""
    name = f"own-{secrets.token_hex(4)}"
    world.core.create_namespaced_secret(
        SYSTEM_NAMESPACE, {"metadata": {"name": name}, "stringData": {"url": "postgresql://almoner:secret@db/almoner"}}
    )
    spec = {
        "type": "OpenAICompatible",
        "baseURL": f"{world.model.base_url}/v1",
        "credentials": {"name": name, "key": "url"},
        "models": [{"name": MODEL}],
        "prices": [{"model": MODEL, **PRICE}],
        "allow": {"namespaces": ["*"]},
    }
    world.create("ClusterModelProvider", name, spec)
    world.wait_ready("ClusterModelProvider", name, "SecretNotLabelled")
    world.create("Agent", "agent", agent(name))
    world.execution("waits")
    try:
        world.wait_reason("waits", "ProviderNotReady")
    except ApiException as error:
        raise AssertionError(world.describe("waits")) from error
    assert world.model.requests == []
