"""Child processes of the development tools: start, watch, stop, and never leak one.

Role: everything in this package that runs another program (the control plane, PostgreSQL, a node, a
model server) starts it here, so that all of them have the same rules: output goes to a log file,
a child dies with the parent unless it was detached on purpose, stopping is polite first and final
after a deadline, and a process id is never trusted without the start time beside it.

Boundary: knows nothing about what it runs. Linux first; elsewhere a child outlives a killed parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
TAIL_BYTES_MAX = 64 * 1024
TAIL_LINE_CHARACTERS_MAX = 2000
POLL_S = 0.02
OWNER_FILE = "owner.json"

# Below the ephemeral range, so that an outgoing connection cannot take a port between our asking
# for it and the child's binding it.
PORT_FIRST = 10_240
PORT_LAST = 32_000
PORT_TRIES_MAX = 200


class ProcessError(RuntimeError):
    """A child process did not start, did not become ready, or ended when it should not have."""


@dataclass(frozen=True)
class ProcessId:
    """A process id that cannot be mistaken for a later process that was given the same number."""

    pid: int
    started: str
    """When it started: the machine's boot id and clock ticks on Linux, a date elsewhere; opaque."""

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Returns the identity of a running process, or None where there is none of that number."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Says whether that very process still runs (a zombie does not)."""
        return _started(self.pid) == self.started

    def send(self, number: int) -> bool:
        """Sends a signal to that very process; returns False when it is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def stop(self, *, deadline_s: float = 10.0, first: int = signal.SIGTERM) -> None:
        """Asks it to end, and kills its whole session when it has not within the deadline.

        For processes of an earlier command, which are not children of this one.
        """
        if not self.send(first):
            return
        if _wait_for(lambda: not self.alive(), deadline_s):
            return
        if self.alive():
            _kill_group(self.pid)
        _wait_for(lambda: not self.alive(), 5.0)


@dataclass
class Child:
    """A process that this one started, and its log file."""

    name: str
    argv: tuple[str, ...]
    log_path: Path
    process: subprocess.Popen[bytes]
    identity: ProcessId
    first_signal: int = signal.SIGTERM
    """What asks it politely to end."""
    _stopping: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def running(self) -> bool:
        """Says whether it still runs."""
        return self.process.poll() is None

    def stop(self, *, deadline_s: float = 10.0) -> int:
        """Asks it to end, kills it and its children past the deadline, and returns its exit code."""
        with self._stopping:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    self.process.send_signal(self.first_signal)
                try:
                    self.process.wait(deadline_s)
                except subprocess.TimeoutExpired:
                    _kill_group(self.pid)
            return self.process.wait()

    def kill(self) -> int:
        """Kills it and what shares its session at once (SIGKILL), as a fault would; returns its exit code."""
        if self.process.poll() is None:
            _kill_group(self.pid)
        return self.process.wait()

    def tail(self, lines: int = 20) -> str:
        """Returns the last lines of its log."""
        return tail(self.log_path, lines)

    def failure(self, what: str) -> ProcessError:
        """Returns an error that says what went wrong and shows the end of the log."""
        code = self.process.poll()
        state = "still running" if code is None else f"ended with {_exit(code)}"
        return ProcessError(f"{self.name}: {what} ({state}); the end of {self.log_path}:\n{self.tail()}")


def start(
    name: str,
    argv: Sequence[str | Path],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: int | None = None,
    group: int | None = None,
    detached: bool = False,
    first_signal: int = signal.SIGTERM,
    death_signal: int = signal.SIGKILL,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Starts a program in a session of its own, its output appended to a log file.

    `env` replaces the environment as a whole (None: inherited), but for PYTHONUNBUFFERED, which is set where absent.
    `user` and `group` are numeric ids to change to, for root only. Unless `detached`, the kernel sends `death_signal`
    when this process dies, however it dies. Raises ProcessError when the program cannot be executed.
    """
    log_path.parent.mkdir(parents=True, exist_ok=True)
    arguments = tuple(str(part) for part in argv)
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
        # What a Python program prints is in its log at once, also when it is killed.
        "env": {"PYTHONUNBUFFERED": "1", **(os.environ if env is None else env)},
        "cwd": cwd,
        # Not the terminal's foreground group: ^C reaches this process alone, which then stops its
        # children in the right order.
        "start_new_session": True,
        "pass_fds": tuple(pass_fds),
    }
    if user is not None:
        options |= {"user": user, "group": group if group is not None else user, "extra_groups": []}
    if not detached and sys.platform == "linux":
        options["preexec_fn"] = functools.partial(_die_with_parent, death_signal, os.getpid())
    with log_path.open("ab") as log:
        try:
            process = _keeper().call(lambda: subprocess.Popen(arguments, stdout=log, **options))
        except (OSError, subprocess.SubprocessError) as error:
            raise ProcessError(f"{name}: cannot start {arguments[0]}: {error}") from error
    # A child that ended already has no start time any more; its Popen still has its exit code.
    identity = ProcessId.of(process.pid) or ProcessId(process.pid, "ended")
    return Child(name, arguments, log_path, process, identity, first_signal)


