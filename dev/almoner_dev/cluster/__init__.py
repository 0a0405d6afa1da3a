"""A real Kubernetes node on this machine, in namespaces of its own: for the tests in a cluster.

Role: `Cluster` starts etcd, the API server, the controller manager, the scheduler, containerd with runc, the kubelet,
kube-proxy, NetworkPolicies (kube-router) and CoreDNS, and hands out a kubeconfig that works on the machine. Mounts,
network and processes are those of new namespaces: nothing of the machine changes, several can run side by side, and
when this process ends, however it ends, the kernel ends all of it.

Boundary: knows nothing of Almoner. What runs inside the namespaces is inside.py; what each part is told is settings.py.

    with Cluster() as cluster:
        cluster.load(Path("image.tar"))
        subprocess.run(["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "nodes"])
        cluster.kill("kubelet")
        cluster.restart("kubelet")
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from almoner_dev import binaries, cache, gotools, processes
from almoner_dev.cache import Say
from almoner_dev.cluster import cgroups, oci, requirements, settings
from almoner_dev.cluster.requirements import NodeImpossible
from almoner_dev.controlplane import LOOPBACK
from almoner_dev.processes import Child, ProcessError, ProcessId

PREFIX = "almoner-cluster-"
TOOLS = ("node", "coredns", "kube-router", "wget")
START_SECONDS = 420.0
REQUEST_SECONDS = 300.0
BACKLOG = 128
# Not wget, which is tools["wget"].
APPLETS = ("sh", "sleep", "cat", "echo", "nslookup", "id", "touch", "nc", "httpd", "ls", "test", "true", "mkdir")

__all__ = ["Cluster", "NodeImpossible"]


class Cluster:
    """A cluster of one real node, started by `start()` or by entering it as a context. Needs root.

    Components that can be killed and restarted by name: etcd, kube-apiserver, kube-controller-manager, kube-scheduler,
    containerd, kubelet, kube-proxy, kube-router. Containers outlive containerd and the kubelet, as on any node.

    `images` are archives to import at the start. `logs` is a folder that all logs are copied to when it stops.
    """

    def __init__(self, *, images: Sequence[Path] = (), logs: Path | None = None, tell: Say = cache.say) -> None:
        self._images = list(images)
        self._logs = logs
        self._tell = tell
        self._directory: Path | None = None
        self._child: Child | None = None
        self._first: ProcessId | None = None
        self._control: socket.socket | None = None
        self._lines: Any = None
        self._lock = threading.RLock()

    # -- what users need -----------------------------------------------------------------------------

    @property
    def directory(self) -> Path:
        """The scratch folder, with `logs/` of the node's parts and `control-plane/logs/`."""
        if self._directory is None:
            raise ProcessError("the cluster is not started")
        return self._directory

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig of an administrator (system:masters) that works on this machine; mode 0600."""
        return self.directory / "kubeconfig"

    def load(self, archive: Path) -> None:
        """Imports an OCI or Docker archive into containerd. Raises ProcessError when it cannot be read."""
        self._ask({"do": "load", "path": str(archive.resolve())})

    def kill(self, component: str) -> None:
        """Kills a component at once (SIGKILL), as a fault would."""
        self._ask({"do": "kill", "name": component})

    def restart(self, component: str) -> None:
        """Starts a component again, stopping it first if it runs, and waits until it works."""
        self._ask({"do": "restart", "name": component})

    def running(self) -> dict[str, bool]:
        """Says of every component whether its process runs."""
        running: dict[str, bool] = self._ask({"do": "components"})["running"]
        return running

    def run(self, *argv: str, seconds: float = 60.0) -> tuple[int, str]:
        """Runs a program as root inside the node's namespaces; returns its exit code and what it printed (2 MiB)."""
        answer = self._ask({"do": "run", "argv": list(argv), "seconds": seconds}, seconds=seconds + 10)
        return int(answer["code"]), str(answer["output"])

    # -- starting and stopping -----------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts everything and returns when the node is Ready and resolves names: about 20 seconds.

        The first time on a machine it builds Kubernetes' parts, for minutes, and says so. Raises NodeImpossible with
        what the machine lacks, BinariesMissing or ToolMissing when a part cannot be built, and ProcessError with the
        end of a log when one does not start.
        """
        with self._lock:
            if self._child is not None:
                return
            requirements.demand()
            binaries.find(tell=self._tell)
            tools = {name: gotools.path(name, tell=self._tell) for name in TOOLS}
            self._directory = processes.scratch_directory(PREFIX)
            cgroups.sweep(PREFIX)
            atexit.register(self.stop)
            try:
                self._launch(tools)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ends every process in the namespaces, removes files and control groups. May be called again."""
        with self._lock:
            atexit.unregister(self.stop)
            if self._control is not None:
                self._lines.close()
                self._control.close()
                self._control = None
            if self._child is not None:
                # With the first process of its namespace the kernel kills all others, and waits for them.
                if self._first is not None:
                    self._first.send(signal.SIGKILL)
                self._child.stop()
                self._child = None
            if self._directory is not None:
                if self._logs is not None:
                    for folder in ("logs", "control-plane/logs", "pod-logs"):
                        with contextlib.suppress(OSError, shutil.Error):
                            shutil.copytree(self._directory / folder, self._logs / folder, dirs_exist_ok=True)
                cgroups.remove(self._directory.name)
                shutil.rmtree(self._directory, ignore_errors=True)
                self._directory = None

    def _launch(self, tools: dict[str, Path]) -> None:
        here = self.directory
        # Pods of any user pass through it to their volumes, as they would through /var/lib/kubelet.
        here.chmod(0o711)
        cgroups.make(here.name)
        archives = [*_archives(here, tools), *self._images]
        plan = {
            "cgroup": here.name,
            "tools": {name: str(path) for name, path in tools.items()},
            "images": [str(path.resolve()) for path in archives],
        }
        (here / "plan.json").write_text(json.dumps(plan))
        ours, theirs = socket.socketpair()
        # Opened in this network namespace, so it stays in it: the way to the API server from the machine.
        with theirs, socket.create_server((LOOPBACK, processes.free_port()), backlog=BACKLOG) as listener:
            self._control, self._lines = ours, ours.makefile("r", encoding="utf-8")
            descriptors = [theirs.fileno(), listener.fileno()]
            self._child = processes.start(
                "node",
                [
                    *(requirements.program("unshare"), "--mount", "--net", "--pid", "--ipc", "--uts"),
                    *("--fork", "--kill-child", "--mount-proc"),
                    *(sys.executable, "-m", "almoner_dev.cluster.inside", here),
                    *(f"--control-fd={descriptors[0]}", f"--listen-fd={descriptors[1]}"),
                ],
                log_path=here / "logs" / "node.log",
                pass_fds=descriptors,
                env=_environment(),
            )
            port = int(listener.getsockname()[1])
        self._first = _only_child(self._child)
        self._answer(START_SECONDS)
        self._write_kubeconfig(port)

    def _write_kubeconfig(self, port: int) -> None:
        document = yaml.safe_load((self.directory / "control-plane" / "kubeconfig").read_text())
        document["clusters"][0]["cluster"]["server"] = f"https://{LOOPBACK}:{port}"
        descriptor = os.open(self.kubeconfig, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            yaml.safe_dump(document, file)

    def _ask(self, request: dict[str, Any], seconds: float = REQUEST_SECONDS) -> dict[str, Any]:
        with self._lock:
            if self._control is None:
                raise ProcessError("the cluster is not started")
            self._control.sendall(json.dumps(request).encode() + b"\n")
            return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Reads until the answer; what comes before it is progress."""
        assert self._control is not None
        assert self._child is not None
        self._control.settimeout(seconds)
        while True:
            try:
                line = self._lines.readline()
            except TimeoutError as error:
                raise self._child.failure(f"no answer within {seconds:g} s") from error
            if not line:
                raise self._child.failure("ended")
            message = json.loads(line)
            if "progress" in message:
                self._tell(message["progress"])
            elif "error" in message:
                raise ProcessError(f"the real node: {message['error']}")
            else:
                answer: dict[str, Any] = message["ok"]
                return answer


def _archives(directory: Path, tools: dict[str, Path]) -> list[Path]:
    """The images that every node has: pause, busybox, CoreDNS."""
    busybox = {"bin/busybox": requirements.program("busybox")}
    links = {f"bin/{applet}": "busybox" for applet in APPLETS}
    users = {"etc/passwd": "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"}
    return [
        oci.write_archive(
            directory / "pause.tar",
            settings.PAUSE_IMAGE,
            files=busybox,
            links={"bin/sleep": "busybox"},
            command=["/bin/sleep", "2147483647"],
        ),
        oci.write_archive(
            directory / "busybox.tar",
            settings.BUSYBOX_IMAGE,
            files={**busybox, "bin/wget": tools["wget"]},
            links=links,
            texts=users,
            command=["/bin/sh"],
        ),
        oci.write_archive(
            directory / "coredns.tar",
            settings.COREDNS_IMAGE,
            files={"bin/coredns": tools["coredns"]},
            entrypoint=["/bin/coredns"],
        ),
    ]


def _only_child(child: Child) -> ProcessId | None:
    """Waits for unshare's child, the first process of the new process namespace."""
    found: list[ProcessId] = []

    def look() -> bool:
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
                identity = ProcessId.of(int(pid))
                found.extend([identity] if identity else [])
        return bool(found)

    processes.wait_until(look, seconds=30, children=[child], what="new namespaces")
    return found[0]


def _environment() -> dict[str, str]:
    """The environment, such that the child finds this package as this process does."""
    folder = str(Path(__file__).resolve().parent.parent.parent)
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": folder if not path else f"{folder}{os.pathsep}{path}"}
