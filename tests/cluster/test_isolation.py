"""A real node changes nothing of the machine, and leaves nothing, however its maker ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from almoner_dev import processes
from almoner_dev.cluster import PREFIX, Cluster, cgroups, settings
from almoner_dev.cluster.namespaces import KERNEL_SETTINGS, NETWORK_SETTINGS
from tests.support.polling import until

SECONDS = 60.0
MAKER = """
import sys
from almoner_dev.cluster import Cluster
cluster = Cluster()
cluster.start()
print(cluster.directory, flush=True)
sys.stdin.read()
"""
FOLDERS = ("/var/lib/kubelet", "/var/lib/cni", "/run/containerd", "/etc/cni", "/opt/containerd", "/var/log/containers")


def machine() -> dict[str, str]:
    """What a node would change of the machine, did it not have namespaces of its own."""
    seen = {}
    for name in [*KERNEL_SETTINGS, *NETWORK_SETTINGS]:
        path = Path("/proc/sys", name)
        seen[name] = path.read_text() if path.exists() else "absent"
    seen |= {folder: str(Path(folder).exists()) for folder in FOLDERS}
    seen |= {f"interface {name}": str(Path("/sys/class/net", name).exists()) for name in ("cni0", settings.NODE_BRIDGE)}
    rules = subprocess.run(["/usr/sbin/iptables-save"], capture_output=True, text=True, check=True).stdout
    seen["rules"] = "\n".join(line for line in rules.splitlines() if "KUBE" in line)
    return seen


def mounts_of(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if directory.name in line]


def members(directory: Path) -> set[int]:
    """The processes in the process namespace of the node with this scratch folder."""
    namespaces: dict[int, str] = {}
    ours: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            namespace = str((process / "ns" / "pid").readlink())
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        namespaces[int(process.name)] = namespace
        if str(directory) in command:
            ours.add(namespace)
    ours.discard(str(Path("/proc/self/ns/pid").readlink()))
    return {pid for pid, namespace in namespaces.items() if namespace in ours}


@pytest.fixture
def maker() -> Iterator[subprocess.Popen[str]]:
    """A process that starts a node of its own, prints its folder, and waits."""
    command = [sys.executable, "-c", MAKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_second_node_beside_the_first_changes_and_leaves_nothing(node: Cluster, maker: subprocess.Popen[str]) -> None:
    before = machine()
    assert maker.stdout is not None
    directory = Path(maker.stdout.readline().strip())
    assert directory.name.startswith(PREFIX), "the second node did not start"
    running = members(directory)
    assert len(running) > 8
    assert machine() == before
    assert mounts_of(directory) == []
    assert all(node.running().values())

    maker.kill()
    until(lambda: not members(directory) & running, SECONDS, "the kernel to end everything in the namespaces")

    def cleared() -> bool:
        # As whoever starts the next node does. The last file is closed a moment after the last process is gone.
        shutil.rmtree(processes.scratch_directory(PREFIX))
        cgroups.sweep(PREFIX)
        return not directory.exists() and not [top for top in cgroups.hierarchies() if (top / directory.name).exists()]

    until(cleared, SECONDS, "files and control groups to be removed")
    assert node.directory.exists()
    assert all(node.running().values())


def test_a_node_that_is_stopped_leaves_nothing() -> None:
    with Cluster() as cluster:
        directory = cluster.directory
        assert len(members(directory)) > 8
    assert members(directory) == set()
    assert not directory.exists()
    assert [top for top in cgroups.hierarchies() if (top / directory.name).exists()] == []
