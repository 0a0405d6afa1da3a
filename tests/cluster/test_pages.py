"""Pages of the documentation in a cluster: a reader types them, line by line, into one shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from almoner_dev import binaries, gotools
from tests.support.installed import ROOT, Installation
from tests.support.pages import Block, blocks_of, judged, sections_of, type_in

PAGE_SECONDS_MAX = 480
ON_THIS_MACHINE = {"On this machine: the kept demo", "Put the demo away"}
"""What docs/start.md says to do instead, where there is no cluster; tests/e2e/test_demo.py types it."""


def sections(page: str) -> Mapping[str, str]:
    return sections_of((ROOT / "docs" / page).read_text(encoding="utf-8"))


def read(almoner: Installation, blocks: list[Block], folder: Path) -> None:
    """Type blocks as somebody with kubectl, helm and almoner on the path, and judge what they show."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_bytes(almoner.kubeconfig.read_bytes())
    kubeconfig.chmod(0o600)
    programs = {"kubectl": binaries.find(["kubectl"]).path("kubectl"), "helm": gotools.path("helm")}
    bin_ = folder / "bin"
    bin_.mkdir()
    for name, path in programs.items():
        (bin_ / name).symlink_to(path)
    # What is installed here has its images under other names: they stay as they are.
    before = 'helm() { command helm "$@" $([ "$1" = upgrade ] && echo --reset-then-reuse-values); }'
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ALMONER_")},
        "KUBECONFIG": str(kubeconfig),
        "MODEL_KEY": almoner.model_key,
        "HOME": str(folder),
        "PATH": os.pathsep.join([str(bin_), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    lines = tuple(line for block in blocks for line in block.lines)
    # What a page writes goes into the reader's own folder, where the checkout seems to lie.
    for name in ("charts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    typed = type_in(lines, before=before, cwd=folder, env=environ, seconds=PAGE_SECONDS_MAX)
    try:
        judged(blocks, typed)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{almoner.logs()}") from error


def test_the_first_steps_succeed_from_helm_install(almoner: Installation, tmp_path: Path) -> None:
    page = sections("start.md")
    assert set(page) >= ON_THIS_MACHINE
    blocks = [block for title, text in page.items() if title not in ON_THIS_MACHINE for block in blocks_of(text)]
    assert len(blocks) == 9
    read(almoner, blocks, tmp_path)


@pytest.mark.parametrize(
    ("page", "title"), [("troubleshooting.md", "Where to look"), ("install.md", "When it does not start")]
)
def test_where_to_look(almoner: Installation, tmp_path: Path, page: str, title: str) -> None:
    blocks = blocks_of(sections(page)[title])
    assert blocks
    read(almoner, blocks, tmp_path)


def test_the_books_of_a_trial_are_copied_and_both_parts_are_stopped_and_started(
    almoner: Installation, tmp_path: Path
) -> None:
    page = sections("disaster-recovery.md")
    titles = ("A trial's books on SQLite", "Stop both parts", "Start both parts")
    read(almoner, [block for title in titles for block in blocks_of(page[title])], tmp_path)
