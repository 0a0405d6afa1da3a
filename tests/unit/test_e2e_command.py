"""Where `make e2e` runs: what it says before anything is started, and what it hands to the tests."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

import pytest

from almoner_dev import __main__ as command_line
from almoner_dev import images
from almoner_dev.cluster import NodeImpossible, requirements
from almoner_dev.commands import e2e
from almoner_dev.images import machine
from almoner_dev.processes import ProcessError


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, prepared: list[bool]) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that were run, with their environments, instead of running them."""
    seen: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        seen.append((command, dict(options.get("env") or {})))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(e2e, "prepare", lambda *, real_node: prepared.append(real_node))
    monkeypatch.setattr(e2e, "image_folder", lambda: {e2e.IMAGES_VARIABLE: "/built"})
    monkeypatch.delenv(e2e.IMAGES_VARIABLE, raising=False)
    return seen


@pytest.fixture
def prepared() -> list[bool]:
    """How often the cache was filled, and whether for a real node."""
    return []


def options(*arguments: str) -> argparse.Namespace:
    return command_line.parser().parse_args(["e2e", *arguments])


def test_a_node_of_this_machine_is_what_it_runs_on(
    started: list[tuple[list[str], dict[str, str]]], prepared: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "refusals", list)
    monkeypatch.setenv(e2e.KUBECONFIG_VARIABLE, "/somebody's")
    assert e2e.run(options("--", "-k", "token")) == 3
    ((command, environment),) = started
    assert command[1:] == ["-m", "pytest", "tests/cluster", "-k", "token"]
    assert e2e.KUBECONFIG_VARIABLE not in environment
    assert environment[e2e.IMAGES_VARIABLE] == "/built"
    # Builds of minutes would otherwise count as a test's own time.
    assert prepared == [True]


def test_what_the_machine_lacks_is_said_first(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "refusals", lambda: ["root is needed", "packages are missing"])
    with pytest.raises(NodeImpossible, match="root is needed\n  - packages are missing"):
        e2e.run(options())
    assert started == []


def test_another_cluster_is_named_by_its_kubeconfig(
    started: list[tuple[list[str], dict[str, str]]], prepared: list[bool], tmp_path: Path
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with pytest.raises(ProcessError, match="there is no file"):
        e2e.run(options("--kubeconfig", str(kubeconfig)))
    kubeconfig.write_text("")
    e2e.run(options("--kubeconfig", str(kubeconfig), "--", "tests/cluster/test_node.py"))
    ((command, environment),) = started
    assert command[1:] == ["-m", "pytest", "tests/cluster/test_node.py"]
    assert environment[e2e.KUBECONFIG_VARIABLE] == str(kubeconfig)
    assert prepared == [False]


def test_in_another_cluster_the_image_is_where_it_is_said_to_be(
    started: list[tuple[list[str], dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubeconfig").write_text("")
    # One of the environment is somebody's of another day.
    monkeypatch.setenv(e2e.IMAGE_VARIABLE, "old:1")
    e2e.run(options("--kubeconfig", str(tmp_path / "kubeconfig"), "--image", "registry.example:5000/almoner:1"))
    e2e.run(options("--kubeconfig", str(tmp_path / "kubeconfig")))
    (_, given), (_, without) = started
    assert given[e2e.IMAGE_VARIABLE] == "registry.example:5000/almoner:1"
    assert e2e.IMAGE_VARIABLE not in without
    with pytest.raises(ProcessError, match="--image goes with --kubeconfig"):
        e2e.run(options("--image", "almoner:1"))


def test_without_docker_kind_is_refused_in_one_line(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ProcessError, match="--kind needs docker and kind, which this machine has not") as error:
        e2e.run(options("--kind"))
    assert "\n" not in str(error.value)
    assert started == []


def test_a_kind_cluster_is_deleted_even_when_it_could_not_be_made(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    with pytest.raises(ProcessError, match="kind could not make a cluster"):
        e2e.run(options("--kind"))
    (create, _), (delete, _) = started
    assert create[:3] == ["kind", "create", "cluster"]
    assert Path(create[create.index("--config") + 1]).is_relative_to(repository)
    assert Path(create[create.index("--config") + 1]).is_file()
    assert delete == ["kind", "delete", "cluster", "--name", create[create.index("--name") + 1]]


def test_whether_it_can_run_is_said_without_running(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requirements, "lacking_packages", lambda: ["containerd", "runc"])
    monkeypatch.setattr(machine, "lacking_packages", lambda: ["buildah", "containerd"])
    assert e2e.run(options("--packages")) == 0
    assert capsys.readouterr().out == "buildah containerd runc\n"
    monkeypatch.setattr(requirements, "refusals", list)
    monkeypatch.setattr(machine, "refusals", lambda _: [])
    assert e2e.run(options("--check")) == 0
    assert capsys.readouterr().out.splitlines() == ["a real node can be started here", "and the images can be built"]
    monkeypatch.setattr(machine, "refusals", lambda _: ["packages are missing: apt-get install buildah"])
    assert e2e.run(options("--check")) == 0
    (_, reason) = capsys.readouterr().out.splitlines()
    assert reason.endswith("not with those of the Dockerfiles: packages are missing: apt-get install buildah")
    monkeypatch.setattr(requirements, "refusals", lambda: ["root is needed"])
    with pytest.raises(NodeImpossible):
        e2e.run(options("--check"))
    assert started == []


def test_images_that_were_built_by_hand_are_taken_as_they_are(
    started: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "refusals", list)
    monkeypatch.setenv(e2e.IMAGES_VARIABLE, "/mine")
    e2e.run(options())
    ((_, environment),) = started
    assert environment[e2e.IMAGES_VARIABLE] == "/mine"


@pytest.mark.parametrize("lacks", ["a package", "the network"])
def test_where_images_cannot_be_built_one_line_says_so(
    lacks: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build() -> None:
        assert lacks == "the network", "nothing is built where a package is missing"
        raise images.NothingToBuildFrom("no base could be made: debootstrap failed;\nits output")

    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(machine, "refusals", lambda _: ["root is needed"] if lacks == "a package" else [])
    assert e2e.image_folder() == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert "the chart is installed with an image of this checkout, not with those of the Dockerfiles: " in line
    assert line.endswith("root is needed" if lacks == "a package" else "debootstrap failed; its output")


def test_a_dockerfile_that_fails_is_no_reason_to_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise images.ImagesImpossible("buildah build failed")

    monkeypatch.setattr(images, "build", build)
    monkeypatch.setattr(machine, "refusals", lambda _: [])
    with pytest.raises(images.ImagesImpossible):
        e2e.image_folder()


def test_a_checkout_that_pods_cannot_see_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "CHECKOUT", Path("/tmp/clone"))
    (said,) = [reason for reason in requirements.refusals() if "/tmp/clone" in reason]
    assert said == "/tmp/clone lies under /tmp, which pods cover with a folder of their own: put it elsewhere"
    assert requirements.hidden_from_pods(Path("/srv/clone"), Path("/tmpfiles")) == []
