"""Pods in network namespaces, containers in mount namespaces: what a process node does where root allows.

Role: the bridge, an address per pod, and clearing up, also after nodes that were killed. Boundary: all
network changes go through iproute2's `ip`; mounts and users are launch.py's work. Why a lock file per
node: names alone cannot tell a dead node's leftovers from a living neighbour's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import signal
from pathlib import Path
from typing import Any

from almoner_dev.node.env import ConfigError, Rewrite
from almoner_dev.node.isolation import Isolation, PodNetwork

REGISTRY = Path("/run/almoner-nodes")
PREFIX = "alm"
SUBNET_BITS = 22
POOL = ipaddress.IPv4Network("10.244.0.0/16")
COMMAND_SECONDS = 20


class IsolationError(RuntimeError):
    """Namespaces cannot be made here; the message says why."""


async def ip(*arguments: str, batch: str | None = None, check: bool = True) -> str:
    """Run iproute2's ip. Raises IsolationError with what it said."""
    command = ["ip", *arguments, *(["-batch", "-"] if batch is not None else [])]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if batch is not None else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise IsolationError(f"cannot run `ip` (Debian: apt-get install iproute2): {error}") from error
    answer = process.communicate(batch.encode() if batch is not None else None)
    output, errors = await asyncio.wait_for(answer, COMMAND_SECONDS)
    if check and process.returncode != 0:
        raise IsolationError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()[:500]}")
    return output.decode(errors="replace")


async def probe() -> str | None:
    """Why namespaces do not work here, or None when they do: makes and removes one of each."""
    if os.geteuid() != 0:
        return "this user is not root"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            package = "iproute2" if program == "ip" else "util-linux"
            return f"`{program}` is missing (Debian: apt-get install {package})"
    name = f"{PREFIX}p{secrets.token_hex(3)}"
    try:
        try:
            await ip(
                batch=f"netns add {name}\nlink add {name} type bridge\nlink add {name}v type veth peer name {name}w\n"
            )
            await _run("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt")
        finally:
            for command in (("link", "del", f"{name}v"), ("link", "del", name), ("netns", "del", name)):
                await ip(*command, check=False)
    except IsolationError as error:
        return str(error)
    return None


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    if process.returncode != 0:
        raise IsolationError(f"{' '.join(command)}: {errors.decode(errors='replace').strip()[:500]}")


class Namespaces(Isolation):
    """One bridge per node, one network namespace per pod, one mount namespace per container."""

    name = "namespaces"
    enforces_users = True

    def __init__(self, exposed: list[str]) -> None:
        self._exposed = exposed
        self._id = secrets.token_hex(3)
        self._bridge = f"{PREFIX}{self._id}"
        self._lock: int | None = None
        self._net: ipaddress.IPv4Network | None = None
        self._pods: dict[str, int] = {}
        self._next = 1
        self.host_address = ""

    def describe(self) -> str:
        """What is in force."""
        return (
            f"isolation namespaces: each pod has a network of its own on {self._net} (bridge {self._bridge}, no way "
            f"beyond this machine), each container a file system with its mounts at their true paths, its user, and no "
            f"capabilities. Containers see this machine's processes and its programs; cpu and memory are not limited"
        )

    async def start(self) -> None:
        """Clear what dead nodes left, choose a subnet, make the bridge."""
        REGISTRY.mkdir(mode=0o700, exist_ok=True)  # noqa: ASYNC240 - a folder in memory
        with (REGISTRY / "lock").open("w") as everybody:
            await asyncio.to_thread(fcntl.flock, everybody, fcntl.LOCK_EX)
            await _clear_dead()
            path = REGISTRY / f"{self._id}.node"
            self._lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._net = await _free_subnet()
            self.host_address = str(self._net[1])
            await ip(
                # An address of its own: else it takes its ports' lowest, and changes as pods come and go, and packets
                # of the others get lost until they ask for it again.
                batch=f"link add {self._bridge} address {_hardware_address()} type bridge\n"
                f"addr add {self.host_address}/{SUBNET_BITS} dev {self._bridge}\n"
                f"link set {self._bridge} up\n"
            )

    async def stop(self) -> None:
        """Remove pods' networks, the bridge and the lock."""
        if self._lock is None:
            return
        await _clear(self._id)
        (REGISTRY / f"{self._id}.node").unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def _names(self, number: int) -> tuple[str, str]:
        return f"{self._bridge}-{number}", f"{self._bridge}v{number:x}"

    async def join(self, uid: str) -> PodNetwork:
        """A namespace with loopback and one interface on the bridge, without a default route."""
        assert self._net is not None
        size = self._net.num_addresses
        for _ in range(size):
            self._next = self._next + 1 if self._next + 2 < size else 2
            if self._next not in self._pods.values():
                break
        else:
            raise IsolationError(f"all {size - 3} addresses of {self._net} are in use")
        number = self._next
        self._pods[uid] = number
        namespace, veth = self._names(number)
        address = str(self._net[number])
        await ip(
            batch=f"netns add {namespace}\nlink add {veth} type veth peer name eth0 netns {namespace}\n"
            f"link set {veth} master {self._bridge} up\n"
        )
        await ip(
            "-n",
            namespace,
            batch=f"link set lo up\naddr add {address}/{SUBNET_BITS} dev eth0\nlink set eth0 up\n",
        )
        return PodNetwork(address, f"/run/netns/{namespace}")

    async def leave(self, uid: str) -> None:
        """Kill what still runs in the pod's network, whoever's child it became, and remove it."""
        number = self._pods.get(uid)
        if number is None:
            return
        namespace, veth = self._names(number)
        await _kill_inside(namespace)
        await ip("link", "del", veth, check=False)
        await ip("netns", "del", namespace, check=False)
        # Only now may the number be given to another pod.
        self._pods.pop(uid, None)

    def rewrite(  # noqa: D102 - as in the interface
        self,
        network: PodNetwork,  # noqa: ARG002 - ports are what they are on a real node
        mounts: list[dict[str, Any]],  # noqa: ARG002 - and so are paths
        links: Path,  # noqa: ARG002 - and no links are needed
    ) -> Rewrite | None:
        return None

    def place(self, network: PodNetwork, mounts: list[dict[str, Any]], container: dict[str, Any]) -> dict[str, Any]:
        """Namespaces, root file system, user. Raises ConfigError for a user that the pod forbids itself."""
        context = container["context"]
        user = context.get("runAsUser", 0)
        if context.get("runAsNonRoot") and user == 0:
            raise ConfigError("container has runAsNonRoot and would run as root: set securityContext.runAsUser")
        group = context.get("runAsGroup", 0)
        groups = sorted(
            {*context.get("supplementalGroups", []), *([context["fsGroup"]] if "fsGroup" in context else [])}
        )
        return {
            "network": network.namespace,
            "hostname": container["hostname"],
            "staging": container["staging"],
            "exposed": self._exposed,
            "mounts": mounts,
            "read_only": bool(context.get("readOnlyRootFilesystem")),
            "user": user,
            "group": group,
            "groups": groups,
        }

    def beside(self, pid: int) -> dict[str, Any]:
        """The namespaces of that process."""
        return {"join": pid}


