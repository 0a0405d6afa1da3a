"""What images are built with: archives read and packed, wheels that are fetched, a base that stays the same."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from almoner_dev import __main__ as command_line
from almoner_dev import images
from almoner_dev.cluster import oci
from almoner_dev.commands import images as command
from almoner_dev.images import archive, debian, machine, running, wheels


def layer(*entries: tuple[str, str] | tuple[str, str, int]) -> bytes:
    """A layer as gzip; an entry is a path, a text (a path that ends in a slash: a folder) and perhaps a mode."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as written:
        for name, text, *mode in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = mode[0] if mode else 0o644
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            entry.size = len(text)
            written.addfile(entry, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def layout(folder: Path, *layers: bytes, **config: Any) -> Path:
    """An OCI layout folder, as buildah writes one."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes) -> dict[str, Any]:
        name = hashlib.sha256(content).hexdigest()
        (blobs / name).write_bytes(content)
        return {"digest": f"sha256:{name}", "size": len(content)}

    manifest = {"config": add(json.dumps(config).encode()), "layers": [add(each) for each in layers]}
    (folder / "index.json").write_text(json.dumps({"manifests": [add(json.dumps(manifest).encode())]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return folder


def test_an_image_has_what_its_layers_leave(tmp_path: Path) -> None:
    lower = layer(("./etc/", ""), ("./etc/.kept", "a"), ("etc/gone", "b"), ("etc/su", "c", 0o4755), ("opt/old/x", "d"))
    upper = layer(("etc/.wh.gone", ""), ("etc/su", "cc", 0o755), ("opt/old/.wh..wh..opq", ""), ("opt/old/y", "e"))
    archive.pack(layout(tmp_path / "layout", lower, upper, os="linux"), tmp_path / "image.tar", "localhost/x:1")
    with archive.Archive(tmp_path / "image.tar") as image:
        files = image.files()
        sizes = [each.unpacked for each in image.layers()]
        assert image.config == {"os": "linux"}
    assert {name: oct(entry.mode) for name, entry in files.items() if entry.isreg()} == {
        "etc/.kept": "0o644",
        "etc/su": "0o755",
        "opt/old/y": "0o644",
    }
    assert sizes == [4, 3]


def test_an_archive_is_the_same_file_whenever_it_is_packed(tmp_path: Path) -> None:
    folder = layout(tmp_path / "layout", layer(("a", "1")))
    archive.pack(folder, tmp_path / "one.tar", "localhost/x:1")
    os.utime(folder / "index.json", (1, 1))
    archive.pack(folder, tmp_path / "two.tar", "localhost/x:1")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as packed:
        index = packed.extractfile("index.json")
        assert index is not None
        assert json.load(index)["manifests"][0]["annotations"] == oci.names("localhost/x:1")


def test_the_files_that_differ_are_named(tmp_path: Path) -> None:
    for name, text, made in (("one", "1", "x"), ("two", "2", "x"), ("same", "1", "x"), ("set", "1", "y")):
        archive.pack(
            layout(tmp_path / name, layer(("a", text), ("b", "")), created=made),
            tmp_path / f"{name}.tar",
            "localhost/x:1",
        )
    one = tmp_path / "one.tar"
    assert archive.differences(one, tmp_path / "same.tar") == []
    assert archive.differences(one, tmp_path / "two.tar") == ["layer 0: a"]
    assert archive.differences(one, tmp_path / "set.tar") == ["configuration: created"]


def test_what_pip_is_told_here_it_is_told_in_the_container() -> None:
    listed = (
        ":env:.cert='/etc/a.crt'\n:env:.find-links='/opt/wheels'\nglobal.cert='/etc/b.crt'\n"
        "global.index-url='https://user:it''s@mirror.example/simple'\ninstall.no-compile='true'\n"
    )
    reached = wheels.reach(wheels.settings(listed), {"HTTPS_PROXY": "http://proxy.example", "HOME": "/root"})
    assert reached == {
        "PIP_CERT": "/etc/a.crt",
        "PIP_INDEX_URL": "https://user:it''s@mirror.example/simple",
        "HTTPS_PROXY": "http://proxy.example",
    }
    script = wheels.script(["a.txt"], reached)
    assert "--require-hashes --only-binary=:all:" in script
    assert "'https://user:it'\"'\"''\"'\"'s@mirror.example/simple'" in script


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """What debootstrap leaves, in small."""
    files = {
        "etc/hostname": "secret-machine\n",
        "etc/resolv.conf": "nameserver 192.0.2.1\n",
        "etc/shadow": "root:*:20784:0:99999:7:::\nsync:*:20784:0:99999:7:::\n",
        "etc/passwd-": "old",
        "usr/bin/python3": "program",
        "usr/share/doc/python3/copyright": "licence",
        "usr/share/doc/python3/changelog.gz": "history",
        "usr/share/doc/python3/examples/one.py": "example",
        "usr/share/locale/de/LC_MESSAGES/a.mo": "Wort",
        "var/lib/apt/lists/mirror_dists_x_Release": "Origin: Debian\nDate: Sat, 14 Nov 2026 10:00:00 UTC\n",
        "var/log/dpkg.log": "2026-11-27 installed",
        "var/lib/dpkg/status": "Package: python3\n",
    }
    for name, text in files.items():
        path = tmp_path / "system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "system" / "usr/bin/python").symlink_to("python3")
    (tmp_path / "system" / "usr/bin/hard").hardlink_to(tmp_path / "system" / "usr/bin/python3")
    return tmp_path / "system"


def test_nothing_of_this_machine_and_this_moment_stays_in_a_base(system: Path) -> None:
    epoch = debian.released(system)
    assert epoch == 1794650400
    debian.clean(system)
    packed = debian.pack(system, epoch)
    for path in system.rglob("*"):
        os.utime(path, (epoch + 1000, epoch + 1000), follow_symlinks=False)
    assert debian.pack(system, epoch) == packed
    with tarfile.open(fileobj=io.BytesIO(packed)) as layer_:
        texts = {
            entry.name: (layer_.extractfile(entry) or io.BytesIO()).read().decode() for entry in layer_ if entry.isreg()
        }
        hard = layer_.getmember("usr/bin/python3")
        assert max(entry.mtime for entry in layer_) == epoch
    assert texts == {
        "etc/hostname": "",
        "etc/machine-id": "",
        "etc/resolv.conf": "",
        "etc/shadow": "root:*:19000:0:99999:7:::\nsync:*:19000:0:99999:7:::\n",
        "usr/bin/hard": "program",
        "usr/share/doc/python3/copyright": "licence",
        "var/lib/dpkg/status": "Package: python3\n",
    }
    assert (hard.type, hard.linkname) == (tarfile.LNKTYPE, "usr/bin/hard")


def test_a_base_without_a_date_is_refused(tmp_path: Path) -> None:
    with pytest.raises(images.ImagesImpossible, match="no Release file"):
        debian.released(tmp_path)


def test_what_lacks_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "shutil.which", lambda name, path: None if name in {"buildah", "debootstrap"} else f"/bin/{name}"
    )
    monkeypatch.setattr(machine, "KEYRING", tmp_path / "absent.gpg")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert machine.lacking_packages() == ["buildah", "debian-archive-keyring", "debootstrap"]
    assert machine.lacking_packages(base=False) == ["buildah"]
    with pytest.raises(images.ImagesImpossible) as error:
        machine.demand(tmp_path)
    assert "\n" not in str(error.value)
    assert "run as root" in str(error.value)
    assert "apt-get install buildah debian-archive-keyring debootstrap" in str(error.value)


def test_the_command_copies_the_archives_and_says_whether_a_second_build_is_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "almoner-runner.tar"
    made.write_text("archive")
    bases = []

    def build(*, base: str | None) -> dict[str, images.Built]:
        bases.append(base)
        return {"runner": images.Built("runner", made, "sha256:1", 82_000_000, 233_000_000, 117_000_000, 36.4)}

    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(images, "verify", lambda built, base: ["almoner-runner: layer 1: opt/x"] if base else [])
    output = tmp_path / "out"
    words = ["images", "build", "--output", str(output), "--verify"]
    assert command.run(command_line.parser().parse_args(words)) == 0
    said = capsys.readouterr().out
    assert "233 MB, of which 117 MB are Almoner and its packages; 82 MB to transfer; built in 36 s" in said
    assert "byte for byte" in said
    assert (output / made.name).read_text() == "archive"
    assert command.run(command_line.parser().parse_args([*words, "--base", "registry.example/python:3.12-slim"])) == 1
    assert "opt/x" in capsys.readouterr().out
    assert bases == [None, "registry.example/python:3.12-slim"]


@pytest.fixture
def without_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stands in for unshare, which needs root: runs what comes after `--`."""
    stand_in = tmp_path / "unshare"
    stand_in.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(running, "program", lambda _: stand_in)


@pytest.mark.usefixtures("without_namespaces")
def test_a_program_says_how_far_it_is_and_why_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    gate = tmp_path / "gate"
    monkeypatch.setattr(running, "PROGRESS_EVERY_S", 0.0)

    def tell(line: str) -> None:
        told.append(line)
        if line.endswith("kneading"):
            gate.touch()

    def run(script: str, seconds: float) -> str:
        return running.run("baker", ["sh", "-c", script], tmp_path / "log", seconds=seconds, tell=tell)

    # It ends once somebody has been told what it does.
    assert run(f"echo kneading; until [ -e {gate} ]; do sleep 0.05; done; echo done", 60) == "kneading\ndone\n"
    assert any(line.endswith("s: baker: kneading") for line in told)
    with pytest.raises(images.ImagesImpossible, match="baker failed; the end of its output:\nno flour"):
        run("echo no flour; exit 3", 60)
    with pytest.raises(images.ImagesImpossible, match=r"baker took longer than 0\.1 s"):
        run("exec sleep 600", 0.1)
