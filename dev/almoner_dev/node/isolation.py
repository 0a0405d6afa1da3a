"""What separates the pods of a process node from each other and from the machine, and what does not.

Role: the interface that pods are run through, the choice between its two implementations, and the weak
one: processes that share the machine. Boundary: starts no process; it says how one is to be started.
The strong one is in namespaces.py.
"""

from __future__ import annotations

import os
import random
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from almoner_dev.node.env import Rewrite

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """PATH of every container: this virtual environment's programs first."""
    return f"{Path(sys.executable).parent}:{DEFAULT_PATH}"


def exposed_folders(extra: tuple[Path, ...] = ()) -> list[str]:
    """Folders of the machine that containers see, read-only: the interpreter, its packages, and what was asked for."""
    folders = {sys.prefix, sys.base_prefix, sysconfig.get_paths()["purelib"]}
    # Editable installations put source folders on the path.
    folders |= {path for path in sys.path if path and Path(path).is_dir() and path != str(Path.cwd())}
    # A virtual environment's interpreter is a chain of links: each of them must resolve.
    link = Path(sys.executable)
    for _ in range(8):
        if not link.is_symlink():
            break
        link = link.parent / link.readlink()
        folders.add(str(link.parent.parent))
    folders |= {str(path) for path in extra}
    unwanted = {"/", "/usr", "/bin", "/usr/bin"}
    chosen: list[str] = []
    for folder in sorted(os.path.normpath(f) for f in folders if f not in unwanted):
        if not any(folder == known or folder.startswith(known + "/") for known in chosen):
            chosen.append(folder)
    return chosen


def linked_parents(paths: Mapping[str, str], links: Path) -> dict[str, str]:
    """Folders of links that stand for the parents of mounts, such as one folder that holds a mount for each provider.

    Only for parents that this machine has not: a folder that exists, such as /tmp, goes on meaning itself.
    """
    found: dict[str, str] = {}
    for target, source in paths.items():
        parent = os.path.dirname(target.rstrip("/"))  # noqa: PTH120 - a path of the container's, not of this machine
        if parent in paths or os.path.exists(parent):  # noqa: PTH110 - as above
            continue
        folder = links / parent.strip("/").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / target.rstrip("/").rpartition("/")[2]
        link.unlink(missing_ok=True)
        link.symlink_to(source)
        found[parent] = str(folder)
    return found


@dataclass(frozen=True)
class PodNetwork:
    """Where a pod is: its address, and its network namespace's file where it has one."""

    address: str
    namespace: str | None


class Isolation(ABC):
    """How pods are kept apart. `name` and `describe` are shown to people; `host_address` reaches the machine."""

    name: str
    host_address: str
    # Whether users, groups and file ownership of the manifests are honoured.
    enforces_users: bool

    @abstractmethod
    def describe(self) -> str:
        """What is in force, and what is not, in a sentence or two."""

    @abstractmethod
    async def start(self) -> None:
        """Make what pods share, after removing what dead nodes left."""

    @abstractmethod
    async def stop(self) -> None:
        """Remove everything that was made."""

    @abstractmethod
    async def join(self, uid: str) -> PodNetwork:
        """Give a pod its network."""

    @abstractmethod
    async def leave(self, uid: str) -> None:
        """Take it back, killing whatever still runs in it."""

    @abstractmethod
    def rewrite(self, network: PodNetwork, mounts: list[dict[str, Any]], links: Path) -> Rewrite | None:
        """How the manifest's paths and addresses are bent; None where they hold as they are.

        `links` is a folder of the container's own, in which links to mounts may be made.
        """

    @abstractmethod
    def place(self, network: PodNetwork, mounts: list[dict[str, Any]], container: dict[str, Any]) -> dict[str, Any]:
        """The part of the launch specification that says where the container runs."""

    @abstractmethod
    def beside(self, pid: int) -> dict[str, Any]:
        """The part of the launch specification that puts a hook or probe beside a running container."""


class SharedMachine(Isolation):
    """No isolation: pods are processes of this user. Every pod has a loopback address of its own."""

    name = "none"
    host_address = "127.0.0.1"
    enforces_users = False

    def __init__(self) -> None:
        chooser = random.SystemRandom()
        # Nodes side by side choose different nets; 127.0.x.x is left to everybody else.
        self._net = f"127.{chooser.randint(1, 254)}"
        self._used: dict[str, int] = {}
        self._next = chooser.randint(0, 200) * 256

    def describe(self) -> str:
        """What is in force."""
        return (
            "isolation none: pods are plain processes of this user. They share the file system, the loopback and "
            "each other's memory rights; runAsUser, mounts at true paths, read-only roots and capabilities are NOT in "
            "force. Each pod has a loopback address of its own, mount paths are rewritten to scratch folders"
        )

    async def start(self) -> None:
        """Nothing is shared."""

    async def stop(self) -> None:
        """Nothing was made."""

    async def join(self, uid: str) -> PodNetwork:
        """The next loopback address."""
        while True:
            self._next = (self._next + 1) % 65_536
            if self._next % 256 not in (0, 255) and self._next not in self._used.values():
                break
        self._used[uid] = self._next
        return PodNetwork(f"{self._net}.{self._next // 256}.{self._next % 256}", None)

    async def leave(self, uid: str) -> None:
        """The address may be used again."""
        self._used.pop(uid, None)

    def rewrite(self, network: PodNetwork, mounts: list[dict[str, Any]], links: Path) -> Rewrite | None:
        """Mount paths become scratch folders, the meter listens on the pod's own loopback address."""
        paths = {mount["target"]: mount["source"] for mount in mounts}
        return Rewrite(linked_parents(paths, links) | paths, network.address)

    def place(  # noqa: D102 - as in the interface
        self,
        network: PodNetwork,  # noqa: ARG002 - nothing to enter
        mounts: list[dict[str, Any]],  # noqa: ARG002 - nothing is mounted
        container: dict[str, Any],  # noqa: ARG002 - no user to become
    ) -> dict[str, Any]:
        return {}

    def beside(self, pid: int) -> dict[str, Any]:  # noqa: ARG002, D102 - every process is beside every other
        return {}
