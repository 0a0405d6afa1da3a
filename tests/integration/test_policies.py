"""What the API server refuses by deploy/policies.yaml: others' money, false runner pods, ways into true ones."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config, dynamic
from kubernetes.client.exceptions import ApiException

from almoner_core.identity import pod_name
from almoner_dev import binaries
from almoner_dev.controlplane import ControlPlane
from almoner_dev.definitions import definitions
from tests.conftest import missing
from tests.support.polling import until

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "system:serviceaccount:almoner-system:almoner-operator"
RUNNER_LABELS = {"almoner.dev/execution-uid": "u", "almoner.dev/attempt": "1", "almoner.dev/kind": "Execution"}
SECONDS = 60.0
Json = dict[str, Any]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    made = ControlPlane(with_scheduler=False)
    try:
        made.start()
    except binaries.BinariesMissing as error:
        missing(error)
    with made:
        yield made


class Person:
    """Somebody who asks the API server, by a name."""

    def __init__(self, plane: ControlPlane, name: str | None = None) -> None:
        self.api = config.new_client_from_config(str(plane.kubeconfig))
        if name is not None:
            self.api.set_default_header("Impersonate-User", name)
        self.core = client.CoreV1Api(self.api)
        self._dynamic: dynamic.DynamicClient | None = None

    def kind(self, kind: str, version: str = "almoner.dev/v1alpha1") -> Any:
        if self._dynamic is None:
            self._dynamic = dynamic.DynamicClient(self.api)
        return self._dynamic.resources.get(api_version=version, kind=kind)

    def create(self, body: Json, namespace: str | None = None) -> Any:
        return self.kind(body["kind"], body["apiVersion"]).create(body=body, namespace=namespace)


@pytest.fixture(scope="module")
def admin(plane: ControlPlane) -> Person:
    """An administrator, on a cluster with Almoner's definitions, roles and policies."""
    person = Person(plane)
    for name in ("rbac.yaml", "policies.yaml"):
        for document in yaml.safe_load_all((ROOT / "deploy" / name).read_text(encoding="utf-8")):
            person.create(document, document["metadata"].get("namespace"))
    for text in definitions().values():
        person.create(yaml.safe_load(text.split("---\n", 1)[1]))
    groups = [{"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"} for name in ("ann", "bob", "ci")]
    operator = {"kind": "ServiceAccount", "name": "almoner-operator", "namespace": "almoner-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"}
    person.create({**kind, "metadata": {"name": "people"}, "roleRef": {**role, "name": "edit"}, "subjects": groups})
    person.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "namespaces"},
            "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["create", "update", "patch"]}],
        }
    )
    person.create(
        {
            **kind,
            "metadata": {"name": "makers-of-namespaces"},
            "roleRef": {**role, "name": "namespaces"},
            "subjects": [*groups, operator],
        }
    )
    until(lambda: _refuses(person), SECONDS, "the policies are in force")
    return person


def _refuses(person: Person) -> bool:
    """Whether every policy is in force: they come to be a moment after they are written."""
    name = f"probe-{secrets.token_hex(3)}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    person.core.create_namespace(body)
    ann = Person.__new__(Person)
    ann.api = client.ApiClient(person.api.configuration)
    ann.api.set_default_header("Impersonate-User", "ann")
    ann.core, ann._dynamic = client.CoreV1Api(ann.api), None
    tries: list[Callable[[], object]] = [
        lambda: ann.create(execution("probe", "somebody"), name),
        lambda: ann.core.patch_namespace(name, {"metadata": {"annotations": {"almoner.dev/owners": "x"}}}),
        lambda: person.core.create_namespaced_pod(name, pod("probe", RUNNER_LABELS)),
        lambda: person.core.connect_get_namespaced_pod_proxy(pod_name("probe", "u", 1), name),
    ]
    try:
        return all(message_of(each) for each in tries)
    finally:
        person.core.delete_namespace(name)


def message_of(call: Callable[[], object]) -> str:
    """What a policy says to a call; empty where none refuses it."""
    try:
        call()
    except ApiException as error:
        text = str(error.body)
        return text if error.status == 403 and "ValidatingAdmissionPolicy" in text else ""
    return ""


