"""The node itself: registered, renewed, and busy with the pods that the scheduler binds to it.

Role: the Node object, its Lease, the watch on pods, and what a restart finds. Boundary: what happens in
a pod is its worker's. Why a pod that an earlier life of the node had started is Failed: its processes
died with that life, and starting it again would run its work twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import platform
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from almoner_core.quantity import parse_quantity
from almoner_dev.node.api import STRATEGIC_PATCH, Api, ApiError, Json
from almoner_dev.node.container import group_memory_bytes, now
from almoner_dev.node.isolation import Isolation
from almoner_dev.node.objects import Objects
from almoner_dev.node.pod import NodeContext, PodWorker, delete_finally, write_status
from almoner_dev.node.server import LogServer
from almoner_dev.node.status import terminated

log = logging.getLogger("almoner_dev.node")

LEASE_SECONDS = 40
RENEW_SECONDS = 10.0
STATUS_EVERY_RENEWALS = 30
STOP_GRACE_SECONDS = 2.0
LAUNCHES_AT_ONCE = 8
HOUSEKEEPING_SECONDS = 1.0
LOG_BYTES_MAX = 16 * 1024 * 1024
KUBELET_VERSION = "v1.34.4"


@dataclass(frozen=True)
class NodeSettings:
    """What a node is started with. cpu, memory and resources are Kubernetes quantities; pods is a number."""

    name: str
    scratch: Path
    cpu: str = "64"
    memory: str = "64Gi"
    pods: int = 500
    resources: Mapping[str, str] = field(default_factory=dict)
    image_commands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ready_file: Path | None = None


class NodeAgent:
    """A process node. `run` returns when `stop` is set, after removing all that was made."""

    def __init__(self, settings: NodeSettings, api: Api, isolation: Isolation) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self._api = api
        self._isolation = isolation
        self._workers: dict[str, PodWorker] = {}
        self._sweepers: set[asyncio.Task[None]] = set()
        self._allocatable = {
            "cpu": settings.cpu,
            "memory": settings.memory,
            "pods": str(settings.pods),
            "ephemeral-storage": "100Gi",
            **settings.resources,
        }
        self._context = NodeContext(
            api,
            Objects(api),
            isolation,
            settings.scratch,
            self._allocatable,
            settings.image_commands,
            asyncio.Semaphore(LAUNCHES_AT_ONCE),
        )
        self._server = LogServer(self.containers)
        self._path = f"/api/v1/nodes/{settings.name}"
        self._lease_path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{settings.name}"

    async def run(self) -> None:
        """Live as a node. Raises ApiError when the API server refuses the node at the start."""
        await self._isolation.start()
        log.info("%s", self._isolation.describe())
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._server.start(self._isolation.host_address)
            await self._register()
            tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch())]
            tasks.append(asyncio.create_task(self._housekeeping()))
            self._say_ready()
            stop = asyncio.create_task(self.stop.wait())
            done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks[1:]:
                task.cancel()
            await self._shut_down()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._server.stop()
            await self._isolation.stop()

    def containers(self, namespace: str, name: str) -> PodWorker | None:
        """The worker of a pod, by its name."""
        key = f"{namespace}/{name}"
        return next((worker for worker in self._workers.values() if worker.key == key), None)

    def _say_ready(self) -> None:
        ready = {
            "name": self.settings.name,
            "pid": os.getpid(),
            "isolation": self._isolation.name,
            "describe": self._isolation.describe(),
            "host_address": self._isolation.host_address,
            "kubelet_port": self._server.port,
        }
        log.info("node %s ready: %s", self.settings.name, json.dumps(ready))
        if self.settings.ready_file is not None:
            fresh = self.settings.ready_file.with_suffix(".new")
            fresh.write_text(json.dumps(ready))
            fresh.rename(self.settings.ready_file)

    # --- the Node object ----------------------------------------------------------------------------------------------

    def _node_status(self) -> Json:
        moment = now()
        kinds = [("Ready", "True", "KubeletReady", "the process node takes pods")]
        kinds += [(f"{what}Pressure", "False", f"KubeletHasSufficient{what}", "") for what in ("Memory", "Disk", "PID")]
        machine = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{platform.node()}/{self.settings.name}"))
        return {
            "capacity": self._allocatable,
            "allocatable": self._allocatable,
            "conditions": [
                {"type": t, "status": s, "reason": r, "message": m, "lastHeartbeatTime": moment} for t, s, r, m in kinds
            ],
            "addresses": [
                {"type": "InternalIP", "address": self._isolation.host_address},
                {"type": "Hostname", "address": self._isolation.host_address},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.port}},
            "nodeInfo": {
                "machineID": machine,
                "systemUUID": machine,
                "bootID": str(uuid.uuid4()),
                "kernelVersion": platform.release(),
                "osImage": f"process node, isolation {self._isolation.name}",
                "containerRuntimeVersion": "process://1",
                "kubeletVersion": KUBELET_VERSION,
                "kubeProxyVersion": KUBELET_VERSION,
                "operatingSystem": "linux",
                "architecture": "arm64" if platform.machine() == "aarch64" else "amd64",
            },
        }

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.settings.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "arm64" if platform.machine() == "aarch64" else "amd64",
            "almoner.dev/process-node": "true",
        }
        node: Json = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.settings.name, "labels": labels},
            "spec": {},
        }
        try:
            await self._api.request("POST", "/api/v1/nodes", node)
        except ApiError as error:
            if error.code != 409:
                raise
            await self._api.patch(self._path, {"metadata": {"labels": labels}})
        await self._renew_lease()
        await self._api.patch(f"{self._path}/status", {"status": self._node_status()}, STRATEGIC_PATCH)
        # The taint that the API server puts on new nodes goes when the controller sees Ready, seconds later; a
        # node that is ready now says so itself.
        await self._api.patch(self._path, {"spec": {"taints": None, "unschedulable": None}})

    async def _renew_lease(self) -> None:
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: Json = {
            "holderIdentity": self.settings.name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": moment,
        }
        try:
            await self._api.patch(self._lease_path, {"spec": spec})
        except ApiError as error:
            if error.code != 404:
                raise
            lease: Json = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.settings.name, "namespace": "kube-node-lease"},
                "spec": spec,
            }
            await self._api.request("POST", self._lease_path.rsplit("/", 1)[0], lease)

    async def _renew(self) -> None:
        renewals = 0
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            renewals += 1
            try:
                await self._renew_lease()
                if renewals % STATUS_EVERY_RENEWALS == 0:
                    await self._api.patch(f"{self._path}/status", {"status": self._node_status()}, STRATEGIC_PATCH)
            except ApiError as error:
                log.warning("lease not renewed: %s", error)

    # --- pods ---------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        selector = f"spec.nodeName={self.settings.name}"
        pause = 0.2
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._follow(selector)
            except ApiError as error:
                if error.code != 410:
                    log.warning("watch on pods interrupted: %s", error)
            lasted = asyncio.get_running_loop().time() - began
            pause = 0.2 if lasted > 10 else min(pause * 2, 5.0)
            await asyncio.sleep(pause)

    async def _follow(self, selector: str) -> None:
        """List once, then watch for as long as the API server goes along. Raises ApiError."""
        listed = await self._api.get("/api/v1/pods", fieldSelector=selector)
        pods = listed.get("items") or []
        known = {pod["metadata"]["uid"] for pod in pods}
        for uid, worker in list(self._workers.items()):
            if uid not in known:
                worker.forget()
        for pod in pods:
            self._observe(pod)
        version = listed["metadata"]["resourceVersion"]
        while True:
            async for event in self._api.watch("/api/v1/pods", version, fieldSelector=selector):
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._gone(event["object"])
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._observe(event["object"])

    def _gone(self, pod: Json) -> None:
        if worker := self._workers.get(pod["metadata"]["uid"]):
            worker.forget()

    def _observe(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if worker := self._workers.get(uid):
            worker.update(pod)
            return
        status = pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            if pod["metadata"].get("deletionTimestamp"):
                self._spawn(delete_finally(self._api, pod))
            return
        if status.get("startTime"):
            self._spawn(self._bury(pod))
            return
        worker = PodWorker(self._context, pod)
        self._workers[uid] = worker
        self._spawn(self._forget_when_finished(worker))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._sweepers.add(task)
        task.add_done_callback(self._sweepers.discard)

    async def _forget_when_finished(self, worker: PodWorker) -> None:
        await worker.finished.wait()
        self._workers.pop(worker.uid, None)

    async def _bury(self, pod: Json) -> None:
        """Say that a pod of an earlier life of this node has failed."""
        status = pod["status"]
        message = "the node's process ended while the pod ran, and its containers with it"
        lost = {"started": "", "finished": now(), "reason": "ContainerStatusUnknown", "message": message}
        fresh: Json = {"phase": "Failed", "reason": "NodeRestarted", "message": message}
        for field_name in ("initContainerStatuses", "containerStatuses"):
            entries = status.get(field_name) or []
            for entry in entries:
                if "terminated" not in (entry.get("state") or {}):
                    began = ((entry.get("state") or {}).get("running") or {}).get("startedAt", "")
                    entry["state"] = terminated(137, **{**lost, "started": began})
                entry["ready"] = entry["started"] = False
            if entries:
                fresh[field_name] = entries
        kinds = ("Ready", "ContainersReady", "PodReadyToStartContainers")
        fresh["conditions"] = [
            {"type": kind, "status": "False", "reason": "PodFailed", "lastTransitionTime": now()} for kind in kinds
        ]
        log.warning("pod %s/%s: Failed, NodeRestarted", pod["metadata"]["namespace"], pod["metadata"]["name"])
        try:
            await write_status(self._api, pod, fresh)
        except ApiError as error:
            log.warning("status not written: %s", error)
        if pod["metadata"].get("deletionTimestamp"):
            await delete_finally(self._api, pod)

    async def _housekeeping(self) -> None:
        """Keep logs and memory within their limits."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            running = [c for worker in self._workers.values() for c in worker.containers if c.pid is not None]
            for container in running:
                with contextlib.suppress(OSError):
                    if container.log_path.stat().st_size > LOG_BYTES_MAX:
                        # Written with O_APPEND: the container goes on at the new end.
                        os.truncate(container.log_path, 0)
                        with container.log_path.open("ab") as stream:
                            stream.write(b"(the log was longer than 16 MiB; what came before this line is gone)\n")
            limited = {
                c.pid: c for c in running if "memory" in ((c.manifest.get("resources") or {}).get("limits") or {})
            }
            if not limited:
                continue
            used = await asyncio.to_thread(group_memory_bytes)
            for pid, container in limited.items():
                limit = parse_quantity(container.manifest["resources"]["limits"]["memory"])
                if pid is not None and used.get(pid, 0) > limit:
                    container.kill_for_memory()

    async def _shut_down(self) -> None:
        message = "the node was stopped"
        workers = list(self._workers.values())
        await asyncio.gather(*(w.shut_down(STOP_GRACE_SECONDS, "NodeShutdown", message) for w in workers))
        for path in (self._lease_path, self._path):
            with contextlib.suppress(ApiError):
                await self._api.request("DELETE", path, retry=False)
