"""The lock files: they have what pyproject asks for, by version and hash, and name no place to have it from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from almoner_dev import locks

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLATFORMS = [{"python_version": minor, "sys_platform": "linux"} for minor in ("3.11", "3.12", "3.13", "3.14")]
HASHED = re.compile(r"(?P<pin>\S+==\S+(?: ; [^\\]+)?)(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n")


def pins(name: str) -> list[Requirement]:
    """The pins of a lock; every line of it belongs to one, with a hash at least."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert HASHED.sub("", text) == "", f"locks/{name}.txt: something else than a pin with its hashes"
    return [Requirement(found["pin"]) for found in HASHED.finditer(text)]


def demanded(name: str) -> list[Requirement]:
    if name == locks.BUILD:
        return [Requirement(text) for text in PYPROJECT["build-system"]["requires"]]
    project = PYPROJECT["project"]
    extras = [project["optional-dependencies"][extra] for extra in locks.IMAGES[name]]
    return [Requirement(text) for texts in (project["dependencies"], *extras) for text in texts]


def holds(marker: Marker | None, platform: dict[str, str]) -> bool:
    return marker is None or marker.evaluate({**platform, "python_full_version": platform["python_version"] + ".0"})


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform["python_version"])
@pytest.mark.parametrize("name", [*locks.IMAGES, locks.BUILD])
def test_a_lock_has_what_pyproject_asks_for(name: str, platform: dict[str, str]) -> None:
    locked = {canonicalize_name(pin.name): pin for pin in pins(name) if holds(pin.marker, platform)}
    wanted = [each for each in demanded(name) if holds(each.marker, platform)]
    assert wanted
    for each in wanted:
        pin = locked.get(canonicalize_name(each.name))
        assert pin is not None, f"{each} is not in locks/{name}.txt: make locks"
        (version,) = pin.specifier
        assert each.specifier.contains(version.version), f"locks/{name}.txt has {pin}, pyproject {each}: make locks"


def test_the_images_agree_on_what_both_have() -> None:
    operator, runner = ({str(pin.name): str(pin.specifier) for pin in pins(name)} for name in locks.IMAGES)
    both = operator.keys() & runner.keys()
    assert "aiohttp" in both
    assert {name: operator[name] for name in both} == {name: runner[name] for name in both}


@pytest.mark.parametrize("name", locks.IMAGES)
def test_an_image_is_built_from_its_lock(name: str) -> None:
    text = (ROOT / f"Dockerfile.{name}").read_text()
    installs = re.findall(r"/pip (?:--python \S+ )?install (.+?)(?: \\)?$", text, re.MULTILINE)
    hashed = [words for words in installs if "--require-hashes" in words]
    assert any(f"/locks/{name}.txt" in words for words in hashed)
    assert any("/locks/build.txt" in words for words in hashed)
    # What else is installed is this checkout's own wheel, and nothing that it asks for.
    assert [words for words in installs if words not in hashed] == ["--no-compile --no-deps --no-index /wheels/*.whl"]
