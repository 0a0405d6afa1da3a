"""One poisoned object never harms its neighbours: planted before the operator starts, and while it watches."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from kubernetes import client, config

from almoner_core.api.crd import all_definitions
from almoner_core.api.registry import kind_named
from almoner_core.nesting import loads
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from almoner_dev.simnode import SimulatedNode
from almoner_dev.stack import Stack
from tests.support.cluster import GROUP, PLURALS, VERSION, Cluster, verify_ledger
from tests.support.manifests import VARIANTS, Json

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
    url = f"{settings.host}/apis/{GROUP}/{VERSION}/namespaces/{cluster.namespace}/{PLURALS[kind]}"
    url += name if name.startswith("?") or not name else f"/{name}"
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
def quotas(bare_plane: ControlPlane) -> Iterator[Cluster]:
    """Another namespace, for ResourceQuotas: one that cannot be read rightly holds back its own namespace."""
    made = Cluster(bare_plane)
    yield made
    made.close()


@pytest.fixture(scope="module")
def early(poisoned: Cluster) -> list[tuple[str, str]]:
    return plant(poisoned, "early")


# What stood in a field of an earlier version, or was put there while nobody checked.
POISON: dict[str, Any] = {
    "text": "\u202eodd \u0001 text",
    "zone": "Mars/Olympus_Mons",
    "regex": "(a+)+$(",
    "long": "x" * 5000,
    "number": 7,
    "negative": -1,
    "huge": 10**18,
    "fraction": 0.5,
    "flag": True,
    "list": [],
    "lists": [[["x"]]],
    "things": [{"name": 5}, {}],
    "object": {},
    "objects": {"a": {"b": [None]}},
}
STATUSES: dict[str, Any] = {
    "words": "done",
    "list": [],
    "phase": {"phase": 5, "attempts": "many"},
    "ended": {"phase": "Succeeded", "usage": [], "completionTime": 5},
    "attempts": {"phase": "Running", "attempts": [{"number": "x"}, 5]},
    "conditions": {"conditions": [{"type": 5}, "Ready"], "observedGeneration": "x"},
    "times": {"phase": "Queued", "queue": {"since": "yesterday"}, "startTime": "2026-01-01T00:00:00"},
}


def relax(plane: ControlPlane) -> None:
    """Have the API server store anything as a spec or status of our kinds."""
    anything = {"x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    with config.new_client_from_config(str(plane.kubeconfig)) as api:
        extensions = client.ApiextensionsV1Api(api)
        for name, definition in all_definitions().items():
            version = {**definition["spec"]["versions"][0], "schema": {"openAPIV3Schema": schema}}
            version.pop("selectableFields", None)
            body = {"spec": {"versions": [version]}}
            extensions.patch_custom_resource_definition(f"{name}.{GROUP}", body)


@pytest.fixture(scope="module")
def unchecked(bare_plane: ControlPlane, poisoned: Cluster, quotas: Cluster) -> list[tuple[Cluster, str, str]]:
    """Objects that the schema would refuse: every kind, every field of a spec, every sort of value."""
    relax(bare_plane)
    planted: list[tuple[Cluster, str, str]] = []
    try:
        poisoned.wait(lambda: stored(poisoned, "Agent", "relaxed", "no spec"), "the relaxed schema to be in force")
        for kind in PLURALS:
            cluster = quotas if kind == "ResourceQuota" else poisoned
            base = VARIANTS[kind][0]
            specs = [
                (f"{field.lower()}-{sort}", {**base, field: value}, None)
                for field in kind_named(kind).spec.model_json_schema(by_alias=True)["properties"]
                for sort, value in POISON.items()
            ]
            specs += [(f"whole-{sort}", value, None) for sort, value in POISON.items()]
            specs += [(f"status-{sort}", base, status) for sort, status in STATUSES.items()]
            for name, spec, status in specs:
                if stored(cluster, kind, name, spec, status):
                    planted.append((cluster, kind, name))
    finally:
        install_crds(bare_plane.kubeconfig)
    return planted


def stored(cluster: Cluster, kind: str, name: str, spec: Any, status: Any = None) -> bool:
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "metadata": {"name": name, "namespace": cluster.namespace},
        "spec": spec,
    }
    made, _ = ask(cluster, "POST", kind, body=json.dumps(manifest))
    if made == 201 and status is not None:
        made, answer = ask(cluster, "GET", kind, name)
        body = json.dumps({**answer, "status": status})
        made, _ = ask(cluster, "PUT", kind, f"{name}/status", body=body)
    return made in (200, 201)


@pytest.fixture(scope="module")
def running(bare_plane: ControlPlane, simulated: SimulatedNode, early: Any, unchecked: Any) -> Iterator[Stack]:
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


def answered(cluster: Cluster, kind: str, name: str) -> bool:
    """Whether the operator gave the object a condition of its own, or cannot: the server refuses every status of it."""
    found = ask(cluster, "GET", kind, name)[1]
    status = found.get("status")
    if isinstance(status, dict) and status.get("phase") in ("Succeeded", "Failed", "Cancelled"):
        return True  # It has ended: nothing more is said of it.
    conditions = status.get("conditions") if isinstance(status, dict) else None
    if found.get("code") == 404 or (isinstance(conditions, list) and any(is_condition(each) for each in conditions)):
        return True
    body = json.dumps({**found, "status": {}})
    return ask(cluster, "PUT", kind, f"{name}/status?dryRun=All", body=body)[0] in (400, 422)


def is_condition(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") in ("Ready", "Accepted") and "reason" in value


def test_objects_older_than_the_schema_harm_nobody_and_get_a_condition(
    poisoned: Cluster,
    quotas: Cluster,
    running: Stack,
    unchecked: list[tuple[Cluster, str, str]],
    bare_plane: ControlPlane,
) -> None:
    assert len(unchecked) > 500
    other = Cluster(bare_plane)
    try:
        other.world()
        other.execution("elsewhere")
        other.wait_phase("elsewhere", "Succeeded")
        if not poisoned.exists("Agent", "agent"):
            poisoned.world()
        poisoned.execution("beside")
        poisoned.wait_phase("beside", "Succeeded")
    finally:
        other.close()
    waiting = list(unchecked)

    def all_answered() -> bool:
        waiting[:] = [each for each in waiting if not answered(*each)]
        return not waiting

    try:
        poisoned.wait(all_answered, "every object to be answered", seconds=120)
    except AssertionError as error:
        raise AssertionError(f"no condition: {[each[1:] for each in waiting][:20]}") from error
    assert verify_ledger(running)


# --- a thousand manifests ---------------------------------------------------------------------------------------------

MANIFESTS = 1000
SCRAPS: tuple[Any, ...] = (
    None, "", "x", "\u202e\U0001f9e8", "a\u0000b", "-1", "1e400", "NaN", "(a+)+$", "Mars/Olympus", "x" * 2000,
    0, -1, 1, 10**18, 2**63, 0.5, True, False, [], ["x"], [{}], {}, {"name": "x"}, {"a": {"b": {"c": []}}},
)  # fmt: skip


def spoilt(random: Random, spec: Json) -> Json:
    """A spec with one to three places changed: a scrap, another place's value, a removed or a doubled one."""
    made = copy.deepcopy(spec)
    for _ in range(random.randint(1, 3)):
        holders = [each for each in walk(made) if each]
        if not holders:
            break  # A small spec may have lost everything already.
        holder = random.choice(holders)
        key = random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match random.randrange(5):
            case 0:
                del holder[key]
            case 1:
                other = random.choice([each for each in walk(made) if each])
                holder[key] = copy.deepcopy(random.choice(list(other.values() if isinstance(other, dict) else other)))
            case 2 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(random.choice(SCRAPS))
    return made


