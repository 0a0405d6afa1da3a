"""The images that the Dockerfiles make: what is in them, what is not, and how they run on a real node.

The base is a Debian that the tests make; with `ALMONER_E2E_IMAGES=DIR` they are anybody's, on any base.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from almoner_dev import images
from almoner_dev.images.archive import Archive
from tests.support.installed import given_images
from tests.support.restricted import Pods, container, pod

COMMANDS = {
    "operator": ["almoner", "almoner-ledger", "almoner-operator"],
    "runner": ["almoner-agent", "almoner-meter"],
}
PACKAGES = {
    "operator": {"almoner_cli", "almoner_core", "almoner_ledger", "almoner_operator"},
    "runner": {"almoner_core", "almoner_runner"},
}
# Measured: 178 and 117 MB of Almoner and its packages, 94 and 83 MB to transfer with the base.
ADDED_MB_MAX = {"operator": 215, "runner": 145}
PACKED_MB_MAX = {"operator": 120, "runner": 105}
PROGRAM_FOLDERS = {"bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "usr/local/sbin", "opt/almoner/bin"}
COMPILERS = {"cc", "c++", "gcc", "g++", "clang", "tcc", "as", "ld", "make", "go", "rustc", "javac"}
INSTALLERS = {"pip", "pip3", "uv", "conda", "easy_install"}
SECOND = 1_000_000_000


@pytest.fixture(scope="module", params=images.PARTS)
def built(request: pytest.FixtureRequest) -> images.Built:
    """The image of one part."""
    by_part = dict(zip(images.PARTS, given_images(), strict=False))
    if request.param not in by_part:
        pytest.skip("`make e2e` has said why the images of the Dockerfiles cannot be built here")
    return images.look(request.param, by_part[request.param])


@pytest.fixture(scope="module")
def archive(built: images.Built) -> Iterator[Archive]:
    with Archive(built.path) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(archive: Archive) -> dict[str, Any]:
    return archive.files()


@pytest.fixture(scope="module")
def image(site: Any, built: images.Built, archive: Archive) -> str:
    """The image's name on the node."""
    if site.node is None:
        pytest.skip("images can only be loaded into the node that `make e2e` starts by itself")
    site.node.load(built.path)
    return images.reference(built.part)


