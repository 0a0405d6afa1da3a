"""One container as a process: start it, see it end, stop it, run something beside it.

Role: from a container's manifest to a child process of the node and back to a container state.
Boundary: when to start, restart or stop is the pod's decision. Why every start has a task that waits
for the end: a state must become true even when whoever started the container was cancelled meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from almoner_dev.node.api import Json
from almoner_dev.node.env import ConfigError, PodFacts, Rewrite, argv, container_environment, references
from almoner_dev.node.isolation import Isolation, PodNetwork, search_path
from almoner_dev.node.objects import Objects
from almoner_dev.node.status import MESSAGE_BYTES_MAX, Record, exit_code_of, terminated
from almoner_dev.node.volumes import Volumes

LAUNCH = Path(__file__).with_name("launch.py")
LOG_MESSAGE_BYTES = 2048
LOG_MESSAGE_LINES = 80
EXEC_OUTPUT_BYTES_MAX = 10_000
HOOK_SECONDS_MAX = 30.0
DEFAULT_TERMINATION_PATH = "/dev/termination-log"
# Fields of the pod's security context that containers inherit.
INHERITED = ("runAsUser", "runAsGroup", "runAsNonRoot", "supplementalGroups", "fsGroup")


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class NoCommandError(Exception):
    """Only an image would know what to run, and a process node has no images."""


class StartError(Exception):
    """The process could not be started; the pod reports exit code 128."""


@dataclass
class Surroundings:
    """What the containers of one pod share."""

    pod: Json
    folder: Path
    facts: PodFacts
    volumes: Volumes
    objects: Objects
    isolation: Isolation
    network: PodNetwork
    image_commands: Mapping[str, Sequence[str]]
    launching: asyncio.Semaphore
    changed: Callable[[], None]


@dataclass
class Container:
    """One container of a pod, over all its restarts."""

    manifest: Json
    record: Record
    around: Surroundings
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while its startup probe has passed (or it has none and runs)."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no process of it runs."""
    pid: int | None = None
    _watch: asyncio.Task[None] | None = None
    _launch: dict[str, Any] = field(default_factory=dict)
    _oom: bool = False
    _rewrite: Rewrite | None = None

    def __post_init__(self) -> None:
        self.gone.set()

    @property
    def name(self) -> str:
        """Its name in the pod."""
        return str(self.manifest["name"])

    @property
    def log_path(self) -> Path:
        """Standard output and error of the present or last run."""
        return self.around.folder / "logs" / f"{self.name}.log"

    @property
    def _message_path(self) -> Path:
        return self.around.folder / "messages" / self.name

    @property
    def security_context(self) -> dict[str, Any]:
        """The container's security context with what it inherits from the pod."""
        of_pod = self.around.pod["spec"].get("securityContext") or {}
        inherited = {key: of_pod[key] for key in INHERITED if key in of_pod}
        return inherited | (self.manifest.get("securityContext") or {})

    async def start(self) -> None:
        """Start a fresh process. Raises ConfigError, NoCommandError, StartError, ApiError."""
        specification = await self._specification()
        self._rotate_log()
        started = now()
        async with self.around.launching:
            process = await self._spawn(specification)
        self.pid = process.pid
        self._oom = False
        self.gone.clear()
        self.record.container_id = f"process://{self.around.pod['metadata']['uid']}-{self.name}-{process.pid}"
        self.record.state = {"running": {"startedAt": started}}
        self._watch = asyncio.create_task(self._wait(process, started), name=f"wait {self.name}")
        self.around.changed()

    async def _specification(self) -> dict[str, Any]:
        around, pod = self.around, self.around.pod
        namespace = pod["metadata"]["namespace"]
        found = {key: await around.objects.read(key[0], namespace, key[1]) for key in references(self.manifest)}
        mounts = around.volumes.mounts(self.manifest)
        mounts.append(self._termination_mount())
        self._rewrite = rewrite = around.isolation.rewrite(around.network, mounts, around.folder / "links" / self.name)
        given = container_environment(
            pod, self.manifest, around.facts, lambda kind, name: found.get((kind, name)), rewrite
        )
        command = argv(self.manifest, given, around.image_commands, rewrite)
        if command is None:
            raise NoCommandError(
                f'image "{self.record.image}" is not present: a process node runs no images, '
                f"give container {self.name!r} a command"
            )
        context = self.security_context
        home = "/root" if context.get("runAsUser", 0) == 0 else "/"
        if rewrite is not None:
            home = str(around.folder / "home")
            Path(home).mkdir(exist_ok=True)  # noqa: ASYNC240 - one local folder
        cwd = self.manifest.get("workingDir") or ("/" if rewrite is None else home)
        staging = around.folder / "roots" / self.name
        staging.mkdir(parents=True, exist_ok=True)
        hostname = pod["spec"].get("hostname") or pod["metadata"]["name"]
        place = around.isolation.place(
            around.network, mounts, {"context": context, "hostname": hostname[:63], "staging": str(staging)}
        )
        environment = {"PATH": search_path(), "HOSTNAME": hostname[:63], "HOME": home, "LANG": "C.UTF-8"} | given
        return {
            "argv": command,
            "env": environment,
            "cwd": rewrite.text(cwd) if rewrite else cwd,
            "parent": os.getpid(),
            **place,
        }

    def _termination_mount(self) -> dict[str, Any]:
        path = self._message_path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        path.chmod(0o666)
        target = self.manifest.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH
        return {"source": str(path), "target": target, "read_only": False}

    def _rotate_log(self) -> None:
        self.log_path.parent.mkdir(exist_ok=True)
        if self.log_path.exists():
            self.log_path.rename(self.log_path.with_suffix(".previous"))
        self.log_path.touch()

    async def _spawn(self, specification: dict[str, Any]) -> asyncio.subprocess.Process:
        self._launch = {
            key: specification[key] for key in ("env", "cwd", "user", "group", "groups") if key in specification
        }
        with self.log_path.open("ab") as log:
            return await spawn(specification, log)

    async def _wait(self, process: asyncio.subprocess.Process, started: str) -> None:
        code = exit_code_of(await process.wait())
        # A container's other processes end with its first one.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self.finish(code, started, reason="OOMKilled" if self._oom else "")

    def finish(self, code: int, started: str, *, reason: str = "", message: str | None = None) -> None:
        """Record the end of a run (or of an attempt to start one)."""
        self.pid = None
        self.record.started = self.record.ready = False
        self.started.clear()
        self.record.state = terminated(
            code,
            started=started,
            finished=now(),
            message=self._last_words(code) if message is None else message,
            reason=reason,
            container_id=self.record.container_id,
        )
        self.gone.set()
        self.around.changed()

    def _last_words(self, code: int) -> str:
        words = _tail(self._message_path, MESSAGE_BYTES_MAX, from_start=True)
        if words or code == 0 or self.manifest.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return words
        lines = _tail(self.log_path, LOG_MESSAGE_BYTES).splitlines(keepends=True)
        return "".join(lines[-LOG_MESSAGE_LINES:])

    def signal(self, number: int) -> None:
        """Signal the process; SIGKILL goes to all processes of its group."""
        if self.pid is None or self.gone.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def kill_for_memory(self) -> None:
        """Kill it as the kernel would past its memory limit."""
        self._oom = True
        self.signal(signal.SIGKILL)

    async def beside(self, command: list[str], seconds: float) -> tuple[int, str]:
        """Run a command in the running container; its exit code and output. Raises StartError, TimeoutError."""
        if self.pid is None:
            raise StartError(f"container {self.name!r} does not run")
        specification = {
            **self._launch,
            # Variables are not expanded in hooks and probes, but paths are what they are for the container.
            "argv": [self._rewrite.text(part) for part in command] if self._rewrite else command,
            "parent": os.getpid(),
            **self.around.isolation.beside(self.pid),
        }
        read, write = os.pipe()
        with os.fdopen(read, "rb") as output, os.fdopen(write, "wb") as sink:
            process = await spawn(specification, sink)
            sink.close()
            try:
                async with asyncio.timeout(seconds):
                    code = await process.wait()
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
            os.set_blocking(output.fileno(), False)
            return exit_code_of(code), (output.read(EXEC_OUTPUT_BYTES_MAX) or b"").decode(errors="replace")


