"""Where the control plane's binaries come from.

Role: finds etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl, in this order:

1. `KUBEBUILDER_ASSETS`, a folder that holds them (what setup-envtest prints);
2. the cache, filled by an earlier download or build;
3. the releases, where the internet is to be had (releases.py);
4. a Go build of dev/controlplane (gobuild.py).

The first source that has every asked-for binary is used, and named in `Binaries.source`: binaries of
two sources are never mixed, since their versions may not fit each other.

Boundary: finds and fetches; starts nothing of them.
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
from dataclasses import dataclass
from pathlib import Path

KUBERNETES_VERSION = "v1.34.4"
COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
PROGRESS_EVERY_S = 5.0

Say = Callable[[str], None]


class BinariesMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """No source has the binaries; the message says what each one lacked and what to do about it."""


@dataclass(frozen=True)
class Binaries:
    """Binaries in one folder, and where they came from."""

    directory: Path
    source: str
    """One of "KUBEBUILDER_ASSETS", "cache", "release", "go build"; for people."""

    def path(self, name: str) -> Path:
        """Returns the path of a component's binary."""
        return self.directory / name


def say(message: str) -> None:
    """Tells the person at the terminal what is going on, on standard error."""
    print(f"[almoner] {message}", file=sys.stderr, flush=True)


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder in which binaries are kept between runs."""
    base = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".cache")
    return Path(base) / "almoner" / "controlplane"


def platform_name() -> str:
    """Returns Go's name of this platform, such as linux-amd64."""
    machine = platform.machine().lower()
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
    return f"{sys.platform}-{architecture}"


def find(names: Sequence[str] = COMPONENTS, *, environ: Mapping[str, str] = os.environ, tell: Say = say) -> Binaries:
    """Finds or makes the binaries; may take minutes the first time, and says so on standard error.

    Raises BinariesMissing when no source has them all, with the reason of each.
    """
    reasons: list[str] = []
    found = from_assets(names, environ, reasons) or from_cache(names, cache_root(environ), reasons)
    if found is not None:
        return found
    with only_one(cache_root(environ), tell):
        # Another process may have filled the cache while this one waited for the lock.
        return (
            from_cache(names, cache_root(environ), [])
            or _from_releases(names, environ, reasons, tell)
            or _from_build(names, environ, reasons, tell)
        )


def from_assets(names: Sequence[str], environ: Mapping[str, str], reasons: list[str]) -> Binaries | None:
    """Looks into KUBEBUILDER_ASSETS; adds to `reasons` why it does not serve."""
    assets = environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return None
    lacking = missing_in(Path(assets), names)
    if not lacking:
        return Binaries(Path(assets).resolve(), "KUBEBUILDER_ASSETS")
    reasons.append(f"KUBEBUILDER_ASSETS ({assets}) lacks {', '.join(lacking)}")
    return None


def from_cache(names: Sequence[str], root: Path, reasons: list[str]) -> Binaries | None:
    """Looks into the cache, built binaries first; adds to `reasons` why it does not serve."""
    from almoner_dev import gobuild, releases

    candidates = [root / gobuild.cache_key(), *releases.cached(root)]
    for directory in candidates:
        if not missing_in(directory, names):
            return Binaries(directory, "cache")
    reasons.append(f"the cache ({root}) has none for this version")
    return None


def _from_releases(names: Sequence[str], environ: Mapping[str, str], reasons: list[str], tell: Say) -> Binaries | None:
    from almoner_dev import releases

    try:
        directory = releases.download(names, cache_root(environ), environ=environ, tell=tell)
    except releases.NotAvailable as error:
        reasons.append(f"the releases: {error}")
        tell(f"no release to download ({error}); trying a Go build")
        return None
    return Binaries(directory, "release")


def _from_build(names: Sequence[str], environ: Mapping[str, str], reasons: list[str], tell: Say) -> Binaries:
    from almoner_dev import gobuild

    try:
        directory = gobuild.build(cache_root(environ), environ=environ, tell=tell)
    except gobuild.CannotBuild as error:
        listed = "".join(f"\n  - {reason}" for reason in [*reasons, *(f"a Go build: {r}" for r in error.reasons)])
        raise BinariesMissing(
            f"No control plane binaries ({', '.join(names)}), and none can be made here:{listed}"
        ) from error
    return Binaries(directory, "go build")


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
