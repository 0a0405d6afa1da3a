"""The agent's process: what it reads of its environment, the answer that it writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from almoner_core import contract
from almoner_core.api.agent import AgentSpec, ModelAPI
from almoner_core.contract import AgentExitCode
from almoner_runner.agent.failures import AgentFailure, one_line
from almoner_runner.agent.invocation import from_environment
from almoner_runner.agent.output import render, write
from tests.support.agents import spec


def environment(tmp_path: Path, agent: AgentSpec | str | None = None, content: bytes = b"Hello") -> dict[str, str]:
    (tmp_path / "input").write_bytes(content)
    text = agent if isinstance(agent, str) else json.dumps((agent or spec()).to_wire())
    return {
        contract.ENV_AGENT_SPEC: text,
        contract.ENV_INPUT_FILE: str(tmp_path / "input"),
        contract.ENV_OUTPUT_FILE: str(tmp_path / "output"),
        contract.ENV_METER_ADDRESS: "127.0.0.1:8790",
        contract.ENV_OPENAI_BASE_URL: "http://127.0.0.1:8790/openai/v1",
        contract.ENV_ANTHROPIC_BASE_URL: "http://127.0.0.1:8790/anthropic",
    }


def test_the_environment_says_everything(tmp_path: Path) -> None:
    agent = spec(model={"provider": "local", "name": "m", "api": "Anthropic"})
    read = from_environment(environment(tmp_path, agent))
    assert (read.api, read.base_url) == (ModelAPI.ANTHROPIC, "http://127.0.0.1:8790/anthropic")
    assert (read.meter_url, read.api_key) == ("http://127.0.0.1:8790", contract.PLACEHOLDER_KEY)
    assert (read.input, read.spec) == ("Hello", agent)


def test_the_dialect_falls_back_on_what_the_environment_offers(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    assert from_environment(variables).api is ModelAPI.OPENAI
    del variables[contract.ENV_OPENAI_BASE_URL]
    assert from_environment(variables).api is ModelAPI.ANTHROPIC


def _without(name: str) -> Callable[[dict[str, str]], None]:
    return lambda variables: variables.__delitem__(name)


def _with(name: str, value: str) -> Callable[[dict[str, str]], None]:
    return lambda variables: variables.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "content", "says"),
    [
        (_without(contract.ENV_AGENT_SPEC), b"x", "ALMONER_AGENT_SPEC is not set"),
        (_without(contract.ENV_INPUT_FILE), b"x", "ALMONER_INPUT_FILE is not set"),
        (_without(contract.ENV_OUTPUT_FILE), b"x", "ALMONER_OUTPUT_FILE is not set"),
        (_without(contract.ENV_METER_ADDRESS), b"x", "ALMONER_METER_ADDRESS is not set"),
        (_with(contract.ENV_AGENT_SPEC, "{"), b"x", "ALMONER_AGENT_SPEC: the document: Invalid JSON"),
        (_with(contract.ENV_AGENT_SPEC, '{"type": "Research"}'), b"x", "ALMONER_AGENT_SPEC: model: Field required"),
        (_with(contract.ENV_INPUT_FILE, "/nowhere/input"), b"x", "the input cannot be read: No such file"),
        (_with(contract.ENV_INPUT_FILE, "/dev/zero"), b"x", "the input is not a regular file"),
        (_with("X", ""), b" \n", "the input is empty"),
        (_with("X", ""), b"\xff\xfe", "the input is not UTF-8 (byte 0)"),
        (_with("X", ""), b"x" * 1_048_577, "the input is longer than 1048576 bytes"),
    ],
)
def test_a_wrong_environment_is_refused_by_name(
    tmp_path: Path, change: Callable[[dict[str, str]], None], content: bytes, says: str
) -> None:
    variables = environment(tmp_path, content=content)
    change(variables)
    with pytest.raises(AgentFailure) as caught:
        from_environment(variables)
    assert caught.value.exit_code == AgentExitCode.INVALID_INPUT
    assert says in caught.value.line


def test_the_answer_is_written_whole_and_readable_by_the_meter(tmp_path: Path) -> None:
    write(tmp_path / "output", "Grüße")
    write(tmp_path / "output", "zweite")
    assert (tmp_path / "output").read_text() == "zweite"
    assert (tmp_path / "output").stat().st_mode & 0o040
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    with pytest.raises(AgentFailure, match="at most 1048576 are kept") as caught:
        write(tmp_path / "output", "x" * 1_048_577)
    assert caught.value.exit_code == AgentExitCode.INVALID_OUTPUT
    with pytest.raises(AgentFailure, match="cannot be written"):
        write(tmp_path / "missing" / "output", "x")
    assert render({"a": "ü"}) == '{"a": "ü"}'


def test_lines_are_one_line_and_bounded() -> None:
    assert one_line("a\n b\t c") == "a b c"
    assert len(one_line("x" * 5000)) == 900


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "almoner_runner.agent", *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_exit_code() -> None:
    told = command("--help").stdout
    for name, code in vars(AgentExitCode).items():
        if not name.startswith("_"):
            assert f"  {code}  " in told


def test_the_last_line_says_why_and_the_exit_code_too(tmp_path: Path) -> None:
    agent = spec(handoffs=[{"agent": "other"}])
    ended = command(**environment(tmp_path, agent))
    assert ended.returncode == AgentExitCode.INVALID_INPUT
    assert ended.stderr.splitlines()[-1].startswith("almoner-agent: handoffs[0]: not supported")
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "output").exists()


def test_a_refusal_of_the_manifest_loads_no_sdk(tmp_path: Path) -> None:
    code = (
        "import sys; from almoner_runner.agent.__main__ import main; main([]); "
        "print([m for m in ('openai', 'anthropic', 'pydantic_ai') if m in sys.modules])"
    )
    variables = environment(tmp_path, spec(handoffs=[{"agent": "other"}]))
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == "[]"