def execution(name: str, owner: str | None, kind: str = "Execution") -> Json:
    spec: Json = {"agentRef": {"name": "agent"}}
    if owner is not None:
        spec["owner"] = owner
    return {"apiVersion": "almoner.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def pod(name: str, labels: dict[str, str]) -> Json:
    containers = [{"name": "agent", "image": "image", "resources": {"requests": {"cpu": "100m"}}}]
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": containers}}


@pytest.fixture
def namespace(admin: Person) -> Iterator[str]:
    name = f"team-{secrets.token_hex(3)}"
    admin.core.create_namespace({"metadata": {"name": name}})
    until(
        lambda: any(each.metadata.name == "default" for each in admin.core.list_namespaced_service_account(name).items),
        SECONDS,
        "the default service account",
    )
    yield name
    admin.core.delete_namespace(name)


@pytest.fixture
def may_spend(admin: Person, namespace: str) -> Callable[[str, str], None]:
    """Let somebody spend an owner's money in the namespace."""

    def give(user: str, owner: str) -> None:
        api = client.RbacAuthorizationV1Api(admin.api)
        rules = [{"apiGroups": ["almoner.dev"], "resources": ["owners"], "resourceNames": [owner], "verbs": ["spend"]}]
        name = f"spend-{user}-{owner}"
        api.create_namespaced_role(namespace, {"metadata": {"name": name}, "rules": rules})
        api.create_namespaced_role_binding(
            namespace,
            {
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
                "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
            },
        )

    return give


# --- owners -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Execution", "TrainingJob"])
def test_another_owners_money_needs_the_verb_spend(
    plane: ControlPlane, namespace: str, may_spend: Callable[[str, str], None], kind: str
) -> None:
    ann = Person(plane, "ann")
    refusal = message_of(lambda: ann.create(execution("one", "research", kind), namespace))
    assert "spec.owner: ann may not spend the money of owner research" in refusal
    assert "ask for a role with the verb spend on owners.almoner.dev, name research" in refusal
    may_spend("ann", "research")
    until(lambda: ann.create(execution(f"a{secrets.token_hex(3)}", "research", kind), namespace), SECONDS, "it is hers")
    other = message_of(lambda: ann.create(execution("two", "sales", kind), namespace))
    assert "spend the money of owner sales" in other
    bob = message_of(lambda: Person(plane, "bob").create(execution("three", "research", kind), namespace))
    assert "bob may not spend" in bob


@pytest.mark.parametrize("owner", [None, "the namespace"])
def test_the_namespaces_own_money_is_for_everybody_who_may_create_in_it(
    plane: ControlPlane, namespace: str, owner: str | None
) -> None:
    body = execution("one", namespace if owner else None)
    assert Person(plane, "ann").create(body, namespace).metadata.name == "one"


def test_whoever_changes_something_else_needs_no_right_to_the_owner_that_is_there(
    plane: ControlPlane, admin: Person, namespace: str
) -> None:
    admin.create(execution("one", "research"), namespace)
    kind = Person(plane, "ann").kind("Execution")
    patch = {"metadata": {"labels": {"seen": "yes"}}, "spec": {"priority": 7}}
    changed = kind.patch(body=patch, name="one", namespace=namespace, content_type="application/merge-patch+json")
    assert changed.spec.priority == 7


def test_the_owners_of_a_namespace_bind_who_has_all_rights(plane: ControlPlane, admin: Person) -> None:
    name = f"team-{secrets.token_hex(3)}"
    annotations = {"almoner.dev/owners": "research, team-*"}
    admin.core.create_namespace({"metadata": {"name": name, "annotations": annotations}})
    for owner in ("research", "team-blue", None):
        admin.create(execution(f"run-{owner}".lower(), owner), name)
    for owner in ("sales", "steam-x", "team"):
        refusal = message_of(partial(admin.create, execution("no", owner), name))
        assert f"spec.owner: {owner} is none of the owners of namespace {name}" in refusal
        assert "names research, team-*" in refusal
    admin.core.patch_namespace(name, {"metadata": {"annotations": {"almoner.dev/owners": ""}}})
    assert "none of the owners" in until(
        lambda: message_of(lambda: admin.create(execution(f"x-{secrets.token_hex(3)}", "research"), name)),
        SECONDS,
        "the change is in force",
    )
    admin.core.delete_namespace(name)


def test_only_an_administrator_says_which_owners_a_namespace_has(plane: ControlPlane, namespace: str) -> None:
    ann = Person(plane, "ann")
    owners = {"annotations": {"almoner.dev/owners": "research"}}
    for call in (
        lambda: ann.core.patch_namespace(namespace, {"metadata": owners}),
        lambda: ann.core.create_namespace({"metadata": {"name": f"own-{secrets.token_hex(3)}", **owners}}),
    ):
        assert "ann may not say which owners a namespace has" in message_of(call)
    ann.core.patch_namespace(namespace, {"metadata": {"annotations": {"other": "x"}}})


# --- runner pods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        RUNNER_LABELS,
        {"almoner.dev/agent": "a"},
        {"app.kubernetes.io/managed-by": "almoner", "app.kubernetes.io/component": "runner"},
    ],
    ids=["a run's", "an agent's", "a runner's"],
)
@pytest.mark.parametrize("who", [None, "ann"], ids=["administrator", "user"])
def test_only_the_operator_makes_pods_with_a_runners_labels(
    plane: ControlPlane, namespace: str, labels: dict[str, str], who: str | None
) -> None:
    person = Person(plane, who)
    refusal = message_of(lambda: person.core.create_namespaced_pod(namespace, pod("false", labels)))
    assert "only Almoner's operator creates pods with labels of almoner.dev" in refusal
    person.core.create_namespaced_pod(namespace, pod("plain", {"app": "mine"}))
    refusal = message_of(lambda: person.core.patch_namespaced_pod("plain", namespace, {"metadata": {"labels": labels}}))
    assert "the labels and the marks of a runner pod stay" in refusal
    person.core.patch_namespaced_pod("plain", namespace, {"metadata": {"labels": {"app": "yours"}}})


