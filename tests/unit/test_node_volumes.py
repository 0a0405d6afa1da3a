from __future__ import annotations

import asyncio
import base64
import os
import stat
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from almoner_dev.node.env import ConfigError, PodFacts
from almoner_dev.node.isolation import exposed_folders
from almoner_dev.node.objects import Objects, Token
from almoner_dev.node.server import tail_offset
from almoner_dev.node.volumes import Entry, Ownership, Volumes, ownership, select, write_atomically

FACTS = PodFacts("10.1.2.3", "10.1.2.1", {})


class FewObjects:
    """Stands in for the API server: objects in a dictionary, tokens by number."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], dict[str, Any]] = {}
        self.tokens: list[tuple[str | None, int]] = []
        self.refresh_at = 1e18

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert namespace == "ns"
        return self.known.get((kind, name))

    async def token(self, pod: dict[str, Any], audience: str | None, seconds: int) -> Token:
        self.tokens.append((audience, seconds))
        return Token(f"token-{len(self.tokens)}", self.refresh_at)


def pod_with(*volumes: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "1"}}
    return {"metadata": metadata, "spec": {"volumes": list(volumes), "containers": [{"name": "c"}], **spec}}


def volumes_of(
    tmp_path: Path, objects: FewObjects, *volumes: dict[str, Any], owner: Ownership | None = None
) -> Volumes:
    return Volumes(pod_with(*volumes), tmp_path, FACTS, cast("Objects", objects), owner or Ownership(None, None))


def encoded(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def visible(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if not p.name.startswith("..") and p.is_file()}


def test_writing_swaps_all_files_at_once_and_removes_what_is_gone(tmp_path: Path) -> None:
    assert write_atomically(tmp_path, {"a": Entry(b"1", 0o400), "d/b": Entry(b"1", 0o644)}, None)
    before = (tmp_path / "..data").readlink()
    assert (tmp_path / "d/b").read_bytes() == b"1"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o400
    assert not write_atomically(tmp_path, {"a": Entry(b"1", 0o400), "d/b": Entry(b"1", 0o644)}, None)
    assert (tmp_path / "..data").readlink() == before
    assert write_atomically(tmp_path, {"a": Entry(b"2", 0o644)}, None)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("..1")) == ["..data", "a"]
    assert not (tmp_path / before).exists()


def test_a_volume_is_bounded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than"):
        write_atomically(tmp_path, {"a": Entry(b"x" * (3 * 1024 * 1024 + 1), 0o644)}, None)


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", "..hidden", ""])
def test_paths_stay_inside_their_volume(path: str) -> None:
    with pytest.raises(ConfigError, match="not allowed"):
        select({"k": b"v"}, {"items": [{"key": "k", "path": path}]}, 0o644, "secret")


def test_items_choose_names_and_modes() -> None:
    found = select({"k": b"v", "other": b"x"}, {"items": [{"key": "k", "path": "to/k", "mode": 0o400}]}, 0o644, "it")
    assert found == {"to/k": Entry(b"v", 0o400)}
    with pytest.raises(ConfigError, match="has no key 'z'"):
        select({}, {"items": [{"key": "z", "path": "z"}]}, 0o644, "it")


def test_a_projected_volume_merges_its_sources(tmp_path: Path) -> None:
    objects = FewObjects()
    objects.known[("Secret", "s")] = {"kind": "Secret", "data": encoded(key="sec")}
    objects.known[("ConfigMap", "c")] = {"kind": "ConfigMap", "data": {"conf": "cm"}}
    sources = [
        {"secret": {"name": "s"}},
        {"configMap": {"name": "c"}},
        {"configMap": {"name": "gone", "optional": True}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        {"serviceAccountToken": {"path": "token", "audience": "a", "expirationSeconds": 600}},
    ]
    volumes = volumes_of(tmp_path, objects, {"name": "all", "projected": {"sources": sources}})
    asyncio.run(volumes.make())
    assert visible(tmp_path / "all") == {"key": "sec", "conf": "cm", "labels": 'a="1"', "token": "token-1"}
    assert objects.tokens == [("a", 600)]


def test_a_token_is_asked_for_again_only_when_it_is_due(tmp_path: Path) -> None:
    objects = FewObjects()
    sources = [{"serviceAccountToken": {"path": "token"}}]
    volumes = volumes_of(tmp_path, objects, {"name": "t", "projected": {"sources": sources}})
    asyncio.run(volumes.make())
    asyncio.run(volumes.refresh())
    assert visible(tmp_path / "t") == {"token": "token-1"}
    volumes._tokens = {key: token._replace(refresh_at=0.0) for key, token in volumes._tokens.items()}
    asyncio.run(volumes.refresh())
    assert visible(tmp_path / "t") == {"token": "token-2"}
    assert objects.tokens == [(None, 3600)] * 2


def test_a_missing_object_is_named_and_an_optional_one_is_empty(tmp_path: Path) -> None:
    objects = FewObjects()
    with pytest.raises(ConfigError, match='secret "gone" not found'):
        asyncio.run(volumes_of(tmp_path, objects, {"name": "v", "secret": {"secretName": "gone"}}).make())
    volumes = volumes_of(tmp_path, objects, {"name": "v", "secret": {"secretName": "gone", "optional": True}})
    asyncio.run(volumes.make())
    assert visible(tmp_path / "v") == {}
    objects.known[("Secret", "gone")] = {"kind": "Secret", "data": encoded(a="1")}
    asyncio.run(volumes.refresh())
    assert visible(tmp_path / "v") == {"a": "1"}


def test_an_unsupported_volume_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hostPath is not supported"):
        asyncio.run(volumes_of(tmp_path, FewObjects(), {"name": "v", "hostPath": {"path": "/"}}).make())


def test_mounts_give_source_target_and_whether_they_may_be_written(tmp_path: Path) -> None:
    objects = FewObjects()
    objects.known[("Secret", "s")] = {"kind": "Secret", "data": encoded(key="x")}
    volumes = volumes_of(tmp_path, objects, {"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s"}})
    asyncio.run(volumes.make())
    mounts = [
        {"name": "e", "mountPath": "/data"},
        {"name": "e", "mountPath": "/ro", "readOnly": True},
        {"name": "e", "mountPath": "/sub", "subPath": "a/b"},
        {"name": "s", "mountPath": "/s/key", "subPath": "key"},
    ]
    found = volumes.mounts({"volumeMounts": mounts})
    assert [(m["target"], m["read_only"]) for m in found] == [
        ("/data", False),
        ("/ro", True),
        ("/sub", False),
        ("/s/key", True),
    ]
    assert found[2]["source"] == str(tmp_path / "e/a/b")
    assert Path(found[3]["source"]).read_text() == "x"
    assert stat.S_IMODE((tmp_path / "e").stat().st_mode) == 0o777
    with pytest.raises(ConfigError, match="subPath 'no'"):
        volumes.mounts({"volumeMounts": [{"name": "s", "mountPath": "/x", "subPath": "no"}]})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, Ownership(None, None)),
        ({"securityContext": {"runAsUser": 5, "fsGroup": 7}}, Ownership(7, 5)),
        ({"initContainers": [{"name": "i", "securityContext": {"runAsUser": 6}}]}, Ownership(None, None)),
        (
            {
                "securityContext": {"runAsUser": 5, "fsGroup": 7},
                "initContainers": [{"name": "i", "securityContext": {"runAsUser": 6}}],
            },
            Ownership(7, None),
        ),
    ],
)
def test_who_owns_the_files(spec: dict[str, Any], expected: Ownership) -> None:
    assert ownership(pod_with(**spec), enforced=True) == expected
    assert ownership(pod_with(**spec), enforced=False) == Ownership(None, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing a file's group needs root: NOT tested in this run")
def test_a_shared_group_may_read_tokens_that_others_may_not(tmp_path: Path) -> None:
    sources = [{"serviceAccountToken": {"path": "token"}}]
    volumes = volumes_of(
        tmp_path, FewObjects(), {"name": "t", "projected": {"sources": sources}}, owner=Ownership(7777, 5555)
    )
    asyncio.run(volumes.make())
    found = (tmp_path / "t/token").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (5555, 7777, 0o640)


@pytest.mark.parametrize(
    ("content", "lines", "expected"),
    [
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc\n", 3, b"a\nb\nc\n"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"a\nb\nc", 1, b"c"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\n", 0, b""),
        (b"", 3, b""),
        (b"x" * 70_000 + b"\n" + b"y" * 70_000 + b"\n", 1, b"y" * 70_000 + b"\n"),
    ],
)
def test_the_last_lines_of_a_log(tmp_path: Path, content: bytes, lines: int, expected: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(content)
    assert content[tail_offset(log, lines) :] == expected


def test_containers_see_the_interpreter_and_nothing_as_wide_as_the_root() -> None:
    folders = exposed_folders((Path("/usr/share"),))
    assert "/" not in folders
    assert "/usr" not in folders
    assert not any(a != b and b.startswith(a + "/") for a in folders for b in folders)
    assert any(str(Path(sys.executable)).startswith(folder + "/") for folder in folders)
