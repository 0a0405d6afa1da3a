"""The packages of locks/ as wheels, fetched once: a build then needs no network and takes the same files each time.

Role: the base's own Python fetches them, so that they fit it, with the index, proxy and certificates that pip uses on
this machine. Hashes are checked twice: by this, and by the build.

Boundary: pip inside a container; keeps one folder for each base and lock.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from almoner_dev import cache
from almoner_dev.cache import Say
from almoner_dev.images.machine import ImagesImpossible, NothingToBuildFrom
from almoner_dev.images.store import MOUNT_POINT, Store

KEPT_MAX = 2
OPTIONS = frozenset({"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries"})
"""pip's settings that say how a package index is reached, but for the certificates."""
CERTIFICATES = "cert"
CERTIFICATES_INSIDE = "/etc/ssl/certs/ca-certificates.crt"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def folder(root: Path, store: Store, base: str, locks: list[Path], *, tell: Say = cache.say) -> Path:
    """Returns the folder with every wheel of the locks for `base`, the id of an image; fetches them where it is new.

    Whoever calls holds the cache's lock. Raises NothingToBuildFrom with what pip said.
    """
    digest = hashlib.sha256(base.encode())
    for lock in locks:
        digest.update(f"{lock.name} ".encode() + lock.read_bytes())
    name = f"wheels-{digest.hexdigest()[:16]}"
    if (root / name).is_dir():
        os.utime(root / name)
        return root / name
    tell("fetching the packages of locks/: 50 MB, once for each change of them")
    configured = reach(settings(_pip_config()), os.environ)
    certificates = configured.pop("PIP_CERT", "")
    files = {Path(certificates): CERTIFICATES_INSIDE} if certificates else {}
    with cache.fresh_directory(root, name) as fresh:
        for lock in locks:
            shutil.copy(lock, fresh / lock.name)
        try:
            store.run(base, script([lock.name for lock in locks], configured), fresh, files)
        except ImagesImpossible as error:
            raise NothingToBuildFrom(f"the packages of locks/ could not be fetched: {error}") from error
        for lock in locks:
            (fresh / lock.name).unlink()
    for old in sorted(root.glob("wheels-*"), key=lambda path: path.stat().st_mtime)[:-KEPT_MAX]:
        shutil.rmtree(old)
    return root / name


def script(locks: list[str], environment: Mapping[str, str]) -> str:
    """The shell script that fetches wheels into the folder with the locks."""
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items()))
    download = "/tmp/pip/bin/pip download --require-hashes --only-binary=:all: --no-deps --no-cache-dir --no-input"
    lines = [f"python3 -m venv /tmp/pip; cd {MOUNT_POINT}"]
    lines += [f"env {words} {download} --quiet --dest . --requirement {shlex.quote(lock)}" for lock in locks]
    return "\n".join(lines)


def settings(listed: str) -> dict[str, str]:
    """What `pip config list` says, by option; of two, the one of the environment, which it prints first or last."""
    found: dict[str, str] = {}
    for section, option, value in re.findall(r"^([^.\s]+)\.\.?([a-z-]+)='(.*)'$", listed, re.MULTILINE):
        if section.startswith(":env:") or option not in found:
            found[option] = value
    return found


def reach(configured: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that lets pip in a container reach what it reaches here."""
    wanted = OPTIONS | {CERTIFICATES}
    found = {
        f"PIP_{name.upper().replace('-', '_')}": value for name, value in configured.items() if name in wanted and value
    }
    return found | {name: environ[name] for name in PROXIES if environ.get(name)}


def _pip_config() -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout
