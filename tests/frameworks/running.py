"""Runs a client's scenarios and says what came of them: for all frameworks, and for the quick ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from almoner_dev.frameworks.install import FrameworkMissingError
from almoner_dev.frameworks.table import Api, Framework, Scenario
from tests.frameworks.trial import Trial
from tests.support.metered import Metered

PROPERTY = "cells"
"""The property of a test's report that holds its cells in the table of results."""


def check(
    framework: Framework,
    api: Api,
    scenarios: Sequence[Scenario],
    *,
    metered: Metered,
    folder: Path,
    record: Callable[[str, Any], None],
) -> None:
    """Assert that each scenario works, that the books are the provider's word, and that no one else is called."""
    try:
        trial = Trial(metered, folder, framework, api)
    except FrameworkMissingError as error:
        pytest.skip(str(error))
    known = [each for each in scenarios if each in framework.known(api)]
    funded = [each for each in known if each is not Scenario.SPENT]
    cells = {str(each): "fails" for each in known}
    try:
        outcome = trial.run(funded)
        cells |= {str(each): outcome.cell(each) for each in funded}
        problems = [problem for each in funded if (problem := outcome.problem(each))]
        assert not problems, "\n".join([*problems, outcome.all_said])
        assert not outcome.hosts, f"it called {sorted(outcome.hosts)}\n{outcome.all_said}"
        spent = trial.run_spent()
        assert spent.problem(Scenario.SPENT) is None, f"{spent.problem(Scenario.SPENT)}\n{spent.all_said}"
        assert 1 <= spent.refused <= framework.spent_calls_max, f"{spent.refused} calls\n{spent.all_said}"
        cells[Scenario.SPENT] = spent.cell(Scenario.SPENT)
    finally:
        record(PROPERTY, {"framework": framework.name, "api": str(api), "cells": cells})
