"""The table of what broke elsewhere (docs/peer-failures.md) names a test for every line, and every test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
# What the table began with: no line of it gets lost.
REPORTS = [
    *("34732", "40095", "35567", "18730", "12977, 13882", "27381", "35531, 33872", "6895", "30522, 27639", "35569"),
    *("35570", "35525", "38647", "22013, 7129", "14849, 11789, 36168", "39455, 19985", "pydantic/pydantic-ai 2978"),
    *("kelos task budget admission", "kelos 1329", "envoyproxy/ai-gateway 2394", "Volcano 1.15", "kueue 3779"),
]


def table() -> dict[str, list[str]]:
    """Where each failure was reported, and the tests that are named for it as file::test."""
    text = (ROOT / "docs" / "peer-failures.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")][1:]
    return {report.strip(): re.findall(r"`([^`]+)`", tests) for _, report, tests in rows}


def comments(path: Path) -> dict[str, str]:
    """The tests of a module, each with the line of comment that stands above it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = lines[first - 2] if first > 1 else ""
    return found


def test_every_failure_has_its_line() -> None:
    reports = list(table())
    assert [[report for report in reports if known in report] for known in REPORTS] == [[each] for each in reports]


@pytest.mark.parametrize("report", table())
def test_every_line_names_tests_that_exist(report: str) -> None:
    named = table()[report]
    assert named
    for each in named:
        file, _, test = each.partition("::")
        assert test in comments(TESTS / file), f"{each} is not there"


def test_every_test_of_a_peer_failure_is_in_its_line_and_says_which() -> None:
    listed = {name: report for report, names in table().items() for name in names}
    modules = sorted(TESTS.glob("integration/test_peer_failures_*.py"))
    assert len(modules) == 4
    for path in modules:
        for test, comment in comments(path).items():
            name = f"{path.relative_to(TESTS).as_posix()}::{test}"
            assert comment == f"# {listed.get(name)}", name
