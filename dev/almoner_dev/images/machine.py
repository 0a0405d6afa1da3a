"""What building images needs of the machine, and how to get what lacks.

Role: looks for root, the programs and Debian's keys before anything is built. Boundary: looks only.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from almoner_dev.cluster.requirements import search_path

PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux"}
"""Programs by the Debian package that has them."""
BASE_PROGRAMS = frozenset({"debootstrap"})
"""Those that only making a base needs."""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
KEYRING_PACKAGE = "debian-archive-keyring"
DISK_GB = 4.0
"""What the first build writes, with its caches."""


class ImagesImpossible(RuntimeError):  # noqa: N818 - the name says what is the matter
    """Images cannot be built here, or a build failed; the message says why and what to do."""


class NothingToBuildFrom(ImagesImpossible):
    """The base or the packages could not be had: this says nothing against the Dockerfiles."""


def lacking_packages(*, base: bool = True) -> list[str]:
    """Returns the Debian packages to install; `base`: a base shall be made too."""
    wanted = {name: package for name, package in PROGRAMS.items() if base or name not in BASE_PROGRAMS}
    packages = {package for name, package in wanted.items() if shutil.which(name, path=search_path()) is None}
    if base and not KEYRING.is_file():
        packages.add(KEYRING_PACKAGE)
    return sorted(packages)


def refusals(root: Path, *, base: bool = True) -> list[str]:
    """Says what lacks here, each with what to do; nothing: images can be built. `root` is the folder of the cache."""
    if sys.platform != "linux":
        return ["buildah runs on Linux alone: build the images with docker"]
    reasons = []
    if os.geteuid() != 0:
        reasons.append("root is needed to unpack an image's files: run as root (sudo -E)")
    packages = lacking_packages(base=base)
    if packages:
        reasons.append(f"packages are missing: apt-get install {' '.join(packages)}")
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free / 1e9
    if free < DISK_GB:
        reasons.append(f"{there} has {free:.1f} GB free, a build needs {DISK_GB:g} GB")
    return reasons


def demand(root: Path, *, base: bool = True) -> None:
    """Raises ImagesImpossible with everything that lacks, in one line."""
    reasons = refusals(root, base=base)
    if reasons:
        raise ImagesImpossible(f"images cannot be built here: {'; '.join(reasons)}")
