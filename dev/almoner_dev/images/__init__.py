"""Almoner's images, built from the Dockerfiles without a registry, a network or anything of the machine's images.

Role: `build` gives OCI archives of almoner-operator and almoner-runner for what the checkout holds: a base made by
debootstrap (or any that is named), the packages of locks/ as wheels, and buildah. Each of the three is kept in the
cache, and so are the archives.

Boundary: the Dockerfiles say what an image is; this says what they are given. From the same commit, base and buildah
come the same archives, byte for byte; another builder, or version of buildah, packs the same files differently.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from almoner_dev import cache
from almoner_dev.cache import Say
from almoner_dev.images import archive, debian, machine, wheels
from almoner_dev.images.machine import ImagesImpossible, NothingToBuildFrom
from almoner_dev.images.store import MOUNT_POINT, Store

PARTS = ("operator", "runner")
ROOT = Path(__file__).resolve().parents[3]
KEPT_MAX = 3
"""Builds whose archives stay in the cache, the newest."""
LOCKS = ("build", *PARTS)

__all__ = [
    "PARTS",
    "Built",
    "ImagesImpossible",
    "NothingToBuildFrom",
    "build",
    "cache_folder",
    "look",
    "reference",
    "verify",
]


@dataclass(frozen=True)
class Source:
    """What a build is made from, beside the base."""

    revision: str
    """The commit that last changed something of the images; with `-dirty` where the checkout has further changes."""
    epoch: int
    """The time that every added file has, in seconds since 1970: SOURCE_DATE_EPOCH, else that commit's."""
    version: str


@dataclass(frozen=True)
class _Base:
    """The base by its name, which a Dockerfile is given, and by its id, which changes with what is in it."""

    name: str
    identity: str


@dataclass(frozen=True)
class Built:
    """An image: its archive, its digest, its sizes in bytes (layers packed and unpacked), and how long it took."""

    part: str
    path: Path
    digest: str
    packed: int
    unpacked: int
    added: int
    """What its own layer, the uppermost, has, unpacked: the base is not in it."""
    seconds: float
    """0 where it was in the cache."""


def cache_folder() -> Path:
    """Where everything is kept between runs."""
    return cache.cache_root(what="images")


def reference(part: str) -> str:
    """The name of an image in its archive."""
    return f"localhost/almoner-{part}:{_version()}"


def build(*, base: str | None = None, tell: Say = cache.say) -> dict[str, Built]:
    """Builds both images, and returns them by part; takes them from the cache where nothing of them has changed.

    `base` is an image of a registry; None: one that debootstrap makes. Raises ImagesImpossible with what lacks or
    failed.
    """
    root = cache_folder()
    machine.demand(root, base=base is None)
    with _ready(root, base, tell) as (store, found):
        return _both(store, found, tell)


def verify(built: Mapping[str, Built], *, base: str | None = None, tell: Say = cache.say) -> list[str]:
    """Builds both images again, whatever the cache has, and says in what they differ; nothing: in nothing.

    Raises ImagesImpossible like `build`, and where the checkout is no longer what they were built from.
    """
    said = []
    root = cache_folder()
    with (
        _ready(root, base, tell) as (store, found),
        tempfile.TemporaryDirectory(prefix="again-", dir=root) as scratch,
    ):
        for part, first in built.items():
            if first.path.parent.name != _key(found.identity):
                raise ImagesImpossible("the checkout has changed since these images were built: build them again first")
            tell(f"building almoner-{part} again")
            again = Path(scratch) / first.path.name
            _make(store, part, found, again, tell)
            if again.read_bytes() != first.path.read_bytes():
                differing = archive.differences(first.path, again) or ["the archives' wrapping"]
                said += [f"almoner-{part}: {each}" for each in differing]
    return said


