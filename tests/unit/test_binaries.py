from __future__ import annotations

import dataclasses
import fcntl
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from almoner_dev import binaries, cache, gobuild, golang, releases
from almoner_dev.binaries import BinariesMissing
from almoner_dev.cache import COMPONENTS
from almoner_dev.golang import CannotBuild, Machine
from almoner_dev.releases import NotAvailable

NO_RELEASES = {"ALMONER_DOWNLOADS": "never"}


def fill(directory: Path, names: Sequence[str] = COMPONENTS) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def sources_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Both makers of binaries, replaced by ones that write down that they were asked, and fail."""
    asked: list[str] = []

    def download(*_: object, **__: object) -> Path:
        asked.append("releases")
        raise NotAvailable("nothing answers")

    def build(*_: object, **__: object) -> Path:
        asked.append("go build")
        raise CannotBuild(["Go is not on the PATH", "no disk"])

    monkeypatch.setattr(releases, "download", download)
    monkeypatch.setattr(gobuild, "build", build)
    return asked


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), **more}


def test_the_folder_of_the_environment_comes_first(tmp_path: Path, sources_asked: list[str]) -> None:
    assets = fill(tmp_path / "assets")
    fill(cache.cache_root(environ(tmp_path)) / gobuild.cache_key())
    found = binaries.find(environ=environ(tmp_path, KUBEBUILDER_ASSETS=str(assets)))
    assert (found.directory, found.source) == (assets.resolve(), "KUBEBUILDER_ASSETS")
    assert found.path("etcd") == assets.resolve() / "etcd"
    assert sources_asked == []


def test_then_the_cache_and_built_ones_before_downloaded_ones(tmp_path: Path, sources_asked: list[str]) -> None:
    root = cache.cache_root(environ(tmp_path))
    downloaded = fill(root / f"release-v1.34.9-{cache.platform_name()}")
    fill(root / f"release-v1.34.10-{cache.platform_name()}", ["etcd"])  # Newer, but not whole.
    fill(root / f"release-v1.33.1-{cache.platform_name()}")
    assert binaries.find(environ=environ(tmp_path)).directory == downloaded
    built = fill(root / gobuild.cache_key())
    found = binaries.find(environ=environ(tmp_path))
    assert (found.directory, found.source) == (built, "cache")
    assert sources_asked == []


def test_a_folder_that_lacks_one_is_passed_over_whole(tmp_path: Path, sources_asked: list[str]) -> None:
    assets = fill(tmp_path / "assets", ["etcd", "kube-apiserver", "kubectl"])
    built = fill(cache.cache_root(environ(tmp_path)) / gobuild.cache_key())
    settings = environ(tmp_path, KUBEBUILDER_ASSETS=str(assets))
    assert binaries.find(environ=settings).directory == built
    assert binaries.find(["etcd", "kube-apiserver"], environ=settings).directory == assets.resolve()
    assert sources_asked == []


def test_what_is_not_executable_or_a_folder_does_not_count(tmp_path: Path) -> None:
    directory = fill(tmp_path / "assets", ["etcd", "kubectl"])
    (directory / "etcd").chmod(0o644)
    (directory / "kube-scheduler").mkdir()
    assert cache.missing_in(directory, ["etcd", "kubectl", "kube-scheduler"]) == ["etcd", "kube-scheduler"]


def test_then_the_releases_and_the_build_last(tmp_path: Path, sources_asked: list[str], said: list[str]) -> None:
    with pytest.raises(BinariesMissing) as error:
        binaries.find(environ=environ(tmp_path, KUBEBUILDER_ASSETS=str(tmp_path)), tell=said.append)
    assert sources_asked == ["releases", "go build"]
    assert said == ["no release to download (nothing answers); trying a Go build"]
    text = str(error.value)
    reasons = ["KUBEBUILDER_ASSETS", "lacks etcd", "the cache", "nothing answers", "Go is not on the PATH", "no disk"]
    assert [reason for reason in reasons if reason not in text] == []


def test_what_a_build_makes_is_used(
    tmp_path: Path, sources_asked: list[str], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(gobuild, "build", lambda root, **_: fill(root / gobuild.cache_key()))
    assert binaries.find(environ=environ(tmp_path), tell=said.append).source == "go build"
    assert binaries.find(environ=environ(tmp_path), tell=said.append).source == "cache"
    assert sources_asked == ["releases"]


def test_downloads_can_be_turned_off(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="ALMONER_DOWNLOADS"):
        releases.download(COMPONENTS, tmp_path, environ=NO_RELEASES)


def test_the_cache_is_where_the_user_wants_caches() -> None:
    assert cache.cache_root({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/almoner/controlplane")
    assert cache.cache_root({"HOME": "/home/ann"}) == Path("/home/ann/.cache/almoner/controlplane")


def test_the_key_changes_with_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {gobuild.cache_key()}
    monkeypatch.setattr(gobuild, "sources", lambda: tmp_path)
    for name in ("go.mod", "go.sum", "main.go"):
        (tmp_path / name).write_text(name)
        keys.add(gobuild.cache_key())
    assert len(keys) == 4
    assert all(key.startswith(f"{cache.KUBERNETES_VERSION}-") for key in keys)


def test_a_cache_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with cache.fresh_directory(tmp_path, "key") as fresh:
            (fresh / "etcd").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "key").mkdir()  # What an older version left unfinished.
    with cache.fresh_directory(tmp_path, "key") as fresh:
        (fresh / "etcd").touch()
        assert list((tmp_path / "key").iterdir()) == []
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["etcd"]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_one_process_at_a_time_and_the_other_says_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(cache, "PROGRESS_EVERY_S", 0.0)
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def tell(message: str) -> None:
            said.append(message)
            fcntl.flock(other, fcntl.LOCK_UN)

        with cache.only_one(tmp_path, tell):
            pass
    assert len(said) == 1
    assert "waiting for another process" in said[0]


GOOD = Machine(go="go version go1.26.1 linux/amd64", go_toolchain="local", disk_gb=50, memory_gb=8, scratch=Path("/t"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"go": None}, ["Go is not on the PATH", "install Go 1.24"], id="no Go"),
        pytest.param(
            {"go": "go version go1.19.8 linux/amd64", "go_toolchain": "auto"}, ["Go 1.19 is too old"], id="old"
        ),
        pytest.param({"go": "go version go1.22.1 linux/amd64"}, ["Go 1.22", "GOTOOLCHAIN=auto"], id="may not fetch"),
        pytest.param({"go": "gccgo"}, ["cannot read Go's version"], id="unreadable"),
        pytest.param({"disk_gb": 9.94}, ["9.9 GB of disk", "/t", "10 GB", "TMPDIR"], id="little disk"),
        pytest.param({"memory_gb": 1.5}, ["1.5 GB of memory", "4 GB", "KUBEBUILDER_ASSETS"], id="little memory"),
    ],
)
def test_a_machine_that_cannot_build_is_told_why_and_what_to_do(change: dict[str, object], words: list[str]) -> None:
    (reason,) = golang.refusals(dataclasses.replace(GOOD, **change))  # type: ignore[arg-type]
    assert [word for word in words if word not in reason] == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({}, id="new enough"),
        pytest.param({"go": "go version go1.24 linux/amd64"}, id="just new enough"),
        pytest.param({"go": "go version go2.0 linux/amd64"}, id="next major"),
        pytest.param({"go": "go version go1.21.0 linux/arm64", "go_toolchain": "auto"}, id="fetches a newer one"),
        pytest.param({"disk_gb": None, "memory_gb": None}, id="unknown is not held against it"),
    ],
)
def test_a_machine_that_can_build_is_not_refused(change: dict[str, object]) -> None:
    assert golang.refusals(dataclasses.replace(GOOD, **change)) == []  # type: ignore[arg-type]


def test_everything_that_lacks_is_said_at_once() -> None:
    poor = Machine(go=None, go_toolchain="", disk_gb=1, memory_gb=1, scratch=Path("/t"))
    assert len(golang.refusals(poor)) == 3


def test_an_old_go_stops_the_build_before_it_begins(tmp_path: Path) -> None:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\n[ "$1" = version ] && echo go version go1.19.8 linux/amd64 || echo auto\n')
    go.chmod(0o755)
    environment = {"PATH": f"{go.parent}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    with pytest.raises(CannotBuild, match=r"Go 1\.19 is too old"):
        gobuild.build(tmp_path / "cache", environ=environment)
    assert not (tmp_path / "cache").exists()


def index(*versions: str, platform: str | None = None) -> bytes:
    lines = ["releases:"]
    for version in versions:
        name = f"envtest-{version}-{platform or cache.platform_name()}.tar.gz"
        digest = hashlib.sha512(name.encode()).hexdigest()
        lines += [f"  {version}:", f"    {name}:", f"      hash: {digest}", f"      selfLink: https://example/{name}"]
    return "\n".join(lines).encode()


def test_the_newest_patch_of_our_minor_version_is_chosen() -> None:
    chosen = releases.choose(index("v1.33.9", "v1.34.9", "v1.34.10", "v1.34.11-rc.1", "v1.35.0"))
    assert chosen[0] == "v1.34.10"
    assert chosen[1] == f"https://example/envtest-v1.34.10-{cache.platform_name()}.tar.gz"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(index("v1.33.0"), "no v1.34 release", id="no such version"),
        pytest.param(index("v1.34.1", platform="plan9-mips"), "no v1.34 release", id="no such platform"),
        pytest.param(b"<html>Log in to the hotel's network</html>", "cannot be read", id="not an index"),
        pytest.param(b"releases: [1, 2]", "cannot be read", id="a list"),
        pytest.param(b"releases: {v1.34.1: null}", "no v1.34 release", id="an empty entry"),
        pytest.param(b"\xff\xfe\x00: [", "cannot be read", id="not even YAML"),
    ],
)
def test_an_index_without_what_is_needed_is_no_crash(content: bytes, words: str) -> None:
    with pytest.raises(NotAvailable, match=words):
        releases.choose(content)
