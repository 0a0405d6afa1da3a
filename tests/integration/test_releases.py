from __future__ import annotations

import functools
import hashlib
import http.server
import io
import socket
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from almoner_dev import binaries, cache, releases
from almoner_dev.cache import COMPONENTS
from almoner_dev.releases import NotAvailable

VERSION = "v1.34.7"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the parent's
        pass


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A mirror of both kinds of releases on loopback; gives its folder and the settings that point at it."""
    root = tmp_path / "mirror"
    operating_system, architecture = cache.platform_name().split("-")
    programs = root / "release" / VERSION / "bin" / operating_system / architecture
    programs.mkdir(parents=True)
    for name in ("kube-controller-manager", "kube-scheduler"):
        content = f"#!/bin/sh\necho {name}\n".encode()
        (programs / name).write_bytes(content)
        (programs / f"{name}.sha512").write_text(hashlib.sha512(content).hexdigest())
    archive_name = f"envtest-{VERSION}-{cache.platform_name()}.tar.gz"
    with tarfile.open(root / archive_name, "w:gz") as archive:
        for name in ("etcd", "kube-apiserver", "kubectl", "../../outside", "something-else"):
            content = f"#!/bin/sh\necho {name}\n".encode()
            entry = tarfile.TarInfo(f"controller-tools/envtest/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = hashlib.sha512((root / archive_name).read_bytes()).hexdigest()
    index = {"releases": {VERSION: {archive_name: {"hash": digest, "selfLink": archive_name}}}}
    (root / "index.yaml").write_text(yaml.safe_dump(index))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    base = f"http://127.0.0.1:{server.server_port}"
    yield (
        root,
        {
            "ALMONER_ENVTEST_INDEX": f"{base}/index.yaml",
            "ALMONER_KUBERNETES_RELEASES": f"{base}/release",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
    )
    server.shutdown()
    thread.join()
    server.server_close()


def test_releases_fill_the_cache_with_every_component(mirror: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    _, environ = mirror
    said: list[str] = []
    found = binaries.find(environ=environ, tell=said.append)
    assert found.source == "release"
    assert {path.name for path in found.directory.iterdir()} == set(COMPONENTS)
    assert found.path("kube-scheduler").read_text() == "#!/bin/sh\necho kube-scheduler\n"
    assert said == [f"downloaded Kubernetes {VERSION}"]
    assert not list(tmp_path.rglob("outside"))
    again = binaries.find(environ=environ, tell=said.append)
    assert (again.directory, again.source) == (found.directory, "cache")


@pytest.mark.parametrize("what", ["archive", "program"])
def test_what_was_tampered_with_is_refused_and_not_kept(mirror: tuple[Path, dict[str, str]], what: str) -> None:
    root, environ = mirror
    target = next(root.rglob("*.tar.gz" if what == "archive" else "kube-scheduler"))
    target.write_bytes(target.read_bytes() + b"tampered")
    with pytest.raises(NotAvailable, match="SHA-512"):
        releases.download(COMPONENTS, cache.cache_root(environ), environ=environ)
    assert list(cache.cache_root(environ).iterdir()) == []


def test_a_mirror_that_lacks_a_program_is_named(mirror: tuple[Path, dict[str, str]]) -> None:
    root, environ = mirror
    next(root.rglob("kube-scheduler.sha512")).unlink()
    with pytest.raises(NotAvailable, match=r"127\.0\.0\.1 does not give it: 404 .*kube-scheduler\.sha512"):
        releases.download(COMPONENTS, cache.cache_root(environ), environ=environ)


@pytest.mark.parametrize("how", ["refuses", "is silent"])
def test_where_nothing_answers_it_gives_up_within_seconds(tmp_path: Path, how: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if how == "is silent":
            server.listen()
        environ = {"ALMONER_ENVTEST_INDEX": f"http://127.0.0.1:{server.getsockname()[1]}/index.yaml"}
        began = time.monotonic()
        with pytest.raises(NotAvailable, match="does not give it"):
            releases.download(COMPONENTS, tmp_path, environ=environ)
    assert time.monotonic() - began < releases.CONNECT_SECONDS + 2
