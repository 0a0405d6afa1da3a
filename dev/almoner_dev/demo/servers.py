"""Everything that the demo starts, in order, each with its time; and how it is stopped.

Role: control plane, node, local model, ledger and operator, started so that they end with the demo or, with --keep, go
on under a record that `--down` reads. Boundary: starts and stops; knows nothing of what is run on them.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from almoner_dev import binaries
from almoner_dev.controlplane import ControlPlane
from almoner_dev.model import LocalModel, weights
from almoner_dev.node import ProcessNode
from almoner_dev.processes import Child
from almoner_dev.stack import Stack
from almoner_dev.state import Environment
from almoner_ledger.cli import ENV_DATABASE

ENVIRONMENT: Final = "demo"
"""The record of a demo that was kept."""
ENVIRONMENT_ONCE: Final = "demo-once"
"""The record of one that ends with its command: what it left behind when it was killed."""
MODEL_SLOTS: Final = 2
# What a small machine costs to rent, in US dollars; charged often, so that it is seen to grow.
MACHINE_PRICES: Final = {
    "ALMONER_COMPUTE_PRICE_CPU_HOUR": "0.031",
    "ALMONER_COMPUTE_PRICE_MEMORY_GIB_HOUR": "0.004",
    "ALMONER_COMPUTE_INTERVAL_SECONDS": "5",
}
MODEL_CONTEXT_TOKENS: Final = 2048


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done and, when it is done, how long that took."""
    began = time.monotonic()
    print(f"==> {what} ... ", end="", flush=True)
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - began:.1f} s", flush=True)


def preflight() -> None:
    """Make sure of the binaries and the model's weights, before anything is started.

    Raises binaries.BinariesMissing, which says what is missing on this machine (Go, disk, memory) and what to do, and
    model.ModelUnavailableError.
    """
    with step("control plane binaries"):
        found = binaries.find()
    print(f"    {found.source}")
    with step("weights of the local model"):
        weights()


def kept(environment: Environment) -> bool:
    """Whether a demo was left running on purpose, whatever became of its processes since."""
    return environment.exists() and bool(environment.facts().get("kept"))


def stop_left_over(environment: Environment) -> list[str]:
    """Stop what an earlier demo left running, and remove its data; gives the names of what was stopped."""
    if not environment.exists():
        return []
    stopped = environment.stop()
    folder = environment.facts().get("folder")
    environment.remove()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return stopped


class Servers:
    """All servers of the demo, running while `with` is entered, or longer with keep."""

    def __init__(self, environment: Environment, *, keep: bool) -> None:
        self._environment = environment
        self._keep = keep
        self._closing = contextlib.ExitStack()
        # Short, and not in a home folder: other users' processes (the pods') and sockets have to get there.
        self.folder = Path(tempfile.mkdtemp(prefix="almoner-demo-"))
        self.model_key = secrets.token_urlsafe(24)
        self.control_plane: ControlPlane
        self.node: ProcessNode
        self.model: LocalModel
        self.stack: Stack

    @property
    def kubeconfig(self) -> Path:
        """An administrator's."""
        return self.control_plane.kubeconfig

    @property
    def ledger_database(self) -> Path:
        """The ledger's SQLite file."""
        return self.stack.directory / "ledger.db"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            print(f"logs and data are in {self.folder}")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keep and kind is None:
            return
        if kind is not None:
            print()
        with step("stopping everything"):
            self._stop()
        if kind is not None:
            print(f"logs and data are in {self.folder}")

    def discard(self) -> None:
        """Remove data and logs, once everything has stopped."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        self._environment.note(folder=str(self.folder))
        with step("control plane: etcd, API server, controllers, scheduler"):
            self.control_plane = ControlPlane(
                directory=self.folder / "control-plane", detached=self._keep, on_start=self._record
            )
            self.control_plane.start()
            self._closing.callback(self.control_plane.stop)
        with step("node: pods as processes"):
            self.node = ProcessNode(self.kubeconfig, scratch=self.folder / "node", detached=self._keep).start()
            self._closing.callback(self.node.stop)
            self._record(self.node.child)
        with step(f"local model: {LocalModel.name}"):
            self.model = LocalModel(
                self.node.host_address,
                context_tokens=MODEL_CONTEXT_TOKENS,
                parallel=MODEL_SLOTS,
                api_key=self.model_key,
                log=self.folder / "model.log",
                detached=self._keep,
            ).start()
            self._closing.callback(self.model.stop)
            self._record(self.model.child)
        with step("Almoner: resource definitions, ledger on SQLite, operator"):
            self.stack = Stack(
                self.control_plane,
                host_address=self.node.host_address,
                directory=self.folder / "almoner",
                operator_env=MACHINE_PRICES,
                detached=self._keep,
            )
            (self.folder / "almoner").mkdir(exist_ok=True)
            self.stack.start()
            self._closing.callback(self.stack.stop)
            self._record(self.stack.ledger)
            self._record(self.stack.operator)
        self._environment.note(kubeconfig=str(self.kubeconfig))

    def _record(self, child: Child | None) -> None:
        if child is not None and self._keep:
            self._environment.record(child)

    def _stop(self) -> None:
        self._closing.close()
        if self._keep:  # a detached control plane leaves itself alone
            self._environment.stop()


def note_kept(environment: Environment, servers: Servers) -> None:
    """Record that it was left running on purpose, and what `exports` needs."""
    found = servers.control_plane.binaries
    kubectl = shutil.which("kubectl") is None and found is not None and (found.directory / "kubectl").exists()
    environment.note(
        kept=True,
        database=servers.stack.database,
        path=[str(Path(sys.executable).parent), *([str(found.directory)] if found is not None and kubectl else [])],
    )


def exports(environment: Environment) -> list[str]:
    """Give the lines that lead a shell to a kept demo: to its cluster, its ledger, and the commands."""
    facts = environment.facts()
    path = ":".join(shlex.quote(folder) for folder in facts["path"])
    return [
        f"export KUBECONFIG={shlex.quote(facts['kubeconfig'])}",
        f"export {ENV_DATABASE}={shlex.quote(facts['database'])}",
        f'export PATH={path}:"$PATH"',
    ]


def look_around(environment: Environment) -> str:
    """Say how to look at what is left running."""
    lines = [
        *exports(environment),
        "kubectl get executions,trainingjobs,agents -n demo",
        "kubectl get aq -n demo",
        "kubectl describe execution red-haiku -n demo",
        "almoner ledger costs --by agent",
        "almoner ledger costs --by resource_type",
    ]
    return "\n".join(f"    {line}" for line in lines)