async def spawn(specification: dict[str, Any], output: BinaryIO) -> asyncio.subprocess.Process:
    """Start a process as the specification says (see launch.py). Raises StartError."""
    # In memory, never on a disk: the environment may hold secrets.
    descriptor = os.memfd_create("specification")
    read, write = os.pipe()
    try:
        os.write(descriptor, json.dumps(specification).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        # -S would lose nothing, but the standard library is all it may use: say so to the interpreter.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(LAUNCH), str(descriptor), str(write)),
            pass_fds=(descriptor, write),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    except OSError as error:
        os.close(read)
        raise StartError(f"cannot start a process: {error}") from error
    finally:
        os.close(descriptor)
        os.close(write)
    try:
        failure = await _read_all(read)
    except BaseException:
        # Interrupted while it was becoming a container: nobody knows of it yet, so nobody else would end it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise
    if failure:
        await process.wait()
        raise StartError(failure)
    return process


async def _read_all(descriptor: int) -> str:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return (await reader.read()).decode(errors="replace")
    finally:
        transport.close()


def _tail(path: Path, size: int, *, from_start: bool = False) -> str:
    try:
        with path.open("rb") as stream:
            if not from_start:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read(size).decode(errors="ignore")
    except OSError:
        return ""


def group_memory_bytes() -> dict[int, int]:
    """Resident memory by session, of every process of the machine that can be read."""
    page = os.sysconf("SC_PAGE_SIZE")
    result: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - hundreds of names a second
        if not re.fullmatch(r"\d+", entry):
            continue
        try:
            stat = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        session, resident = int(fields[3]), int(fields[21])
        result[session] = result.get(session, 0) + resident * page
    return result


__all__ = [
    "ConfigError",
    "Container",
    "NoCommandError",
    "StartError",
    "Surroundings",
    "group_memory_bytes",
    "now",
]
