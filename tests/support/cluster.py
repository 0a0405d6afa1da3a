"""What the operator's tests do to a cluster: apply small manifests, look at statuses, wait for phases."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from kubernetes import client, config
from kubernetes.client import ApiException

from almoner_dev.controlplane import ControlPlane
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.stack import Stack
from tests.support.polling import until

GROUP, VERSION = "almoner.dev", "v1alpha1"
PLURALS = {
    "Agent": "agents",
    "Execution": "executions",
    "TrainingJob": "trainingjobs",
    "ResourceQuota": "resourcequotas",
    "ModelProvider": "modelproviders",
    "ToolProvider": "toolproviders",
}
OF_CLUSTER = {"ClusterModelProvider": "clustermodelproviders", "ClusterToolProvider": "clustertoolproviders"}
# A bound on patience, not on speed: the machine may be busy.
SECONDS = 60.0
Json = dict[str, Any]


class Cluster:
    """One namespace of a control plane, with what the tests need at hand."""

    def __init__(self, plane: ControlPlane) -> None:
        self.api = config.new_client_from_config(str(plane.kubeconfig))
        self.core = client.CoreV1Api(self.api)
        self.custom = client.CustomObjectsApi(self.api)
        self.namespace = f"test-{secrets.token_hex(4)}"
        self.core.create_namespace({"metadata": {"name": self.namespace}})
        self._of_cluster: list[tuple[str, str]] = []

    def close(self) -> None:
        """Start deleting the namespace, and what was created outside of it."""
        for plural, name in self._of_cluster:
            with contextlib.suppress(ApiException):
                self.custom.delete_cluster_custom_object(GROUP, VERSION, plural, name)
        self.core.delete_namespace(self.namespace)
        self.api.close()

    # -- objects -------------------------------------------------------------------------------------

    def create(self, kind: str, name: str, spec: Json, **metadata: Any) -> Json:
        body: Json = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace, **metadata},
            "spec": spec,
        }
        if (plural := OF_CLUSTER.get(kind)) is not None:
            del body["metadata"]["namespace"]
            self._of_cluster.append((plural, name))
            whole: Json = self.custom.create_cluster_custom_object(GROUP, VERSION, plural, body)
            return whole
        made: Json = self.custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURALS[kind], body)
        return made

    def adopt(self, documents: Sequence[Json]) -> None:
        """Have those that are of the whole cluster deleted with the namespace."""
        named = [(OF_CLUSTER.get(each["kind"]), each["metadata"]["name"]) for each in documents]
        self._of_cluster += [(plural, name) for plural, name in named if plural is not None]

    def get(self, kind: str, name: str) -> Json:
        if (plural := OF_CLUSTER.get(kind)) is not None:
            whole: Json = self.custom.get_cluster_custom_object(GROUP, VERSION, plural, name)
            return whole
        found: Json = self.custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURALS[kind], name)
        return found

    def patch(self, kind: str, name: str, spec: Json) -> Json:
        if (plural := OF_CLUSTER.get(kind)) is not None:
            whole: Json = self.custom.patch_cluster_custom_object(GROUP, VERSION, plural, name, {"spec": spec})
            return whole
        patched: Json = self.custom.patch_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURALS[kind], name, {"spec": spec}
        )
        return patched

    def delete(self, kind: str, name: str) -> None:
        if (plural := OF_CLUSTER.get(kind)) is not None:
            self.custom.delete_cluster_custom_object(GROUP, VERSION, plural, name)
            return
        self.custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURALS[kind], name)

    def exists(self, kind: str, name: str) -> bool:
        try:
            self.get(kind, name)
        except ApiException as error:
            if error.status == 404:
                return False
            raise
        return True

    def pods(self) -> list[Any]:
        label = "app.kubernetes.io/component=runner"
        found: list[Any] = self.core.list_namespaced_pod(self.namespace, label_selector=label).items
        return found

    def pods_of(self, name: str) -> list[Any]:
        uid = self.get("Execution", name)["metadata"]["uid"]
        return [pod for pod in self.pods() if pod.metadata.labels["almoner.dev/execution-uid"] == uid]

    # -- small worlds --------------------------------------------------------------------------------

    def provider(self, name: str = "local", *, priced: bool = True, **spec: Any) -> None:
        prices = [{"model": "small", "inputPerMillion": "1.00", "outputPerMillion": "2.00"}] if priced else []
        self.create(
            "ModelProvider",
            name,
            {
                "type": "OpenAICompatible",
                "baseURL": "http://127.0.0.1:9/v1",
                "models": [{"name": "small", "contextWindow": 2048}],
                "prices": prices,
                **spec,
            },
        )

    def agent(self, name: str = "agent", **spec: Any) -> None:
        self.create("Agent", name, {"type": "Simulation", "model": {"provider": "local", "name": "small"}, **spec})

    def execution(self, name: str, *, agent: str = "agent", max_cost: str | None = "1.00", **spec: Any) -> Json:
        limits = {"maxCost": max_cost} if max_cost is not None else {}
        return self.create(
            "Execution", name, {"agentRef": {"name": agent}, "input": {"text": "hello"}, "limits": limits, **spec}
        )

    def quota(self, name: str, **spec: Any) -> None:
        self.create("ResourceQuota", name, spec)
        self.wait_ready("ResourceQuota", name)

    def world(self) -> None:
        """A provider and an agent, ready."""
        self.provider()
        self.agent()
        self.wait_ready("Agent", "agent")

    # -- waiting -------------------------------------------------------------------------------------

    def status(self, name: str, kind: str = "Execution") -> Json:
        return self.get(kind, name).get("status") or {}

    def condition(self, kind: str, name: str, type_: str) -> Json:
        conditions = (self.get(kind, name).get("status") or {}).get("conditions") or []
        return next((each for each in conditions if each["type"] == type_), {})

    def wait_ready(self, kind: str, name: str, reason: str | None = None, seconds: float = SECONDS) -> Json:
        """Wait for Ready to be True, or False for a reason."""

        def look() -> Json | None:
            found = self.condition(kind, name, "Ready")
            if reason is None:
                return found if found.get("status") == "True" else None
            return found if found.get("reason") == reason else None

        return until(look, seconds, f"{kind} {name} Ready ({reason or 'True'})") or {}

    def wait_phase(self, name: str, *phases: str, kind: str = "Execution", seconds: float = SECONDS) -> Json:
        def look() -> Json | None:
            status = self.status(name, kind)
            return status if status.get("phase") in phases else None

        return until(look, seconds, f"{name} to be {' or '.join(phases)}: now {self.status(name, kind)}") or {}

    def wait_reason(self, name: str, reason: str, seconds: float = SECONDS) -> Json:
        """Wait until the Execution waits for that reason; gives its Admitted condition."""

        def look() -> Json | None:
            found = self.condition("Execution", name, "Admitted")
            return found if found.get("reason") == reason else None

        return until(look, seconds, f"{name} to wait with {reason}") or {}

    def wait(self, look: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
        return until(look, seconds, what)


def verify_ledger(stack: Stack) -> str:
    """Audit the ledger's books as a person would; gives what it said, fails on a violation."""
    done = subprocess.run(
        [sys.executable, "-m", "almoner_ledger", "verify"],
        env=ledger_environment(stack.database),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"verify found violations:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def open_allotments(stack: Stack) -> list[Json]:
    """The allotments that are open, asked as the operator asks."""
    import json
    import urllib.request

    token = (stack.directory / "operator-ledger.token").read_text()
    request = urllib.request.Request(
        f"{stack.ledger_url}/v1/allotments?state=open&limit=500", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=10, context=stack.ledger_context) as answer:
        found: list[Json] = json.load(answer)["allotments"]
    return found