@pytest.mark.parametrize("road", ["generateName", "apply", "apply over", "merge", "JSON patch", "replace", "status"])
def test_a_runners_labels_cannot_be_faked_by_any_road(plane: ControlPlane, namespace: str, road: str) -> None:
    core = Person(plane).core
    plain = pod("plain", {"app": "mine"})
    plain |= {"apiVersion": "v1", "kind": "Pod"}
    stored = core.create_namespaced_pod(namespace, plain)
    stored.metadata.labels = {"app": "mine", **RUNNER_LABELS}
    false = copy.deepcopy(plain)
    false["metadata"]["labels"] |= RUNNER_LABELS
    path = "/metadata/labels/" + "almoner.dev/attempt".replace("/", "~1")
    apply = {"field_manager": "faker", "force": True, "_content_type": "application/apply-patch+yaml"}
    roads: dict[str, Callable[[], object]] = {
        "generateName": lambda: core.create_namespaced_pod(
            namespace, {**false, "metadata": {"generateName": "false-", "labels": RUNNER_LABELS}}
        ),
        "apply": lambda: core.patch_namespaced_pod(
            "new", namespace, {**false, "metadata": {"name": "new", "labels": RUNNER_LABELS}}, **apply
        ),
        "apply over": lambda: core.patch_namespaced_pod("plain", namespace, false, **apply),
        "merge": lambda: core.patch_namespaced_pod("plain", namespace, {"metadata": {"labels": RUNNER_LABELS}}),
        "JSON patch": lambda: core.patch_namespaced_pod(
            "plain", namespace, [{"op": "add", "path": path, "value": "1"}]
        ),
        "replace": lambda: core.replace_namespaced_pod("plain", namespace, stored),
        "status": lambda: core.patch_namespaced_pod_status("plain", namespace, {"metadata": {"labels": RUNNER_LABELS}}),
    }
    said = message_of(roads[road])
    assert "labels of" in said or "the labels and the marks of a runner pod stay" in said
    labels = [each.metadata.labels for each in core.list_namespaced_pod(namespace).items]
    assert labels == [{"app": "mine"}]


