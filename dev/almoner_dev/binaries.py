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

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from almoner_dev import gobuild, golang, releases
from almoner_dev.cache import COMPONENTS, Say, cache_root, missing_in, only_one, say


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
    candidates = [root / gobuild.cache_key(), *releases.cached(root)]
    for directory in candidates:
        if not missing_in(directory, names):
            return Binaries(directory, "cache")
    reasons.append(f"the cache ({root}) has none for this version")
    return None


def _from_releases(names: Sequence[str], environ: Mapping[str, str], reasons: list[str], tell: Say) -> Binaries | None:
    try:
        directory = releases.download(names, cache_root(environ), environ=environ, tell=tell)
    except releases.NotAvailable as error:
        reasons.append(f"the releases: {error}")
        tell(f"no release to download ({error}); trying a Go build")
        return None
    return Binaries(directory, "release")


def _from_build(names: Sequence[str], environ: Mapping[str, str], reasons: list[str], tell: Say) -> Binaries:
    try:
        directory = gobuild.build(cache_root(environ), environ=environ, tell=tell)
    except golang.CannotBuild as error:
        listed = "".join(f"\n  - {reason}" for reason in [*reasons, *(f"a Go build: {r}" for r in error.reasons)])
        raise BinariesMissing(
            f"No control plane binaries ({', '.join(names)}), and none can be made here:{listed}"
        ) from error
    return Binaries(directory, "go build")
