from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from almoner_core import contract
from almoner_dev.model import LocalModel, ModelUnavailableError, weights
from tests.conftest import missing

DIALECTS = ["OpenAI", "Anthropic"]
RUN_SECONDS_MAX = 120


@pytest.fixture(scope="module")
def local_model() -> Iterator[LocalModel]:
    try:
        weights()
    except ModelUnavailableError as error:
        missing(error)
    with LocalModel(parallel=1) as model:
        yield model


class Ended:
    """One run of almoner-agent, ended."""

    def __init__(self, code: int, log: str, output: Path) -> None:
        self.code = code
        self.last_line = log.splitlines()[-1]
        self.log = log
        self.output = output.read_text() if output.exists() else None


def run_agent(tmp_path: Path, base_url: str, agent: dict[str, Any], text: str) -> Ended:
    """Runs almoner-agent as a runner pod does, with the model's own server where the meter would be."""
    (tmp_path / "input").write_text(text)
    output = tmp_path / "output"
    ended = subprocess.run(
        [sys.executable, "-m", "almoner_runner.agent"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            contract.ENV_AGENT_SPEC: json.dumps({"type": "Research", **agent}),
            contract.ENV_INPUT_FILE: str(tmp_path / "input"),
            contract.ENV_OUTPUT_FILE: str(output),
            contract.ENV_METER_URL: base_url,
            contract.ENV_OPENAI_BASE_URL: f"{base_url}/v1",
            contract.ENV_OPENAI_API_KEY: contract.PLACEHOLDER_KEY,
            contract.ENV_ANTHROPIC_BASE_URL: base_url,
            contract.ENV_ANTHROPIC_API_KEY: contract.PLACEHOLDER_KEY,
        },
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    return Ended(ended.returncode, ended.stderr, output)


def model_of(api: str, **settings: Any) -> dict[str, Any]:
    return {"provider": "local", "name": LocalModel.name, "api": api, "settings": settings}


@pytest.mark.parametrize("api", DIALECTS)
def test_a_real_model_answers(tmp_path: Path, local_model: LocalModel, api: str) -> None:
    agent = {
        "model": model_of(api, maxOutputTokens=24, temperature="0", topP="1", seed=1),
        "instructions": "Answer in one short sentence.",
    }
    ended = run_agent(tmp_path, local_model.base_url, agent, "What is the capital of France?")
    assert ended.code == 0, ended.log
    assert "Paris" in (ended.output or "")
    assert "1 turns, 0 tool calls" in ended.last_line


SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 24}, "country": {"type": "string", "maxLength": 24}},
    "required": ["capital", "country"],
    "additionalProperties": False,
}


def test_a_real_model_keeps_to_the_schema_natively(tmp_path: Path, local_model: LocalModel) -> None:
    agent = {"model": model_of("OpenAI", maxOutputTokens=64), "output": {"jsonSchema": SCHEMA}}
    ended = run_agent(tmp_path, local_model.base_url, agent, "What is the capital of France?")
    assert ended.code == 0, ended.log
    assert set(json.loads(ended.output or "")) == {"capital", "country"}


def test_prompted_output_is_the_schema_s_or_a_named_failure(tmp_path: Path, local_model: LocalModel) -> None:
    agent = {"model": model_of("Anthropic", maxOutputTokens=64), "output": {"jsonSchema": SCHEMA}}
    ended = run_agent(tmp_path, local_model.base_url, agent, "What is the capital of France?")
    if ended.code == 0:
        assert set(json.loads(ended.output or "")) == {"capital", "country"}
    else:  # a model this small may fail at it: then by name, with nothing left behind
        assert ended.code == contract.AgentExitCode.INVALID_OUTPUT, ended.log
        assert ended.output is None


@pytest.mark.parametrize("api", DIALECTS)
def test_a_provider_that_is_not_there_is_named(tmp_path: Path, api: str) -> None:
    ended = run_agent(tmp_path, "http://127.0.0.1:9", {"model": model_of(api)}, "Hello")
    assert ended.code == contract.AgentExitCode.PROVIDER_FAILED
    assert ended.last_line.startswith("almoner-agent: the model provider failed: ")
    assert ended.output is None
