"""Every framework, unmodified, in every scenario that it knows: `make test-frameworks`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from almoner_dev.frameworks.table import FRAMEWORKS, SCENARIOS, Api, Framework
from tests.frameworks.running import check
from tests.support.metered import Metered

CLIENTS = [pytest.param(each, api, id=f"{each.name}-{api}") for each in FRAMEWORKS for api in each.apis]


@pytest.mark.parametrize(("framework", "api"), CLIENTS)
def test_it_runs_and_the_books_are_the_providers_word(
    framework: Framework,
    api: Api,
    books_of_all: Metered,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    check(framework, api, SCENARIOS, metered=books_of_all, folder=tmp_path, record=record_property)