def walk(value: Any) -> Iterator[Any]:
    """Every object and list within a value."""
    if isinstance(value, dict | list):
        yield value
        for below in value.values() if isinstance(value, dict) else value:
            yield from walk(below)


def test_a_thousand_manifests_are_refused_by_name_or_given_a_condition(
    poisoned: Cluster, quotas: Cluster, running: Stack
) -> None:
    seed = int(os.environ.get("ALMONER_FUZZ_SEED", "8"))
    print(f"ALMONER_FUZZ_SEED={seed}")  # noqa: T201 - to have the same again
    random = Random(seed)
    if not poisoned.exists("Agent", "agent"):
        poisoned.world()
    accepted: list[tuple[Cluster, str, str]] = []
    for number in range(MANIFESTS):
        kind = random.choice(list(PLURALS))
        cluster = quotas if kind == "ResourceQuota" else poisoned
        manifest = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind,
            "metadata": {"name": f"fuzz-{number}", "namespace": cluster.namespace},
            "spec": spoilt(random, random.choice(VARIANTS[kind])),
        }
        status, answer = ask(cluster, "POST", kind, "?fieldValidation=Strict", json.dumps(manifest))
        if status == 201:
            accepted.append((cluster, kind, f"fuzz-{number}"))
        else:
            assert status in (400, 422), (manifest, answer)
            assert "spec" in answer["message"], (manifest, answer)
    assert len(accepted) > MANIFESTS // 20
    poisoned.execution("after-the-fuzz")
    poisoned.wait_phase("after-the-fuzz", "Succeeded", seconds=120)

    def all_answered() -> bool:
        accepted[:] = [each for each in accepted if not answered(*each)]
        return not accepted

    poisoned.wait(all_answered, "every manifest to be given a condition", seconds=120)
    assert verify_ledger(running)
