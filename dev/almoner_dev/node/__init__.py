"""A process node: a Kubernetes node whose pods are local processes.

Role: `ProcessNode` starts one as a child process and stops it; `python -m almoner_dev.node` is one.
Boundary: a development tool. It runs pods honestly (native sidecars, probes, hooks, grace, tokens) but
runs no images, limits no cpu, and counts memory by polling. See isolation.py for what separates pods.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from almoner_dev import processes

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 30.0


class ProcessNode:
    """A node as a child process, Ready when `with` is entered.

    kubeconfig: of an administrator. isolation: auto, namespaces or none. cpu, memory, resources: what the
    node offers, as Kubernetes quantities (`resources={"nvidia.com/gpu": "2"}`). expose: further folders
    that containers see, read-only. image_commands: the command of an image whose pods name none.
    host_address is where servers of this machine listen for the pods.
    """

    def __init__(
        self,
        kubeconfig: Path | str,
        name: str = "process-0",
        *,
        isolation: str = "auto",
        scratch: Path | None = None,
        cpu: str = "64",
        memory: str = "64Gi",
        pods: int = 500,
        resources: Mapping[str, str] | None = None,
        expose: Sequence[Path] = (),
        image_commands: Mapping[str, Sequence[str]] | None = None,
        log: Path | None = None,
        detached: bool = False,
        start_seconds: float = START_SECONDS_MAX,
    ) -> None:
        self.name = name
        self.child: processes.Child | None = None
        self.ready: dict[str, Any] = {}
        self._scratch = scratch
        self._temporary: Path | None = None
        self._log = log
        self._detached = detached
        self._start_seconds = start_seconds
        arguments = ["--kubeconfig", str(kubeconfig), "--name", name, "--isolation", isolation]
        arguments += ["--cpu", cpu, "--memory", memory, "--pods", str(pods)]
        for resource, amount in (resources or {}).items():
            arguments += ["--resource", f"{resource}={amount}"]
        for folder in expose:
            arguments += ["--expose", str(folder)]
        for image, command in (image_commands or {}).items():
            arguments += ["--image-command", f"{image}={json.dumps(list(command))}"]
        self._arguments = arguments

    @property
    def host_address(self) -> str:
        """The address of this machine that pods reach: servers for them listen there."""
        return str(self.ready["host_address"])

    @property
    def isolation(self) -> str:
        """The isolation in force: namespaces or none."""
        return str(self.ready["isolation"])

    @property
    def log_path(self) -> Path:
        """The node's own log, once started."""
        assert self._log is not None
        return self._log

    @property
    def scratch(self) -> Path:
        """The node's scratch folder, once started: `pods/<uid>/logs/<container>.log` lies in it."""
        assert self._scratch is not None
        return self._scratch

    def start(self) -> Self:
        """Start, and wait until the node is registered and ready. Raises processes.ProcessError."""
        if self._scratch is None:
            self._temporary = self._scratch = Path(tempfile.mkdtemp(prefix="almoner-node-"))
        self._scratch.mkdir(parents=True, exist_ok=True)
        if self._log is None:
            self._log = self._scratch / "node.log"
        ready_file = self._scratch / "ready.json"
        ready_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "almoner_dev.node", *self._arguments]
        command += ["--scratch", str(self._scratch), "--ready-file", str(ready_file)]
        self.child = processes.start(f"node {self.name}", command, log_path=self._log, detached=self._detached)
        try:
            processes.wait_until(
                ready_file.exists, seconds=self._start_seconds, children=[self.child], what="the node's registration"
            )
        except BaseException:
            self.stop()
            raise
        self.ready = json.loads(ready_file.read_text())
        return self

    def stop(self) -> None:
        """End the node: its pods become Failed (NodeShutdown), its Node object goes. Safe to call twice."""
        if self.child is not None:
            self.child.stop(deadline_s=STOP_SECONDS_MAX)
            self.child = None
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._temporary)
            self._temporary = self._scratch = self._log = None

    def kill(self) -> None:
        """SIGKILL, as a fault would: containers die with it, its objects and networks stay until the next start."""
        if self.child is not None:
            self.child.kill()
            self.child = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
