"""Inside a real node's namespaces: mounts and network, so that nothing of the machine changes.

Role: called first by the process that was started in new mount, network and process namespaces. Afterwards /run is a
file system of its own, writes to /var stay in it, and the network has a loopback and the node's bridge alone.

Boundary: changes its own namespaces and nothing else; the kernel undoes all of it with the last process.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from almoner_dev.cluster import settings
from almoner_dev.cluster.requirements import program

RUN_BYTES_MAX = "512m"
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet wants the kernel to be set to. Files with these values stand before the real ones, which are the
whole machine's: the kubelet reads what it wants, and writes nothing."""
NETWORK_SETTINGS = {
    "net/ipv4/ip_forward": "1",
    # Traffic between pods of one bridge passes the rules of Services and NetworkPolicies too.
    "net/bridge/bridge-nf-call-iptables": "1",
}
SLOW_FILE_SYSTEMS = {"overlay", "overlayfs"}


def prepare_mounts(directory: Path) -> None:
    """Gives this mount namespace its own /run and /var, and stand-ins for the kernel's settings."""
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "-o", f"size={RUN_BYTES_MAX},mode=755", "tmpfs", "/run")
    upper, work = Path("/run/var/upper"), Path("/run/var/work")
    for folder in (upper, work, Path("/run/lock"), Path("/run/netns")):
        folder.mkdir(parents=True)
    # CNI and the kubelet have a few folders in /var that cannot be configured.
    _run("mount", "-t", "overlay", "-o", f"lowerdir=/var,upperdir={upper},workdir={work}", "overlay", "/var")
    stand_ins = directory / "kernel-settings"
    for name, value in KERNEL_SETTINGS.items():
        stand_in = stand_ins / name
        stand_in.parent.mkdir(parents=True, exist_ok=True)
        stand_in.write_text(f"{value}\n")
        if Path("/proc/sys", name).exists():
            _run("mount", "--bind", str(stand_in), f"/proc/sys/{name}")
    # Volumes that containers mount must be seen by the kubelet, as on any node.
    _run("mount", "--make-rshared", "/")


def prepare_network() -> None:
    """Brings loopback up, and makes the bridge that carries the node's address."""
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", settings.NODE_BRIDGE, "type", "bridge")
    _run("ip", "address", "add", f"{settings.NODE_ADDRESS}/24", "dev", settings.NODE_BRIDGE)
    _run("ip", "link", "set", settings.NODE_BRIDGE, "up")
    for name, value in NETWORK_SETTINGS.items():
        Path("/proc/sys", name).write_text(value)


def snapshotter(directory: Path) -> str:
    """Returns containerd's snapshotter for this folder: overlay file systems do not stack on one another."""
    done = subprocess.run(
        ["stat", "--file-system", "--format=%T", str(directory)], capture_output=True, text=True, check=True
    )
    return "native" if done.stdout.strip() in SLOW_FILE_SYSTEMS else "overlayfs"


def _run(name: str, *arguments: str) -> None:
    done = subprocess.run([str(program(name)), *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
