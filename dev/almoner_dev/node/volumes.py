"""A pod's volumes as folders: made, filled, and kept up to date.

Role: emptyDir, secret, configMap, downwardAPI and projected (service account tokens included) in a
folder per volume. Boundary: where containers see them is isolation's business. Why the `..data` link:
a reader must see either all old files or all new ones, as on a real node.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from almoner_dev.node.api import Json
from almoner_dev.node.env import ConfigError, PodFacts, field_value, object_data, resource_value
from almoner_dev.node.objects import Objects, Token

VOLUME_BYTES_MAX = 3 * 1024 * 1024
FILE_MODE = 0o644
TOKEN_SECONDS = 3600


class Entry(NamedTuple):
    """One file of a volume."""

    content: bytes
    mode: int
    user: int | None = None


Payload = dict[str, Entry]


class Ownership(NamedTuple):
    """Who may read what a volume holds: numeric ids, None where the pod does not say or the node cannot."""

    group: int | None
    token_user: int | None


def ownership(pod: Json, *, enforced: bool) -> Ownership:
    """Whose the files are: fsGroup, and the one user of all containers where there is one."""
    if not enforced:
        return Ownership(None, None)
    spec = pod["spec"]
    context = spec.get("securityContext") or {}
    users = {
        (container.get("securityContext") or {}).get("runAsUser", context.get("runAsUser"))
        for container in [*(spec.get("initContainers") or []), *spec["containers"]]
    }
    return Ownership(context.get("fsGroup"), next(iter(users)) if len(users) == 1 else None)


def _safe(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or parts[0].startswith(".."):
        raise ConfigError(f"volume: the path {path!r} is not allowed")
    return str(PurePosixPath(*parts))


def select(data: dict[str, bytes], source: Json, mode: int, what: str) -> Payload:
    """The files that `items` chooses (all of them without). Raises ConfigError for a key that is missing."""
    items = source.get("items")
    if not items:
        return {_safe(key): Entry(value, mode) for key, value in data.items()}
    result: Payload = {}
    for item in items:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            raise ConfigError(f"{what} has no key {item['key']!r}")
        result[_safe(item["path"])] = Entry(data[item["key"]], item.get("mode", mode))
    return result


def write_atomically(folder: Path, payload: Payload, group: int | None) -> bool:
    """Bring a folder to the payload in one step for its readers; returns whether anything changed."""
    if sum(len(entry.content) for entry in payload.values()) > VOLUME_BYTES_MAX:
        raise ConfigError(f"volume {folder.name}: more than {VOLUME_BYTES_MAX} bytes")
    if _current(folder) == {path: entry.content for path, entry in payload.items()}:
        return False
    fresh = folder / f"..{time.time_ns()}"
    _make_folder(fresh, group)
    for path, entry in payload.items():
        target = fresh / path
        for parent in reversed(list(target.relative_to(fresh).parents)[:-1]):
            _make_folder(fresh / parent, group)
        mode = entry.mode | 0o440 if group is not None else entry.mode
        target.write_bytes(entry.content)
        if group is not None or entry.user is not None:
            os.chown(target, -1 if entry.user is None else entry.user, -1 if group is None else group)
        target.chmod(mode)
    _switch(folder, fresh, payload)
    return True


def _switch(folder: Path, fresh: Path, payload: Payload) -> None:
    """Let `..data` and the names of the payload point to the fresh folder, and drop what it replaces."""
    previous = (folder / "..data").resolve() if (folder / "..data").is_symlink() else None
    pointer = folder / "..data_tmp"
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(fresh.name)
    pointer.rename(folder / "..data")
    wanted = {PurePosixPath(path).parts[0] for path in payload}
    for name in wanted:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for entry_path in folder.iterdir():
        if not entry_path.name.startswith("..") and entry_path.name not in wanted:
            entry_path.unlink()
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)


def _current(folder: Path) -> dict[str, bytes] | None:
    data = folder / "..data"
    if not data.is_dir():
        return None
    root = data.resolve()
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _make_folder(folder: Path, group: int | None, mode: int = 0o755) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if group is not None:
        os.chown(folder, -1, group)
        mode |= 0o2070
    folder.chmod(mode)


class Volumes:
    """The volumes of one pod below one folder."""

    def __init__(self, pod: Json, folder: Path, facts: PodFacts, objects: Objects, owner: Ownership) -> None:
        self._pod = pod
        self._folder = folder
        self._facts = facts
        self._objects = objects
        self._owner = owner
        self._tokens: dict[str, Token] = {}

    def path(self, volume: str) -> Path:
        """The folder of a volume, whether made or not."""
        return self._folder / volume

    async def make(self) -> None:
        """Make and fill all of them. Raises ConfigError (worth trying again: the object may come), ApiError."""
        for volume in self._pod["spec"].get("volumes") or []:
            folder = self.path(volume["name"])
            if "emptyDir" in volume:
                _make_folder(folder, self._owner.group, 0o777)
                continue
            payload = await self._payload(volume)
            _make_folder(folder, self._owner.group)
            write_atomically(folder, payload, self._owner.group)

    async def refresh(self) -> None:
        """Follow changes of what the volumes hold, and replace tokens in time. Raises like `make`."""
        for volume in self._pod["spec"].get("volumes") or []:
            if "emptyDir" not in volume:
                write_atomically(self.path(volume["name"]), await self._payload(volume), self._owner.group)

    async def _payload(self, volume: Json) -> Payload:
        name = volume["name"]
        for kind in ("secret", "configMap", "downwardAPI", "projected"):
            if kind in volume:
                source = volume[kind] or {}
                mode = source.get("defaultMode", FILE_MODE)
                if kind != "projected":
                    return await self._source({kind: source}, mode, name, inner=False)
                merged: Payload = {}
                for index, part in enumerate(source.get("sources") or []):
                    merged |= await self._source(part, mode, f"{name}/{index}", inner=True)
                return merged
        kinds = sorted(set(volume) - {"name"})
        raise ConfigError(f"volume {name!r}: {', '.join(kinds)} is not supported by a process node")

    async def _source(self, part: Json, mode: int, key: str, *, inner: bool) -> Payload:
        if "secret" in part:
            name = part["secret"].get("name" if inner else "secretName", "")
            return await self._object("Secret", name, part["secret"], mode)
        if "configMap" in part:
            return await self._object("ConfigMap", part["configMap"].get("name", ""), part["configMap"], mode)
        if "downwardAPI" in part:
            return self._downward(part["downwardAPI"], mode)
        if "serviceAccountToken" in part:
            return await self._service_account_token(part["serviceAccountToken"], mode, key)
        raise ConfigError(f"volume: the projected source {sorted(part)} is not supported by a process node")

    async def _object(self, kind: str, name: str, source: Json, mode: int) -> Payload:
        found = await self._objects.read(kind, self._pod["metadata"]["namespace"], name)
        if found is None:
            if source.get("optional"):
                return {}
            raise ConfigError(f'MountVolume.SetUp failed: {kind.lower()} "{name}" not found')
        return select(object_data(found), source, mode, f'{kind.lower()} "{name}"')

    def _downward(self, source: Json, mode: int) -> Payload:
        result: Payload = {}
        for item in source.get("items") or []:
            if "fieldRef" in item:
                text = field_value(item["fieldRef"]["fieldPath"], self._pod, self._facts)
            else:
                text = resource_value(item["resourceFieldRef"], self._pod, {}, self._facts)
            result[_safe(item["path"])] = Entry(text.encode(), item.get("mode", mode))
        return result

    async def _service_account_token(self, source: Json, mode: int, key: str) -> Payload:
        token = self._tokens.get(key)
        if token is None or time.monotonic() >= token.refresh_at:
            seconds = int(source.get("expirationSeconds") or TOKEN_SECONDS)
            token = await self._objects.token(self._pod, source.get("audience"), seconds)
            self._tokens[key] = token
        if self._owner != Ownership(None, None):
            mode = 0o600
        return {_safe(source["path"]): Entry(token.value.encode(), mode, self._owner.token_user)}

    def update(self, pod: Json) -> None:
        """Take over a pod object that changed (labels and annotations show in downwardAPI volumes)."""
        self._pod = pod

    def mounts(self, container: Json) -> list[dict[str, Any]]:
        """Where a container wants what: `source` folder or file, `target` path, `read_only`. Raises ConfigError."""
        read_only_kinds = ("secret", "configMap", "downwardAPI", "projected")
        volumes = {volume["name"]: volume for volume in self._pod["spec"].get("volumes") or []}
        result = []
        for mount in container.get("volumeMounts") or []:
            volume = volumes[mount["name"]]
            source = self.path(mount["name"])
            if sub_path := mount.get("subPath"):
                source = source / _safe(sub_path)
                if not source.exists() and "emptyDir" in volume:
                    _make_folder(source, self._owner.group, 0o777)
                if not source.exists():
                    raise ConfigError(f"volumeMounts: subPath {sub_path!r} is not in volume {mount['name']!r}")
                source = source.resolve()
            read_only = bool(mount.get("readOnly")) or any(kind in volume for kind in read_only_kinds)
            result.append({"source": str(source), "target": str(mount["mountPath"]), "read_only": read_only})
        return result
