"""buildah with a store of its own: nothing of the machine's images or containers is seen or changed.

Role: the handful of buildah's commands that are needed, with their options. Isolation is chroot: it needs no runtime,
no control groups and no network of its own.

Boundary: knows images, not what is in them. Who uses a store at a time holds the cache's lock.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from almoner_dev.cache import Say
from almoner_dev.cluster import namespaces
from almoner_dev.cluster.requirements import program
from almoner_dev.images import running

BYTES_MAX = 3_000_000_000
"""A store that is larger at its opening is emptied: it is a cache."""
BUILD_SECONDS_MAX = 1800.0
COMMAND_SECONDS_MAX = 600.0
MOUNT_POINT = "/mnt"
"""Where a folder of the machine appears while something runs: every base has it, so no layer keeps a trace of it."""


class Store:
    """A store, open while it is entered; `folder` is where it is kept."""

    def __init__(self, folder: Path, tell: Say) -> None:
        self._folder = folder
        self._tell = tell
        # What is mounted is counted there; a count from a process that was killed would be wrong.
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="almoner-buildah-")
        if _size(self._folder) > BYTES_MAX:
            self._tell(f"emptying {self._folder}, a cache that has grown large")
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._buildah("rm", "--all")  # Of a build that was killed.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._scratch is not None
        self._scratch.cleanup()

    def pull(self, source: str) -> str:
        """Takes an image in, from an archive (oci-archive:PATH) or a registry, and returns its id."""
        return self._buildah("pull", "--quiet", "--policy", "missing", source).splitlines()[-1]

    def run(self, image: str, script: str, folder: Path, files: Mapping[Path, str] | None = None) -> str:
        """Runs a shell script as root in a new container, with `folder` at /mnt and `files` at other paths."""
        container = self._buildah("from", "--pull-never", image).splitlines()[-1]
        try:
            mounts = [f"--volume={folder}:{MOUNT_POINT}", *(f"--volume={a}:{b}:ro" for a, b in (files or {}).items())]
            return self._buildah(
                "run", "--isolation=chroot", "--user=0:0", *mounts, container, "--", "sh", "-euc", script
            )
        finally:
            self._buildah("rm", container)

    def build(
        self, context: Path, dockerfile: str, layout: Path, *, arguments: Mapping[str, str], epoch: int, folder: Path
    ) -> None:
        """Builds an image into an OCI layout folder; what the build adds is one layer, and has the time `epoch`.

        `arguments` are build arguments; `folder` can be read at /mnt meanwhile. Nothing comes from a cache of layers:
        buildah would take one with the times of another build.
        """
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += [f"--volume={folder}:{MOUNT_POINT}:ro", f"--timestamp={epoch}", f"--file={context / dockerfile}"]
        image = self._buildah(
            *("build", "--isolation=chroot", "--layers=false", "--no-cache", "--pull-never", *options, str(context)),
            seconds=BUILD_SECONDS_MAX,
        ).split()[-1]
        self._buildah("push", "--quiet", image, f"oci:{layout}:image")
        self._buildah("rmi", image)

    def _buildah(self, *arguments: str, seconds: float = COMMAND_SECONDS_MAX) -> str:
        assert self._scratch is not None
        scratch = Path(self._scratch.name)
        places = [f"--root={self._folder}", f"--runroot={scratch / 'run'}", f"--storage-driver={self._driver()}"]
        return running.run(
            f"buildah {arguments[0]}",
            [str(program("buildah")), *places, *arguments],
            scratch / "buildah.log",
            seconds=seconds,
            tell=self._tell,
        )

    def _driver(self) -> str:
        """Overlays where the file system carries them; else plain copies, which are slow."""
        return "vfs" if namespaces.snapshotter(self._folder) == "native" else "overlay"


def _size(folder: Path) -> int:
    """Bytes that a folder takes on its disk; 0 where there is none."""
    done = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(folder)], capture_output=True, text=True, check=False
    )
    words: Sequence[str] = done.stdout.split()
    return int(words[0]) if words else 0
