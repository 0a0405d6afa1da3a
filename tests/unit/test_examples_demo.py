from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from almoner_core.api.agent import AgentSpec, ModelAPI
from almoner_core.api.base import APIModel
from almoner_core.api.execution import ExecutionSpec
from almoner_core.api.model_provider import ModelProviderSpec
from almoner_core.api.resource_quota import ResourceQuotaSpec
from almoner_core.api.training_job import TrainingJobSpec
from almoner_dev.demo.manifests import NAMESPACE, ManifestError, expected_phases, load
from almoner_dev.model import MODEL_NAME
from almoner_runner.agent.guardrails import Guards
from almoner_runner.agent.invocation import check
from almoner_runner.agent.output import output_schema
from almoner_runner.tools.registry import build

VALUES = {"MODEL_ADDRESS": "127.0.0.1:8080", "MODEL_KEY": "a-key"}
SPECS: dict[str, type[APIModel]] = {
    "ModelProvider": ModelProviderSpec,
    "Agent": AgentSpec,
    "ResourceQuota": ResourceQuotaSpec,
    "Execution": ExecutionSpec,
    "TrainingJob": TrainingJobSpec,
}
OBJECTS = load(VALUES)


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in OBJECTS if item["kind"] == kind}


def agents() -> dict[str, AgentSpec]:
    return {name: AgentSpec.model_validate(item["spec"]) for name, item in of_kind("Agent").items()}


def missing_fields(given: Any, known: Any, path: str) -> list[str]:
    """Fields of a manifest that its model does not know (and would ignore)."""
    if isinstance(given, dict):
        found = []
        for name, value in given.items():
            if not isinstance(known, dict) or name not in known:
                found.append(f"{path}.{name}")
            else:
                found += missing_fields(value, known[name], f"{path}.{name}")
        return found
    if isinstance(given, list):
        return [
            line
            for index, (one, other) in enumerate(zip(given, known, strict=True))
            for line in missing_fields(one, other, f"{path}[{index}]")
        ]
    return []


@pytest.mark.parametrize("item", OBJECTS, ids=[f"{item['kind']}/{item['metadata']['name']}" for item in OBJECTS])
def test_every_manifest_fits_its_model_to_the_last_field(item: dict[str, Any]) -> None:
    if item["kind"] in {"Namespace", "Secret"}:
        assert item["apiVersion"] == "v1"
        return
    assert item["apiVersion"] == "almoner.dev/v1alpha1"
    assert item["metadata"]["namespace"] == NAMESPACE
    spec = SPECS[item["kind"]].model_validate(item["spec"])
    assert missing_fields(item["spec"], spec.to_wire(), "spec") == []


def test_there_is_what_the_demo_promises() -> None:
    assert set(agents()) == {"poet", "analyst", "script"}
    assert agents()["poet"].model.api is ModelAPI.OPENAI
    assert agents()["analyst"].model.api is ModelAPI.ANTHROPIC
    assert agents()["script"].runner.image is not None
    assert agents()["poet"].output is not None
    executions = [ExecutionSpec.model_validate(item["spec"]) for item in of_kind("Execution").values()]
    assert len(executions) == 12
    assert len({spec.priority for spec in executions}) >= 9
    assert {spec.owner for spec in executions} == {"team-red", "team-blue"}
    assert len(of_kind("TrainingJob")) == 1


def test_every_reference_leads_somewhere() -> None:
    secrets = of_kind("Secret")
    for item in of_kind("ModelProvider").values():
        provider = ModelProviderSpec.model_validate(item["spec"])
        assert provider.base_url == "http://127.0.0.1:8080/v1"
        assert provider.credentials is not None
        assert secrets[provider.credentials.name]["stringData"][provider.credentials.key] == "a-key"
        assert [price.model for price in provider.prices] == [MODEL_NAME]
        assert [model.name for model in provider.models] == [MODEL_NAME]
    for agent in agents().values():
        assert agent.model.provider in of_kind("ModelProvider")
        assert agent.model.name == MODEL_NAME
    for item in of_kind("Execution").values():
        assert ExecutionSpec.model_validate(item["spec"]).agent_ref.name in agents()


def test_the_loop_runs_every_agent_and_keeps_answers_short() -> None:
    for agent in agents().values():
        check(agent)
        output_schema(agent.output)
        Guards(agent.guardrails.input, side="input")
        build(agent.tools)
        assert (agent.model.settings.max_output_tokens or 10_000) <= 64
        assert agent.limits.timeout_seconds is not None


def test_both_owners_have_two_places_and_a_budget_for_good() -> None:
    quotas = [ResourceQuotaSpec.model_validate(item["spec"]) for item in of_kind("ResourceQuota").values()]
    for owner in ("team-red", "team-blue"):
        own = [quota for quota in quotas if quota.scope is not None and quota.scope.owners == [owner]]
        assert [quota.hard.executions for quota in own if quota.hard.executions is not None] == [2]
        assert [quota.budget.period.value for quota in own if quota.budget is not None] == ["Total"]
        for quota in own:  # the demo has to end: what money stops may not wait for ever
            assert quota.budget is None or owner == "team-red" or quota.on_limit.timeout_seconds is not None


def test_all_of_red_must_succeed_and_of_blue_the_money_decides() -> None:
    expected = expected_phases(OBJECTS)
    work = of_kind("Execution") | of_kind("TrainingJob")
    assert set(expected.values()) == {"Succeeded"}
    assert set(expected) == {name for name, item in work.items() if item["spec"]["owner"] == "team-red"}


def test_inline_programs_are_python_that_fits_its_field() -> None:
    commands = [agent.runner.command for agent in agents().values() if agent.runner.command]
    for item in of_kind("TrainingJob").values():
        runner = TrainingJobSpec.model_validate(item["spec"]).runner
        assert runner is not None
        assert runner.command is not None
        commands.append(runner.command)
    assert len(commands) == 2
    for command in commands:
        assert command[:2] == ["python", "-c"]
        ast.parse(command[2])
        # The kubelet would expand these.
        assert "$(" not in command[2]


def test_a_placeholder_that_nobody_fills_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: ${MODEL_COLOUR}\n")
    with pytest.raises(ManifestError, match=r"a\.yaml: nothing is known for \$\{MODEL_COLOUR\}"):
        load(VALUES, tmp_path)
