"""The control groups of a real node: one subtree of its own, in version 1 and version 2.

Role: makes the group that the kubelet puts its pods under, and removes it with all that is in it. A group is named
after its node's scratch folder, so that a group without that folder belongs to nobody any more.

Boundary: folders in /sys/fs/cgroup; moves no process. Killing what runs in them is for who started it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
VERSION_2 = "cgroup.controllers"
CPUSET = ("cpuset.cpus", "cpuset.mems")


def hierarchies(root: Path = ROOT) -> list[Path]:
    """Returns the top of each hierarchy: one in version 2, one for each controller in version 1."""
    if (root / VERSION_2).exists():
        return [root]
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.is_symlink()]


def make(name: str, root: Path = ROOT) -> None:
    """Makes the group in every hierarchy; with version 2 all controllers go on to what is below it."""
    for top in hierarchies(root):
        group = top / name
        group.mkdir(exist_ok=True)
        for setting in CPUSET:
            # In version 1 a new group of this controller has no processors, and takes no process.
            if (group / setting).exists() and not (group / setting).read_text().strip():
                (group / setting).write_text((top / setting).read_text())
        if (top / VERSION_2).exists() and root == top:
            for controller in (group / VERSION_2).read_text().split():
                (group / "cgroup.subtree_control").write_text(f"+{controller}")


def remove(name: str, root: Path = ROOT) -> None:
    """Removes the group and those below it, as far as nothing runs in them."""
    for top in hierarchies(root):
        for folder, _, _ in os.walk(top / name, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def sweep(prefix: str, root: Path = ROOT) -> None:
    """Removes the groups of nodes whose scratch folder is gone."""
    scratch = Path(tempfile.gettempdir())
    for top in hierarchies(root):
        for group in top.glob(f"{prefix}*"):
            if not (scratch / group.name).exists():
                remove(group.name, root)
