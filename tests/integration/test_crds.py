"""The CRDs on the real API server: what it accepts, what it refuses and how, what may change."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from almoner_core.api.base import GROUP, VERSION
from almoner_core.api.registry import KINDS, kind_named
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from tests.support import tables

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
MALFORMED = tables.malformed()
UPDATES = [
    (f"{kind}/{name}", kind, table["spec"], case)
    for kind, table in tables.load("updates.yaml").items()
    for name, case in table["cases"].items()
]


@pytest.fixture(scope="session")
def objects(control_plane: ControlPlane, kubernetes_api: client.ApiClient) -> client.CustomObjectsApi:
    install_crds(control_plane.kubeconfig)
    return client.CustomObjectsApi(kubernetes_api)


def create(
    objects: client.CustomObjectsApi, namespace: str, manifest: dict[str, Any], *, dry_run: bool = False
) -> dict[str, Any]:
    kind, more = kind_named(manifest["kind"]), {"dry_run": "All"} if dry_run else {}
    if kind.scope == "Cluster":
        manifest["metadata"].pop("namespace", None)
        whole: dict[str, Any] = objects.create_cluster_custom_object(
            GROUP, VERSION, kind.plural, manifest, field_validation="Strict", **more
        )
        if not dry_run:
            objects.delete_cluster_custom_object(GROUP, VERSION, kind.plural, manifest["metadata"]["name"])
        return whole
    out: dict[str, Any] = objects.create_namespaced_custom_object(
        GROUP, VERSION, namespace, kind.plural, manifest, field_validation="Strict", **more
    )
    return out


def refusal(error: ApiException) -> tuple[list[str], str]:
    """Gives the fields that a refusal names, and its message."""
    status = json.loads(error.body)
    causes = status.get("details", {}).get("causes", [])
    return [each["field"] for each in causes if "field" in each], status["message"]


def assert_refused(error: ApiException, field: str, says: str | None) -> None:
    fields, message = refusal(error)
    assert error.status in (400, 422), message
    # Unknown fields are refused while decoding, before there are causes.
    assert field in fields or f'unknown field "{field}"' in message, message
    if says is not None:
        assert says in message


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_definitions_are_established_and_served(kind: Any, kubernetes_api: Any, objects: Any) -> None:
    name = f"{kind.plural}.{GROUP}"
    definition = client.ApiextensionsV1Api(kubernetes_api).read_custom_resource_definition(name)
    conditions = {each.type: each.status for each in definition.status.conditions}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions
    assert definition.status.accepted_names.short_names == list(kind.short_names)
    assert objects.list_cluster_custom_object(GROUP, VERSION, kind.plural)["kind"] == f"{kind.kind}List"


def test_installing_again_changes_nothing(control_plane: ControlPlane, kubernetes_api: Any, objects: Any) -> None:
    extensions = client.ApiextensionsV1Api(kubernetes_api)
    before = {
        each.metadata.name: each.metadata.generation for each in extensions.list_custom_resource_definition().items
    }
    install_crds(control_plane.kubeconfig)
    after = {
        each.metadata.name: each.metadata.generation for each in extensions.list_custom_resource_definition().items
    }
    assert before == after


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_examples_are_accepted_as_they_stand(path: Path, kubernetes_api: Any, objects: Any, namespace: str) -> None:
    manifests = [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]
    assert manifests
    core = client.CoreV1Api(kubernetes_api)
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            continue
        manifest["metadata"]["namespace"] = namespace
        for dry_run in (True, False):
            if manifest["apiVersion"].startswith(f"{GROUP}/"):
                created = create(objects, namespace, copy.deepcopy(manifest), dry_run=dry_run)
                kind = kind_named(manifest["kind"])
                # What the server stores, defaults included, is what the models read.
                kind.spec.model_validate(created["spec"])
            else:
                make = {"Secret": core.create_namespaced_secret, "ConfigMap": core.create_namespaced_config_map}
                make[manifest["kind"]](
                    namespace, manifest, field_validation="Strict", **({"dry_run": "All"} if dry_run else {})
                )


def test_there_are_enough_malformed_manifests() -> None:
    assert len(MALFORMED) >= 80


@pytest.mark.parametrize("kind", sorted({name.split("/")[0] for name, _, _ in MALFORMED}))
def test_the_bases_of_the_malformed_manifests_are_accepted(kind: str, objects: Any) -> None:
    # Otherwise every case below would be refused for the wrong reason.
    create(objects, "default", tables.load(f"malformed/{kind}.yaml")["base"], dry_run=True)


@pytest.mark.parametrize(("name", "manifest", "case"), MALFORMED, ids=[name for name, _, _ in MALFORMED])
def test_malformed_manifests_are_refused_by_name(
    name: str, manifest: dict[str, Any], case: dict[str, Any], objects: Any
) -> None:
    with pytest.raises(ApiException) as caught:
        create(objects, "default", manifest, dry_run=True)
    assert_refused(caught.value, case["field"], case.get("says"))


@pytest.mark.parametrize("update", UPDATES, ids=[each[0] for each in UPDATES])
def test_updates(update: tuple[str, str, dict[str, Any], dict[str, Any]], objects: Any, namespace: str) -> None:
    _, kind, spec, case = update
    manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": {"name": "it"}, "spec": spec}
    existing = create(objects, namespace, copy.deepcopy(manifest))
    changed = tables.patched(manifest, case)
    changed["metadata"]["resourceVersion"] = existing["metadata"]["resourceVersion"]
    arguments = (GROUP, VERSION, namespace, kind_named(kind).plural, "it", changed)
    if "field" not in case:
        updated = objects.replace_namespaced_custom_object(*arguments, field_validation="Strict")
        for path, value in case.get("set", {}).items():
            at: Any = updated
            for step in path.split("."):
                at = at[step]
            assert at == value
        return
    with pytest.raises(ApiException) as caught:
        objects.replace_namespaced_custom_object(*arguments, field_validation="Strict")
    assert_refused(caught.value, case["field"], None)
    if not case["field"].endswith(".priority"):
        assert "is immutable" in refusal(caught.value)[1]


def test_every_kind_but_its_status_is_written_apart(objects: Any, namespace: str) -> None:
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Execution",
        "metadata": {"name": "it"},
        "spec": {"agentRef": {"name": "agent"}},
        "status": {"phase": "Succeeded"},
    }
    created = create(objects, namespace, manifest)
    assert created["status"] == {"observedGeneration": -1}, "nobody has looked at it"
    written = objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, namespace, "executions", "it", {"status": {"phase": "Queued"}, "spec": {"priority": 9}}
    )
    assert written["status"] == {"observedGeneration": -1, "phase": "Queued"}
    assert written["spec"]["priority"] == 5
    assert written["metadata"]["generation"] == 1


GOOD_CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Ready",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
STATUSES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown-phase": ({"phase": "Sleeping"}, "status.phase"),
    "cost-a-float": ({"usage": {"cost": 0.5}}, "status.usage.cost"),
    "cost-negative": ({"usage": {"cost": "-0.50"}}, "status.usage.cost"),
    "tokens-negative": ({"usage": {"tokens": {"input": -1}}}, "status.usage.tokens.input"),
    "condition-without-reason": (
        {"conditions": [{key: value for key, value in GOOD_CONDITION.items() if key != "reason"}]},
        "status.conditions[0].reason",
    ),
    "condition-half-true": (
        {"conditions": [{**GOOD_CONDITION, "status": "Maybe"}]},
        "status.conditions[0].status",
    ),
    "condition-twice": ({"conditions": [GOOD_CONDITION, GOOD_CONDITION]}, "status.conditions[1]"),
    "time-of-no-calendar": ({"startTime": "yesterday"}, "status.startTime"),
    "position-zero": ({"queue": {"position": 0}}, "status.queue.position"),
    "output-unbounded": ({"output": "x" * 4097}, "status.output"),
    "attempt-without-number": ({"attempts": [{"pod": "p"}]}, "status.attempts[0].number"),
}


@pytest.mark.parametrize("case", STATUSES)
def test_malformed_statuses_are_refused_by_name(case: str, objects: Any, namespace: str) -> None:
    status, field = STATUSES[case]
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Execution",
        "metadata": {"name": "it"},
        "spec": {"agentRef": {"name": "agent"}},
    }
    create(objects, namespace, manifest)
    with pytest.raises(ApiException) as caught:
        objects.patch_namespaced_custom_object_status(GROUP, VERSION, namespace, "executions", "it", {"status": status})
    assert_refused(caught.value, field, None)


def test_defaults_go_down(objects: Any) -> None:
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Execution",
        "metadata": {"name": "it"},
        "spec": {"agentRef": {"name": "agent"}},
    }
    assert create(objects, "default", manifest, dry_run=True)["spec"] == {
        "agentRef": {"name": "agent"},
        "priority": 5,
        "preemptible": False,
        "suspend": False,
        "cancel": False,
        "retry": {"limit": 0, "backoffSeconds": 10, "backoffMaxSeconds": 300},
    }
    agent = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "Agent",
        "metadata": {"name": "it"},
        "spec": {"type": "Research", "model": {"provider": "p", "name": "m"}, "tools": [{"name": "calculator"}]},
    }
    spec = create(objects, "default", agent, dry_run=True)["spec"]
    assert spec["runner"] == {
        "gpuResourceName": "nvidia.com/gpu",
        "runAsUser": 10001,
        "terminationGracePeriodSeconds": 30,
    }
    assert spec["tools"] == [{"name": "calculator"}]
    quota = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ResourceQuota",
        "metadata": {"name": "it"},
        "spec": {"budget": {"amount": 5}},
    }
    assert create(objects, "default", quota, dry_run=True)["spec"] == {
        "budget": {"amount": 5, "period": "Total", "timeZone": "UTC"},
        "enforcement": "Enforce",
        "onLimit": {"action": "Wait"},
        "queueingStrategy": "BestEffort",
        "stopPolicy": "None",
    }


SELECTIONS = {
    "by-agent": ("spec.agentRef.name=one", {"a", "c"}),
    "by-owner": ("spec.owner=team-a", {"a"}),
    "by-phase": ("status.phase=Running", {"b"}),
    "by-priority": ("spec.priority=9", {"c"}),
    "by-two": ("spec.agentRef.name=one,spec.priority=5", {"a"}),
}


@pytest.mark.parametrize("case", SELECTIONS)
def test_objects_are_selected_by_field(case: str, objects: Any, namespace: str) -> None:
    selector, expected = SELECTIONS[case]
    specs = {
        "a": {"agentRef": {"name": "one"}, "owner": "team-a"},
        "b": {"agentRef": {"name": "two"}},
        "c": {"agentRef": {"name": "one"}, "priority": 9},
    }
    for name, spec in specs.items():
        manifest = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Execution", "metadata": {"name": name}, "spec": spec}
        create(objects, namespace, manifest)
    objects.patch_namespaced_custom_object_status(
        GROUP, VERSION, namespace, "executions", "b", {"status": {"phase": "Running"}}
    )
    found = objects.list_namespaced_custom_object(GROUP, VERSION, namespace, "executions", field_selector=selector)
    assert {each["metadata"]["name"] for each in found["items"]} == expected
