"""The base image where no registry is within reach: a small Debian with Python, made by debootstrap.

Role: `base` gives an OCI archive of it, made once into the cache. From the same packages it makes the same file:
nothing of this machine, of the moment or of the installation's course stays in it.

Boundary: for tests, and for building without a registry. It has the packages of Debian's release, without the security
updates since: for images that others run, take a base that is kept up to date.
"""

from __future__ import annotations

import email.utils
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

from almoner_dev import cache
from almoner_dev.cache import Say
from almoner_dev.cluster import oci
from almoner_dev.cluster.requirements import program
from almoner_dev.images import running
from almoner_dev.images.machine import KEYRING, ImagesImpossible, NothingToBuildFrom

SUITE = "trixie"
PACKAGES = ("ca-certificates", "python3", "python3-venv")
RECIPE = 1
"""To be raised when what is made from the same packages changes."""
REFERENCE = "localhost/almoner-base"
SECONDS_MAX = 1800.0
EMPTIED = ("var/cache", "var/lib/apt/lists", "var/log", "run", "tmp", "dev", "proc", "sys")
"""Folders that stay, without what is in them."""
BLANKED = ("etc/hostname", "etc/resolv.conf", "etc/machine-id")
"""Files that hold something of this machine. A container gets its own."""
REMOVED = (
    *("usr/share/locale", "usr/share/man", "usr/share/info", "usr/share/lintian", "usr/share/bash-completion"),
    *("etc/.pwd.lock", "var/lib/dpkg/status-old", "var/lib/dpkg/available", "var/lib/dpkg/lock", "var/lib/systemd"),
    *("etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-"),
)
LICENCE = "copyright"
"""The one file that stays of a package's documentation."""
NEVER_CHANGED = "19000"
"""The day, since 1970, that every password of the base says it was changed on; none has one."""


def key() -> str:
    """What makes one base differ from another, as far as it is chosen here."""
    chosen = f"{RECIPE} {SUITE} {' '.join(PACKAGES)} {cache.platform_name()}"
    return hashlib.sha256(chosen.encode()).hexdigest()[:16]


def base(root: Path, *, tell: Say = cache.say) -> Path:
    """Returns the archive; makes it where the cache in `root` has none: a minute, and 90 MB of packages.

    Whoever calls holds the cache's lock. Raises NothingToBuildFrom with the end of debootstrap's output.
    """
    target = root / f"base-{key()}.tar"
    if target.is_file():
        return target
    tell(f"making a base of Debian {SUITE} with debootstrap: a minute or two, this once")
    with cache.fresh_directory(root, "debootstrap") as scratch:
        system = scratch / "system"
        # --force-check-gpg: without keys it would go on unchecked.
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "--force-check-gpg"]
        command += [f"--keyring={KEYRING}", SUITE, str(system)]
        command[0] = str(program("debootstrap"))
        try:
            running.run("debootstrap", command, scratch / "debootstrap.log", seconds=SECONDS_MAX, tell=tell)
        except ImagesImpossible as error:
            raise NothingToBuildFrom(f"no base could be made: {error}") from error
        epoch = released(system)
        clean(system)
        settings = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["python3"], "WorkingDir": "/"}
        oci.write_layer(scratch / "base.tar", f"{REFERENCE}:{key()}", pack(system, epoch), settings)
        for old in root.glob("base-*.tar"):
            old.unlink()
        (scratch / "base.tar").replace(target)
        shutil.rmtree(system)
    shutil.rmtree(root / "debootstrap")
    return target


def released(system: Path) -> int:
    """When the suite was released last, in seconds since 1970: nothing in the base is newer.

    Raises ImagesImpossible where debootstrap left nothing that says so.
    """
    for file in sorted((system / "var/lib/apt/lists").glob("*Release")):
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("Date:"):
                return int(email.utils.parsedate_to_datetime(line.removeprefix("Date:").strip()).timestamp())
    raise ImagesImpossible("debootstrap left no Release file: its suite has no date")


def clean(system: Path) -> None:
    """Takes away what differs from one making to the next, and what no container needs."""
    for name in EMPTIED:
        for path in (system / name).iterdir() if (system / name).is_dir() else ():
            _remove(path)
    for name in REMOVED:
        _remove(system / name)
    for name in BLANKED:
        path = system / name
        _remove(path)
        path.write_text("")
    for path in sorted((system / "usr/share/doc").rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name != LICENCE and path.parent.parent.name == "doc":
            _remove(path)
        elif path.name != LICENCE:
            path.unlink()
    shadow = system / "etc/shadow"
    lines = [line.split(":") for line in shadow.read_text().splitlines()]
    shadow.write_text("".join(":".join([*line[:2], NEVER_CHANGED, *line[3:]]) + "\n" for line in lines))


def pack(system: Path, epoch: int) -> bytes:
    """Returns the files as a tar, in the order of their names, none with a time after `epoch`."""
    packed = io.BytesIO()
    seen: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for where, folders, names in os.walk(system):
            folders.sort()
            for name in sorted([*names, *folders]):
                path = Path(where, name)
                if path.is_socket():
                    continue
                entry = layer.gettarinfo(path, str(path.relative_to(system)))
                entry.uname = entry.gname = ""
                entry.mtime = min(int(entry.mtime), epoch)
                _add(layer, entry, path, seen)
    return packed.getvalue()


def _add(layer: tarfile.TarFile, entry: tarfile.TarInfo, path: Path, seen: dict[tuple[int, int], str]) -> None:
    if not path.is_symlink() and path.is_file():
        about = path.stat()
        first = seen.setdefault((about.st_dev, about.st_ino), entry.name)
        # tarfile knows links by the order in which it met them too; the sizes are ours to say.
        entry.type, entry.linkname = (tarfile.REGTYPE, "") if first == entry.name else (tarfile.LNKTYPE, first)
        entry.size = about.st_size if first == entry.name else 0
    if entry.isreg():
        with path.open("rb") as content:
            layer.addfile(entry, content)
    else:
        layer.addfile(entry)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