def tail(path: Path, lines: int = 20) -> str:
    """Returns the last lines of a file, at most 64 KiB of it, long lines cut."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES_MAX))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"(cannot read {path}: {error.strerror})"
    last = text.splitlines()[-lines:]
    return "\n".join(line[:TAIL_LINE_CHARACTERS_MAX] for line in last) or "(empty)"


def scratch_directory(prefix: str) -> Path:
    """Makes a temporary folder that belongs to this process, and clears those of processes that were killed.

    Who makes one removes it; only the folders of a process that could not are left for the next to clear.
    """
    parent = Path(tempfile.gettempdir())
    for left in parent.glob(f"{prefix}*"):
        try:
            owner = ProcessId(**json.loads((left / OWNER_FILE).read_bytes()))
        except (OSError, ValueError, TypeError):
            continue  # Not ours, or made this very moment.
        if not owner.alive():
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    owner = ProcessId.of(os.getpid()) or ProcessId(os.getpid(), "unknown")
    (directory / OWNER_FILE).write_text(json.dumps({"pid": owner.pid, "started": owner.started}))
    return directory


_handed_out: set[int] = set()


def free_port(address: str = "127.0.0.1") -> int:
    """Returns a TCP port that nothing listens on at the address, never the same one twice."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    chooser = random.SystemRandom()  # Not the seeded generator: parallel test runs must differ.
    for _ in range(PORT_TRIES_MAX):
        port = chooser.randint(PORT_FIRST, PORT_LAST)
        if port in _handed_out:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        _handed_out.add(port)
        return port
    raise ProcessError(f"no free port on {address} among {PORT_TRIES_MAX} tried between {PORT_FIRST} and {PORT_LAST}")


def wait_until(ready: Callable[[], bool], *, seconds: float, children: Sequence[Child], what: str) -> None:
    """Polls until ready; raises ProcessError when a child ends before that, or at the deadline.

    The error shows the end of the log of the child to blame: the one that ended, or the last one.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        for child in children:
            if not child.running():
                raise child.failure(f"ended while waiting for {what}")
        if time.monotonic() > deadline:
            raise children[-1].failure(f"{what} did not come within {seconds:g} s")
        time.sleep(POLL_S)


class _Keeper:
    """A thread that forks for everybody and lives as long as the process.

    The kernel ties a child's parent-death signal to the thread that forked it. A child started from a
    short-lived thread would be killed when that thread ends, although the process lives on.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="almoner-process-keeper", daemon=True).start()

    def call(self, function: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, answer))
        result = answer.get()
        if isinstance(result, BaseException):
            raise result
        process: subprocess.Popen[bytes] = result
        return process

    def _run(self) -> None:
        while True:
            function, answer = self._calls.get()
            try:
                answer.put(function())
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
                answer.put(error)


_keeper_lock = threading.Lock()
_keepers: list[_Keeper] = []


def _keeper() -> _Keeper:
    with _keeper_lock:
        # A forked copy of this process has the list but not the thread.
        if not _keepers or _keepers[-1].pid != os.getpid():
            _keepers.append(_Keeper())
        return _keepers[-1]


if sys.platform == "linux":
    # Looked up before any fork: between fork and exec nothing may import or load a library.
    _prctl = ctypes.CDLL(None, use_errno=True).prctl


def _die_with_parent(number: int, parent: int) -> None:
    _prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # It died before the line above.
        os._exit(1)


def _started(pid: int) -> str | None:
    if sys.platform != "linux":
        return _started_elsewhere(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may itself hold blanks and parentheses.
    fields = stat[stat.rindex(")") + 2 :].split()
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else f"{_boot_id()}/{ticks}"


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "boot"


def _started_elsewhere(pid: int) -> str | None:
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = done.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def _kill_group(pid: int) -> None:
    """Kills a session's leader and whatever stayed in its process group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