def run(pods: Pods, image: str, script: str, *, read_only: bool = True, **environment: str) -> str:
    """What a Python script prints in a restricted pod of the image's own user, with /tmp to write to."""
    body = pod(container(image, "", command=["python", "-c", script]), volumes=[{"name": "tmp", "emptyDir": {}}])
    # Not a user of the pod's: runAsNonRoot then demands that the image's is a number, and not 0.
    body["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (main,) = body["spec"]["containers"]
    main["securityContext"]["readOnlyRootFilesystem"] = read_only
    main["env"] = [{"name": name, "value": value} for name, value in environment.items()]
    main["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}] if read_only else []
    return pods.output(pods.create(body))


# -- from the archives -----------------------------------------------------------------------------------


def test_it_is_as_small_as_it_was(built: images.Built, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        sys.stdout.write(
            f"\nalmoner-{built.part}: {built.unpacked / 1e6:.0f} MB, of which {built.added / 1e6:.0f} MB are Almoner "
            f"and its packages; {built.packed / 1e6:.0f} MB to transfer\n"
        )
    assert built.added < ADDED_MB_MAX[built.part] * 1e6
    assert built.packed < PACKED_MB_MAX[built.part] * 1e6


def test_nobody_can_compile_or_install_in_it(files: dict[str, Any]) -> None:
    programs = {Path(name).name for name in files if str(Path(name).parent) in PROGRAM_FOLDERS}
    assert {"python3", "sh"} <= programs, "the folders are those of the image"
    assert not programs & (COMPILERS | INSTALLERS)
    modules = {Path(name).name for name in files if Path(name).parent.name in {"site-packages", "dist-packages"}}
    assert not modules & {"pip", "setuptools", "wheel"}
    assert not [name for name in files if "/ensurepip/" in name or name.endswith(".whl")]


def test_nothing_in_it_gives_rights_or_takes_writes(files: dict[str, Any]) -> None:
    assert [name for name, entry in files.items() if entry.isfile() and entry.mode & 0o6000] == []
    capable = [name for name, entry in files.items() if any("capability" in key for key in entry.pax_headers)]
    assert capable == []
    open_to_all = [name for name, entry in files.items() if entry.mode & 0o002 and not entry.issym()]
    assert open_to_all == ["tmp"]
    user = 65532
    assert [name for name, entry in files.items() if user in {entry.uid, entry.gid}] == []


def test_it_has_its_own_part_and_no_other(built: images.Built, files: dict[str, Any]) -> None:
    folder = next(name for name in files if name.startswith("opt/almoner/lib/") and name.endswith("/site-packages"))
    below = {Path(name).name for name in files if str(Path(name).parent) == folder}
    assert {name for name in below if name.startswith("almoner_")} == PACKAGES[built.part]
    commands = {Path(name).name for name in files if str(Path(name).parent) == "opt/almoner/bin"}
    assert sorted(name for name in commands if not name.startswith("python")) == COMMANDS[built.part]


def test_the_licences_of_its_packages_are_in_it(files: dict[str, Any]) -> None:
    packages = [name for name in files if name.startswith("opt/almoner/") and name.endswith(".dist-info")]
    assert len(packages) > 30
    # RECORD names every file that the package came with.
    licensed = [name for name in files if ".dist-info/" in name and "LICEN" in name.upper().rpartition("/")[2]]
    assert len({name.split(".dist-info/")[0] for name in licensed}) > len(packages) * 0.8


def test_it_says_what_it_is(built: images.Built, archive: Archive) -> None:
    config = archive.config["config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert labels["title"] == f"almoner-{built.part}"
    assert labels["version"] == images.reference(built.part).rpartition(":")[2]
    assert labels["licenses"] == "Apache-2.0"
    assert labels["description"]
    assert len(labels["revision"].removesuffix("-dirty")) == 40
    user, _, group = config["User"].partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_a_second_build_is_the_same_file(built: images.Built) -> None:
    if not built.path.is_relative_to(images.cache_folder()):
        pytest.skip("ALMONER_E2E_IMAGES: these images were built elsewhere")
    if built.part != "runner":
        pytest.skip("the two Dockerfiles build in the same way: one of them is built twice")
    assert images.verify({built.part: built}) == []


# -- on the node -----------------------------------------------------------------------------------------

STARTS = """
import json, os, subprocess, sys, time
taken = {}
for command in json.loads(os.environ["COMMANDS"]):
    began = time.monotonic_ns()
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    taken[command] = time.monotonic_ns() - began
    assert done.returncode == 0 and done.stdout.startswith("usage: almoner"), done
print(json.dumps(taken))
"""


def test_its_commands_start(built: images.Built, image: str, pods: Pods, capsys: pytest.CaptureFixture[str]) -> None:
    """With the root file system read-only, as the image's own user; the first is a cold start."""
    taken = json.loads(run(pods, image, STARTS, COMMANDS=json.dumps(COMMANDS[built.part])))
    with capsys.disabled():
        told = ", ".join(f"{name} {spent / SECOND:.2f} s" for name, spent in taken.items())
        sys.stdout.write(f"\nalmoner-{built.part}: from exec to the end of --help: {told}\n")
    assert list(taken) == COMMANDS[built.part]


IMPORTS = """
import importlib, importlib.util, json, os, pathlib, pkgutil, sys
stale, count, lacking = [], 0, set()
for package in json.loads(os.environ["PACKAGES"]):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__") and ".migrations." not in found.name:
            try:
                importlib.import_module(found.name)
                count += 1
            except ModuleNotFoundError as error:
                lacking.add(error.name)
for name in json.loads(os.environ["ALSO"]):
    importlib.import_module(name)
for path in pathlib.Path("/opt/almoner/lib").rglob("site-packages/**/*.py"):
    compiled = pathlib.Path(importlib.util.cache_from_source(str(path)))
    # The flags of a bytecode file: 1 is by hash, unchecked, so that no clock and no reading of the source is needed.
    if not compiled.exists() or compiled.read_bytes()[4:8] != b"\\x01\\0\\0\\0":
        stale.append(str(path))
absent = [name for name in ("pip", "ensurepip", "almoner_dev", *json.loads(os.environ["ABSENT"]))
          if importlib.util.find_spec(name)]
print(json.dumps({"count": count, "stale": stale, "absent": absent, "lacking": sorted(lacking)}))
"""
OPTIONAL = {"operator": ["pyarrow"], "runner": []}
"""What an image does not have though a module imports it: the export to Parquet is `almoner[export]`."""
LATE = {
    # What is imported only when it is needed; the removal of tests and the like must not have broken it.
    "operator": [
        "kopf",
        "kubernetes.dynamic",
        "kubernetes.stream",
        "alembic.command",
        "sqlalchemy.dialects.postgresql",
    ],
    "runner": ["pydantic_ai.models.openai", "pydantic_ai.models.anthropic", "openai", "anthropic", "jsonschema"],
}


def test_all_of_it_can_be_imported_from_bytecode(built: images.Built, image: str, pods: Pods) -> None:
    absent = sorted(set.union(*PACKAGES.values()) - PACKAGES[built.part])
    said = json.loads(
        run(
            pods,
            image,
            IMPORTS,
            PACKAGES=json.dumps(sorted(PACKAGES[built.part])),
            ALSO=json.dumps(LATE[built.part]),
            ABSENT=json.dumps(absent),
        ).splitlines()[-1]
    )
    assert said["absent"] == [], "these are there"
    assert said["lacking"] == OPTIONAL[built.part]
    assert said["stale"] == []
    assert said["count"] > 40


WRITES = """
import os
print(os.getuid(), os.getgid())
seen = 0
for folder, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in {"/proc", "/sys", "/dev"}]
    for path in [folder, *(os.path.join(folder, name) for name in names)]:
        seen += 1
        if not os.path.islink(path) and os.access(path, os.W_OK):
            print(path)
assert seen > 1000, seen
"""


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "writable root"])
def test_its_user_can_write_to_nothing_but_tmp(image: str, pods: Pods, read_only: bool) -> None:
    """Also where nobody has said readOnlyRootFilesystem."""
    user, *paths = run(pods, image, WRITES, read_only=read_only).splitlines()
    assert user == "65532 65532"
    assert paths == ["/tmp"]
