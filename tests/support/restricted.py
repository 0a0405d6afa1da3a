"""Small pods that a namespace with Pod Security `restricted` lets in, and what tests ask of them."""

from __future__ import annotations

import secrets
from typing import Any

from kubernetes import client
from kubernetes.client import ApiException
from kubernetes.stream import stream

from tests.support.polling import until

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
# A bound on patience, not on speed: the machine may be busy.
SECONDS = 90.0
Json = dict[str, Any]


def container(image: str, script: str, **more: Any) -> Json:
    """A container that runs a shell script, without any right."""
    return {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        **more,
    }


def pod(*containers: Json, labels: dict[str, str] | None = None, **spec: Any) -> Json:
    """A pod of any user but root, with the runtime's seccomp profile, that ends at once when it is told to."""
    return {
        "metadata": {"name": f"pod-{secrets.token_hex(4)}", "labels": labels or {}},
        "spec": {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "fsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": list(containers),
            **spec,
        },
    }


class Pods:
    """The pods of one namespace."""

    def __init__(self, api: client.ApiClient, namespace: str, image: str) -> None:
        self.core = client.CoreV1Api(api)
        self.namespace = namespace
        self.image = image

    def start(self, script: str, labels: dict[str, str] | None = None, user: str = "", **spec: Any) -> str:
        """Create a pod that runs a script, as the administrator or as another user; returns its name."""
        return self.create(pod(container(self.image, script), labels=labels, **spec), user)

    def create(self, body: Json, user: str = "") -> str:
        core = self.core
        if user:
            api = client.ApiClient(self.core.api_client.configuration)
            api.set_default_header("Impersonate-User", user)
            core = client.CoreV1Api(api)
        core.create_namespaced_pod(self.namespace, body)
        return str(body["metadata"]["name"])

    def get(self, name: str) -> client.V1Pod:
        return self.core.read_namespaced_pod(name, self.namespace)

    def running(self, name: str) -> client.V1Pod:
        """Wait until every container of the pod is ready."""

        def ready() -> client.V1Pod | None:
            found = self.get(name)
            assert found.status.phase not in {"Succeeded", "Failed"}, self.describe(name)
            states = found.status.container_statuses or []
            return found if states and all(state.ready for state in states) else None

        try:
            return until(ready, SECONDS, f"pod {name} to run")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(name)}") from error

    def output(self, name: str) -> str:
        """Wait until the pod has succeeded; returns what it printed."""

        def ended() -> client.V1Pod | None:
            found = self.get(name)
            return found if found.status.phase in {"Succeeded", "Failed"} else None

        try:
            found = until(ended, SECONDS, f"pod {name} to end")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(name)}") from error
        assert found is not None
        assert found.status.phase == "Succeeded", self.describe(name)
        return self.logs(name)

    def logs(self, name: str) -> str:
        return str(self.core.read_namespaced_pod_log(name, self.namespace, container="main"))

    def execute(self, name: str, *command: str) -> str:
        """Run a command in the pod, and return what it printed."""
        opened = stream(
            self.core.connect_get_namespaced_pod_exec,
            name,
            self.namespace,
            container="main",
            command=list(command),
            stdin=False,
            stdout=True,
            stderr=True,
            tty=False,
            _preload_content=False,
        )
        try:
            opened.run_forever(timeout=SECONDS)
            return str(opened.read_all())
        finally:
            opened.close()
            # What the other end has closed already, `close` leaves open.
            opened.sock.shutdown()

    def describe(self, name: str) -> str:
        """What can be known of a pod that did not do what it should."""
        found = self.get(name)
        lines = [f"pod {name}: {found.status.phase} {found.status.reason or ''} {found.status.message or ''}"]
        lines += [f"  {state.name}: {state.state}" for state in found.status.container_statuses or []]
        events = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={name}")
        lines += [f"  {event.reason}: {event.message}" for event in events.items]
        try:
            lines.append(self.logs(name)[-2000:])
        except ApiException as error:
            lines.append(f"no log: {error.reason}")
        return "\n".join(lines)
