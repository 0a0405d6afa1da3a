"""The demo's agents and its trainer, as a runner pod runs them, with the real model and a stand-in for /progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from almoner_core import contract
from almoner_core.api.agent import AgentSpec
from almoner_core.api.execution import ExecutionSpec
from almoner_core.api.runner import Runner
from almoner_core.wire import PostProgress
from almoner_dev.demo.manifests import load
from almoner_dev.model import LocalModel, ModelUnavailableError, weights
from tests.conftest import missing

OBJECTS = load({"MODEL_ADDRESS": "127.0.0.1:8080", "MODEL_KEY": "a-key"})
AGENTS = {
    item["metadata"]["name"]: AgentSpec.model_validate(item["spec"]) for item in OBJECTS if item["kind"] == "Agent"
}
EXECUTIONS = {item["metadata"]["name"]: item for item in OBJECTS if item["kind"] == "Execution"}
SECONDS_MAX = 120


@pytest.fixture(scope="module")
def local_model() -> Iterator[LocalModel]:
    try:
        weights()
    except ModelUnavailableError as error:
        missing(error)
    with LocalModel(parallel=1, api_key="a-key") as model:
        yield model


def command_of(agent: AgentSpec) -> list[str]:
    own = agent.runner.command
    return [sys.executable, *own[1:]] if own else [sys.executable, "-m", "almoner_runner.agent"]


def run(command: list[str], tmp_path: Path, text: str, **variables: str) -> str:
    (tmp_path / "input").write_text(text)
    ended = subprocess.run(
        command,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            contract.ENV_INPUT_FILE: str(tmp_path / "input"),
            contract.ENV_OUTPUT_FILE: str(tmp_path / "output"),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return (tmp_path / "output").read_text()


@pytest.mark.parametrize("name", EXECUTIONS)
def test_every_execution_gets_an_answer(tmp_path: Path, local_model: LocalModel, name: str) -> None:
    execution = ExecutionSpec.model_validate(EXECUTIONS[name]["spec"])
    agent = AGENTS[execution.agent_ref.name]
    spec = agent.model_copy(update={"runner": Runner()})
    answer = run(
        command_of(agent),
        tmp_path,
        execution.input.text or "",
        **{
            contract.ENV_AGENT_SPEC: json.dumps(spec.to_wire()),
            contract.ENV_MODEL: agent.model.name,
            contract.ENV_METER_URL: local_model.base_url,
            contract.ENV_OPENAI_BASE_URL: f"{local_model.base_url}/v1",
            contract.ENV_ANTHROPIC_BASE_URL: local_model.base_url,
            contract.ENV_OPENAI_API_KEY: "a-key",
            contract.ENV_ANTHROPIC_API_KEY: "a-key",
        },
    )
    assert len(answer) > 3
    if agent.output is not None:
        assert set(json.loads(answer)) == {"title", "poem"}


class Progress(ThreadingHTTPServer):
    """Takes what the meter's /progress takes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[PostProgress] = []


class _Handler(BaseHTTPRequestHandler):
    server: Progress

    def do_POST(self) -> None:
        assert self.path == "/progress"
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.posted.append(PostProgress.model_validate_json(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def test_the_trainer_learns_and_reports(tmp_path: Path) -> None:
    (job,) = [item for item in OBJECTS if item["kind"] == "TrainingJob"]
    command = [sys.executable, *job["spec"]["runner"]["command"][1:]]
    with Progress() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        text = json.dumps({name: job["spec"][name] for name in ("hyperparameters", "steps")})
        try:
            result = json.loads(
                run(
                    command,
                    tmp_path,
                    text,
                    **{contract.ENV_METER_URL: f"http://127.0.0.1:{server.server_address[1]}"},
                )
            )
        finally:
            server.shutdown()
            thread.join()
    steps = [post.step for post in server.posted]
    losses = [float(post.metrics["loss"]) for post in server.posted]
    assert steps == list(range(10, 201, 10))
    assert all(post.total == 200 for post in server.posted)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 1.5
    assert result["accuracy"] > 0.85
