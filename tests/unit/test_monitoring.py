"""Alerts and dashboard ask for metrics that the programs tell, by labels that those have; a page names every alert."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from almoner_dev import metrics_page
from almoner_dev.dashboard import PANELS, dashboard

ROOT = Path(__file__).resolve().parents[2]
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "charts/almoner/files/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [(rule["alert"], rule["expr"]) for rule in ALERTS] + [
    (panel.title, query) for panel in PANELS for query, _ in panel.queries
]
METRIC = re.compile(r"\b(almoner_[a-z_]+)(?:\{([^}]*)\})?")


def labels() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for rows in metrics_page.described().values():
        for row in rows:
            ends = ("_bucket", "_sum", "_count") if row.kind == "histogram" else ("",)
            for end in ends:
                found.setdefault(f"{row.name}{end}", set()).update(row.labels, {"le"} if end == "_bucket" else ())
    return found


@pytest.mark.parametrize(("name", "query"), QUERIES, ids=[name for name, _ in QUERIES])
def test_a_query_asks_for_what_there_is(name: str, query: str) -> None:
    known = labels()
    asked = METRIC.findall(query)
    assert asked
    for metric, selector in asked:
        assert metric in known, f"{name}: no program tells {metric}"
        for label in re.findall(r"([a-z_]+)\s*=~?", selector):
            assert label in known[metric], f"{name}: {metric} has no label {label}"
    grouped = {label.strip() for by in re.findall(r"by \(([^)]*)\)", query) for label in by.split(",")}
    assert grouped <= set().union(*(known[metric] for metric, _ in asked)), name
    assert query.count("(") == query.count(")")


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["description"].endswith(".")
    assert f"`{rule['alert']}`" in (ROOT / "docs/monitoring.md").read_text()


def test_the_dashboard_has_every_panel_and_none_lies_over_another() -> None:
    made = json.loads(dashboard())
    assert [panel["title"] for panel in made["panels"]] == [panel.title for panel in PANELS]
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_metric_is_described() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    for rows in metrics_page.described().values():
        assert rows
        for row in rows:
            assert row.text
            assert f"`{row.name}`" in page
