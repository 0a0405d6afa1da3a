"""The agent loop with scripted models: turns, tools, structured output, guardrails, failures."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai import models as framework_models
from pydantic_ai.exceptions import (
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    UnexpectedModelBehavior,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.profiles import ModelProfile

from almoner_core.api.agent import AgentSpec, ModelAPI, ModelSettings, Tool
from almoner_core.contract import AgentExitCode
from almoner_runner.agent.failures import AgentFailure, classify
from almoner_runner.agent.invocation import Invocation
from almoner_runner.agent.loop import run
from almoner_runner.agent.models import build_model, build_settings
from almoner_runner.agent.output import output_schema, output_type, render
from almoner_runner.agent.toolset import MeteredTool, Pace
from almoner_runner.tools.calculator import Calculator
from almoner_runner.tools.errors import ToolError, ToolErrorCode
from tests.support.agents import spec


@pytest.fixture(autouse=True)
def _no_real_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framework_models, "ALLOW_MODEL_REQUESTS", False)


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 14}, "people": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}


class CountingMeter:
    """Grants calls until `allowed` are used up."""

    def __init__(self, allowed: int = 1000) -> None:
        self.calls: list[str] = []
        self.allowed = allowed

    async def reserve(self, tool: str) -> None:
        if len(self.calls) >= self.allowed:
            raise AgentFailure(AgentExitCode.LIMIT_EXCEEDED, f"tool {tool}: maxToolCalls is reached")
        self.calls.append(tool)


def invocation(tmp_path: Path, agent: AgentSpec, text: str = "What is the capital?") -> Invocation:
    return Invocation(
        spec=agent,
        api=agent.model.api or ModelAPI.OPENAI,
        base_url="http://127.0.0.1:9/openai/v1",
        api_key="almoner-metered",
        meter_url="http://127.0.0.1:9",
        input=text,
        output_file=tmp_path / "output",
    )


def scripted(*answers: str | list[ToolCallPart]) -> tuple[FunctionModel, list[list[ModelMessage]]]:
    """A model that gives these answers in order (the last for ever), and the conversations that it was shown."""
    seen: list[list[ModelMessage]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(list(messages))
        said = answers[min(len(seen), len(answers)) - 1]
        return ModelResponse(parts=[TextPart(said)] if isinstance(said, str) else list(said))

    return FunctionModel(answer, profile=ModelProfile(supports_json_schema_output=True)), seen


def call(**arguments: Any) -> list[ToolCallPart]:
    return [ToolCallPart("calculator", arguments)]


def shown(messages: list[ModelMessage]) -> str:
    return json.dumps([str(part.content) for message in messages for part in message.parts if hasattr(part, "content")])


async def failure_of(agent: AgentSpec, model: Any, tmp_path: Path, text: str = "What?") -> AgentFailure:
    with pytest.raises(AgentFailure) as caught:
        await run(invocation(tmp_path, agent, text), model=model, meter=CountingMeter())
    return caught.value


async def test_text_answer_with_instructions_and_counts(tmp_path: Path) -> None:
    model, seen = scripted("Paris.")
    answer = await run(invocation(tmp_path, spec()), model=model)
    assert (answer.value, answer.turns, answer.tool_calls) == ("Paris.", 1, 0)
    assert "What is the capital?" in shown(seen[0])
    assert getattr(seen[0][0], "instructions", None) == "Be brief."


async def test_tool_calls_are_metered_and_their_results_come_back(tmp_path: Path) -> None:
    model, seen = scripted(call(operation="multiply", a=6, b="7.5"), "It is 45.")
    meter = CountingMeter()
    agent = spec(tools=[{"name": "calculator"}])
    answer = await run(invocation(tmp_path, agent), model=model, meter=meter)
    assert (answer.value, answer.turns, answer.tool_calls) == ("It is 45.", 2, 1)
    assert meter.calls == ["calculator"]
    assert "'result': '45'" in shown(seen[1])


async def test_wrong_arguments_are_told_to_the_model_and_cost_no_tool_call(tmp_path: Path) -> None:
    model, seen = scripted(call(operation="modulo", a=1, b=2), call(operation="divide", a=1, b=0), "Sorry.")
    meter = CountingMeter()
    answer = await run(invocation(tmp_path, spec(tools=[{"name": "calculator"}])), model=model, meter=meter)
    assert answer.value == "Sorry."
    assert meter.calls == ["calculator"]  # the second fits the schema, so it was counted
    for field in ("success", "error", "tool_name", "code", "timestamp"):
        assert f"'{field}'" in shown(seen[1])
    assert "ToolInputInvalid" in shown(seen[1])
    assert "modulo" in shown(seen[1])
    assert "b must not be 0" in shown(seen[2])


async def test_a_refused_tool_call_ends_the_run(tmp_path: Path) -> None:
    model, seen = scripted(call(operation="add", a=1, b=2))
    with pytest.raises(AgentFailure, match="maxToolCalls is reached") as caught:
        await run(
            invocation(tmp_path, spec(tools=[{"name": "calculator"}])), model=model, meter=CountingMeter(allowed=2)
        )
    assert caught.value.exit_code == AgentExitCode.LIMIT_EXCEEDED
    assert len(seen) == 3


async def test_turns_are_limited(tmp_path: Path) -> None:
    model, seen = scripted(call(operation="add", a=1, b=2))
    agent = spec(tools=[{"name": "calculator"}], limits={"maxTurns": 3})
    failure = await failure_of(agent, model, tmp_path)
    assert failure.exit_code == AgentExitCode.LIMIT_EXCEEDED
    assert "maxTurns of 3" in failure.line
    assert "http" not in failure.line
    assert len(seen) == 3


async def test_tool_calls_are_limited_by_the_spec_too(tmp_path: Path) -> None:
    model, _ = scripted(call(operation="add", a=1, b=2))
    agent = spec(tools=[{"name": "calculator"}], limits={"maxToolCalls": 1})
    failure = await failure_of(agent, model, tmp_path)
    assert failure.exit_code == AgentExitCode.LIMIT_EXCEEDED
    assert "tool" in failure.line


async def test_an_unknown_tool_is_refused_before_the_model_is_asked(tmp_path: Path) -> None:
    model, seen = scripted("never")
    failure = await failure_of(spec(tools=[{"name": "abacus"}]), model, tmp_path)
    assert failure.exit_code == AgentExitCode.INVALID_INPUT
    assert failure.line == "tools[0].name: there is no tool named 'abacus'; this version has: calculator"
    assert seen == []


async def test_structured_output_is_checked_and_asked_for_again(tmp_path: Path) -> None:
    model, seen = scripted('{"town": "Paris"}', '{"city": "Paris", "people": 2100000}')
    answer = await run(invocation(tmp_path, spec(output={"jsonSchema": CITY})), model=model)
    assert answer.value == {"city": "Paris", "people": 2100000}
    assert len(seen) == 2
    assert "'city' is a required property" in shown(seen[1])
    assert json.loads(render(answer.value)) == answer.value


@pytest.mark.parametrize("bad", ["no JSON at all", '{"city": 7}', '{"city": "a name that is far too long"}'])
async def test_structured_output_gives_up_after_three_tries(tmp_path: Path, bad: str) -> None:
    model, seen = scripted(bad)
    failure = await failure_of(spec(output={"jsonSchema": CITY}), model, tmp_path)
    assert failure.exit_code == AgentExitCode.INVALID_OUTPUT
    assert len(seen) == 3


def test_structured_output_is_native_where_the_api_has_it_and_prompted_elsewhere(tmp_path: Path) -> None:
    schema = output_schema(spec(output={"jsonSchema": CITY}).output)
    kinds = {}
    for api in ModelAPI:
        agent = spec(model={"provider": "local", "name": "some-model", "api": api.value})
        model = build_model(invocation(tmp_path, agent))
        kinds[api] = type(output_type(schema, model)).__name__
        assert output_type(None, model) is str
    assert kinds == {ModelAPI.OPENAI: "NativeOutput", ModelAPI.ANTHROPIC: "PromptedOutput"}


async def test_prompted_output_shows_the_schema_to_the_model(tmp_path: Path) -> None:
    model = TestModel(custom_output_text='{"city": "Rome"}')
    answer = await run(invocation(tmp_path, spec(output={"jsonSchema": CITY})), model=model)
    assert answer.value == {"city": "Rome"}
    parameters = model.last_model_request_parameters
    assert parameters is not None
    assert parameters.output_mode == "prompted"


INPUT_GUARDRAILS: list[tuple[dict[str, Any], str, str | None]] = [
    ({"pattern": r"\d{3}-\d{4}"}, "call 555-1234", "guardrail g tripped on the input: the text matches"),
    ({"pattern": r"\d{3}-\d{4}"}, "call me", None),
    ({"maxLength": 5}, "123456", "guardrail g tripped on the input: 6 characters, at most 5"),
    ({"maxLength": 5}, "12345", None),
    ({"jsonSchema": CITY}, '{"city": 1}', "$.city: 1 is not of type 'string'"),
    ({"jsonSchema": CITY}, "no json", "the text is not JSON"),
    ({"jsonSchema": CITY}, '{"city": "Oslo"}', None),
]


@pytest.mark.parametrize(("check", "text", "says"), INPUT_GUARDRAILS)
async def test_input_guardrails(tmp_path: Path, check: dict[str, Any], text: str, says: str | None) -> None:
    model, seen = scripted("fine")
    agent = spec(guardrails={"input": [{"name": "g", **check}]})
    if says is None:
        assert (await run(invocation(tmp_path, agent, text), model=model)).value == "fine"
        return
    failure = await failure_of(agent, model, tmp_path, text)
    assert failure.exit_code == AgentExitCode.GUARDRAIL_TRIPPED
    assert says in failure.line
    assert seen == []


async def test_input_is_redacted_before_the_model_sees_it(tmp_path: Path) -> None:
    model, seen = scripted("fine")
    agent = spec(
        guardrails={
            "input": [
                {"name": "phone", "action": "Redact", "pattern": r"\d{3}-\d{4}"},
                {"name": "short", "action": "Redact", "maxLength": 25},
            ]
        }
    )
    await run(invocation(tmp_path, agent, "call 555-1234 now, and then wait"), model=model)
    assert "call [redacted] now, and " in shown(seen[0])
    assert "555" not in shown(seen[0])
    assert "then" not in shown(seen[0])


@pytest.mark.parametrize(
    ("action", "answers", "value", "exit_code", "turns"),
    [
        ("Trip", ["the secret"], None, AgentExitCode.GUARDRAIL_TRIPPED, 1),
        ("Redact", ["the secret"], "the [redacted]", None, 1),
        ("Retry", ["the secret", "nothing"], "nothing", None, 2),
        ("Retry", ["the secret"], None, AgentExitCode.GUARDRAIL_TRIPPED, 3),
    ],
)
async def test_output_guardrails(
    tmp_path: Path, *, action: str, answers: list[str], value: str | None, exit_code: int | None, turns: int
) -> None:
    model, seen = scripted(*answers)
    agent = spec(guardrails={"output": [{"name": "hush", "action": action, "pattern": "secret"}]})
    if exit_code is None:
        assert (await run(invocation(tmp_path, agent), model=model)).value == value
    else:
        failure = await failure_of(agent, model, tmp_path)
        assert failure.exit_code == exit_code
        assert "hush" in failure.line
        assert "secret" not in failure.line
    assert len(seen) == turns


async def test_structured_output_is_redacted_within_its_strings(tmp_path: Path) -> None:
    model, _ = scripted('{"city": "Gotham", "people": 3}')
    agent = spec(
        output={"jsonSchema": CITY}, guardrails={"output": [{"name": "g", "action": "Redact", "pattern": "Goth"}]}
    )
    assert (await run(invocation(tmp_path, agent), model=model)).value == {"city": "[redacted]am", "people": 3}


async def test_a_redaction_that_breaks_the_schema_is_no_answer(tmp_path: Path) -> None:
    model, _ = scripted('{"city": "aaaaaa"}')
    agent = spec(
        output={"jsonSchema": CITY}, guardrails={"output": [{"name": "g", "action": "Redact", "pattern": "a"}]}
    )
    failure = await failure_of(agent, model, tmp_path)
    assert failure.exit_code == AgentExitCode.INVALID_OUTPUT
    assert "redacted answer does not fit" in failure.line


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"handoffs": [{"agent": "other"}]}, "handoffs[0]: not supported"),
        ({"guardrails": {"input": [{"name": "g", "agent": "judge"}]}}, "guardrails.input[g].agent: not supported"),
        ({"guardrails": {"output": [{"name": "g", "agent": "judge"}]}}, "guardrails.output[g].agent: not supported"),
        ({"guardrails": {"input": [{"name": "g", "pattern": "("}]}}, "guardrails.input[g].pattern: not a regular"),
        (
            {"guardrails": {"input": [{"name": "g", "pattern": "x", "action": "Retry"}]}},
            "guardrails.input[g].action: Retry has no meaning",
        ),
        (
            {"guardrails": {"output": [{"name": "g", "jsonSchema": {}, "action": "Redact"}]}},
            "guardrails.output[g].action: a jsonSchema says nothing to redact",
        ),
        ({"guardrails": {"output": [{"name": "g"}]}}, "guardrails.output[g]: needs one of"),
        (
            {"guardrails": {"output": [{"name": "g", "jsonSchema": {"type": "nonsense"}}]}},
            "guardrails.output[g].jsonSchema: at $.type",
        ),
        ({"output": {"jsonSchema": {"type": "array"}}}, "output.jsonSchema.type: must be 'object'"),
        ({"output": {"jsonSchema": {"type": "object", "required": "city"}}}, "output.jsonSchema: at $.required"),
        ({"tools": [{"name": "calculator", "config": {"precision": 0}}]}, "tools[0].config: calculator: precision"),
    ],
)
async def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], says: str) -> None:
    model, seen = scripted("never")
    failure = await failure_of(spec(**fields), model, tmp_path)
    assert failure.exit_code == AgentExitCode.INVALID_INPUT
    assert says in failure.line
    assert seen == []


IN_EXECUTION = "for this call in execution: of"
OPENAI_QUOTA = {"message": "ResourceQuota red: 0.01 of 0.01 spent", "type": "insufficient_quota", "code": "x"}
ANTHROPIC_QUOTA = {"type": "error", "error": {"type": "billing_error", "message": "ResourceQuota red is spent"}}


@pytest.mark.parametrize(
    ("error", "exit_code", "says"),
    [
        (
            ModelHTTPError.for_category(ModelQuotaExceededError, status_code=429, model_name="m", body=OPENAI_QUOTA),
            AgentExitCode.BUDGET_EXHAUSTED,
            "ResourceQuota red: 0.01 of 0.01 spent",
        ),
        (
            ModelHTTPError.for_category(
                ModelRateLimitError,
                status_code=429,
                model_name="m",
                body=ANTHROPIC_QUOTA,
                headers={"x-should-retry": "false"},
            ),
            AgentExitCode.BUDGET_EXHAUSTED,
            "ResourceQuota red is spent",
        ),
        (
            ModelHTTPError(429, "m", {"message": f"no room {IN_EXECUTION} tokens", "code": "insufficient_quota"}),
            AgentExitCode.LIMIT_EXCEEDED,
            "no room for this call in execution: of tokens",
        ),
        (
            ModelHTTPError(429, "m", {"message": f"no room {IN_EXECUTION} money", "code": "insufficient_quota"}),
            AgentExitCode.BUDGET_EXHAUSTED,
            "no room for this call in execution: of money",
        ),
        (
            ModelHTTPError(
                429,
                "m",
                {"type": "error", "error": {"type": "rate_limit_error", "message": "insufficient_quota: no room"}},
            ),
            AgentExitCode.BUDGET_EXHAUSTED,
            "no room",
        ),
        (
            ModelHTTPError.for_category(
                ModelRateLimitError,
                status_code=429,
                model_name="m",
                body={"message": "rate limit: team/pace", "code": "rate_limit_exceeded"},
            ),
            AgentExitCode.RATE_LIMITED,
            "rate limit: team/pace",
        ),
        (
            ModelHTTPError.for_category(
                ModelRateLimitError,
                status_code=429,
                model_name="m",
                body={"type": "error", "error": {"message": "request_exceeds_rate: one call may use at most 5 tokens"}},
                headers={"x-should-retry": "false"},
            ),
            AgentExitCode.RATE_LIMITED,
            "one call may use at most 5 tokens",
        ),
        (
            ModelHTTPError.for_category(ModelRateLimitError, status_code=429, model_name="m", body={"message": "slow"}),
            AgentExitCode.PROVIDER_FAILED,
            "slow",
        ),
        (ModelHTTPError(500, "m", "boom"), AgentExitCode.PROVIDER_FAILED, "500"),
        (ModelConnectionError("m", "refused"), AgentExitCode.PROVIDER_FAILED, "refused"),
        (ExceptionGroup("all", [ValueError("x"), AgentFailure(65, "guard")]), 65, "guard"),
    ],
)
async def test_failures_of_the_provider_become_exit_codes(
    tmp_path: Path, error: Exception, exit_code: int, says: str
) -> None:
    def fail(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise error

    failure = await failure_of(spec(), FunctionModel(fail), tmp_path)
    assert failure.exit_code == exit_code
    assert says in failure.line
    assert classify(error).exit_code == exit_code


@pytest.mark.parametrize(
    ("error", "code_elsewhere", "says"),
    [
        (UnexpectedModelBehavior("empty"), AgentExitCode.INVALID_OUTPUT, "empty"),
        (ValueError("odd\nthing"), 1, "ValueError: odd thing"),
    ],
)
async def test_what_goes_wrong_in_reading_an_answer_is_the_provider_s_failure(
    tmp_path: Path, error: Exception, code_elsewhere: int, says: str
) -> None:
    def fail(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        raise error

    failure = await failure_of(spec(), FunctionModel(fail), tmp_path)
    assert failure.exit_code == AgentExitCode.PROVIDER_FAILED
    assert says in failure.line
    assert says in classify(error).line
    assert classify(error).exit_code == code_elsewhere


def test_decimal_strings_become_floats_in_the_settings_alone() -> None:
    settings = ModelSettings(max_output_tokens=48, temperature="0.25", top_p="0.9", seed=7)
    assert build_settings(settings, ModelAPI.OPENAI) == {
        "max_tokens": 48,
        "temperature": 0.25,
        "top_p": 0.9,
        "seed": 7,
    }
    assert build_settings(settings, ModelAPI.ANTHROPIC) == {"max_tokens": 48, "temperature": 0.25, "top_p": 0.9}
    assert build_settings(ModelSettings(), ModelAPI.OPENAI) == {}
    assert build_settings(ModelSettings(), ModelAPI.ANTHROPIC) == {"max_tokens": 20_000}


def test_pace_holds_in_any_minute() -> None:
    now = 0.0
    pace = Pace(2, clock=lambda: now)
    pace.take()
    now = 30.0
    pace.take()
    now = 59.0
    with pytest.raises(ToolError, match="at most 2 calls a minute; call again in 2 seconds") as caught:
        pace.take()
    assert caught.value.code is ToolErrorCode.RATE_LIMIT_EXCEEDED
    now = 60.0
    pace.take()
    with pytest.raises(ToolError):
        pace.take()


class Slow(Calculator):
    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        time.sleep(1.5)  # the tool under test is the one that is slow
        return {"success": True}


class Broken(Calculator):
    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("disk\non fire")


@pytest.mark.parametrize(
    ("tool", "code", "says"),
    [
        (Slow, "ToolTimeout", "no result after 1 seconds"),
        (Broken, "ToolExecutionFailed", "RuntimeError: disk on fire"),
    ],
)
async def test_tools_that_hang_or_break_answer_by_name(tool: type[Calculator], code: str, says: str) -> None:
    metered = MeteredTool(Tool(name="calculator", timeout_seconds=1), tool({}), CountingMeter())
    answer = await metered.call(operation="add", a=1, b=2)
    assert answer["success"] is False
    assert (answer["code"], answer["error"], answer["tool_name"]) == (code, says, "calculator")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", answer["timestamp"])
