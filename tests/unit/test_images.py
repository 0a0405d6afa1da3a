"""What the Dockerfiles promise: numeric users, no pip, only what the image needs, and commands that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from almoner_dev import locks

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARTS = {"operator": {"operator", "ledger"}, "runner": {"runner"}}


@pytest.mark.parametrize("part", PARTS)
def test_an_image_has_what_it_needs_and_no_more(part: str) -> None:
    text = (ROOT / f"Dockerfile.{part}").read_text()
    final = text.split("FROM ${BASE}\n")[1]
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", final, re.MULTILINE)
    assert "RUN" not in final
    assert set(locks.IMAGES[part]) == PARTS[part]
    assert PARTS[part] <= PROJECT["optional-dependencies"].keys()
    assert f"/locks/{part}.txt" in text
    assert "uninstall -y pip" in text
    removed = re.search(r"rm -rf ([a-z_ ]+)", text)
    assert removed is not None
    assert {"almoner_dev"} <= set(removed[1].split())
    assert all((ROOT / folder / package).is_dir() for package in removed[1].split() for folder in [folder_of(package)])


def folder_of(package: str) -> str:
    return package.removeprefix("almoner_")


def test_the_build_is_given_every_package_and_nothing_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    given = {line.removeprefix("!") for line in lines if line.startswith("!")}
    packages = PROJECT_PACKAGES | {"crds", "locks", "pyproject.toml", "README.md", "LICENSE"}
    assert given == packages


PROJECT_PACKAGES = {
    package.split("/")[0]
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
}
