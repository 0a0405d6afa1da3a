"""The parts of a real node that need no root: images, configuration, what is said to be missing."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path

import pytest
import yaml

from almoner_dev.cache import KUBERNETES_VERSION
from almoner_dev.cluster import NodeImpossible, cgroups, oci, requirements, settings


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        return {m.name: file.read() for m in opened.getmembers() if (file := opened.extractfile(m)) is not None}


def test_an_image_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    made = [
        oci.write_archive(
            tmp_path / f"{number}.tar",
            "localhost/it:1",
            files={"bin/it": program},
            links={"bin/sh": "it"},
            texts={"etc/passwd": "x"},
            entrypoint=["/bin/it"],
        )
        for number in range(2)
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    content = members(made[0])
    index = json.loads(content["index.json"])
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/it:1"
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert hashlib.sha256(blob).hexdigest() == name.rpartition("/")[2]
    manifest = json.loads(content["blobs/sha256/" + index["manifests"][0]["digest"].removeprefix("sha256:")])
    layer = tmp_path / "layer.tar"
    layer.write_bytes(content["blobs/sha256/" + manifest["layers"][0]["digest"].removeprefix("sha256:")])
    with tarfile.open(layer) as opened:
        modes = {m.name: (m.mode, m.linkname) for m in opened.getmembers()}
    assert modes == {
        "bin": (0o755, ""),
        "etc": (0o755, ""),
        "tmp": (0o1777, ""),
        "bin/it": (0o755, ""),
        "etc/passwd": (0o644, ""),
        "bin/sh": (0o644, "it"),
    }


def test_what_lacks_is_said_with_the_packages_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ip").write_text("")
    (tmp_path / "ip").chmod(0o755)
    monkeypatch.setattr(requirements, "search_path", lambda: str(tmp_path))
    monkeypatch.setattr(requirements, "CNI_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NodeImpossible) as error:
        requirements.demand()
    text = str(error.value)
    assert "needs root" in text
    assert "apt-get install busybox-static conntrack containerd containernetworking-plugins" in text
    assert "iproute2" not in text
    with pytest.raises(NodeImpossible, match="apt-get install runc"):
        requirements.program("runc")


def test_version_2_has_one_hierarchy_and_hands_its_controllers_on(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "some.slice").mkdir()
    assert cgroups.hierarchies(tmp_path) == [tmp_path]


def test_version_1_has_a_group_in_each_hierarchy(tmp_path: Path) -> None:
    for name in ("cpuset", "memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu").symlink_to("cpuset")
    assert cgroups.hierarchies(tmp_path) == [tmp_path / "cpuset", tmp_path / "memory"]
    cgroups.make("mine", tmp_path)
    (tmp_path / "memory" / "mine" / "pod").mkdir()
    cgroups.remove("mine", tmp_path)
    assert list((tmp_path / "memory").iterdir()) == list((tmp_path / "cpuset").iterdir()) == []


def test_groups_whose_node_is_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "scratch"))
    (tmp_path / "scratch" / "x-alive").mkdir(parents=True)
    for name in ("x-alive", "x-gone", "other"):
        (tmp_path / "cgroup" / "memory" / name).mkdir(parents=True)
    cgroups.sweep("x-", tmp_path / "cgroup")
    assert {path.name for path in (tmp_path / "cgroup" / "memory").iterdir()} == {"x-alive", "other"}


def test_the_node_is_of_the_control_planes_version(repository: Path) -> None:
    found = {
        name: re.findall(r"k8s\.io/kubernetes (v\S+)", (repository / "dev" / name / "go.mod").read_text())
        for name in ("controlplane", "gotools/node")
    }
    assert found == {"controlplane": [KUBERNETES_VERSION], "gotools/node": [KUBERNETES_VERSION]}


def test_the_configuration_can_be_read(tmp_path: Path) -> None:
    kubelet = yaml.safe_load(settings.kubelet(tmp_path, cgroup="group", client_ca=tmp_path / "ca.crt"))
    assert (kubelet["cgroupRoot"], kubelet["clusterDNS"]) == ("/group", [settings.DNS_ADDRESS])
    objects = list(yaml.safe_load_all(settings.objects(tmp_path)))
    (service,) = (each for each in objects if each["kind"] == "Service")
    assert service["spec"]["clusterIP"] == settings.DNS_ADDRESS
    assert len([each for each in objects if each["kind"] == "PersistentVolume"]) == settings.VOLUMES
    assert json.loads(settings.cni(tmp_path))["plugins"][0]["ipam"]["ranges"] == [[{"subnet": settings.POD_CIDR}]]


def test_a_path_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="given twice"):
        oci.write_archive(tmp_path / "x.tar", "localhost/it:1", files={}, links={"bin/a": "b"}, texts={"bin/a": ""})
