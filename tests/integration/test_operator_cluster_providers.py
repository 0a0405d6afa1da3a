"""Cluster-scoped providers on a real API server: judged, allowed or not, granted to attempts, and out of reach."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from kubernetes import client, config
from kubernetes.client import ApiException

from almoner_core.contract import LEDGER_AUDIENCE
from almoner_core.environment import ENV_METER_CONFIG, METER_CONTAINER
from almoner_dev.controlplane import ControlPlane
from almoner_dev.stack import SYSTEM_NAMESPACE, Stack
from almoner_ledger import schema
from almoner_ledger.store.state import AccountKind, account_id
from tests.support.cluster import Cluster

Json = dict[str, Any]
LABEL = {"almoner.dev/provider-key": "true"}
PRICES = [{"model": "small", "inputPerMillion": "1.00", "outputPerMillion": "2.00"}]


@pytest.fixture
def neighbour(bare_plane: ControlPlane, stack: Stack) -> Iterator[Cluster]:
    """Another namespace."""
    made = Cluster(bare_plane)
    yield made
    made.close()


@pytest.fixture
def shared() -> str:
    """A name that no other test has: providers and Secrets are the whole cluster's."""
    return f"shared-{secrets.token_hex(4)}"


def spec(cluster: Cluster, key: str, **more: Any) -> Json:
    return {
        "type": "OpenAICompatible",
        "baseURL": "http://127.0.0.1:9/v1",
        "credentials": {"name": key, "key": "key"},
        "models": [{"name": "small", "contextWindow": 2048}],
        "prices": PRICES,
        "allow": {"namespaces": [cluster.namespace]},
        **more,
    }


def key(cluster: Cluster, name: str, labels: Json | None = None) -> None:
    body = {"metadata": {"name": name, "labels": LABEL if labels is None else labels}, "stringData": {"key": "sk-x"}}
    cluster.core.create_namespaced_secret(SYSTEM_NAMESPACE, body)


def agent(cluster: Cluster, provider: str, name: str = "agent", **more: Any) -> None:
    model = {"provider": provider, "providerKind": "ClusterModelProvider", "name": "small"}
    cluster.agent(name, model=model, **more)


def meter_config(pod: Any) -> Json:
    (meter,) = [each for each in pod.spec.init_containers if each.name == METER_CONTAINER]
    found: Json = json.loads(next(each.value for each in meter.env if each.name == ENV_METER_CONFIG))
    return found


def allotments(stack: Stack, cluster: Cluster) -> list[Any]:
    table = schema.allotments
    engine = sa.create_engine(stack.database)
    try:
        with engine.connect() as connection:
            return list(connection.execute(sa.select(table).where(table.c.namespace == cluster.namespace)))
    finally:
        engine.dispose()


def test_a_namespace_without_a_secret_runs_with_a_shared_provider(cluster: Cluster, stack: Stack, shared: str) -> None:
    key(cluster, shared)
    cluster.create("ClusterModelProvider", shared, spec(cluster, shared, rateLimits={"requestsPerMinute": 30}))
    cluster.wait_ready("ClusterModelProvider", shared)
    assert cluster.condition("ClusterModelProvider", shared, "Bypassable")["reason"] == "CredentialsHeld"
    agent(cluster, shared, "run-600000")
    cluster.wait_ready("Agent", "run-600000")
    cluster.execution("one", agent="run-600000")
    cluster.wait_phase("one", "Running")
    (pod,) = cluster.pods_of("one")
    (told,) = meter_config(pod)["providers"]
    assert (told["name"], told.get("key_file"), told["ledger_key"]) == (shared, None, True)
    assert told["models"][0]["price"]["version"] == f"override ClusterModelProvider/{shared} generation 1"
    assert [volume.name for volume in pod.spec.volumes if volume.secret is not None] == []
    (row,) = [each for each in allotments(stack, cluster) if each.purpose == "run"]
    assert json.loads(row.provider_keys) == [{"provider": shared, "secret": shared, "key": "key"}]
    assert account_id(AccountKind.PROVIDER, "*", shared) in row.tracked
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("one", "Cancelled")


def test_another_namespace_is_refused_until_it_is_allowed(cluster: Cluster, neighbour: Cluster, shared: str) -> None:
    cluster.create("ClusterModelProvider", shared, spec(cluster, "x", credentials=None))
    cluster.wait_ready("ClusterModelProvider", shared)
    agent(neighbour, shared)
    said = neighbour.wait_ready("Agent", "agent", "ProviderNotAllowed")["message"]
    assert f"does not allow namespace {neighbour.namespace}: it is not in its spec.allow.namespaces" in said
    assert neighbour.condition("Agent", "agent", "Stalled")["status"] == "True"
    neighbour.execution("waits")
    assert "spec.allow.namespaces" in neighbour.wait_reason("waits", "ProviderNotAllowed")["message"]
    assert neighbour.pods() == []
    # Nor does it help to call a provider of one's own as the shared one is called.
    neighbour.provider(shared)
    assert neighbour.condition("Agent", "agent", "Ready")["reason"] == "ProviderNotAllowed"
    names = [cluster.namespace, neighbour.namespace]
    cluster.patch("ClusterModelProvider", shared, {"allow": {"namespaces": names}})
    neighbour.wait_phase("waits", "Succeeded")
    # What is taken away binds the next admission.
    cluster.patch("ClusterModelProvider", shared, {"allow": {"namespaces": [cluster.namespace]}})
    neighbour.wait_ready("Agent", "agent", "ProviderNotAllowed")
    neighbour.execution("again")
    neighbour.wait_reason("again", "ProviderNotAllowed")


