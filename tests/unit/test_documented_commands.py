"""Every command of the documentation is run: typed as it stands, or done by a test that is named for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.pages import blocks_of, sections_of

ROOT = Path(__file__).resolve().parents[2]
KNOWN = yaml.safe_load((ROOT / "tests" / "data" / "documented_commands.yaml").read_text())
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def commands(page: str) -> list[tuple[str, str]]:
    """Section and command of every line to type; lines that go on are one command."""
    found = []
    for title, text in sections_of((ROOT / "docs" / page).read_text(encoding="utf-8")).items():
        for block in blocks_of(text):
            whole = re.sub(r"\\\n\s*", "", "\n".join(block.lines))
            found += [(title, line) for line in whole.splitlines() if not line.startswith("#")]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_run(page: str) -> None:
    typed = {name for name in KNOWN["typed"] if name.partition("/")[0] == page}
    unrun = [
        command
        for title, command in commands(page)
        if page not in typed
        and f"{page}/{title}" not in typed
        and not any(command.startswith(each) for each in KNOWN["done"])
    ]
    assert not unrun, "type it in a test, or name the test that does it: tests/data/documented_commands.yaml"


def test_the_sections_that_are_typed_exist() -> None:
    for name in KNOWN["typed"]:
        page, _, title = name.partition("/")
        there = sections_of((ROOT / "docs" / page).read_text(encoding="utf-8"))
        assert not title or title in there, name
        assert commands(page), name


def test_the_commands_that_are_done_are_documented() -> None:
    every = [command for page in PAGES for _, command in commands(page)]
    for command in KNOWN["done"]:
        assert any(each.startswith(command) for each in every), command


@pytest.mark.parametrize("name", sorted({*KNOWN["typed"].values(), *KNOWN["done"].values()}))
def test_the_test_that_does_it_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^(async )?def {function}\(", (ROOT / file).read_text(), re.MULTILINE)
