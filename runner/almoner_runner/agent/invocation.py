"""What one run of the agent loop is given, read from the environment that the operator wrote.

Role: environment and input file to a checked Invocation. Boundary: nothing is called yet; whatever is wrong is refused
here, before it has cost anything, by the name of the field or variable.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from almoner_core import contract
from almoner_core.agent_checks import first_problem
from almoner_core.api.agent import AgentSpec, ModelAPI
from almoner_runner.agent.failures import invalid_input

INPUT_BYTES_MAX: Final = 1_048_576


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run: the pinned agent, its input, where the meter listens, where the answer goes."""

    spec: AgentSpec
    api: ModelAPI
    base_url: str
    api_key: str
    meter_url: str
    input: str
    output_file: Path


def from_environment(environment: Mapping[str, str]) -> Invocation:
    """Read and check everything. Raises AgentFailure (INVALID_INPUT) naming what is missing or wrong."""
    spec = _spec(_needed(environment, contract.ENV_AGENT_SPEC))
    api = _dialect(spec, environment)
    openai = api is ModelAPI.OPENAI
    return Invocation(
        spec=spec,
        api=api,
        base_url=_needed(environment, contract.ENV_OPENAI_BASE_URL if openai else contract.ENV_ANTHROPIC_BASE_URL),
        api_key=environment.get(contract.ENV_OPENAI_API_KEY if openai else contract.ENV_ANTHROPIC_API_KEY)
        or contract.PLACEHOLDER_KEY,
        meter_url=_meter_url(environment),
        input=_input(Path(_needed(environment, contract.ENV_INPUT_FILE))),
        output_file=Path(_needed(environment, contract.ENV_OUTPUT_FILE)),
    )


def _needed(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise invalid_input(f"the environment variable {name} is not set; almoner-agent runs inside a runner pod")
    return value


def _meter_url(environment: Mapping[str, str]) -> str:
    url = environment.get(contract.ENV_METER_URL)
    return url or f"http://{_needed(environment, contract.ENV_METER_ADDRESS)}"


def _spec(text: str) -> AgentSpec:
    try:
        return AgentSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the document"
        raise invalid_input(f"{contract.ENV_AGENT_SPEC}: {place}: {first['msg']}") from error


def _dialect(spec: AgentSpec, environment: Mapping[str, str]) -> ModelAPI:
    """The agent's own choice; where it has none, the dialect that the environment offers, OpenAI's first."""
    if spec.model.api is not None:
        return spec.model.api
    if environment.get(contract.ENV_OPENAI_BASE_URL):
        return ModelAPI.OPENAI
    return ModelAPI.ANTHROPIC


def _input(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise invalid_input("the input is not a regular file")
        with path.open("rb") as stream:
            content = stream.read(INPUT_BYTES_MAX + 1)
    except OSError as error:
        raise invalid_input(f"the input cannot be read: {error.strerror}") from error
    if len(content) > INPUT_BYTES_MAX:
        raise invalid_input(f"the input is longer than {INPUT_BYTES_MAX} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid_input(f"the input is not UTF-8 (byte {error.start})") from error
    if not text.strip():
        raise invalid_input("the input is empty; give one of input.text, input.json, input.configMapKeyRef")
    return text


def check(spec: AgentSpec) -> None:
    """Refuse by name what this version's loop does not do or cannot use, rather than to leave it out in silence.

    The operator made the same checks; it may be of another version. Raises AgentFailure (INVALID_INPUT).
    """
    problem = first_problem(spec)
    if problem is not None:
        raise invalid_input(str(problem))