def test_who_was_let_in_is_in_the_log_of_changes(cluster: Cluster, stack: Stack, shared: str) -> None:
    cluster.create("ClusterModelProvider", shared, spec(cluster, "x", credentials=None))
    cluster.wait_ready("ClusterModelProvider", shared)
    cluster.patch("ClusterModelProvider", shared, {"allow": {"namespaces": ["*"]}})
    headers = {"Authorization": f"Bearer {stack.token('almoner-operator', audience=LEDGER_AUDIENCE)}"}
    query = {"kind": "ClusterModelProvider", "name": shared}

    def changed() -> Json | None:
        answer = httpx.get(f"{stack.ledger_url}/v1/audit/changes", params=query, headers=headers, timeout=30)
        assert answer.status_code == 200, answer.text
        found = [each for each in answer.json()["changes"] if each["action"] == "changed"]
        return found[0] if found else None

    entry = cluster.wait(changed, "the change in the log")
    assert entry["namespace"] == ""
    (field,) = entry["fields"]
    assert field["path"].startswith("allow.namespaces")
    assert "*" in field["after"]


def test_an_owner_is_refused_at_admission(cluster: Cluster, shared: str) -> None:
    allow = {"namespaces": ["*"], "owners": ["ann"]}
    cluster.create("ClusterModelProvider", shared, spec(cluster, "x", credentials=None, allow=allow))
    agent(cluster, shared)
    cluster.wait_ready("Agent", "agent")
    cluster.execution("anns", owner="ann")
    cluster.execution("bobs", owner="bob")
    cluster.wait_phase("anns", "Succeeded")
    said = cluster.wait_reason("bobs", "ProviderNotAllowed")["message"]
    assert f"ClusterModelProvider {shared} does not allow owner bob: it is not in its spec.allow.owners" in said
    cluster.patch("ClusterModelProvider", shared, {"allow": {"owners": ["ann", "bob"]}})
    cluster.wait_phase("bobs", "Succeeded")


def test_a_secret_that_is_not_for_meters_is_not_used(cluster: Cluster, shared: str) -> None:
    """Neither the ledger's certificate nor the database's password can be had by naming it."""
    cluster.create("ClusterModelProvider", shared, spec(cluster, shared))
    said = cluster.wait_ready("ClusterModelProvider", shared, "SecretNotFound")["message"]
    assert f"Secret {shared} does not exist in Almoner's own namespace" in said
    agent(cluster, shared)
    cluster.wait_ready("Agent", "agent", "ProviderNotReady")
    key(cluster, shared, {})
    look_again(cluster, shared, "a")
    said = cluster.wait_ready("ClusterModelProvider", shared, "SecretNotLabelled")["message"]
    assert "almoner.dev/provider-key" in said
    assert cluster.condition("ClusterModelProvider", shared, "Stalled")["status"] == "True"
    cluster.core.patch_namespaced_secret(shared, SYSTEM_NAMESPACE, {"metadata": {"labels": LABEL}})
    look_again(cluster, shared, "b")
    cluster.wait_ready("ClusterModelProvider", shared)
    cluster.wait_ready("Agent", "agent")
    events = cluster.core.list_namespaced_event("default", field_selector=f"involvedObject.name={shared}").items
    assert {each.reason for each in events} >= {"SecretNotFound", "SecretNotLabelled"}
    # Gone before the next admission: it says so, and no pod hangs.
    cluster.core.delete_namespaced_secret(shared, SYSTEM_NAMESPACE)
    cluster.wait(lambda: _secret_gone(cluster, shared), "the operator to look again")


def look_again(cluster: Cluster, shared: str, host: str) -> None:
    """Have the operator look at the Secret, of which nothing tells it, before its half minute is over."""

    def looked() -> bool:
        # What it knows of a Secret is good for a few seconds.
        was = cluster.condition("ClusterModelProvider", shared, "Ready")["reason"]
        address = f"http://{host}-{secrets.token_hex(4)}.example/v1"
        generation = cluster.patch("ClusterModelProvider", shared, {"baseURL": address})["metadata"]["generation"]
        cluster.wait(lambda: _observed(cluster, shared) == generation, "the operator to look")
        return bool(cluster.condition("ClusterModelProvider", shared, "Ready")["reason"] != was)

    cluster.wait(looked, "another verdict")


def _observed(cluster: Cluster, shared: str) -> int:
    return int(cluster.get("ClusterModelProvider", shared)["status"]["observedGeneration"])


