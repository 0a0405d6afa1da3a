"""The chart's alert rules in Prometheus' own engine: each fires on what it is for, and not on what is nearest to it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from almoner_dev import chart, gotools
from almoner_dev.dashboard import PANELS
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / chart.CHART / "files" / "alerts.yaml"
NAMES = [rule["alert"] for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
# Texts alone: YAML would read 0x20 as a number.
CASES = yaml.load((ROOT / "tests" / "data" / "alert_rules.yaml").read_text(), Loader=yaml.BaseLoader)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def promtool() -> Path:
    """Prometheus' own tool. Its build takes minutes of both cores, so that no test starts it."""
    found = gotools.cached("promtool")
    if found is None:
        pytest.skip(
            "promtool is not in the cache: `python -m almoner_dev fetch --without-model --tool promtool` builds it"
        )
    return found


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules as the chart installs them, as a rule file."""
    try:
        rendered = chart.render(ROOT, "--set=monitoring.rules.enabled=true")
    except gotools.ToolMissing as error:
        missing(error)
    (made,) = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "PrometheusRule"]
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(made["spec"]))
    return path


def run(promtool: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "TZ": "UTC"}
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False, env=environ, timeout=120)


def test_they_are_rules(promtool: Path, rules: Path) -> None:
    done = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(NAMES)} rules found" in done.stdout


def test_every_alert_has_a_case() -> None:
    assert list(CASES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_fires_on_what_it_is_for_and_on_nothing_else(promtool: Path, rules: Path, tmp_path: Path, name: str) -> None:
    (rule,) = [each for each in yaml.safe_load(rules.read_text())["groups"][0]["rules"] if each["alert"] == name]
    case = CASES[name]
    assert case["quiet"]
    firing = [case["fires"], *case.get("also", [])]
    tests = [
        *(asked(name, each, [fired(rule, each)]) for each in firing),
        *(asked(name, each, []) for each in case["quiet"]),
    ]
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "30s", "tests": tests}))
    done = run(promtool, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def asked(name: str, case: Json, expected: list[Json]) -> Json:
    """A test of promtool's: the series, and whether the alert fires on them at that time."""
    assert case["series"]
    return {
        "interval": "30s",
        "input_series": [{"series": series, "values": str(values)} for series, values in case["series"].items()],
        "alert_rule_test": [{"alertname": name, "eval_time": case["at"], "exp_alerts": expected}],
    }


def fired(rule: Json, case: Json) -> Json:
    """The alert as it goes to people: labels and text, filled with what the case says."""
    labels: Mapping[str, str] = case["labels"]

    def filled(text: str) -> str:
        text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], text)
        return text.replace("{{ $value }}", str(case.get("value")))

    return {
        "exp_labels": {**labels, **rule["labels"]},
        "exp_annotations": {key: filled(text) for key, text in rule["annotations"].items()},
    }


def test_the_queries_of_the_dashboard_are_queries(promtool: Path, tmp_path: Path) -> None:
    queries = [query for panel in PANELS for query, _ in panel.queries]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = run(promtool, "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_the_dashboard_subtracts_what_was_taken_back(promtool: Path, tmp_path: Path) -> None:
    (whole,), (by_namespace,) = [
        panel.queries for panel in PANELS if panel.title in {"Spent in the last 24 hours", "Cost an hour by namespace"}
    ]
    series = {
        'almoner_cost_usd_total{namespace="a",model="m"}': "0+0.2x2880",
        'almoner_cost_usd_total{namespace="b",model="m"}': "0+0.1x2880",
        'almoner_cost_taken_back_usd_total{namespace="a",model="m"}': "0+0.05x2880",
    }
    at = "24h"

    def expected(query: str, values: Mapping[str, float]) -> Json:
        samples = [{"labels": labels, "value": value} for labels, value in values.items()]
        return {"expr": f"round({query}, 0.01)", "eval_time": at, "exp_samples": samples}

    test = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            # 2,880 intervals in a day, 120 in an hour.
            expected(whole[0], {"{}": 0.25 * 2880}),
            expected(by_namespace[0], {'{namespace="a"}': 0.15 * 120, '{namespace="b"}': 0.1 * 120}),
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [test]}))
    done = run(promtool, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_before_anything_was_taken_back_the_sum_is_what_was_spent(promtool: Path, tmp_path: Path) -> None:
    (whole,) = [panel.queries for panel in PANELS if panel.title == "Spent in the last 24 hours"]
    test = {
        "interval": "30s",
        "input_series": [{"series": "almoner_cost_usd_total", "values": "0+0.1x2880"}],
        "promql_expr_test": [
            {
                "expr": f"round({whole[0][0]}, 0.01)",
                "eval_time": "24h",
                "exp_samples": [{"labels": "{}", "value": 288}],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "30s", "tests": [test]}))
    done = run(promtool, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
