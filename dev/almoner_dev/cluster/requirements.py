"""What a real node needs of the machine, and how to get what lacks.

Role: looks for root, the programs and the control groups, before anything is built or started, and says everything that
lacks at once. Boundary: looks only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "unshare": "util-linux",
    "mount": "mount",
    "busybox": "busybox-static",
    "ldd": "libc-bin",
}
"""Programs by the Debian package that has them."""
CNI_FOLDERS = ("/usr/lib/cni", "/opt/cni/bin")
CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")
CNI_PACKAGE = "containernetworking-plugins"
COVERED = tuple(map(Path, ("/tmp", "/almoner", "/dev", "/proc", "/sys")))
"""Folders that pods have of their own: what lies there on this machine is not seen by them."""
CHECKOUT = Path(__file__).resolve().parents[3]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class NodeImpossible(RuntimeError):  # noqa: N818 - the name says what is the matter
    """A real node cannot be started here; the message says why and what to do."""


def search_path(environ: Mapping[str, str] = os.environ) -> str:
    """PATH with the system administrator's folders, which an ordinary one may lack."""
    return f"{environ.get('PATH', '')}:{SYSTEM_PATH}".strip(":")


def program(name: str) -> Path:
    """Returns where a program is. Raises NodeImpossible with the package that has it."""
    found = shutil.which(name, path=search_path())
    if found is None:
        raise NodeImpossible(f"{name} is missing: apt-get install {PROGRAMS.get(name, name)}")
    return Path(found)


def cni_folder() -> Path:
    """Returns the folder of the network plugins. Raises NodeImpossible where no folder has them all."""
    for folder in map(Path, CNI_FOLDERS):
        if all(os.access(folder / plugin, os.X_OK) for plugin in CNI_PLUGINS):
            return folder
    raise NodeImpossible(f"the CNI plugins {', '.join(CNI_PLUGINS)} are missing: apt-get install {CNI_PACKAGE}")


def lacking_packages() -> list[str]:
    """Returns the Debian packages to install, by what the machine lacks."""
    packages = {package for name, package in PROGRAMS.items() if shutil.which(name, path=search_path()) is None}
    try:
        cni_folder()
    except NodeImpossible:
        packages.add(CNI_PACKAGE)
    return sorted(packages)


def refusals() -> list[str]:
    """Says what a node would lack here, each with what to do; nothing: it can run."""
    if sys.platform != "linux":
        return ["a real node runs on Linux alone: use `make e2e KUBECONFIG=FILE` with a cluster"]
    reasons = []
    if os.geteuid() != 0:
        reasons.append("a real node needs root for namespaces, mounts and containers: run as root (sudo -E)")
    reasons += hidden_from_pods(CHECKOUT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())
    packages = lacking_packages()
    if packages:
        reasons.append(f"packages are missing: apt-get install {' '.join(packages)}")
    if os.geteuid() == 0 and not packages and not _namespaces_allowed():
        reasons.append("new namespaces and mounts are not allowed here: in a container, run it privileged")
    if not os.access("/sys/fs/cgroup", os.W_OK):
        reasons.append(
            "/sys/fs/cgroup cannot be written: in a container, run it privileged with its own cgroup namespace"
        )
    return reasons


def hidden_from_pods(*paths: Path) -> list[str]:
    """Says which of the paths pods cannot see: they run this checkout, by this machine's Python, from where it lies."""
    return [
        f"{path} lies under {folder}, which pods cover with a folder of their own: put it elsewhere"
        for path in dict.fromkeys(paths)
        for folder in COVERED
        if path.is_relative_to(folder)
    ]


def _namespaces_allowed() -> bool:
    """Says whether namespaces, a file system of one's own and an overlay may be made, by making them for a moment."""
    attempt = (
        "mount -t tmpfs tmpfs /run && mkdir /run/u /run/w && "
        "mount -t overlay -o lowerdir=/var,upperdir=/run/u,workdir=/run/w overlay /var"
    )
    unshare = [str(program("unshare")), "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--mount-proc"]
    done = subprocess.run(
        [*unshare, "sh", "-c", attempt], capture_output=True, check=False, env={**os.environ, "PATH": search_path()}
    )
    return done.returncode == 0


def demand() -> None:
    """Raises NodeImpossible with everything that lacks."""
    reasons = refusals()
    if reasons:
        raise NodeImpossible("A real node cannot be started here:" + "".join(f"\n  - {reason}" for reason in reasons))
