"""One poisoned object never harms its neighbours: planted before the operator starts, and while it watches."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from almoner_core.nesting import loads
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster

AGENT = {"type": "Simulation", "model": {"provider": "local", "name": "small"}}
RUN = {"agentRef": {"name": "agent"}, "limits": {"maxCost": "1.00"}}
# Where users may put JSON of any shape: kind, and the spec with a value there.
OPEN_FIELDS: dict[str, tuple[str, Any]] = {
    "output": ("Agent", lambda deep: {**AGENT, "output": {"jsonSchema": deep}}),
    "tool": ("Agent", lambda deep: {**AGENT, "tools": [{"name": "calculator", "config": deep}]}),
    "guardrail": ("Agent", lambda deep: {**AGENT, "guardrails": {"output": [{"name": "g", "jsonSchema": deep}]}}),
    "input": ("Execution", lambda deep: {**RUN, "input": {"json": deep}}),
    "hyper": ("TrainingJob", lambda deep: {**RUN, "hyperparameters": deep}),
}
# Levels of objects: just too many; what serializers give up on; what the decoder gives up on.
DEPTHS = (65, 256, 3000)


def ask(cluster: Cluster, method: str, kind: str, name: str = "", body: str | None = None) -> tuple[int, Any]:
    """Ask the API server without the official client, whose decoder and encoder recurse."""
    settings = cluster.api.configuration
    headers = {"Content-Type": "application/json"}
    headers.update({each["key"]: each["value"] for each in settings.auth_settings().values()})
    url = f"{settings.host}/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{PLURALS[kind]}/{name}".rstrip("/")
    answer = cluster.api.rest_client.pool_manager.request(method, url, body=body, headers=headers)
    return answer.status, loads(answer.data)


def post_deep(cluster: Cluster, kind: str, name: str, spec: Any, levels: int) -> None:
    mark = "@deep@"
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": spec({"a": mark}),
    }
    deep = '{"a":' * (levels - 2) + "{}" + "}" * (levels - 2)
    status, answer = ask(cluster, "POST", kind, body=json.dumps(manifest).replace(f'"{mark}"', deep))
    assert status == 201, answer


def plant(cluster: Cluster, prefix: str) -> list[tuple[str, str]]:
    planted = []
    for field, (kind, spec) in OPEN_FIELDS.items():
        for levels in DEPTHS:
            name = f"{prefix}-{field}-{levels}"
            post_deep(cluster, kind, name, spec, levels)
            planted.append((kind, name))
    return planted


@pytest.fixture(scope="module")
def poisoned(bare_plane: ControlPlane) -> Iterator[Cluster]:
    """A namespace that was poisoned before any operator ran."""
    install_crds(bare_plane.kubeconfig)
    made = Cluster(bare_plane)
    yield made
    made.close()


@pytest.fixture(scope="module")
def early(poisoned: Cluster) -> list[tuple[str, str]]:
    return plant(poisoned, "early")


@pytest.fixture(scope="module")
def running(bare_plane: ControlPlane, simulated: SimulatedNode, early: Any) -> Iterator[Stack]:
    with Stack(bare_plane) as stack:
        yield stack


def refusal_of(cluster: Cluster, kind: str, name: str) -> str | None:
    """The message of a refusal for an invalid spec, None as long as there is none."""
    status = ask(cluster, "GET", kind, name)[1].get("status") or {}
    wanted = "Ready" if kind == "Agent" else "Failed"
    for condition in status.get("conditions") or []:
        if condition["type"] == wanted and condition["reason"] == "InvalidSpec":
            return str(condition["message"])
    return None


def test_deep_objects_are_refused_by_name_and_their_neighbours_are_served(
    poisoned: Cluster, running: Stack, early: list[tuple[str, str]]
) -> None:
    poisoned.world()
    poisoned.execution("before")
    poisoned.wait_phase("before", "Succeeded")
    late = plant(poisoned, "late")
    poisoned.agent("neighbour")
    poisoned.execution("after", agent="neighbour")
    poisoned.wait_phase("after", "Succeeded")
    for kind, name in early + late:
        message = poisoned.wait(functools.partial(refusal_of, poisoned, kind, name), f"{name} to be refused")
        assert message.startswith("spec.")
        assert "nested deeper than 64 levels" in message
