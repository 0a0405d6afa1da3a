"""What the Dockerfiles promise: numeric users, no pip, only what the image needs, and commands that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from almoner_dev import locks

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PARTS = {"operator": {"operator", "ledger"}, "runner": {"runner"}}
PACKAGES = {
    "operator": {"almoner_core", "almoner_ledger", "almoner_operator", "almoner_cli"},
    "runner": {"almoner_core", "almoner_runner"},
}
COMMANDS = {
    "operator": {"almoner", "almoner-operator", "almoner-ledger"},
    "runner": {"almoner-meter", "almoner-agent"},
}


def dockerfile(part: str) -> str:
    return (ROOT / f"Dockerfile.{part}").read_text()


@pytest.mark.parametrize("part", PARTS)
def test_an_image_has_what_it_needs_and_no_more(part: str) -> None:
    text = dockerfile(part)
    final = text.split("FROM ${BASE}\n")[1]
    assert re.findall(r"^USER (.+)$", final, re.MULTILINE)[-1] == "65532:65532"
    assert "/opt/almoner/lib" not in final, "what the build stage has is copied, not changed"
    assert set(locks.IMAGES[part]) == PARTS[part]
    assert PARTS[part] <= PROJECT["optional-dependencies"].keys()
    assert f"/locks/{part}.txt" in text
    folders = {Path(each).parts[-1]: Path(each).parts[0] for each in wheel_packages()}
    copied = set(re.findall(r"^COPY ([a-z]+) /src/\1$", text, re.MULTILINE)) - {"crds"}
    assert copied == {folders[package] for package in PACKAGES[part]}


@pytest.mark.parametrize("part", PARTS)
def test_an_image_keeps_its_own_commands_alone(part: str) -> None:
    """The wheel makes a command of each part; those whose part is not in the image go."""
    removed = re.search(r"&& rm ((?:/opt/almoner/bin/[a-z-]+ ?)+)", dockerfile(part))
    assert removed is not None
    gone = {Path(path).name for path in removed[1].split()}
    assert PROJECT["scripts"].keys() - gone == COMMANDS[part]
    for name in COMMANDS[part]:
        assert PROJECT["scripts"][name].split(".")[0] in PACKAGES[part]


@pytest.mark.parametrize("part", PARTS)
def test_an_image_says_what_it_is(part: str) -> None:
    text = dockerfile(part)
    assert f"ARG VERSION={PROJECT['version']}\n" in text
    labels = dict(re.findall(r'org\.opencontainers\.image\.([a-z]+)="([^"]*)"', text))
    assert labels.pop("description")
    assert labels == {
        "title": f"almoner-{part}",
        "licenses": PROJECT["license"],
        "version": "${VERSION}",
        "revision": "${REVISION}",
    }


def test_what_is_done_to_the_base_is_the_same_in_both() -> None:
    """Two files, so that `docker build -f` is all that a user needs; the shared part must not drift apart."""
    bases = [re.search(r"FROM \$\{BASE\}\n(.*?)COPY --from", dockerfile(part), re.DOTALL) for part in PARTS]
    one, other = [found[1] for found in bases if found]
    assert one == other


def test_the_build_is_given_what_it_copies_and_nothing_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    given = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        word
        for part in PARTS
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(part), re.MULTILINE)
        for word in sources.split()
    }
    assert given == copied
    assert all((ROOT / name).exists() for name in given)


def wheel_packages() -> list[str]:
    packages: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return packages