def _hardware_address() -> str:
    """A random one that is administered locally."""
    return ":".join(f"{byte:02x}" for byte in (0x02, *secrets.token_bytes(5)))


async def _taken() -> list[ipaddress.IPv4Network]:
    """Networks that this machine has an address in or a route to."""
    written = [
        f"{entry['local']}/{entry['prefixlen']}"
        for link in json.loads(await ip("-j", "addr") or "[]")
        for entry in link.get("addr_info", [])
        if entry.get("family") == "inet" and "local" in entry
    ]
    written += [
        route["dst"]
        for route in json.loads(await ip("-j", "-4", "route", "show", "table", "all") or "[]")
        if route.get("dst", "default") != "default" and route.get("type", "unicast") == "unicast"
    ]
    return [ipaddress.IPv4Network(text, strict=False) for text in written]


async def _free_subnet() -> ipaddress.IPv4Network:
    """A /22 of 10.244.0.0/16 that clashes with no address and no route of this machine."""
    taken = await _taken()
    choices: list[ipaddress.IPv4Network] = list(POOL.subnets(new_prefix=SUBNET_BITS))
    offset = secrets.randbelow(len(choices))
    for choice in choices[offset:] + choices[:offset]:
        if not any(choice.overlaps(net) for net in taken):
            return choice
    raise IsolationError(f"no free /{SUBNET_BITS} left in {POOL}")


def _namespaces() -> list[str]:
    folder = Path("/run/netns")
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


async def _kill_inside(namespace: str) -> None:
    for _ in range(3):
        pids = (await ip("netns", "pids", namespace, check=False)).split()
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(pid), signal.SIGKILL)
        await asyncio.sleep(0.05)


async def _clear(node_id: str) -> None:
    """Remove namespaces, pairs and the bridge of one node."""
    bridge = f"{PREFIX}{node_id}"
    for name in _namespaces():
        if name.startswith(f"{bridge}-"):
            await _kill_inside(name)
            await ip("netns", "del", name, check=False)
    for link in json.loads(await ip("-j", "link", check=False) or "[]"):
        if str(link.get("ifname", "")).startswith(f"{bridge}v"):
            await ip("link", "del", link["ifname"], check=False)
    await ip("link", "del", bridge, check=False)


async def _clear_dead() -> None:
    """Remove what nodes left whose lock nobody holds any more."""
    for path in REGISTRY.glob("*.node"):  # noqa: ASYNC240 - a folder in memory
        with path.open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            await _clear(path.stem)
            path.unlink(missing_ok=True)
