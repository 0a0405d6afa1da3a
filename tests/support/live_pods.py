"""Pods in tests: build them small, create them, wait for what they become."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.support.polling import until

POD_SECONDS = 45.0

Json = dict[str, Any]


def container(name: str, script: str | None = None, **more: Any) -> Json:
    """A container that runs a shell script; `command` in `more` for anything else."""
    command = ["sh", "-c", script] if script is not None else None
    return {"name": name, "image": "test", **({"command": command} if command else {}), **more}


def sidecar(name: str, script: str, **more: Any) -> Json:
    """A native sidecar."""
    return container(name, script, restartPolicy="Always", **more)


class Pods:
    """The pods of one namespace."""

    def __init__(self, api: Any, namespace: str) -> None:
        self.core = client.CoreV1Api(api)
        self.namespace = namespace
        self._api = api

    def create(
        self, name: str, containers: Iterable[Json], *, init: Iterable[Json] = (), node: str | None = None, **spec: Any
    ) -> Json:
        """Create a pod, restartPolicy Never unless said otherwise."""
        body: Json = {
            "metadata": {"name": name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "terminationGracePeriodSeconds": 5,
                "containers": list(containers),
                **({"initContainers": list(init)} if init else {}),
                **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
                **spec,
            },
        }
        created = self.core.create_namespaced_pod(self.namespace, body)
        return self._plain(created)

    def _plain(self, obj: Any) -> Json:
        plain: Json = self._api.sanitize_for_serialization(obj)
        return plain

    def get(self, name: str) -> Json:
        """The pod as plain JSON."""
        return self._plain(self.core.read_namespaced_pod(name, self.namespace))

    def phase(self, name: str, *wanted: str, seconds: float = POD_SECONDS) -> Json:
        """Wait for one of the phases; the pod then."""

        def reached() -> Json | None:
            pod = self.get(name)
            return pod if pod.get("status", {}).get("phase") in wanted else None

        found = until(reached, seconds, f"pod {name} to be {' or '.join(wanted)}")
        assert found is not None
        return found

    def state(self, name: str, container_name: str, kind: str, seconds: float = POD_SECONDS) -> Json:
        """Wait until a container is waiting, running or terminated; that part of its state."""

        def reached() -> Json | None:
            found = container_status(self.get(name), container_name).get("state", {}).get(kind)
            return dict(found) if found is not None else None

        state = until(reached, seconds, f"container {container_name} of pod {name} to be {kind}")
        assert state is not None
        return state

    def log(self, name: str, container_name: str, **more: Any) -> str:
        """A container's log."""
        return str(self.core.read_namespaced_pod_log(name, self.namespace, container=container_name, **more))

    def delete(self, name: str, grace: int | None = None) -> None:
        """Ask for its deletion."""
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=grace)

    def gone(self, name: str, seconds: float = POD_SECONDS) -> None:
        """Wait until it is deleted."""

        def absent() -> bool:
            try:
                self.get(name)
            except ApiException as error:
                return bool(error.status == 404)
            return False

        until(absent, seconds, f"pod {name} to be gone")


def container_status(pod: Json, name: str) -> Json:
    """The status of a container, {} where there is none yet."""
    status = pod.get("status", {})
    every = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return next((entry for entry in every if entry["name"] == name), {})


def condition(pod: Json, kind: str) -> Json:
    """One of the pod's conditions, {} where there is none."""
    return next((c for c in pod.get("status", {}).get("conditions") or [] if c["type"] == kind), {})


class Diary:
    """A server on an address that pods reach: what they post is kept, in order.

    In a pod: `python -c "$SAY" WORD` with the environment variable SAY from `environment`.
    """

    def __init__(self, address: str) -> None:
        self.entries: list[str] = []
        entries = self.entries

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                entries.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        self.url = f"http://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def environment(self) -> list[Json]:
        """For `env` of a container."""
        say = f"import sys,urllib.request as u;u.urlopen('{self.url}',sys.argv[1].encode(),timeout=5)"
        return [{"name": "SAY", "value": say}]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
