"""The life of one pod on a process node, from its binding to its final deletion.

Role: network and volumes, init containers in order, sidecars before and around the main containers,
restarts, deadline, deletion with grace. Boundary: containers know how to run, status.py what to say,
this decides when. Why one task per pod whose cancellation is the only way to interrupt it: then
stopping is one sequence, whatever the pod was doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from almoner_dev.node.api import STRATEGIC_PATCH, Api, ApiError, Json
from almoner_dev.node.container import Container, NoCommandError, StartError, Surroundings, now
from almoner_dev.node.env import ConfigError, PodFacts
from almoner_dev.node.isolation import Isolation
from almoner_dev.node.namespaces import IsolationError
from almoner_dev.node.objects import Objects
from almoner_dev.node.probes import ask, keep_ready, until_dead, until_started
from almoner_dev.node.status import Kind, Record, conditions, phase, records_of, waiting, with_times
from almoner_dev.node.volumes import Volumes, ownership

log = logging.getLogger("almoner_dev.node")

RETRY_SECONDS = 1.0
REFRESH_SECONDS = 5.0
COALESCE_SECONDS = 0.02
BACKOFF_FIRST_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 30.0
# A run at least this long makes the next failure count as the first.
BACKOFF_RESET_SECONDS = 120.0
KILL_MARGIN_SECONDS = 2.0
GRACE_SECONDS = 30


@dataclass
class NodeContext:
    """What a node gives to each of its pods."""

    api: Api
    objects: Objects
    isolation: Isolation
    scratch: Path
    allocatable: Mapping[str, str]
    image_commands: Mapping[str, Sequence[str]]
    launching: asyncio.Semaphore


class PodWorker:
    """Runs one pod. `update` and `forget` are called by the node; `finished` says that nothing is left to do."""

    def __init__(self, context: NodeContext, pod: Json) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.folder = context.scratch / "pods" / self.uid
        self.records = records_of(pod)
        self.containers: list[Container] = []
        self.finished = asyncio.Event()
        self._context = context
        self._volumes: Volumes | None = None
        self._address = ""
        self._sandbox_ready = False
        self._started = now()
        self._ended = False
        self._verdict: str | None = None
        self._reason, self._message = "", ""
        self._sent: Json = {}
        self._dirty = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._kill_at: float | None = None
        self._exists = True
        self._supervisors: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run(), name=f"pod {self.key}")
        self.update(pod)

    @property
    def key(self) -> str:
        """namespace/name."""
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    # --- what the node calls ------------------------------------------------------------------------------------------

    def update(self, pod: Json) -> None:
        """Take over what the API server says now; a deletion stops the pod, a shorter grace shortens the stop."""
        self.pod = pod
        for container in self.containers:
            container.around.pod = pod
        if self._volumes is not None:
            self._volumes.update(pod)
        if pod["metadata"].get("deletionTimestamp"):
            grace = pod["metadata"].get("deletionGracePeriodSeconds")
            self._begin_stop(GRACE_SECONDS if grace is None else int(grace))

    def _begin_stop(self, grace: float) -> None:
        kill_at = time.monotonic() + grace
        if self._kill_at is None or kill_at < self._kill_at:
            self._kill_at = kill_at
        self._stop.set()

    def forget(self) -> None:
        """The pod is gone from the API server: kill what runs, say nothing more about it."""
        self._exists = False
        self._begin_stop(0)

    async def shut_down(self, grace: float, reason: str, message: str) -> None:
        """The node stops: end the pod, Failed with that reason."""
        if not self._ended:
            self._verdict = self._verdict or "Failed"
            self._reason, self._message = self._reason or reason, self._message or message
        self._begin_stop(grace)
        await self.finished.wait()

    # --- the one task -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        reporter = asyncio.create_task(self._report(), name=f"status {self.key}")
        upkeep = asyncio.create_task(self._upkeep(), name=f"volumes {self.key}")
        self._dirty.set()
        try:
            await self._live()
            await self._stop_containers()
        except Exception:
            log.exception("pod %s: given up", self.key)
            self._verdict, self._reason = "Failed", "NodeError"
            self._kill_at = time.monotonic()
            await self._stop_containers()
        finally:
            upkeep.cancel()
            await self._clear()
            self._ended = True
            self._dirty.set()
        await self._conclude(reporter)

    async def _conclude(self, reporter: asyncio.Task[None]) -> None:
        """Report the end, wait for the deletion, delete finally."""
        await self._flush()
        await self._stop.wait()
        reporter.cancel()
        if self._exists and self.pod["metadata"].get("deletionTimestamp"):
            await delete_finally(self._context.api, self.pod)
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self.finished.set()

    async def _live(self) -> None:
        """Run the pod until its main containers have ended, its deadline has come, or it is to stop."""
        if self._stop.is_set():
            return
        life = asyncio.create_task(self._life(), name=f"life {self.key}")
        stop = asyncio.create_task(self._stop.wait())
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            done, _ = await asyncio.wait({life, stop}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._verdict, self._reason = "Failed", "DeadlineExceeded"
                self._message = "Pod was active on the node longer than the specified deadline"
            elif life in done:
                life.result()
        finally:
            for task in (life, stop, *self._supervisors):
                task.cancel()
            await asyncio.gather(life, stop, *self._supervisors, return_exceptions=True)

    async def _life(self) -> None:
        await self._prepare()
        for container in self.containers:
            if container.record.kind is Kind.SIDECAR:
                self._supervise(container)
                await container.started.wait()
            elif container.record.kind is Kind.INIT:
                await self._keep(container)
                if container.record.exit_code != 0:
                    return
        mains = [c for c in self.containers if c.record.kind is Kind.MAIN]
        for container in mains:
            container.record.state = waiting("ContainerCreating")
        await asyncio.gather(*(self._supervise(container) for container in mains))

    def _supervise(self, container: Container) -> asyncio.Task[None]:
        task = asyncio.create_task(self._keep(container), name=f"container {self.key}/{container.name}")
        self._supervisors.add(task)
        return task

    async def _prepare(self) -> None:
        """Folder, network and volumes; what is missing is waited for, with the reason in the status."""
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, mode=0o700)
        # Said before anything runs: a later life of this node must not start the pod again.
        await self._flush()
        context = self._context
        while True:
            joining = asyncio.create_task(context.isolation.join(self.uid))
            try:
                network = await asyncio.shield(joining)
                break
            except asyncio.CancelledError:
                # Half a network cannot be taken back: let it be finished first.
                await asyncio.gather(joining, return_exceptions=True)
                raise
            except IsolationError as error:
                self._wait_all("ContainerCreating", f"network: {error}")
                await context.isolation.leave(self.uid)
                await asyncio.sleep(RETRY_SECONDS)
        self._address = network.address
        facts = PodFacts(network.address, context.isolation.host_address, context.allocatable)
        owner = ownership(self.pod, enforced=context.isolation.enforces_users)
        volumes = Volumes(self.pod, self.folder / "volumes", facts, context.objects, owner)
        while True:
            try:
                await volumes.make()
                break
            except (ConfigError, ApiError) as error:
                self._wait_all("ContainerCreating", str(error))
                await asyncio.sleep(RETRY_SECONDS)
        self._volumes = volumes
        self._sandbox_ready = True
        around = Surroundings(
            self.pod,
            self.folder,
            facts,
            volumes,
            context.objects,
            context.isolation,
            network,
            context.image_commands,
            context.launching,
            self._dirty.set,
        )
        spec = self.pod["spec"]
        manifests = [*(spec.get("initContainers") or []), *spec["containers"]]
        self.containers = [Container(m, r, around) for m, r in zip(manifests, self.records, strict=True)]

    def _wait_all(self, reason: str, message: str) -> None:
        for record in self.records:
            record.state = waiting(reason, message)
        self._dirty.set()

    # --- containers ---------------------------------------------------------------------------------------------------

    async def _keep(self, container: Container) -> None:
        """Run a container as often as the pod's policy wants; returns when it is not to run again."""
        backoff = BACKOFF_FIRST_SECONDS
        while True:
            began = time.monotonic()
            await self._run_once(container)
            if not self._runs_again(container.record):
                return
            if time.monotonic() - began > BACKOFF_RESET_SECONDS:
                backoff = BACKOFF_FIRST_SECONDS
            record = container.record
            record.last_state = record.state
            record.state = waiting("CrashLoopBackOff", f"back-off {backoff:g}s restarting failed container")
            self._dirty.set()
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)
            record.restarts += 1

    def _runs_again(self, record: Record) -> bool:
        if record.kind is Kind.SIDECAR:
            return True
        policy = self.pod["spec"].get("restartPolicy", "Always")
        if record.kind is Kind.INIT:
            return policy != "Never" and record.exit_code != 0
        return policy == "Always" or (policy == "OnFailure" and record.exit_code != 0)

    async def _run_once(self, container: Container) -> None:
        while True:
            reason = "CreateContainerConfigError"
            try:
                await container.start()
                break
            except StartError as error:
                container.finish(128, "", reason="StartError", message=str(error))
                return
            except NoCommandError as error:
                container.record.state = waiting("ErrImageNeverPull", str(error))
            except (ConfigError, ApiError, OSError) as error:
                container.record.state = waiting(reason, str(error))
            self._dirty.set()
            await asyncio.sleep(RETRY_SECONDS)
        watcher = asyncio.create_task(self._watch_probes(container))
        try:
            await container.gone.wait()
        finally:
            watcher.cancel()

    async def _watch_probes(self, container: Container) -> None:
        """Startup, then readiness and liveness; a container that fails them is stopped, its policy decides the rest."""
        try:
            why = await self._until_unhealthy(container)
        except ConfigError as error:
            why = str(error)
        if why is not None:
            log.info("pod %s: container %s failed its probe: %s", self.key, container.name, why)
            grace = self._grace_after_probe(container)
            container.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.gone.wait(), grace)
            container.signal(signal.SIGKILL)

    def _grace_after_probe(self, container: Container) -> float:
        """A probe may have a grace period of its own."""
        probe = container.manifest.get("livenessProbe" if container.record.started else "startupProbe") or {}
        own = probe.get("terminationGracePeriodSeconds")
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", GRACE_SECONDS) if own is None else own)

    async def _until_unhealthy(self, container: Container) -> str | None:
        """Follow the probes; why one failed for good, None where none can fail any more. Raises ConfigError."""
        manifest = container.manifest
        if probe := manifest.get("startupProbe"):
            why = await until_started(probe, container)
            if why is not None:
                return why
        container.record.started = True
        container.started.set()
        readiness = manifest.get("readinessProbe")
        container.record.ready = readiness is None
        self._dirty.set()
        following = [asyncio.create_task(keep_ready(readiness, container))] if readiness else []
        try:
            if probe := manifest.get("livenessProbe"):
                return await until_dead(probe, container)
            await asyncio.gather(*following)
        finally:
            for task in following:
                task.cancel()
        return None

    # --- stopping -----------------------------------------------------------------------------------------------------

    async def _stop_containers(self) -> None:
        """Hooks at once, SIGTERM to the main containers, then to the sidecars, last one first; SIGKILL at the end."""
        if self._kill_at is None:
            grace = self.pod["spec"].get("terminationGracePeriodSeconds")
            self._kill_at = time.monotonic() + (GRACE_SECONDS if grace is None else grace)
        sidecars = [c for c in self.containers if c.record.kind is Kind.SIDECAR]
        others = [c for c in self.containers if c.record.kind is not Kind.SIDECAR]
        turns = [(container, others + sidecars[index + 1 :]) for index, container in enumerate(sidecars)]
        turns += [(container, []) for container in others]
        await asyncio.gather(*(self._stop_one(container, before) for container, before in turns))
        for container in self.containers:
            if not container.record.began and "terminated" not in container.record.state:
                container.record.state = waiting("PodInitializing")
            elif "waiting" in container.record.state and container.record.last_state:
                container.record.state, container.record.last_state = container.record.last_state, {}

    async def _stop_one(self, container: Container, before: list[Container]) -> None:
        if container.gone.is_set():
            return
        hook = (container.manifest.get("lifecycle") or {}).get("preStop")
        if hook and self._left() > 0:
            passed, why = True, ""
            with contextlib.suppress(ConfigError):
                passed, why = await ask(hook, container, self._left())
            if not passed:
                log.info("pod %s: preStop of %s: %s", self.key, container.name, why)
        for other in before:
            await self._gone_in_time(other)
        container.signal(signal.SIGTERM)
        if self._left() <= 0 and self._exists:
            # What could not be told to stop before the grace was over still gets a moment.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.gone.wait(), min(KILL_MARGIN_SECONDS, self._margin()))
        await self._gone_in_time(container)
        container.signal(signal.SIGKILL)
        await container.gone.wait()

    def _margin(self) -> float:
        return 0.0 if self.pod["metadata"].get("deletionGracePeriodSeconds") == 0 else KILL_MARGIN_SECONDS

    def _left(self) -> float:
        assert self._kill_at is not None
        return max(0.0, self._kill_at - time.monotonic())

    async def _gone_in_time(self, container: Container) -> None:
        # In short pieces: the grace may be shortened meanwhile.
        while not container.gone.is_set() and (left := self._left()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(container.gone.wait(), min(left, 0.5))

    async def _clear(self) -> None:
        self._sandbox_ready = False
        await self._context.isolation.leave(self.uid)
        for name in ("volumes", "roots", "home"):
            await asyncio.to_thread(shutil.rmtree, self.folder / name, ignore_errors=True)

    # --- upkeep and status --------------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            if self._volumes is None:
                continue
            try:
                await self._volumes.refresh()
            except (ConfigError, ApiError, OSError) as error:
                log.warning("pod %s: volumes keep what they have: %s", self.key, error)

    def status(self) -> Json:
        """The pod's status as this node sees it."""
        policy = self.pod["spec"].get("restartPolicy", "Always")
        verdict = self._verdict if self._ended else None
        if self._ended and verdict is None and self._stop.is_set():
            mains = [r for r in self.records if r.kind is Kind.MAIN]
            verdict = "Succeeded" if all(r.exit_code == 0 for r in mains) else "Failed"
        now_phase = phase(self.records, policy, ended=self._ended, verdict=verdict)
        earlier = self._sent.get("conditions") or (self.pod.get("status") or {}).get("conditions") or []
        fresh = conditions(self.records, now_phase, sandbox_ready=self._sandbox_ready)
        kinds = (Kind.INIT, Kind.SIDECAR)
        result: Json = {
            "phase": now_phase,
            "conditions": with_times(fresh, earlier, now()),
            "startTime": self._started,
            "hostIP": self._context.isolation.host_address,
            "hostIPs": [{"ip": self._context.isolation.host_address}],
            "containerStatuses": [r.status() for r in self.records if r.kind is Kind.MAIN],
        }
        if inits := [r.status() for r in self.records if r.kind in kinds]:
            result["initContainerStatuses"] = inits
        if self._address:
            result |= {"podIP": self._address, "podIPs": [{"ip": self._address}]}
        if self._reason:
            result |= {"reason": self._reason, "message": self._message}
        return result

    async def _report(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(COALESCE_SECONDS)
            await self._flush()

    async def _flush(self) -> None:
        """Send the status if it changed; keeps trying while the API server is away."""
        async with self._flushing:
            await self._write()

    async def _write(self) -> None:
        while self._exists:
            self._dirty.clear()
            status = self.status()
            if status == self._sent:
                return
            try:
                await write_status(self._context.api, self.pod, status)
            except ApiError as error:
                if error.code in (404, 409):
                    return
                log.warning("pod %s: status not written: %s", self.key, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._sent = status
                return


async def write_status(api: Api, pod: Json, status: Json) -> None:
    """Patch a pod's status, only if it is still the same pod. Raises ApiError."""
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
    # A strategic patch merges conditions by type: what a condition no longer has must be taken away by name.
    merged = [{"reason": None, "message": None, **condition} for condition in status.get("conditions", [])]
    status = {**status, "conditions": merged}
    await api.patch(path, {"metadata": {"uid": metadata["uid"]}, "status": status}, STRATEGIC_PATCH)


async def delete_finally(api: Api, pod: Json) -> None:
    """Remove a pod whose containers are gone, only if it is still the same pod."""
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
    body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
    body["preconditions"] = {"uid": metadata["uid"]}
    try:
        await api.request("DELETE", path, body)
    except ApiError as error:
        if error.code not in (404, 409):
            log.warning("pod %s/%s: not deleted: %s", metadata["namespace"], metadata["name"], error)
