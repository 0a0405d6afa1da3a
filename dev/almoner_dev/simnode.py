"""A node that only says that it runs pods: for tests and benchmarks of the operator that need no processes.

Role: every runner pod is bound, said to run, and said to have ended after its time, by the writes that a scheduler and
a kubelet would do: one binding, one status when it starts, one when it ends. Deleted pods end within their grace
period. Nothing runs, so no allotment is ever activated.

Boundary: a client of the API server with an administrator's token, in a thread of its own with its own event loop. What
becomes of a pod is told by `plan` (called with the pod). The control plane should have no scheduler of its own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

from almoner_core.contract import AGENT_CONTAINER, LABEL_COMPONENT, METER_CONTAINER, RUNNER_COMPONENT
from almoner_dev.controlplane import ControlPlane

NODE: Final = "simulated"
MERGE_PATCH: Final = "application/merge-patch+json"
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
WATCH_SECONDS: Final = 300
LINE_BYTES_MAX: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a pod: it runs so long (None: until it is deleted), then exits so."""

    seconds: float | None = 0.0
    exit_code: int = 0
    message: str = ""
    schedule: bool = True
    """False: no node takes it."""
    clock: float = 0.0
    """By so many seconds this pod's node is ahead of everybody else's clock."""
    injected: bool = False
    """Another main container, which ends only when the pod is deleted."""


class SimulatedNode:
    """Says that runner pods run. `plan` gives a pod's fate; where None, all succeed after `seconds`."""

    def __init__(
        self,
        control_plane: ControlPlane,
        *,
        seconds: float = 0.0,
        plan: Callable[[Mapping[str, Any]], Fate] | None = None,
        bind: bool = True,
    ) -> None:
        self._plane = control_plane
        self._plan = plan or (lambda _: Fate(seconds))
        self._bind = bind
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._main: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None
        self._pods: dict[str, asyncio.Task[None]] = {}
        self._deleted: dict[str, asyncio.Event] = {}
        self.started: list[str] = []
        """Names of the pods that were said to run, in order: `namespace/name`."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="simnode", daemon=True)
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._main is not None:
            self._loop.call_soon_threadsafe(self._main.cancel)
        if self._thread is not None:
            self._thread.join(10)

    # -- in its own thread ---------------------------------------------------------------------------

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        context = ssl.create_default_context(cafile=str(self._plane.ca_file))
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=64),
            headers={"Authorization": f"Bearer {self._plane.token}", "User-Agent": "almoner-simnode"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            read_bufsize=LINE_BYTES_MAX,
        ) as self._session:
            # Pods on a node that does not exist are collected.
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"unschedulable": True}}
            await self._send("POST", "/api/v1/nodes", node, "application/json")
            self._ready.set()
            try:
                while True:
                    try:
                        await self._watch()
                    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                        await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                pass
            finally:
                for task in self._pods.values():
                    task.cancel()

    async def _watch(self) -> None:
        assert self._session is not None
        query = {"labelSelector": f"{LABEL_COMPONENT}={RUNNER_COMPONENT}"}
        async with self._session.get(f"{self._plane.url}/api/v1/pods", params=query) as answer:
            listed = await answer.json()
        for pod in listed.get("items") or []:
            self._see("ADDED", pod)
        query |= {
            "watch": "true",
            "resourceVersion": listed["metadata"]["resourceVersion"],
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        async with self._session.get(f"{self._plane.url}/api/v1/pods", params=query) as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                self._see(event["type"], event["object"])

    def _see(self, event: str, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        if event == "DELETED":
            task = self._pods.pop(uid, None)
            if task is not None:
                task.cancel()
            self._deleted.pop(uid, None)
            return
        phase = (pod.get("status") or {}).get("phase")
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.setdefault(uid, asyncio.Event()).set()
        if uid not in self._pods and phase not in ("Succeeded", "Failed"):
            self._deleted.setdefault(uid, asyncio.Event())
            if pod["metadata"].get("deletionTimestamp"):
                self._deleted[uid].set()
            self._pods[uid] = asyncio.get_running_loop().create_task(self._live(pod))

    async def _live(self, pod: dict[str, Any]) -> None:
        uid, fate = pod["metadata"]["uid"], self._plan(pod)
        deleted = self._deleted[uid]
        if not fate.schedule:
            await self._condition_unschedulable(pod)
            return
        if self._bind and not (pod.get("spec") or {}).get("nodeName"):
            await self._bind_pod(pod)
        ahead = timedelta(seconds=fate.clock)
        started = datetime.now(UTC) + ahead
        if not deleted.is_set():
            await self._status(pod, _status("Running", started))
            self.started.append(f"{pod['metadata']['namespace']}/{pod['metadata']['name']}")
        try:
            async with asyncio.timeout(fate.seconds):
                await deleted.wait()
            code, message = 143, "told to stop"
        except TimeoutError:
            code, message = fate.exit_code, fate.message
        phase = "Succeeded" if code == 0 else "Failed"
        status = _status(phase, started, datetime.now(UTC) + ahead, code, message)
        if fate.injected:
            goes_on = _status("Running", started)
            other = {**goes_on["containerStatuses"][0], "name": "istio-proxy"}
            goes_on["containerStatuses"] = [*status["containerStatuses"], other]
            await self._status(pod, goes_on)
            await deleted.wait()
        await self._status(pod, status)
        if deleted.is_set():
            await self._remove(pod)
        else:
            await deleted.wait()
            await self._remove(pod)

    async def _bind_pod(self, pod: dict[str, Any]) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": pod["metadata"]["name"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
        }
        await self._send("POST", f"{_path(pod)}/binding", body, "application/json")

    async def _condition_unschedulable(self, pod: dict[str, Any]) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient memory.",
        }
        await self._status(pod, {"phase": "Pending", "conditions": [condition]})

    async def _status(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        await self._send("PATCH", f"{_path(pod)}/status", {"status": status}, MERGE_PATCH)

    async def _remove(self, pod: dict[str, Any]) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": pod["metadata"]["uid"]},
        }
        await self._send("DELETE", _path(pod), body, "application/json")

    async def _send(self, method: str, path: str, body: dict[str, Any], content_type: str) -> None:
        assert self._session is not None
        headers = {"Content-Type": content_type, "Accept": f"{METADATA_ONLY},application/json"}
        for _ in range(5):
            try:
                async with self._session.request(
                    method,
                    self._plane.url + path,
                    data=json.dumps(body).encode(),
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=30),
                ) as answer:
                    await answer.read()
                    if answer.status < 500 and answer.status != 429:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.1)


def _path(pod: Mapping[str, Any]) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def _status(
    phase: str, started: datetime, finished: datetime | None = None, exit_code: int = 0, message: str = ""
) -> dict[str, Any]:
    """A pod's status as the kubelet writes it, with the meter as a native sidecar."""

    def of(name: str, code: int, said: str) -> dict[str, Any]:
        state: dict[str, Any]
        if finished is None:
            state = {"running": {"startedAt": _time(started)}}
        else:
            state = {
                "terminated": {
                    "exitCode": code,
                    "reason": "Completed" if code == 0 else "Error",
                    "message": said,
                    "startedAt": _time(started),
                    "finishedAt": _time(finished),
                }
            }
        return {
            "name": name,
            "ready": finished is None,
            "started": finished is None,
            "restartCount": 0,
            "image": "simulated",
            "imageID": "simulated",
            "state": state,
        }

    return {
        "phase": phase,
        "startTime": _time(started),
        "initContainerStatuses": [of(METER_CONTAINER, 0, "")],
        "containerStatuses": [of(AGENT_CONTAINER, exit_code, message)],
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
