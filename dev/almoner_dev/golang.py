"""Go builds: what they need of the machine, and how one is run.

Role: compiles a Go module of this repository with a throw-away build cache, shows progress, and says plainly what
the machine lacks. Shared by the control plane (gobuild.py) and the tools (gotools.py).

Boundary: knows nothing of what is built or where it is kept. Needs Go's module proxy or a filled module cache.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from almoner_dev import processes
from almoner_dev.cache import PROGRESS_EVERY_S, Say

GO_MINIMUM = (1, 24)
GO_FETCHING_MINIMUM = (1, 21)
"""From here on Go fetches the toolchain that go.mod asks for, unless GOTOOLCHAIN=local."""
DISK_GB_MINIMUM = 10
MEMORY_GB_MINIMUM = 4
BUILD_SECONDS_MAX = 3600
SCRATCH_PREFIX = "almoner-go-build-"
OWN_MODULES = "almoner.dev/"


class CannotBuild(RuntimeError):  # noqa: N818 - the name says what is the matter
    """The machine lacks something that a build needs, or the build failed; `reasons` says what, and what to do."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True)
class Machine:
    """What decides whether a build can succeed. None: could not be found out, and is not held against it."""

    go: str | None
    """What `go version` printed, or None without Go."""
    go_toolchain: str
    """`go env GOTOOLCHAIN`."""
    disk_gb: float | None
    """Free where the build's caches are kept, in 10^9 bytes."""
    memory_gb: float | None
    """Available memory, in 10^9 bytes."""
    scratch: Path


def refusals(
    machine: Machine,
    *,
    disk_gb: float = DISK_GB_MINIMUM,
    elsewhere: str = "copy the binaries from a larger machine and set KUBEBUILDER_ASSETS to their folder",
) -> list[str]:
    """Says what a build would lack on such a machine, each with how to get it; nothing: it can build.

    `disk_gb` is what the build needs while it runs, in 10^9 bytes; `elsewhere` says how to do without building here.
    """
    reasons: list[str] = []
    wanted = f"{GO_MINIMUM[0]}.{GO_MINIMUM[1]}"
    get_go = f"install Go {wanted} or newer (https://go.dev/doc/install)"
    version = re.search(r"go(\d+)\.(\d+)", machine.go or "")
    if machine.go is None:
        reasons.append(f"Go is not on the PATH: {get_go}")
    elif version is None:
        reasons.append(f"cannot read Go's version from {machine.go!r}: {get_go}")
    else:
        found = (int(version[1]), int(version[2]))
        name = f"Go {found[0]}.{found[1]}"
        if found < GO_FETCHING_MINIMUM:
            reasons.append(f"{name} is too old: {get_go}")
        elif found < GO_MINIMUM and machine.go_toolchain == "local":
            reasons.append(f"{name} is too old and may not fetch a newer one: set GOTOOLCHAIN=auto, or {get_go}")
    if machine.disk_gb is not None and machine.disk_gb < disk_gb:
        reasons.append(
            f"{machine.disk_gb:.1f} GB of disk are free in {machine.scratch}, the build needs {disk_gb:g} GB "
            "while it runs: free some, or point TMPDIR at a larger disk"
        )
    if machine.memory_gb is not None and machine.memory_gb < MEMORY_GB_MINIMUM:
        reasons.append(
            f"{machine.memory_gb:.1f} GB of memory are available, the linker needs {MEMORY_GB_MINIMUM} GB: "
            f"stop something, or {elsewhere}"
        )
    return reasons


def this_machine(environ: Mapping[str, str] = os.environ) -> Machine:
    """Looks at this machine."""
    scratch = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    go = shutil.which("go", path=environ.get("PATH"))
    try:
        disk = shutil.disk_usage(scratch).free / 1e9
    except OSError:
        disk = None
    return Machine(
        go=_output([go, "version"], environ) if go else None,
        go_toolchain=_output([go, "env", "GOTOOLCHAIN"], environ) or "auto" if go else "",
        disk_gb=disk,
        memory_gb=_memory_gb(),
        scratch=scratch,
    )


def compile_module(
    sources: Path,
    output: Path,
    *,
    package: str = ".",
    ldflags: str = "-s -w",
    tags: Sequence[str] = (),
    packages_roughly: int,
    environ: Mapping[str, str],
    tell: Say,
) -> None:
    """Builds a package of the module in `sources` without cgo; shows progress every few seconds.

    `output` is the binary to write. `packages_roughly` is the number of packages to compile, for the progress. Raises
    CannotBuild with the end of Go's output when the build fails or takes longer than an hour.
    """
    command = ["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", ldflags]
    command += [f"-tags={','.join(tags)}", "-o", str(output), package]
    if shutil.which("nice"):
        command = ["nice", "-n", "10", *command]
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=environ.get("TMPDIR")) as name:
        scratch = Path(name)
        (scratch / "cache").mkdir()
        # A cache of its own: Go's would keep several GB that nothing else uses. GOFLAGS and GOWORK of the
        # user's are for the user's projects.
        env = {
            **environ,
            "CGO_ENABLED": "0",
            "GOCACHE": str(scratch / "cache"),
            "GOTMPDIR": str(scratch),
            "GOFLAGS": "-mod=readonly",
            "GOWORK": "off",
        }
        child = processes.start(
            "go build", command, log_path=scratch / "build.log", cwd=sources, env=env, first_signal=signal.SIGINT
        )
        try:
            _watch(child, packages_roughly, tell)
        finally:
            child.stop(deadline_s=5)


def _watch(child: processes.Child, packages_roughly: int, tell: Say) -> None:
    began = told = time.monotonic()
    while child.running():
        now = time.monotonic()
        if now - began > BUILD_SECONDS_MAX:
            raise CannotBuild(
                [f"go build took longer than {BUILD_SECONDS_MAX} s; the end of its output: {child.tail()}"]
            )
        if now - told >= PROGRESS_EVERY_S:
            told = now
            lines = child.log_path.read_text(errors="replace").splitlines()
            compiled = sum(1 for line in lines if not line.startswith("go: "))
            doing = lines[-1][:100] if lines else "reading the module graph"
            if doing.startswith(OWN_MODULES):  # The last one: all that is left is the linker's work.
                doing = "linking"
            tell(f"{now - began:.0f} s: {compiled} of about {packages_roughly} packages compiled; now {doing}")
        time.sleep(0.2)
    if child.process.returncode != 0:
        raise CannotBuild([f"go build failed; the end of its output:\n{child.tail(15)}"])
    tell(f"built in {time.monotonic() - began:.0f} s")


def _output(command: list[str], environ: Mapping[str, str]) -> str | None:
    try:
        # Not in the module's folder: an old Go would stop at go.mod's version there.
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=dict(environ), timeout=30, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _memory_gb() -> float | None:
    """Available memory: the machine's, or the control group's limit where that is smaller."""
    found: list[float] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(limit).read_text()) / 1e9)
        except (OSError, ValueError):
            continue  # Absent, or "max".
    return min(found, default=None)
