"""The quick set of frameworks as Executions: each ends as spent, whatever its own way to fail is."""

from __future__ import annotations

import pytest

from almoner_dev.frameworks.install import FrameworkMissingError, named
from almoner_dev.frameworks.table import QUICK
from tests.frameworks.pods import command
from tests.support.e2e import MODEL, World


def test_every_framework_that_has_spent_its_budget_fails_with_that_reason(world: World) -> None:
    model = {"provider": "scripted", "name": MODEL}
    agents, skipped = [], []
    for name, api in QUICK:
        (framework,) = named([name])
        try:
            argv = command(framework, api, ["spent"] * 40)
        except FrameworkMissingError as error:
            skipped.append(str(error))
            continue
        runner = {"image": "example/client:1", "command": argv}
        agents.append(world.manifest("Agent", name, {"type": "Evaluation", "model": model, "runner": runner}))
    world.ready(*agents)
    for agent in agents:
        name = agent["metadata"]["name"]
        spec = {"agentRef": {"name": name}, "input": {"text": "hi"}, "limits": {"maxCost": "0.003"}}
        world.apply(world.manifest("Execution", name, spec))
    for agent in agents:
        condition = world.failed(agent["metadata"]["name"], "BudgetExhausted", seconds=180)
        assert "a call was refused: no room for this call" in condition["message"]
    assert world.settled() > 0
    if skipped:
        pytest.skip("; ".join(skipped))
