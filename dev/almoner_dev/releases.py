"""Downloads released binaries, where the internet is to be had.

Role: takes etcd, kube-apiserver and kubectl from the envtest releases, and the controller manager and
the scheduler, which those lack, from Kubernetes' own release of the same version. Everything is checked
against the published digest. Gives up within seconds where nothing answers.

Boundary: called by binaries.py, which holds the lock. Settings: `ALMONER_DOWNLOADS=never` turns it off,
`ALMONER_ENVTEST_INDEX` and `ALMONER_KUBERNETES_RELEASES` name mirrors.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from almoner_dev import cache
from almoner_dev.cache import KUBERNETES_VERSION, PROGRESS_EVERY_S, Say

ENVTEST_INDEX = "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/HEAD/envtest-releases.yaml"
KUBERNETES_RELEASES = "https://dl.k8s.io/release"
IN_ENVTEST = ("etcd", "kube-apiserver", "kubectl")
CONNECT_SECONDS = 3.0
INDEX_BYTES_MAX = 16 * 2**20
FILE_BYTES_MAX = 512 * 2**20
CHUNK_BYTES = 2**20
DIRECTORY_PREFIX = "release-"


class NotAvailable(RuntimeError):  # noqa: N818 - the name says what is the matter
    """Nothing fit could be downloaded; the message says why."""


def cached(root: Path) -> list[Path]:
    """Returns the folders of earlier downloads for this platform, newest version first."""
    minor = KUBERNETES_VERSION.rpartition(".")[0]
    found = root.glob(f"{DIRECTORY_PREFIX}{minor}.*-{cache.platform_name()}")
    return sorted(found, key=lambda path: _patch(path.name), reverse=True)


def download(
    names: Sequence[str], root: Path, *, environ: Mapping[str, str] = os.environ, tell: Say = cache.say
) -> Path:
    """Downloads the newest patch release of our minor version into the cache; returns the folder.

    Raises NotAvailable when downloads are off, nothing answers within 3 s, there is no release for this
    platform, or a digest does not match.
    """
    if environ.get("ALMONER_DOWNLOADS", "").lower() in {"never", "no", "off", "0"}:
        raise NotAvailable("ALMONER_DOWNLOADS turns them off")
    index = environ.get("ALMONER_ENVTEST_INDEX") or ENVTEST_INDEX
    releases = (environ.get("ALMONER_KUBERNETES_RELEASES") or KUBERNETES_RELEASES).rstrip("/")
    version, archive, digest = choose(_fetch(index, INDEX_BYTES_MAX))
    operating_system, architecture = cache.platform_name().split("-")
    archive = urllib.parse.urljoin(index, archive)
    with cache.fresh_directory(root, f"{DIRECTORY_PREFIX}{version}-{cache.platform_name()}") as target:
        packed = target / "envtest.tar.gz"
        _download(archive, packed, digest, tell)
        _unpack(packed, target)
        packed.unlink()
        for name in sorted(set(names) - set(IN_ENVTEST)):
            url = f"{releases}/{version}/bin/{operating_system}/{architecture}/{name}"
            published = _fetch(f"{url}.sha512", 4096).decode(errors="replace").split()
            _download(url, target / name, published[0] if published else "", tell)
            (target / name).chmod(0o755)
        lacking = cache.missing_in(target, names)
        if lacking:
            raise NotAvailable(f"release {version} lacks {', '.join(lacking)}")
    tell(f"downloaded Kubernetes {version}")
    return root / f"{DIRECTORY_PREFIX}{version}-{cache.platform_name()}"


def choose(index: bytes) -> tuple[str, str, str]:
    """Picks the newest patch release of our minor version; returns its version, address and SHA-512.

    Raises NotAvailable when the index is no index, or has no such release for this platform.
    """
    try:
        document = yaml.safe_load(index)
        releases = dict(document["releases"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise NotAvailable("the index of releases cannot be read") from error
    minor = KUBERNETES_VERSION.rpartition(".")[0]
    fitting = [v for v in releases if re.fullmatch(rf"{re.escape(minor)}\.\d+", str(v))]
    for version in sorted(fitting, key=_patch, reverse=True):
        entry = (releases[version] or {}).get(f"envtest-{version}-{cache.platform_name()}.tar.gz")
        if isinstance(entry, dict) and {"selfLink", "hash"} <= entry.keys():
            return version, str(entry["selfLink"]), str(entry["hash"])
    raise NotAvailable(f"the index has no {minor} release for {cache.platform_name()}")


def _patch(name: str) -> int:
    found = re.search(r"v\d+\.\d+\.(\d+)", name)
    return int(found[1]) if found else -1


def _fetch(url: str, bytes_max: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response:
            content: bytes = response.read(bytes_max + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotAvailable(f"{_host(url)} does not give it: {_reason(error)}") from error
    if len(content) > bytes_max:
        raise NotAvailable(f"{url} is longer than {bytes_max} bytes")
    return content


def _download(url: str, target: Path, sha512: str, tell: Say) -> None:
    """Downloads a file and checks its digest."""
    digest, received, began = hashlib.sha512(), 0, time.monotonic()
    told = began
    try:
        with urllib.request.urlopen(url, timeout=10 * CONNECT_SECONDS) as response, target.open("wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                received += len(chunk)
                if received > FILE_BYTES_MAX:
                    raise NotAvailable(f"{url} is longer than {FILE_BYTES_MAX} bytes")
                digest.update(chunk)
                file.write(chunk)
                if time.monotonic() - told >= PROGRESS_EVERY_S:
                    told = time.monotonic()
                    tell(f"{told - began:.0f} s: {received / 1e6:.0f} MB of {PurePosixPath(url).name}")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NotAvailable(f"{_host(url)} stopped answering: {_reason(error)}") from error
    if digest.hexdigest() != sha512.lower():
        raise NotAvailable(f"{url} does not have the SHA-512 that was published for it")


def _unpack(archive: Path, target: Path) -> None:
    """Takes the named binaries out of the archive, whatever folder they are in there, and nothing else."""
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                name = PurePosixPath(member.name).name
                content = packed.extractfile(member) if member.isfile() and name in IN_ENVTEST else None
                if content is not None:
                    with (target / name).open("wb") as file:
                        shutil.copyfileobj(content, file, CHUNK_BYTES)
                    (target / name).chmod(0o755)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise NotAvailable(f"the archive of the release cannot be unpacked: {error}") from error


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or url


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason} for {error.url}"
    return str(error.reason if isinstance(error, urllib.error.URLError) else error) or type(error).__name__