def test_a_controller_of_somebody_makes_no_runner_pod(plane: ControlPlane, namespace: str) -> None:
    """A Job's pods are made by its controller, which has all rights on pods."""
    template = {"metadata": {"labels": RUNNER_LABELS}, "spec": pod("x", {})["spec"] | {"restartPolicy": "Never"}}
    person = Person(plane, "ann")
    batch = client.BatchV1Api(person.api)
    batch.create_namespaced_job(namespace, {"metadata": {"name": "false"}, "spec": {"template": template}})

    def refused() -> bool:
        events = person.core.list_namespaced_event(namespace, field_selector="reason=FailedCreate").items
        return any("only Almoner's operator creates pods with labels of almoner.dev" in str(e.message) for e in events)

    until(refused, SECONDS, "the job's controller is refused")
    assert person.core.list_namespaced_pod(namespace).items == []


def test_the_kubelets_word_of_a_runner_pod_is_taken(plane: ControlPlane, namespace: str) -> None:
    name = _runner(plane, namespace)
    Person(plane).core.patch_namespaced_pod_status(name, namespace, {"status": {"phase": "Running"}})


def _runner(plane: ControlPlane, namespace: str) -> str:
    name = pod_name("run", secrets.token_hex(4), 1)
    body = pod(name, RUNNER_LABELS)
    body["metadata"]["annotations"] = {"almoner.dev/nonce": "n"}
    Person(plane, OPERATOR).core.create_namespaced_pod(namespace, body)
    return name


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"labels": {"almoner.dev/attempt": "2"}}},
        {"metadata": {"labels": {"almoner.dev/attempt": None, "almoner.dev/execution-uid": None}}},
        {"metadata": {"labels": {"app.kubernetes.io/component": "runner"}}},
        {"metadata": {"annotations": {"almoner.dev/nonce": "other"}}},
        {"spec": {"containers": [{"name": "agent", "image": "hostile"}]}},
        {"spec": {"activeDeadlineSeconds": 1}},
    ],
    ids=["label", "labels off", "label on", "nonce", "image", "deadline"],
)
def test_a_runner_pod_stays_as_the_operator_made_it(plane: ControlPlane, namespace: str, change: Json) -> None:
    name = _runner(plane, namespace)
    for person in (Person(plane), Person(plane, "ann")):
        refusal = message_of(partial(person.core.patch_namespaced_pod, name, namespace, change))
        assert "stay as the operator made them" in refusal
    Person(plane, "ann").core.patch_namespaced_pod(name, namespace, {"metadata": {"annotations": {"note": "mine"}}})


def test_nobody_enters_a_runner_pod(plane: ControlPlane, namespace: str) -> None:
    name = _runner(plane, namespace)
    for core in (Person(plane).core, Person(plane, "ann").core):
        ways: list[Callable[[], object]] = [
            partial(core.connect_get_namespaced_pod_exec, name, namespace, command=["sh"]),
            partial(core.connect_post_namespaced_pod_attach, name, namespace),
            partial(core.connect_post_namespaced_pod_portforward, name, namespace, ports="8080"),
            *(
                partial(core.connect_get_namespaced_pod_proxy, each, namespace)
                for each in (name, f"{name}:8791", f"https:{name}:8791", f"{name}:")
            ),
        ]
        said = [message_of(way) for way in ways]
        assert all("nobody enters runner pod" in text and name in text for text in said), said
    admin = Person(plane)
    debugger = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}}
    added = message_of(lambda: admin.core.patch_namespaced_pod_ephemeralcontainers(name, namespace, debugger))
    assert "nobody adds containers to a runner pod" in added
    larger = {"spec": {"containers": [{"name": "agent", "resources": {"requests": {"cpu": "2"}}}]}}
    resized = message_of(lambda: admin.core.patch_namespaced_pod_resize(name, namespace, larger))
    assert "nobody resizes a runner pod" in resized


def test_other_pods_are_as_open_as_before(plane: ControlPlane, admin: Person, namespace: str) -> None:
    for name in ("web-7d4b9c6f5d-x2x9z", "db-0", "job-0-abcde"):
        admin.core.create_namespaced_pod(namespace, pod(name, {"app": "web"}))
        enter = partial(admin.core.connect_get_namespaced_pod_exec, name, namespace, command=["sh"])
        assert not message_of(enter)
    debugger = {"spec": {"ephemeralContainers": [{"name": "debug", "image": "busybox"}]}}
    assert not message_of(lambda: admin.core.patch_namespaced_pod_ephemeralcontainers("db-0", namespace, debugger))
