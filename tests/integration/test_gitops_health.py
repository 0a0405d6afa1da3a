"""What Argo CD, Flux and kstatus say of every kind in every phase, by the libraries that they use themselves."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from almoner_core.api.registry import KINDS
from almoner_dev import gotools, health
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def tool() -> Path:
    try:
        return gotools.path("health")
    except gotools.ToolMissing as error:
        missing(error)
        raise


@pytest.fixture(scope="module")
def scripts() -> Mapping[str, str]:
    """Argo CD's script of each kind, as the file has it that users apply."""
    data = yaml.safe_load((ROOT / health.ARGO).read_text())["data"]
    return {key.rpartition("_")[2]: script for key, script in data.items()}


@pytest.fixture(scope="module")
def expressions() -> Mapping[str, Json]:
    """Flux's expressions of each kind, as the file has them that users copy."""
    found = yaml.safe_load((ROOT / health.FLUX).read_text())["spec"]["healthCheckExprs"]
    return {each["kind"]: {name: each[name] for name in ("current", "inProgress", "failed")} for each in found}


def judged(tool: Path, questions: Sequence[Json]) -> list[Json]:
    lines = "".join(json.dumps(each) + "\n" for each in questions)
    done = subprocess.run([tool], input=lines, capture_output=True, text=True, timeout=60, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def question(case: health.Case, scripts: Mapping[str, str], expressions: Mapping[str, Json], **status: Any) -> Json:
    conditions = [each.to_wire() for each in case.conditions]
    return {
        "object": {
            "apiVersion": "almoner.dev/v1alpha1",
            "kind": case.kind,
            "metadata": {"name": "it", "namespace": "team", "generation": 1},
            "spec": {},
            "status": {"observedGeneration": 1, "conditions": conditions, **status},
        },
        "lua": scripts[case.kind],
        "flux": expressions[case.kind],
    }


def test_every_kind_in_every_phase_is_what_the_page_says(
    tool: Path, scripts: Mapping[str, str], expressions: Mapping[str, Json]
) -> None:
    cases = list(health.standings())
    answers = judged(tool, [question(case, scripts, expressions) for case in cases])
    said = {
        (case.kind, case.name): (each["kstatus"], each["flux"], each["argo"])
        for case, each in zip(cases, answers, strict=True)
    }
    assert said == {(case.kind, case.name): (case.kstatus, case.flux, case.argo) for case in cases}
    assert len(said) == len(cases) > 50
    for case, each in zip(cases, answers, strict=True):
        ready = next(condition for condition in case.conditions if condition.type == "Ready")
        assert each["argoMessage"].startswith(ready.reason)
        assert not ready.message or each["argoMessage"] == f"{ready.reason}: {ready.message}"


@pytest.mark.parametrize("observed", [-1, 7], ids=["never looked at", "another generation"])
def test_what_was_said_of_another_generation_counts_for_nothing(
    tool: Path, scripts: Mapping[str, str], expressions: Mapping[str, Json], observed: int
) -> None:
    asked = [question(case, scripts, expressions, observedGeneration=observed) for case in health.standings()]
    answers = judged(tool, asked)
    assert {(each["kstatus"], each["flux"], each["argo"]) for each in answers} == {
        ("InProgress", "InProgress", "Progressing")
    }


def test_every_kind_has_a_health_check(scripts: Mapping[str, str], expressions: Mapping[str, Json]) -> None:
    kinds = {kind.kind for kind in KINDS}
    assert set(health.kinds()) == kinds, "a new kind needs a line in almoner_dev.health, with its reasons"
    assert set(scripts) == set(expressions) == kinds