@contextlib.contextmanager
def _ready(root: Path, base: str | None, tell: Say) -> Iterator[tuple[Store, _Base]]:
    """A store with the base in it; nobody else uses the cache meanwhile."""
    with cache.only_one(root, tell):
        source = f"oci-archive:{debian.base(root, tell=tell)}" if base is None else base
        with Store(root / "store", tell) as store:
            try:
                identity = store.pull(source)
            except ImagesImpossible as error:
                raise NothingToBuildFrom(f"the base {source} could not be had: {error}") from error
            yield store, _Base(base or f"{debian.REFERENCE}:{debian.key()}", identity)


def _both(store: Store, base: _Base, tell: Say) -> dict[str, Built]:
    """Both images from the cache, or built into it."""
    builds = cache_folder() / "built"
    folder = builds / _key(base.identity)
    seconds = dict.fromkeys(PARTS, 0.0)
    if not folder.is_dir():
        with cache.fresh_directory(builds, folder.name) as fresh:
            for part in PARTS:
                tell(f"building almoner-{part}")
                began = time.monotonic()
                _make(store, part, base, fresh / _file(part), tell)
                seconds[part] = time.monotonic() - began
    os.utime(folder)
    for old in sorted(builds.iterdir(), key=lambda each: each.stat().st_mtime)[:-KEPT_MAX]:
        shutil.rmtree(old)
    return {part: look(part, folder / _file(part), seconds[part]) for part in PARTS}


def look(part: str, path: Path, seconds: float = 0.0) -> Built:
    """What an archive has."""
    with archive.Archive(path) as image:
        layers = image.layers()
        return Built(
            part,
            path,
            image.digest,
            packed=sum(layer.stored for layer in layers),
            unpacked=sum(layer.unpacked for layer in layers),
            added=layers[-1].unpacked,
            seconds=seconds,
        )


def _file(part: str) -> str:
    return f"almoner-{part}.tar"


def _make(store: Store, part: str, base: _Base, target: Path, tell: Say) -> None:
    """Builds one archive."""
    root = cache_folder()
    locks = [ROOT / "locks" / f"{lock}.txt" for lock in LOCKS]
    folder = wheels.folder(root, store, base.identity, locks, tell=tell)
    source = _source()
    arguments = {
        "BASE": base.name,
        "VERSION": source.version,
        "REVISION": source.revision,
        "PIP_FIND_LINKS": MOUNT_POINT,
        "PIP_NO_INDEX": "1",
    }
    with tempfile.TemporaryDirectory(prefix="layout-", dir=root) as scratch:
        layout = Path(scratch) / "layout"
        store.build(ROOT, f"Dockerfile.{part}", layout, arguments=arguments, epoch=source.epoch, folder=folder)
        archive.pack(layout, target, reference(part))


def _source(environ: Mapping[str, str] = os.environ) -> Source:
    paths = _given()
    revision, _, committed = _git("log", "-1", "--format=%H %ct", "--", *paths).partition(" ")
    if not revision:
        raise ImagesImpossible(f"{ROOT} is no checkout of git: build with docker, or buildah by hand")
    if _git("status", "--porcelain", "--", *paths):
        revision += "-dirty"
    epoch = environ.get("SOURCE_DATE_EPOCH") or committed
    if not epoch.isdigit():
        raise ImagesImpossible(f"SOURCE_DATE_EPOCH is {epoch!r}: a number of seconds since 1970 is needed")
    return Source(revision, int(epoch), _version())


def _key(base: str) -> str:
    """What the archives depend on, in one word: the base's id, and every file that a build is given."""
    digest = hashlib.sha256(f"{base} {_source()}".encode())
    listed = _git("ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *_given())
    for name in sorted(name for name in listed.split("\0") if name):
        path = ROOT / name
        if path.is_file():
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _given() -> list[str]:
    """What a build is given of the checkout, and what says how."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    shown = [line.removeprefix("!") for line in lines if line.startswith("!")]
    return [*shown, ".dockerignore", *(f"Dockerfile.{part}" for part in PARTS)]


def _version() -> str:
    version: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return version


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
