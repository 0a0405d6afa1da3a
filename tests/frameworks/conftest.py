"""The ledger that all clients share, and the file of results that test_all.py writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from almoner_dev.frameworks.results import merge

if TYPE_CHECKING:
    from tests.support.metered import Metered


@pytest.fixture(scope="session")
def books_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metered]:
    """A ledger service, whose books have to be sound when all are done."""
    from tests.support.metered import Metered

    folder = tmp_path_factory.mktemp("frameworks")
    running = Metered(folder, f"sqlite:///{folder}/ledger.db")
    yield running
    try:
        running.audit()
    finally:
        running.close()


class _Results:
    """Collects the cells of all workers' tests, where they come together."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.found += [value for name, value in report.user_properties if name == "cells"]  # type: ignore[misc]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.found:
            merge(self.found)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results(), "almoner-frameworks-results")
