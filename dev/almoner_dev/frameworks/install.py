"""Installs each framework by its lock, in a venv or node_modules of its own, in the cache outside the repository.

Role: `installed` gives the folder, filling it the first time; `lock` resolves a framework anew. Boundary: names no
registry: uv and npm have one by their own settings, and what they write is stripped of where it came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from almoner_dev.cache import Say, cache_root, fresh_directory, only_one, say
from almoner_dev.frameworks.table import FRAMEWORKS, Framework, Language

ROOT = Path(__file__).resolve().parents[3]
LOCKS = Path("tests/frameworks/locks")
PYTHON_OLDEST = "3.11"
INSTALL_SECONDS_MAX = 540
NODE_MAJOR_MIN = 20


class FrameworkMissingError(Exception):
    """A framework cannot be installed here; the message says in one line what is missing."""


def lock_path(framework: Framework) -> Path:
    """Where its lock lies."""
    suffix = "txt" if framework.language is Language.PYTHON else "package-lock.json"
    return ROOT / LOCKS / f"{framework.name}.{suffix}"


def installed(framework: Framework, tell: Say = say) -> Path:
    """Give the folder with the framework: a venv (`bin/python`), or what holds `node_modules`.

    Raises FrameworkMissingError where a tool is missing or the registry cannot be reached.
    """
    tools = [uv()] if framework.language is Language.PYTHON else node_tools()
    lock = lock_path(framework).read_bytes()
    version = sys.version if framework.language is Language.PYTHON else _output([tools[0], "--version"])
    name = f"{framework.name}-{hashlib.sha256(lock + version.encode()).hexdigest()[:16]}"
    root = cache_root(what="frameworks")
    if (root / name / "complete").exists():
        return root / name
    with only_one(root / "locks" / framework.name, tell):
        if not (root / name / "complete").exists():
            tell(f"installing {framework.title} for its tests, once")
            if framework.language is Language.PYTHON:
                _install_python(framework, root / name, tools[0])
            else:
                _install_node(framework, root, name, tools[1])
    return root / name


def uv() -> str:
    """The uv of this environment, or of the machine."""
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        raise FrameworkMissingError("uv is missing: make setup installs it")
    return found


def node_tools() -> list[str]:
    """The machine's node and npm."""
    found = [shutil.which(name) for name in ("node", "npm")]
    if None in found:
        raise FrameworkMissingError(f"node and npm are missing: install Node.js {NODE_MAJOR_MIN} or newer")
    node, npm = (str(each) for each in found)
    major = int(_output([node, "--version"]).removeprefix("v").partition(".")[0])
    if major < NODE_MAJOR_MIN:
        raise FrameworkMissingError(f"node is of version {major}, and {NODE_MAJOR_MIN} or newer is needed")
    return [node, npm]


def _install_python(framework: Framework, target: Path, uv_path: str) -> None:
    # A venv names its own place in its scripts: it is made where it stays, and counts once it is complete.
    shutil.rmtree(target, ignore_errors=True)
    _run(framework, [uv_path, "venv", "--quiet", "--python", sys.executable, str(target)])
    python = str(target / "bin" / "python")
    command = [uv_path, "pip", "install", "--quiet", "--no-deps", "--python", python]
    _run(framework, [*command, "--requirement", str(lock_path(framework))])
    (target / "complete").touch()


def _install_node(framework: Framework, root: Path, name: str, npm: str) -> None:
    with fresh_directory(root, name) as folder:
        shutil.copy(lock_path(framework), folder / "package-lock.json")
        (folder / "package.json").write_text(json.dumps(_package(framework)))
        _run(framework, [npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], folder)
        (folder / "complete").touch()


def _package(framework: Framework) -> dict[str, Any]:
    lock = lock_path(framework)
    wanted = json.loads(lock.read_text())["packages"][""]["dependencies"] if lock.exists() else {}
    return {"name": f"almoner-{framework.name}", "version": "0.0.0", "private": True, "dependencies": wanted}


def _run(framework: Framework, command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise FrameworkMissingError(f"{framework.title}: not installed within {INSTALL_SECONDS_MAX} s") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise FrameworkMissingError(
            f"{framework.title} could not be installed ({Path(command[0]).name}): {' / '.join(lines[:3])[:300]}"
        )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


# -- locks -------------------------------------------------------------------------------------------------------------


def lock(framework: Framework) -> None:
    """Resolve a framework's packages anew, to their newest versions. Raises FrameworkMissingError."""
    path = lock_path(framework)
    path.parent.mkdir(parents=True, exist_ok=True)
    if framework.language is Language.PYTHON:
        options = ["--universal", "--no-annotate", "--no-header", "--no-emit-index-url", "--upgrade", "--quiet"]
        command = [uv(), "pip", "compile", *options, f"--python-version={PYTHON_OLDEST}", f"--output-file={path}", "-"]
        _compile(framework, command)
        return
    _, npm = node_tools()
    root = cache_root(what="frameworks")
    with fresh_directory(root, f"lock-{framework.name}") as folder:
        package = {"name": f"almoner-{framework.name}", "version": "0.0.0", "private": True}
        (folder / "package.json").write_text(json.dumps(package))
        _run(framework, [npm, "install", "--package-lock-only", "--no-audit", "--no-fund", *framework.packages], folder)
        written = json.loads((folder / "package-lock.json").read_text())
        path.write_text(json.dumps(without_places(written), indent=1) + "\n")


def _compile(framework: Framework, command: list[str]) -> None:
    given = "\n".join(framework.packages)
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode != 0:
        raise FrameworkMissingError(f"{framework.title} could not be resolved: {done.stderr.strip()[-600:]}")
    path = lock_path(framework)
    # What uv takes over from a machine's settings, such as folders with wheels, is that machine's.
    lines = [line for line in path.read_text().splitlines() if re.match(r"[a-zA-Z0-9]", line)]
    path.write_text("\n".join(lines) + "\n")


def without_places(found: dict[str, Any]) -> dict[str, Any]:
    """A package-lock without the addresses that packages came from, and without people to send money to."""
    packages = {
        place: {name: value for name, value in entry.items() if name not in ("resolved", "funding")}
        for place, entry in found["packages"].items()
    }
    return {**found, "packages": packages}


def named(names: list[str]) -> list[Framework]:
    """The frameworks of these names; all where none is named. Raises KeyError for a name that is none."""
    by_name = {each.name: each for each in FRAMEWORKS}
    return [by_name[name] for name in names] if names else list(FRAMEWORKS)
