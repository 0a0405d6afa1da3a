"""Become a container: run by the node as its own short program, ends by executing the container's command.

Role: read a specification from a file descriptor, enter or make namespaces, build the root file
system, drop privileges, execute. Boundary: standard library alone, no asyncio, no imports from this
package: it runs before and inside what it builds. Why a program and not a hook between fork and exec:
a hook runs in a copy of the node with its threads and locks, a program does not.

Failures are written to the second descriptor; it is closed by a successful execution.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x00020000, 0x04000000, 0x08000000, 0x40000000
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
CAPABILITIES_MAX = 64
ROOT_SIZE = "1g"
# What a container sees of the machine's own files: programs, libraries and their configuration.
HOST_FOLDERS = ("usr", "etc", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

Spec = dict[str, Any]


def check(result: int, what: str) -> None:
    """Raise OSError for a failed C call."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Mount, as the system call does."""

    def encoded(text: str | None) -> bytes | None:
        return None if text is None else os.fsencode(text)

    check(LIBC.mount(encoded(source), encoded(target), encoded(kind), flags, encoded(options)), f"mount {target}")


def bind(source: str, target: str, *, read_only: bool, recursive: bool = True) -> None:
    """Show source at target."""
    mount(source, target, None, MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


class Root:
    """The container's root file system while it is being built at a staging folder."""

    def __init__(self, staging: str) -> None:
        self.path = staging
        mount("tmpfs", staging, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={ROOT_SIZE}")

    def at(self, path: str) -> str:
        """Where a path of the container lies now, links resolved inside the root."""
        resolved = self.path
        parts = [part for part in path.split("/") if part]
        links = 0
        while parts:
            part = parts.pop(0)
            if part == "..":
                resolved = self.path if resolved == self.path else os.path.dirname(resolved)
                continue
            candidate = f"{resolved}/{part}"
            if os.path.islink(candidate):
                links += 1
                if links > 40:
                    raise OSError(f"{path}: too many links")
                to = os.readlink(candidate)
                if to.startswith("/"):
                    resolved = self.path
                parts[:0] = [p for p in to.split("/") if p and p != "."]
            elif part != ".":
                resolved = candidate
        return resolved

    def folder(self, path: str, mode: int = 0o755) -> str:
        """Make a folder and its parents, also below a folder that is the machine's and read-only."""
        target = self.at(path)
        if os.path.isdir(target):
            return target
        if target != self.path:
            self.folder(os.path.dirname(target)[len(self.path) :])
        try:
            os.mkdir(target)
        except OSError:
            self.cover(os.path.dirname(target))
            os.mkdir(target)
        os.chmod(target, mode)
        return target

    def file(self, path: str) -> str:
        """Make an empty file to bind something over."""
        target = self.at(path)
        if not os.path.exists(target):
            parent = self.folder(os.path.dirname(path))
            try:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            except OSError:
                self.cover(parent)
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        return target

    def cover(self, folder: str) -> None:
        """Replace a read-only folder by a writable one that shows the same children."""
        was = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        behind = f"/proc/self/fd/{was}"
        children = os.listdir(behind)
        mode = stat.S_IMODE(os.stat(behind).st_mode)
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode:o},size=1m")
        for name in children:
            source, target = f"{behind}/{name}", f"{folder}/{name}"
            if os.path.islink(source):
                os.symlink(os.readlink(source), target)
                continue
            if os.path.isdir(source):
                os.mkdir(target)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            bind(source, target, read_only=True)
        os.close(was)

    def populate(self, exposed: list[str]) -> None:
        """Programs and libraries of the machine, devices, /proc, and empty writable places."""
        for name in HOST_FOLDERS:
            source, target = f"/{name}", f"{self.path}/{name}"
            if os.path.islink(source):
                os.symlink(os.readlink(source), target)
            elif os.path.isdir(source):
                os.mkdir(target)
                bind(source, target, read_only=True)
        for path, mode in (("/proc", 0o555), ("/sys", 0o555), ("/root", 0o755), ("/home", 0o755), ("/run", 0o755)):
            self.folder(path, mode)
        for path in ("/tmp", "/var/tmp"):
            self.folder(path, 0o1777)
        for path in ("/var/lib", "/var/log", "/var/cache"):
            self.folder(path)
        os.symlink("/run", f"{self.path}/var/run")
        bind("/proc", f"{self.path}/proc", read_only=False)
        bind("/sys", f"{self.path}/sys", read_only=True, recursive=False)
        self.devices()
        for path in exposed:
            if os.path.isdir(path) and not os.path.exists(self.at(path)):
                bind(path, self.folder(path), read_only=True)

    def devices(self) -> None:
        """A small /dev."""
        self.folder("/dev")
        for name in DEVICES:
            if os.path.exists(f"/dev/{name}"):
                bind(f"/dev/{name}", self.file(f"/dev/{name}"), read_only=False)
        for name, to in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
            os.symlink(f"/proc/self/{to}", f"{self.path}/dev/{name}")
        self.folder("/dev/shm", 0o1777)

    def volumes(self, mounts: list[Spec]) -> None:
        """What the manifest mounts, outer paths first."""
        for entry in sorted(mounts, key=lambda m: m["target"].count("/")):
            source = entry["source"]
            place = self.folder if os.path.isdir(source) else self.file
            bind(source, place(entry["target"]), read_only=entry["read_only"], recursive=False)

    def enter(self, *, read_only: bool) -> None:
        """Make it the root of this mount namespace; what lay behind is gone."""
        if read_only:
            mount(None, self.path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
        os.chdir(self.path)
        check(LIBC.pivot_root(b".", b"."), "pivot_root")
        check(LIBC.umount2(b".", MNT_DETACH), "umount the old root")
        os.chdir("/")


def new_namespaces(spec: Spec) -> None:
    """The pod's network, and mounts, host name and shared memory of the container's own."""
    network = os.open(spec["network"], os.O_RDONLY)
    check(LIBC.setns(network, CLONE_NEWNET), "enter the pod's network")
    os.close(network)
    check(LIBC.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC), "unshare")
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    hostname = os.fsencode(spec["hostname"])
    check(LIBC.sethostname(hostname, len(hostname)), "sethostname")
    root = Root(spec["staging"])
    root.populate(spec["exposed"])
    root.volumes(spec["mounts"])
    if spec["cwd"]:
        root.folder(spec["cwd"])
    root.enter(read_only=spec["read_only"])


def join_namespaces(pid: int) -> None:
    """Those of a running container, for a hook or a probe."""
    kinds = (("net", CLONE_NEWNET), ("uts", CLONE_NEWUTS), ("ipc", CLONE_NEWIPC), ("mnt", CLONE_NEWNS))
    opened = [(os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY), flag) for name, flag in kinds]
    for descriptor, flag in opened:
        check(LIBC.setns(descriptor, flag), "join the container")
        os.close(descriptor)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop_privileges(user: int, group: int, groups: list[int]) -> None:
    """Become the user, without capabilities and without a way to get any."""
    for capability in range(CAPABILITIES_MAX):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    header = _CapabilityHeader(CAPABILITY_VERSION_3, 0)
    check(LIBC.capset(ctypes.byref(header), (ctypes.c_uint32 * 6)()), "capset")


def launch(spec: Spec) -> NoReturn:
    """Do all of it. Raises OSError."""
    if spec.get("join"):
        join_namespaces(spec["join"])
    elif spec.get("network"):
        new_namespaces(spec)
    if spec.get("user") is not None:
        drop_privileges(spec["user"], spec["group"], spec["groups"])
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # After the change of user, which clears it.
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent-death signal")
    if os.getppid() != spec["parent"]:
        raise OSError("the node is gone")
    os.umask(0o022)
    os.chdir(spec["cwd"] or "/")
    # Python ignores these two at start, and ignored signals stay ignored across an execution.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(spec["argv"][0], spec["argv"], spec["env"])


def main() -> None:
    """Arguments: the descriptor to read the specification from, the descriptor to report failure on."""
    specification, report = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(report, False)  # noqa: FBT003 - takes no keyword
    try:
        with os.fdopen(specification) as stream:
            spec = json.load(stream)
        launch(spec)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the node must hear of it
        command = spec["argv"][0] if "spec" in locals() else "the container"
        reason = error.strerror or str(error) if isinstance(error, OSError) else repr(error)
        os.write(report, f"cannot start {command!r}: {reason}"[:1000].encode())
        os._exit(128)


if __name__ == "__main__":
    main()
