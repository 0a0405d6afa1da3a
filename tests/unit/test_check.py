"""What `almoner check` makes of a version, a log, an election; and that it looks for what this repository installs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from almoner_cli.check import installation
from almoner_cli.check.findings import Level, Place, failed
from almoner_core import support
from almoner_dev.cache import KUBERNETES_VERSION

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("version", "level", "says", "fix"),
    [
        ("v1.29.14", Level.FAILED, "v1.29.14 is too old", "upgrade it to 1.30 or newer"),
        ("v1.30.0", Level.OK, "v1.30.0 is supported", ""),
        ("v1.33.4-eks-abc", Level.OK, "v1.33.4-eks-abc is supported", ""),
        (KUBERNETES_VERSION, Level.OK, f"{KUBERNETES_VERSION} is supported", ""),
        (
            "v1.99.0",
            Level.WARNING,
            "v1.99.0 is newer than what was tested (1.34)",
            "look for a newer version of Almoner",
        ),
        ("", Level.WARNING, "its version '' is not known", "see docs/install.md, `Kubernetes`"),
    ],
)
def test_an_old_kubernetes_is_refused_with_the_version_that_is_needed(
    version: str, level: Level, says: str, fix: str
) -> None:
    place = Place(cast("Any", SimpleNamespace(version=lambda: version)), "almoner-system", "0.1.0")
    (found,) = installation.kubernetes(place)
    assert (found.level, found.says, found.fix) == (level, says, fix)


def test_the_versions_that_are_supported_are_those_of_the_chart_the_tests_and_the_page() -> None:
    oldest = ".".join(map(str, support.MINIMUM))
    about = yaml.safe_load((ROOT / "charts" / "almoner" / "Chart.yaml").read_text())
    assert about["kubeVersion"] == f">={oldest}.0-0"
    assert ".".join(KUBERNETES_VERSION.removeprefix("v").split(".")[:2]) in {
        ".".join(map(str, each)) for each in support.TESTED
    }
    page = (ROOT / "docs" / "install.md").read_text()
    assert f"| {oldest}" in page
    for each in support.TESTED:
        assert f"| {'.'.join(map(str, each))} | tested" in page


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("", ""),
        ("almoner ledger: --listen: 'here' is no HOST:PORT\n", "almoner ledger: --listen: 'here' is no HOST:PORT"),
        ('{"level": "info", "message": "listens"}\n', ""),
        (
            '{"level": "warning", "message": "first"}\n{"level": "critical", "message": "last"}\n{"level": "info"}',
            "last",
        ),
        ('Traceback\n{"level": "error", "message": "x"}\nKeyError\n', "x"),
        ("1\n[2]\nhalf a li", "half a li"),
        ('{"level": "error", "message": "' + "m" * 1000 + '"}', "m" * 300),
    ],
)
def test_the_complaint_of_a_log_is_its_last_warning(log: str, last: str) -> None:
    assert installation.complaint(log) == last


def lease(renewed: str | None) -> dict[str, Any]:
    return {"spec": {"holderIdentity": "one", "leaseDurationSeconds": 15, "renewTime": renewed}}


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (None, Level.FAILED),
        ({"spec": {"holderIdentity": ""}}, Level.FAILED),
        (lease(None), Level.FAILED),
        (lease("2026-01-02T03:04:00.000000Z"), Level.OK),
        (lease("2026-01-02T03:03:29.000000Z"), Level.FAILED),
        # This machine's clock is not asked.
        (lease("2026-01-02T03:05:00.000000Z"), Level.OK),
    ],
)
def test_one_leads_while_its_lease_is_renewed(found: dict[str, Any] | None, level: Level) -> None:
    assert installation.leading(found, datetime(2026, 1, 2, 3, 4, 0, tzinfo=UTC)).level is level


def test_what_failed_stands_out_and_says_its_fix() -> None:
    lines = list(failed("ledger", "0 of 1 ready", "look at it").lines())
    assert lines == ["FAILED   ledger: 0 of 1 ready", "         fix: look at it"]