def _secret_gone(cluster: Cluster, shared: str) -> bool:
    name = f"try-{secrets.token_hex(4)}"
    cluster.execution(name)
    found = cluster.wait(lambda: _admitted(cluster, name), "an answer")
    return bool(found["reason"] == "SecretNotFound" and f"ClusterModelProvider {shared}" in found["message"])


def _admitted(cluster: Cluster, name: str) -> Json | None:
    found = cluster.condition("Execution", name, "Admitted")
    return found if found.get("reason") not in (None, "Queued") else None


def test_a_shared_tools_price_reaches_the_meter(cluster: Cluster, neighbour: Cluster, shared: str) -> None:
    tool = {"name": "web_search", "provider": shared, "providerKind": "ClusterToolProvider"}
    prices = [{"tool": "web_search", "perCall": "0.005"}]
    allow = {"namespaces": [cluster.namespace]}
    cluster.create("ClusterToolProvider", shared, {"type": "DuckDuckGo", "prices": prices, "allow": allow})
    cluster.wait_ready("ClusterToolProvider", shared)
    for each in (cluster, neighbour):
        each.provider()
        each.agent("run-600000", runner={"image": "example/sdk:1"}, tools=[tool])
    cluster.wait_ready("Agent", "run-600000")
    said = neighbour.wait_ready("Agent", "run-600000", "ProviderNotAllowed")["message"]
    assert said.startswith(f"spec.tools[0].provider: ClusterToolProvider {shared} does not allow namespace")
    cluster.execution("one", agent="run-600000")
    cluster.wait_phase("one", "Running")
    (pod,) = cluster.pods_of("one")
    (told,) = meter_config(pod)["tools"]
    assert (told["provider"], told["price"]["per_call"]) == (shared, 5_000_000)
    cluster.patch("Execution", "one", {"cancel": True})
    cluster.wait_phase("one", "Cancelled")


# --- whoever may not ------------------------------------------------------------------------------------------------


def as_user(plane: ControlPlane, name: str) -> client.ApiClient:
    api = config.new_client_from_config(str(plane.kubeconfig))
    api.set_default_header("Impersonate-User", name)
    api.set_default_header("Impersonate-Group", "system:authenticated")
    return api


def test_who_may_edit_a_namespace_reaches_no_key(bare_plane: ControlPlane, cluster: Cluster, shared: str) -> None:
    key(cluster, shared)
    cluster.create("ClusterModelProvider", shared, spec(cluster, shared))
    user = f"editor-{shared}"
    binding = {
        "metadata": {"name": "editor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    rbac.create_namespaced_role_binding(cluster.namespace, binding)
    with as_user(bare_plane, user) as api:
        core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
        # The right is there when the API server's authorizer has seen it; it reads every Secret of the namespace.
        cluster.wait(lambda: may(core, cluster.namespace), "the editor's rights")
        assert core.list_namespaced_secret(cluster.namespace).items == []
        refusals: list[Callable[[], Any]] = [
            lambda: core.read_namespaced_secret(shared, SYSTEM_NAMESPACE),
            lambda: core.list_namespaced_secret(SYSTEM_NAMESPACE),
            lambda: custom.patch_cluster_custom_object(
                "almoner.dev", "v1alpha1", "clustermodelproviders", shared, {"spec": {"baseURL": "http://mine.example"}}
            ),
            lambda: custom.create_cluster_custom_object(
                "almoner.dev",
                "v1alpha1",
                "clustermodelproviders",
                {
                    "apiVersion": "almoner.dev/v1alpha1",
                    "kind": "ClusterModelProvider",
                    "metadata": {"name": f"{shared}-own"},
                    "spec": spec(cluster, shared),
                },
            ),
        ]
        for refused in refusals:
            with pytest.raises(ApiException) as answer:
                refused()
            assert answer.value.status == 403


def may(core: client.CoreV1Api, namespace: str) -> bool:
    try:
        core.list_namespaced_secret(namespace)
    except ApiException:
        return False
    return True


@pytest.mark.parametrize(
    ("role", "verb", "allowed"),
    [
        ("almoner-viewer", "get", True),
        ("almoner-viewer", "update", False),
        ("almoner-editor", "list", True),
        ("almoner-editor", "patch", False),
        ("almoner-admin", "create", True),
    ],
)
@pytest.mark.parametrize("plural", ["clustermodelproviders", "clustertoolproviders"])
def test_roles_of_the_whole_cluster(  # noqa: PLR0917 - what is asked
    cluster: Cluster, shared: str, role: str, verb: str, allowed: bool, plural: str
) -> None:
    user = f"{role}-{shared}"
    rbac = client.RbacAuthorizationV1Api(cluster.api)
    binding = {
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    rbac.create_cluster_role_binding(binding)
    review = client.AuthorizationV1Api(cluster.api)

    def asked(verb: str) -> bool:
        attributes = {"group": "almoner.dev", "resource": plural, "verb": verb}
        body = {"spec": {"user": user, "resourceAttributes": attributes}}
        return bool(review.create_subject_access_review(body).status.allowed)

    try:
        cluster.wait(lambda: asked("get"), "the role to be in force")
        assert asked(verb) is allowed
    finally:
        rbac.delete_cluster_role_binding(user)
