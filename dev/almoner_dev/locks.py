"""Writes locks/: what the two images are built from, every package with its version and its hashes.

Role: resolves pyproject's dependencies with uv, for every platform and every Python from 3.11 on. The Dockerfiles
install with `--require-hashes`, so an image has what was tested, or is not built.

Boundary: names no package index: whoever builds an image has one. `python -m almoner_dev.locks` takes the newest
versions that fit; `--keep` changes only what pyproject no longer allows or newly asks for.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "locks"
IMAGES = {"operator": ("operator", "ledger"), "runner": ("runner",)}
"""The extras of pyproject that an image has."""
BUILD = "build"
"""The lock of what makes the wheel: pyproject's build-system."""
OPTIONS = ("--generate-hashes", "--universal", "--no-annotate", "--no-header", "--no-emit-index-url", "--quiet")


def command(uv: str, name: str, *, keep: bool) -> tuple[list[str], str | None]:
    """Returns uv's command that writes a lock, and what it reads from its standard input.

    Raises KeyError where pyproject has no such table.
    """
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = pyproject["project"]["requires-python"].removeprefix(">=")
    argv = [uv, "pip", "compile", *OPTIONS, f"--python-version={oldest}", f"--output-file={FOLDER / f'{name}.txt'}"]
    if not keep:
        argv.append("--upgrade")
    if name == BUILD:
        return [*argv, "-"], "\n".join(pyproject["build-system"]["requires"])
    return [*argv, *(f"--extra={extra}" for extra in IMAGES[name]), str(ROOT / "pyproject.toml")], None


def main(arguments: list[str] | None = None) -> int:
    """Command line: see --help. Returns 1 where uv is missing or could not resolve; it says why."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.locks", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="change no version that still fits")
    options = parser.parse_args(arguments)
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        print("locks: uv is not installed: make setup, or pip install uv", file=sys.stderr)
        return 1
    FOLDER.mkdir(exist_ok=True)
    for name in (*IMAGES, BUILD):
        print(f"locks: resolving {name} ...", file=sys.stderr, flush=True)
        argv, given = command(uv, name, keep=options.keep)
        if subprocess.run(argv, input=given, text=True, check=False, stdout=subprocess.DEVNULL).returncode != 0:
            print(f"locks: uv could not resolve {name}; what it said is above", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
