from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from almoner_core import contract
from almoner_dev.model import LocalModel, ModelUnavailableError, weights
from almoner_dev.scripted import Reply, ScriptedProvider, ToolCall, Usage
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


def run_agent(
    tmp_path: Path, base_url: str, agent: dict[str, Any], text: str, *, meter_url: str | None = None
) -> Ended:
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
            contract.ENV_METER_URL: meter_url or base_url,
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
        "model": model_of(
            api, maxOutputTokens=24, temperature="0", topP="1", **({"seed": 1} if api == "OpenAI" else {})
        ),
        "instructions": "Answer in one short sentence.",
    }
    ended = run_agent(tmp_path, local_model.base_url, agent, "What is the capital of France?")
    assert ended.code == 0, ended.log
    assert "Paris" in (ended.output or "")
    assert "turns: 1, tool calls: 0" in ended.last_line


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


class ToolMeter(ThreadingHTTPServer):
    """The meter's POST /tools/{tool}/calls alone: grants so many calls, then answers as the meter refuses."""

    def __init__(self, allowed: int, refusal: dict[str, Any] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.allowed = allowed
        self.refusal = refusal or {}
        self.paths: list[str] = []

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: ToolMeter

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        granted = len(self.server.paths) < self.server.allowed
        self.server.paths.append(self.path)
        body = json.dumps({"granted": True} if granted else {"error": self.server.refusal}).encode()
        self.send_response(200 if granted else 429)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def product(a: int, b: int) -> Reply:
    return Reply(
        text="",
        tool_calls=(ToolCall(name="calculator", arguments={"operation": "multiply", "a": a, "b": b}, id=f"call_{a}"),),
        usage=Usage(input_tokens=40, output_tokens=12),
    )


def asked(provider: ScriptedProvider, number: int) -> str:
    return json.dumps(provider.requests[number])


@pytest.mark.parametrize("api", DIALECTS)
def test_tools_run_in_both_dialects(tmp_path: Path, api: str) -> None:
    replies = [product(6, 7), Reply(text="It is 42.", usage=Usage(input_tokens=60, output_tokens=6))]
    agent = {"model": model_of(api), "tools": [{"name": "calculator"}], "instructions": "Use the calculator."}
    with ScriptedProvider(replies) as provider, ToolMeter(allowed=5) as meter:
        ended = run_agent(tmp_path, provider.base_url, agent, "6 times 7?", meter_url=meter.url)
        assert ended.code == 0, ended.log
        assert ended.output == "It is 42."
        assert meter.paths == ["/tools/calculator/calls"]
        assert "Use the calculator." in asked(provider, 0)
        assert "multiply" in asked(provider, 0)
        assert "42" in asked(provider, 1)
    assert "turns: 2, tool calls: 1, 100 tokens in, 18 out" in ended.last_line
    assert "almoner-agent: tool calculator: ok" in ended.log


@pytest.mark.parametrize("api", DIALECTS)
@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("no room for this call in execution: of tool calls it could use up to 1, and 0 of 2 are left", 67),
        ("no room for this call in demo/team: of money it could use up to $0.09, and $0.00 of $0.05 are left", 68),
    ],
)
def test_a_tool_call_that_is_refused_ends_the_run(tmp_path: Path, api: str, said: str, code: int) -> None:
    agent = {"model": model_of(api), "tools": [{"name": "calculator"}]}
    refusal = {"message": said, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
    with ScriptedProvider([product(2, 3)]) as provider, ToolMeter(allowed=2, refusal=refusal) as meter:
        ended = run_agent(tmp_path, provider.base_url, agent, "Go on for ever", meter_url=meter.url)
    assert ended.code == code, ended.log
    assert said in ended.last_line
    assert ended.output is None


@pytest.mark.parametrize("api", DIALECTS)
def test_a_refused_model_call_says_which_budget(tmp_path: Path, api: str) -> None:
    said = "no room for this call in demo/team: of money it could use up to $0.90, and $0.05 of $1.00 are left"
    message = said if api == "OpenAI" else f"insufficient_quota: {said}"
    reply = Reply(status=429, message=message, headers={"x-should-retry": "false"})
    with ScriptedProvider([reply]) as provider:
        ended = run_agent(tmp_path, provider.base_url, {"model": model_of(api)}, "Hello")
        assert len(provider.requests) == 1
    assert ended.code == contract.AgentExitCode.BUDGET_EXHAUSTED, ended.log
    assert ended.last_line == f"almoner-agent: {said}"


@pytest.mark.parametrize("api", DIALECTS)
def test_the_sdk_tries_again_when_the_meter_restarts(tmp_path: Path, api: str) -> None:
    replies = [Reply(status=503, message="starting"), Reply(text="Here I am.")]
    with ScriptedProvider(replies) as provider:
        ended = run_agent(tmp_path, provider.base_url, {"model": model_of(api)}, "Hello")
        assert len(provider.requests) == 2
    assert (ended.code, ended.output) == (0, "Here I am.")


@pytest.mark.parametrize("api", DIALECTS)
def test_turns_are_limited_in_both_dialects(tmp_path: Path, api: str) -> None:
    agent = {"model": model_of(api), "tools": [{"name": "calculator"}], "limits": {"maxTurns": 2}}
    with ScriptedProvider([product(2, 3)]) as provider, ToolMeter(allowed=9) as meter:
        ended = run_agent(tmp_path, provider.base_url, agent, "Go on for ever", meter_url=meter.url)
        assert len(provider.requests) == 2
    assert ended.code == contract.AgentExitCode.LIMIT_EXCEEDED
    assert "maxTurns of 2" in ended.last_line
