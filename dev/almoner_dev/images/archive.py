"""OCI archives: packed so that the same image is the same file, and read for what an image has.

Role: `pack` makes an archive of the folder that buildah wrote, under a name that containerd and podman understand.
`Archive` reads one: configuration, layers, and the files that are left when all layers lie on one another.

Boundary: files in, files out; knows nothing of Almoner. Format: OCI image layout 1.0, layers as tar, plain or gzip.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from almoner_dev.cluster import oci

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
JSON_BYTES_MAX = 4 * 2**20


@dataclass(frozen=True)
class Layer:
    """One layer: its digest, and its size in bytes as it is stored and unpacked."""

    digest: str
    stored: int
    unpacked: int


class Archive:
    """An OCI archive with one image, open for reading until it is closed."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed by close()
        (entry,) = self._json("index.json")["manifests"]
        self.digest: str = entry["digest"]
        """The manifest's digest, by which a registry knows the image."""
        self.manifest = self._json(_blob(self.digest))
        self.config = self._json(_blob(self.manifest["config"]["digest"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._tar.close()

    def layers(self) -> list[Layer]:
        """The layers from the base upwards; reads them all."""
        return [
            Layer(each["digest"], int(each["size"]), sum(entry.size for entry in self.entries(number)))
            for number, each in enumerate(self.manifest["layers"])
        ]

    def entries(self, layer: int) -> Iterator[tarfile.TarInfo]:
        """What a layer has, in its order; 0 is the lowest."""
        blob = self._file(_blob(self.manifest["layers"][layer]["digest"]))
        with blob, tarfile.open(fileobj=blob, mode="r:*") as packed:
            yield from packed

    def files(self) -> dict[str, tarfile.TarInfo]:
        """Every path of the image without its leading slash, as a container sees it: deleted ones are gone."""
        merged: dict[str, tarfile.TarInfo] = {}
        for number in range(len(self.manifest["layers"])):
            fresh: dict[str, tarfile.TarInfo] = {}
            for entry in self.entries(number):
                path = PurePosixPath(entry.name.removeprefix("/"))
                if path.name == OPAQUE:
                    _remove(merged, str(path.parent), itself=False)
                elif path.name.startswith(WHITEOUT):
                    _remove(merged, str(path.parent / path.name.removeprefix(WHITEOUT)))
                else:
                    fresh[str(path)] = entry
            merged |= fresh
        return merged

    def _json(self, name: str) -> dict[str, Any]:
        with self._file(name) as file:
            document: dict[str, Any] = json.loads(file.read(JSON_BYTES_MAX))
        return document

    def _file(self, name: str) -> IO[bytes]:
        found = self._tar.extractfile(name)
        if found is None:
            raise KeyError(name)
        return found


def _remove(merged: dict[str, tarfile.TarInfo], path: str, *, itself: bool = True) -> None:
    for known in [known for known in merged if known.startswith(f"{path}/") or (itself and known == path)]:
        del merged[known]


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def pack(layout: Path, target: Path, reference: str) -> None:
    """Packs an OCI layout folder with one image into an archive, which appears whole or not at all."""
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    entry["annotations"] = oci.names(reference)
    fresh = target.with_name(f".{target.name}.new")
    with tarfile.open(fresh, "w") as packed:
        oci.add(packed, "oci-layout", (layout / "oci-layout").read_bytes())
        oci.add(packed, "index.json", json.dumps(index, sort_keys=True).encode())
        for blob in sorted((layout / "blobs").rglob("*")):
            if blob.is_file():
                member = tarfile.TarInfo(str(blob.relative_to(layout)))
                member.size, member.mode = blob.stat().st_size, 0o644
                with blob.open("rb") as content:
                    packed.addfile(member, content)
    fresh.replace(target)


def differences(one: Path, other: Path) -> list[str]:
    """Says in which files two images differ, by layer; nothing where their layers and configurations are the same."""
    said = []
    with Archive(one) as first, Archive(other) as second:
        if first.config != second.config:
            keys = sorted(
                key for key in first.config | second.config if first.config.get(key) != second.config.get(key)
            )
            said.append(f"configuration: {', '.join(keys)}")
        pairs = zip(first.manifest["layers"], second.manifest["layers"], strict=False)
        for number, (left, right) in enumerate(pairs):
            if left["digest"] != right["digest"]:
                ours, theirs = _listing(first, number), _listing(second, number)
                changed = sorted(path for path in ours | theirs if ours.get(path) != theirs.get(path))
                said += [f"layer {number}: {path}" for path in changed or ["the same files in another order"]]
    return said


def _listing(archive: Archive, number: int) -> dict[str, object]:
    """What makes each file of a layer what it is; its content by its bytes."""
    blob = archive._file(_blob(archive.manifest["layers"][number]["digest"]))  # noqa: SLF001 - same module
    found: dict[str, object] = {}
    with blob, tarfile.open(fileobj=blob, mode="r:*") as packed:
        for entry in packed:
            content = packed.extractfile(entry) if entry.isreg() else None
            about = (entry.type, entry.mode, entry.uid, entry.gid, entry.mtime, entry.linkname)
            found[entry.name] = (about, oci.digest(content.read()) if content else "")
    return found
