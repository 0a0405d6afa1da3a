"""Tools written in Go that the tests and the real node need: helm, the node's parts, and others.

Role: `path("helm")` gives the binary of dev/gotools/helm, built once into the cache and built again when its sources
change. A folder there is a Go module with go.mod and go.sum, and one of two things:

- a main.go of its own;
- a `tool` line in go.mod that names a main package of another module (`tool helm.sh/helm/v3/cmd/helm`).

Its file `ldflags`, if it has one, holds further flags for the linker, such as a version to stamp in, over any number
of lines; its file `tags` build tags, likewise, which leave out what nobody here uses. The binary has the folder's name.
`{kubernetes}` in `ldflags` stands for the stamp of Kubernetes' version.

Boundary: builds and finds; starts nothing. What a build needs of the machine is golang.py's business.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from almoner_dev import cache, gobuild, golang
from almoner_dev.cache import Say

DISK_GB = 5.0
"""What a build writes while it runs, at most: the largest, the node's parts, fill 3 GB."""
PACKAGES_ROUGHLY = 1000
CACHE = "gotools"
BUILT_FROM = frozenset({"go.mod", "go.sum", "ldflags", "tags"})
"""The files that say what is built, besides the sources."""


class ToolMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """A Go tool is not in the cache and cannot be built here; the message says what lacks and what to do."""


def sources() -> Path:
    """Returns the folder that has a folder for each tool."""
    return Path(__file__).resolve().parent.parent / "gotools"


def names() -> list[str]:
    """Returns the tools that can be built."""
    return sorted(path.parent.name for path in sources().glob("*/go.mod"))


def path(name: str, *, environ: Mapping[str, str] = os.environ, tell: Say = cache.say) -> Path:
    """Returns the tool's binary; builds it where the cache has none, which takes one to six minutes and says so.

    Raises ToolMissing when there is no such tool, when the machine lacks what a build needs, or when it fails.
    """
    folder, root, binary = _places(name, environ)
    if os.access(binary, os.X_OK):
        return binary
    with cache.only_one(root, tell):
        if not os.access(binary, os.X_OK):  # Another process may have built it while this one waited.
            _build(folder, root, environ, tell)
    return binary


def cached(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the tool's binary where the cache has it, and None where it would have to be built."""
    _, _, binary = _places(name, environ)
    return binary if os.access(binary, os.X_OK) else None


def _places(name: str, environ: Mapping[str, str]) -> tuple[Path, Path, Path]:
    folder = sources() / name
    if not (folder / "go.mod").exists():
        raise ToolMissing(f"there is no Go tool {name!r} in {sources()}; there are: {', '.join(names()) or 'none'}")
    root = cache.cache_root(environ, CACHE) / name
    return folder, root, root / cache_key(folder) / name


def cache_key(folder: Path) -> str:
    """Returns the name of the folder in the cache: it changes whenever what would be built changes."""
    digest = hashlib.sha256(f"{cache.platform_name()} {gobuild.version_flags()}".encode())
    kept = [path for path in folder.rglob("*") if path.name in BUILT_FROM or path.suffix == ".go"]
    for path in sorted(kept):
        digest.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def package(folder: Path) -> str:
    """Returns what to build: the package of the one `tool` line in go.mod, or the module's own.

    Raises ToolMissing where there are several such lines: one folder is one tool.
    """
    text = (folder / "go.mod").read_text()
    found = re.findall(r"^tool\s+([^\s(]+)\s*$", text, re.MULTILINE)
    if len(found) > 1 or re.search(r"^tool\s*\(", text, re.MULTILINE):
        raise ToolMissing(f"{folder / 'go.mod'} names several tools: give each a folder of its own")
    return found[0] if found else "."


def ldflags(folder: Path) -> str:
    """Returns the linker's flags of a tool."""
    file = folder / "ldflags"
    own = " ".join(file.read_text().split()) if file.exists() else ""
    return f"-s -w {own}".strip().replace("{kubernetes}", gobuild.version_flags())


def tags(folder: Path) -> list[str]:
    """Returns the build tags of a tool; mostly none."""
    file = folder / "tags"
    return file.read_text().split() if file.exists() else []


def _build(folder: Path, root: Path, environ: Mapping[str, str], tell: Say) -> None:
    name = folder.name
    elsewhere = f"copy {root} from a machine that has built it"
    reasons = golang.refusals(golang.this_machine(environ), disk_gb=DISK_GB, elsewhere=elsewhere)
    if reasons:
        raise ToolMissing(_listed(name, reasons))
    tell(f"building {name} with Go: one to six minutes, this once")
    try:
        with cache.fresh_directory(root, cache_key(folder)) as target:
            golang.compile_module(
                folder,
                target / name,
                package=package(folder),
                ldflags=ldflags(folder),
                tags=tags(folder),
                packages_roughly=_packages(folder, environ),
                environ=environ,
                tell=tell,
            )
    except golang.CannotBuild as error:
        raise ToolMissing(_listed(name, error.reasons)) from error


def _packages(folder: Path, environ: Mapping[str, str]) -> int:
    """How many packages there are to compile, for the progress; a guess where Go does not say."""
    try:
        done = subprocess.run(
            ["go", "list", "-deps", f"-tags={','.join(tags(folder))}", package(folder)],
            cwd=folder,
            env={**environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired):
        return PACKAGES_ROUGHLY
    return len(done.stdout.splitlines()) or PACKAGES_ROUGHLY


def _listed(name: str, reasons: list[str]) -> str:
    return f"The Go tool {name} cannot be built here:" + "".join(f"\n  - {reason}" for reason in reasons)
