"""An image of what runs here: this interpreter, its packages, and the sources of this checkout.

Role: for tests in a cluster that are about Almoner in real pods, not about how its images are built: it needs no base
image, no registry and no network, and is made in seconds. Every program of the virtual environment is on the PATH.

Boundary: reads the folders of this Python and writes one OCI archive. It is the size of a development environment, and
carries this machine's paths: nothing to publish. The images for users have Dockerfiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from almoner_dev.cluster import oci
from almoner_dev.cluster.requirements import program
from almoner_dev.node.isolation import exposed_folders

LEFT_OUT = frozenset(
    {
        *("test", "tests", "idlelib", "ensurepip", "include", "share", "turtledemo", "lib2to3"),
        *("pip", "setuptools", "mypy", "mypyc", "pyarrow", "hypothesis", "grimp", "_pytest", "ruff", ".git"),
    }
)
"""Folders that no part of Almoner imports in a pod, and that are large."""
APPLETS = ("sh", "sleep", "cat", "echo", "ln", "mkdir", "ls", "test", "env")
HOME = "/tmp"
REFERENCE = "localhost/almoner-checkout:1"
"""The image's name, where nobody gives it another."""
ROOT = Path(__file__).resolve().parents[3]


def write_image(target: Path, reference: str, *, more: Iterable[Path] = (), sources: Path = ROOT) -> Path:
    """Writes the image to `target` and returns it; `more` are further files of this machine, at the same path in it.

    `sources` is another tree of the project, such as an older version: its folders stand where this checkout's would.
    """
    files = {str(path).lstrip("/"): path for path in more}
    links = {f"bin/{applet}": "busybox" for applet in APPLETS}
    for path, name in _packages(sources):
        if path.is_symlink():
            links[name] = str(path.readlink())
        else:
            files[name] = path
    for library in _libraries([path for path in files.values() if ".so" in path.name]):
        files.setdefault(str(library).lstrip("/"), library.resolve())
    files["bin/busybox"] = program("busybox")
    return oci.write_archive(
        target,
        reference,
        files=files,
        links=links,
        texts={"etc/passwd": "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/tmp:/bin/sh\n"},
        environment={
            "PATH": f"{Path(sys.executable).parent}:/bin",
            "HOME": HOME,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        },
    )


def _packages(sources: Path) -> Iterator[tuple[Path, str]]:
    """Every file and link of this Python's folders, with its name in the image."""
    base = Path(sys.base_prefix)
    for folder in map(Path, exposed_folders()):
        origin = sources / folder.relative_to(ROOT) if folder.parent == ROOT and str(folder) != sys.prefix else folder
        for where, folders, names in os.walk(origin):
            directory = Path(where)
            # The base interpreter's own packages are not those of the virtual environment.
            unwanted = LEFT_OUT | ({"site-packages"} if base in (directory, *directory.parents) else set())
            linked = [name for name in folders if (directory / name).is_symlink()]
            folders[:] = [name for name in folders if name not in unwanted and name not in linked]
            for name in [*names, *linked]:
                path = directory / name
                unneeded = path.suffix in {".a", ".pyi"} or name == "ruff" or "__mypyc" in name
                if not unneeded and (path.is_file() or path.is_symlink()):
                    yield path, str(folder / path.relative_to(origin)).lstrip("/")


def _libraries(extensions: list[Path]) -> set[Path]:
    """The system's libraries that the interpreter and the compiled packages are linked with, and their loader."""
    done = subprocess.run(
        [program("ldd"), Path(sys.executable).resolve(), *extensions], capture_output=True, text=True, check=False
    )
    found: set[Path] = set()
    for line in done.stdout.splitlines():
        words = line.replace("=>", " ").split()
        paths = [Path(word) for word in words if word.startswith("/") and not word.endswith(":")]
        found |= {path for path in paths if path.is_file() and not str(path).startswith(sys.prefix)}
    return found
