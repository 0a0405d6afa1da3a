"""Images made of static binaries, for a node that has no registry.

Role: writes an OCI archive (one layer, one manifest) that `ctr images import` takes: enough for the sandbox's pause
image, for busybox and for CoreDNS. Images of Almoner itself have a Dockerfile.

Boundary: files in, one file out. Format: the OCI image layout 1.0 and image specification 1.0. Nothing in it depends
on the clock, so the same binaries make the same image.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def write_archive(
    target: Path,
    reference: str,
    *,
    files: Mapping[str, Path],
    links: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    entrypoint: Sequence[str] = (),
    command: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Writes an image to `target` and returns it.

    `reference` is its full name, such as localhost/pause:3. `files` are executables by their path in the image,
    `links` symbolic links, `texts` small files that everybody may read. /tmp is there and open to all.
    """
    links, texts = links or {}, texts or {}
    if len({*files, *links, *texts}) != len(files) + len(links) + len(texts):
        raise ValueError(f"{reference}: a path is given twice")
    settings = {
        "Entrypoint": list(entrypoint),
        "Cmd": list(command),
        "Env": [f"{name}={value}" for name, value in {"PATH": "/bin", **(environment or {})}.items()],
        "WorkingDir": "/",
    }
    return write_layer(target, reference, _layer(files, links, texts), settings)


def write_layer(target: Path, reference: str, layer: bytes, settings: Mapping[str, Any]) -> Path:
    """Writes an image of one layer, an uncompressed tar, to `target` and returns it; `settings` are its `config`."""
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": dict(settings),
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created_by": "almoner_dev.cluster.oci"}],
    }
    blobs = [layer, _json(config)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, blobs[1]),
        "layers": [_descriptor(LAYER, layer)],
    }
    blobs.append(_json(manifest))
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{**_descriptor(MANIFEST, blobs[2]), "annotations": names(reference)}],
    }
    fresh = target.with_name(target.name + ".new")
    with tarfile.open(fresh, "w") as archive:
        add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        add(archive, "index.json", _json(index))
        for blob in blobs:
            add(archive, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
    fresh.rename(target)
    return target


def names(reference: str) -> dict[str, str]:
    """The annotations that name an image: containerd reads the first, podman and buildah the second."""
    return {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference}


def _layer(files: Mapping[str, Path], links: Mapping[str, str], texts: Mapping[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        folders = {"tmp"}
        for name in [*files, *links, *texts]:
            folders |= {str(parent) for parent in PurePosixPath(name).parents if str(parent) != "."}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            layer.addfile(entry)
        for name, source in sorted(files.items()):
            add(layer, name, source.read_bytes(), mode=0o755 if os.access(source, os.X_OK) else 0o644)
        for name, text in sorted(texts.items()):
            add(layer, name, text.encode())
        for name, to in sorted(links.items()):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            layer.addfile(entry)
    return packed.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Adds a file of root's, without a time."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(blob), "size": len(blob)}


def digest(blob: bytes) -> str:
    """A blob's name in an image."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True).encode()
