"""What a run says of itself: what ran before it is repeated where everybody looks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.at_once import LINES_MAX, TOLD_BEFORE_VARIABLE, AtOnce


def said(config: Any = None) -> list[str]:
    lines: list[str] = []
    reporter = SimpleNamespace(section=lines.append, write_line=lines.append)
    AtOnce(cast("pytest.Config", config)).pytest_terminal_summary(reporter)
    return lines


def test_the_end_of_what_was_told_before_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "told"
    file.write_text("".join(f"line {number} {'x' * 500}\n" for number in range(100)))
    monkeypatch.setenv(TOLD_BEFORE_VARIABLE, str(file))
    lines = said()
    assert len(lines) == 1 + LINES_MAX
    assert lines[-1].startswith("line 99 ")
    assert max(map(len, lines)) <= 300


def test_where_nothing_was_told_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOLD_BEFORE_VARIABLE, raising=False)
    assert said() == []
    monkeypatch.setenv(TOLD_BEFORE_VARIABLE, str(tmp_path / "missing"))
    assert said() == []
