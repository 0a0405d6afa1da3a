"""Says at once what failed and what is slow, so that a run which is ended early has told what it knew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

SLOW_SECONDS = 90.0
TOLD_BEFORE_VARIABLE = "ALMONER_TOLD_BEFORE"
"""A file with what ran before these tests: its end is repeated where everybody looks, before the summary."""
LINES_MAX = 30


class AtOnce:
    """Writes each failure whole, and the name of each slow test, while the others run on."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Tell of one part of a test: setup, call or teardown."""
        told = []
        if report.duration > SLOW_SECONDS:
            told.append(f"slow: {report.nodeid} ({report.when}: {report.duration:.0f} s)")
        if report.failed:
            told.append(f"FAILED AT ONCE: {report.nodeid} ({report.when})\n{report.longreprtext}")
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        for text in told if reporter is not None else ():
            reporter.write_line(f"\n{text}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Repeat what was told before."""
        file = os.environ.get(TOLD_BEFORE_VARIABLE)
        if not file or not Path(file).is_file():
            return
        terminalreporter.section("before these tests")
        for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES_MAX:]:
            terminalreporter.write_line(line[:300])


def register(config: pytest.Config) -> None:
    """Have the process that prints say it; workers of pytest-xdist print nothing."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(AtOnce(config), "almoner-at-once")
