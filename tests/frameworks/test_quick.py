"""Eight frameworks, unmodified, in a few scenarios: part of `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from almoner_dev.frameworks.install import named
from almoner_dev.frameworks.table import QUICK, QUICK_SCENARIOS, Api
from tests.frameworks.running import check
from tests.support.metered import Metered


@pytest.mark.parametrize(("name", "api"), QUICK)
def test_it_runs_and_the_books_are_the_providers_word(
    name: str, api: Api, books_of_all: Metered, tmp_path: Path
) -> None:
    (framework,) = named([name])
    check(framework, api, QUICK_SCENARIOS, metered=books_of_all, folder=tmp_path, record=lambda _name, _value: None)
