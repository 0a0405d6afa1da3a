"""Pure: from what containers did to what a pod's status says, as the kubelet would say it.

Role: container records -> containerStatuses, phase, conditions. Boundary: no I/O, no clock (times come
in with the records). Why apart: phase and conditions are a truth table, and are tested as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from almoner_dev.node.api import Json

MESSAGE_BYTES_MAX = 4096


class Kind(StrEnum):
    """What part a container plays in its pod."""

    INIT = "init"
    SIDECAR = "sidecar"
    MAIN = "main"


@dataclass
class Record:
    """What is known of one container. `state` is a ContainerState as the API has it."""

    name: str
    image: str
    kind: Kind
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "PodInitializing"}})
    last_state: Json = field(default_factory=dict)
    restarts: int = 0
    container_id: str = ""
    started: bool = False
    ready: bool = False

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it has not."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    @property
    def began(self) -> bool:
        """Whether it ever ran."""
        return self.running or self.exit_code is not None or bool(self.last_state)

    def status(self) -> Json:
        """Its ContainerStatus."""
        result: dict[str, Any] = {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready if self.kind is not Kind.INIT else self.exit_code == 0,
            "restartCount": self.restarts,
            "started": self.started,
        }
        if self.container_id:
            result["containerID"] = self.container_id
        return result


def records_of(pod: Json) -> list[Record]:
    """A record for each container of a pod, init containers first, in the manifest's order."""
    spec = pod["spec"]
    result = []
    for container in spec.get("initContainers") or []:
        kind = Kind.SIDECAR if container.get("restartPolicy") == "Always" else Kind.INIT
        result.append(Record(container["name"], container.get("image", ""), kind))
    result += [Record(c["name"], c.get("image", ""), Kind.MAIN) for c in spec["containers"]]
    return result


def phase(records: list[Record], restart_policy: str, *, ended: bool, verdict: str | None = None) -> str:
    """The pod's phase.

    `ended` says that nothing will be started again (the worker has finished with the pod); `verdict` is a
    phase imposed from outside, such as Failed at the active deadline.
    """
    running = any(record.running for record in records)
    if verdict is not None and not running:
        return verdict
    mains = [record for record in records if record.kind is Kind.MAIN]
    failed_init = any(r.kind is Kind.INIT and r.exit_code not in (None, 0) for r in records)
    if not any(r.began for r in mains):
        return "Failed" if failed_init and ended and not running else "Pending"
    if any(r.exit_code is None for r in mains) or running or not ended:
        return "Running"
    if restart_policy == "Always":
        return "Running"
    return "Succeeded" if all(r.exit_code == 0 for r in mains) else "Failed"


def _condition(kind: str, *, holds: bool, reason: str = "", message: str = "") -> Json:
    result: Json = {"type": kind, "status": "True" if holds else "False"}
    if reason:
        result["reason"] = reason
    if message:
        result["message"] = message
    return result


def conditions(records: list[Record], pod_phase: str, *, sandbox_ready: bool) -> list[Json]:
    """The conditions that a kubelet owns, without transition times (see `with_times`)."""
    finished = pod_phase in ("Succeeded", "Failed")
    pending = [
        r.name
        for r in records
        if (r.kind is Kind.INIT and r.exit_code != 0) or (r.kind is Kind.SIDECAR and not r.started)
    ]
    mains_began = any(r.kind is Kind.MAIN and r.began for r in records)
    # Once the main containers ran, initialisation is behind the pod even if a sidecar has ended since.
    initialized = not pending or mains_began or pod_phase == "Succeeded"
    unready = [r.name for r in records if r.kind is not Kind.INIT and not r.ready]
    if finished:
        reason = "PodCompleted" if pod_phase == "Succeeded" else "PodFailed"
        message = ""
    else:
        reason = "ContainersNotReady" if unready else ""
        message = f"containers with unready status: [{' '.join(unready)}]" if unready else ""
    ready = not unready and not finished
    return [
        _condition("PodReadyToStartContainers", holds=sandbox_ready and not finished),
        _condition(
            "Initialized",
            holds=initialized,
            reason="" if initialized else "ContainersNotInitialized",
            message="" if initialized else f"containers with incomplete status: [{' '.join(pending)}]",
        ),
        _condition("Ready", holds=ready, reason="" if ready else reason, message=message),
        _condition("ContainersReady", holds=ready, reason="" if ready else reason, message=message),
        _condition("PodScheduled", holds=True),
    ]


def with_times(fresh: list[Json], earlier: list[Json], now: str) -> list[Json]:
    """The conditions with lastTransitionTime kept where the status did not change."""
    known = {condition["type"]: condition for condition in earlier}
    result = []
    for condition in fresh:
        old = known.get(condition["type"])
        same = old is not None and old["status"] == condition["status"]
        moved = old.get("lastTransitionTime") if same and old is not None else now
        result.append({**condition, "lastTransitionTime": moved or now})
    return result


def terminated(exit_code: int, *, started: str, finished: str, message: str = "", **more: str) -> Json:
    """A terminated ContainerState; `reason` in `more` overrides Completed or Error."""
    state: Json = {
        "exitCode": exit_code,
        "reason": more.get("reason") or ("Completed" if exit_code == 0 else "Error"),
        "finishedAt": finished,
    }
    if started:
        state["startedAt"] = started
    if more.get("container_id"):
        state["containerID"] = more["container_id"]
    if message:
        state["message"] = message.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")
    return {"terminated": state}


def waiting(reason: str, message: str = "") -> Json:
    """A waiting ContainerState."""
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def exit_code_of(return_code: int) -> int:
    """A process's return code as containers report it: killed by signal N is 128 + N."""
    return 128 - return_code if return_code < 0 else return_code
