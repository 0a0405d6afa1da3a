"""The table of what broke here (docs/trials.md) names tests for every item, and every test is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CASES = ["C01", "C04", "C10", "C14", "C16", "C17", "C20", "C23", "C24", "C25", "C26", "C27", "C29", "C30", "C33"]


def rows() -> list[tuple[str, str, list[str]]]:
    """Item, what broke, and the tests that are named for it as file::test."""
    text = (ROOT / "docs" / "trials.md").read_text(encoding="utf-8")
    found = []
    for line in [line for line in text.splitlines() if line.startswith("| ")][1:]:
        item, what, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        found.append((item, what, re.findall(r"`([^`]+::[^`]+)`", tests)))
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


@pytest.mark.parametrize("case", [*"12345", *CASES])
def test_every_section_and_case_has_its_line(case: str) -> None:
    assert [item for item, _, _ in rows() if re.search(rf"\b{case}\b", item)], case


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[1][:60])
def test_every_line_names_tests_that_exist(row: tuple[str, str, list[str]]) -> None:
    _, _, named = row
    assert named
    for each in named:
        file, _, test = each.partition("::")
        assert test in names_in(file), f"{each} is not there"
