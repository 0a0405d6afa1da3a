"""What the `admission` benchmark runs on: API server and etcd, the ledger, the operator, a simulated node.

Role: starts them and says what each uses of memory and processor. As in the published baseline it is compared with, no
controller manager and no scheduler run: nothing of what is measured needs them, and the simulated node takes every pod.

Boundary: starts what others wrote, and stops it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from almoner_core.contract import LABEL_AGENT
from almoner_dev.bench_admission_load import SIZES
from almoner_dev.bench_report import cpu_seconds, rss_mb
from almoner_dev.controlplane import API_SERVER, ETCD, ControlPlane
from almoner_dev.postgres import Postgres
from almoner_dev.simnode import Fate, SimulatedNode
from almoner_dev.stack import Stack

RUNTIMES: Final = {size.name: size.runtime_ms / 1000 for size in SIZES}


@dataclass(slots=True)
class Running:
    """What runs: the kubeconfig of an administrator, and process ids by name."""

    kubeconfig: Path
    pids: dict[str, int] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Give the names of the processes."""
        return list(self.pids)

    def rss_mb(self, name: str) -> float | None:
        """Give the most memory that a process had resident, in MB."""
        return rss_mb(self.pids[name])

    def cpu_seconds(self) -> dict[str, float]:
        """Give the processor time that each has used, in seconds. `bench`: load, watches, simulated node."""
        return {name: cpu_seconds(pid) for name, pid in {**self.pids, "bench": os.getpid()}.items()}


def _fate(pod: Mapping[str, Any]) -> Fate:
    """Run as long as the class of the pod's agent says."""
    return Fate(RUNTIMES.get(pod["metadata"].get("labels", {}).get(LABEL_AGENT, ""), 0.0))


@contextlib.contextmanager
def running(*, postgres: bool) -> Iterator[Running]:
    """Start everything; the ledger on PostgreSQL with fsync, or on SQLite."""
    with contextlib.ExitStack() as stack:
        control_plane = stack.enter_context(ControlPlane(with_controller_manager=False, with_scheduler=False))
        database = stack.enter_context(Postgres(fsync=True)).create_database("ledger") if postgres else None
        almoner = stack.enter_context(Stack(control_plane, database=database))
        stack.enter_context(SimulatedNode(control_plane, plan=_fate))
        assert almoner.operator is not None
        assert almoner.ledger is not None
        children = {
            "operator": almoner.operator,
            "ledger": almoner.ledger,
            "apiserver": control_plane.children[API_SERVER],
            "etcd": control_plane.children[ETCD],
        }
        yield Running(control_plane.kubeconfig, {name: child.pid for name, child in children.items()})
