"""The committed results of `make test-frameworks`: what each client did in each scenario, with no time in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from almoner_dev.frameworks.table import FRAMEWORKS, SCENARIOS

RESULTS: Final = Path("tests/frameworks/results.json")
_ROOT: Final = Path(__file__).resolve().parents[3]

Results = dict[str, dict[str, dict[str, str]]]
"""Framework, API, scenario: the cell's text."""


def read(root: Path = _ROOT) -> Results:
    """Give the committed results; none where there is no file."""
    path = root / RESULTS
    found: Results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def merge(news: Iterable[Mapping[str, Any]], root: Path = _ROOT) -> None:
    """Put new results (`framework`, `api`, `cells`) in the place of those of the same clients."""
    known = read(root)
    for each in news:
        known.setdefault(each["framework"], {})[each["api"]] = dict(each["cells"])
    ordered: Results = {}
    for framework in FRAMEWORKS:
        by_api = known.get(framework.name, {})
        rows = {str(api): by_api[api] for api in framework.apis if api in by_api}
        if rows:
            ordered[framework.name] = {
                api: {str(scenario): cells[scenario] for scenario in SCENARIOS if scenario in cells}
                for api, cells in rows.items()
            }
    (root / RESULTS).write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
