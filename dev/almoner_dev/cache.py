"""The cache of the control plane's binaries: where it is, who may fill it, how it is filled.

Role: what the sources of binaries share. A folder appears in the cache whole or not at all, and one
process at a time fetches or builds.

Boundary: knows folders and locks; the sources are gobuild.py and releases.py, their order binaries.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

KUBERNETES_VERSION = "v1.34.4"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
PROGRESS_EVERY_S = 5.0

Say = Callable[[str], None]


def say(message: str) -> None:
    """Tells the person at the terminal what is going on, on standard error."""
    print(f"[almoner] {message}", file=sys.stderr, flush=True)


def cache_root(environ: Mapping[str, str] = os.environ, what: str = "controlplane") -> Path:
    """Returns the folder in which binaries (or whatever `what` names) are kept between runs."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(base) / "almoner" / what


def platform_name() -> str:
    """Returns Go's name of this platform, such as linux-amd64."""
    machine = platform.machine().lower()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{sys.platform}-{architecture}"


def missing_in(directory: Path, names: Sequence[str]) -> list[str]:
    """Returns those of the names that are no executable file in the directory."""
    return [name for name in names if not os.access(directory / name, os.X_OK) or (directory / name).is_dir()]


@contextlib.contextmanager
def only_one(root: Path, tell: Say) -> Iterator[None]:
    """Holds the cache's lock, so that two processes never fetch or build at once; says when it waits."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        began = told = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - told >= PROGRESS_EVERY_S:
                    told = now
                    tell(f"{now - began:.0f} s: waiting for another process that is fetching or building the binaries")
                time.sleep(0.2)
        yield


@contextlib.contextmanager
def fresh_directory(root: Path, name: str) -> Iterator[Path]:
    """Gives a new folder to fill, which becomes root/name at once and as a whole when the block succeeds."""
    root.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=root))
    try:
        yield fresh
        fresh.chmod(0o755)
        target = root / name
        if target.exists():  # Incomplete, or it would have been used.
            shutil.rmtree(target)
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
