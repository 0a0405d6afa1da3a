"""Builds the control plane from source, where Go is at hand and nothing else is.

Role: compiles dev/controlplane into one binary with a name for each component, in a cache folder keyed
by its sources. Checks first that the machine can do it, and says plainly what it lacks.

Boundary: called by binaries.py, which holds the lock. Needs Go's module proxy or a filled module cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from almoner_dev import cache, golang
from almoner_dev.cache import COMPONENTS, KUBERNETES_VERSION, Say

PACKAGES_ROUGHLY = 2600
BINARY = "controlplane"


def sources() -> Path:
    """Returns the folder of the Go module."""
    return Path(__file__).resolve().parent.parent / "controlplane"


def cache_key() -> str:
    """Returns the name of the cache folder: it changes whenever what would be built changes."""
    digest = hashlib.sha256(f"{KUBERNETES_VERSION} {cache.platform_name()}".encode())
    for name in ("go.mod", "go.sum", "main.go"):
        path = sources() / name
        digest.update(path.read_bytes() if path.exists() else b"absent")
    return f"{KUBERNETES_VERSION}-{digest.hexdigest()[:16]}"


def build(root: Path, *, environ: Mapping[str, str] = os.environ, tell: Say = cache.say) -> Path:
    """Builds into the cache and returns the folder. About six minutes on two cores, eight GB of scratch.

    Raises golang.CannotBuild when the machine lacks something, or with the end of Go's output when it fails.
    """
    reasons = golang.refusals(golang.this_machine(environ))
    if not (sources() / "main.go").exists():
        reasons.insert(0, f"the sources are not at {sources()}: run from a checkout of the repository")
    if reasons:
        raise golang.CannotBuild(reasons)
    tell(f"building the control plane of Kubernetes {KUBERNETES_VERSION} with Go: 5 to 10 minutes, this once")
    with cache.fresh_directory(root, cache_key()) as target:
        golang.compile_module(
            sources(),
            target / BINARY,
            ldflags=version_flags(),
            packages_roughly=PACKAGES_ROUGHLY,
            environ=environ,
            tell=tell,
        )
        for name in COMPONENTS:
            (target / name).symlink_to(BINARY)
    return root / cache_key()


def version_flags() -> str:
    """Returns the linker's flags that stamp Kubernetes' version into a binary, and leave debugging symbols out."""
    version = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamp = "k8s.io/component-base/version."
    values = {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": version[0],
        "gitMinor": version[1],
        "gitTreeState": "clean",
    }
    return " ".join(["-s -w", *(f"-X {stamp}{name}={value}" for name, value in values.items())])
