"""What the test of docs/start.md stands on, and who may destroy a kept demo."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from almoner_dev.demo import run
from almoner_dev.state import Environment
from tests.conftest import missing
from tests.support.pages import Block, blocks_of, shown, type_in

PAGE = """
```sh
one
two
```
```text
shows
```
words
```sh
three
```
```yaml
not: typed
```
"""


def test_a_page_is_read_as_a_reader_would() -> None:
    assert blocks_of(PAGE) == [Block(("one", "two"), "shows\n"), Block(("three",), "")]


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ("NAME … READY\nlocal … True", None),
        ("…\nlocal … True …\n", None),
        ("local … False …", "local … False …"),
        ("local … True …\nNAME …", "NAME …"),
        ("local", "local"),
        ("loc… True", None),
    ],
)
def test_what_is_shown_is_looked_for_in_order(expected: str, missing: str | None) -> None:
    assert shown(expected, "warning\nNAME     READY\n\nlocal    True\n") == missing


def test_lines_are_typed_into_one_shell(tmp_path: Path) -> None:
    typed = type_in(
        ("export HERE=it", "false", 'echo "$HERE"', "exit 3", "echo never"),
        before="",
        cwd=tmp_path,
        env=os.environ,
        seconds=20,
    )
    assert [(each.code, each.output.strip()) for each in typed] == [(0, ""), (1, ""), (0, "it")]


@pytest.mark.parametrize(("given", "keeps"), [("", False), ("KEEP=", False), ("KEEP=0", False), ("KEEP=1", True)])
def test_keep_is_what_it_says(repository: Path, given: str, keeps: bool) -> None:
    if shutil.which("make") is None:
        missing(RuntimeError("no make"))
    told = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--old-file=.venv/.installed", "demo", *given.split()],
        cwd=repository,
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))},
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert told.stdout.rstrip().endswith("almoner_dev demo --keep" if keeps else "almoner_dev demo")


class Terminal:
    """Standard input or output of somebody who is there, or is not."""

    def __init__(self, there: bool) -> None:
        self._there = there

    def isatty(self) -> bool:
        return self._there

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return


@pytest.mark.parametrize(
    ("terminal", "answer", "goes_on"),
    [
        (True, "y", True),
        (True, "Yes ", True),
        (True, "", False),
        (True, "n", False),
        (True, "make", False),
        (True, EOFError(), False),
        (False, "y", False),
    ],
)
def test_a_kept_demo_goes_only_where_a_person_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, answer: Any, goes_on: bool
) -> None:
    environment = Environment("demo", environ={"XDG_STATE_HOME": str(tmp_path)})
    environment.note(kept=True, folder="/somewhere")

    def give(_question: str) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(sys, "stdin", Terminal(terminal))
    monkeypatch.setattr(sys, "stdout", Terminal(terminal))
    monkeypatch.setattr("builtins.input", give)
    if goes_on:
        run._ask_before_destroying(environment)
    else:
        with pytest.raises(run.KeptError, match=r"demo-down|nothing was changed"):
            run._ask_before_destroying(environment)
    assert environment.exists()
