"""The rules of the house that a linter does not know."""

import ast
import re
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES_WARNED = 600
FUNCTION_LINES_MAX = 60


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


PRODUCT = [
    path
    for path in tracked("core/*.py", "ledger/*.py", "operator/*.py", "runner/*.py", "cli/*.py", "dev/*.py")
    # A migration is written once and never changed.
    if "versions" not in path.parts
]


def test_operator_does_not_shadow_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_long_modules_are_warned_of() -> None:
    """A module has one job. Length is a hint, not a limit: a hard one pushes code into the wrong rooms."""
    assert len(PRODUCT) > 100
    for path in PRODUCT:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LINES_WARNED:
            warnings.warn(f"{path.relative_to(ROOT)}: {lines} lines; which two jobs live in it?", stacklevel=1)


def test_functions_are_short() -> None:
    long: dict[str, int] = {}
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


@pytest.mark.parametrize("package", sorted({path.parts[len(ROOT.parts)] for path in PRODUCT}))
def test_every_module_says_what_it_is(package: str) -> None:
    silent = [
        path.relative_to(ROOT)
        for path in PRODUCT
        if path.is_relative_to(ROOT / package)
        and path.name != "__init__.py"
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in tracked("*.md")
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert broken == []
