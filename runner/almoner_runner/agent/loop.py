"""The agent loop: one conversation, from input to a checked answer, inside the agent's limits.

Role: put model, instructions, tools, guardrails and output shape together, and let pydantic-ai run the turns. Boundary:
money and tokens are the meter's to refuse; turns, guardrails and the answer's shape are kept here. Why retries are few:
each is a paid call, and a model that cannot answer in three tries will not in ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from almoner_core.contract import AgentExitCode
from almoner_core.json_schema import SchemaError
from almoner_runner.agent.failures import AgentFailure, classify
from almoner_runner.agent.guardrails import Guards, RetryAsked
from almoner_runner.agent.invocation import Invocation, check
from almoner_runner.agent.mending import has_non_finite
from almoner_runner.agent.models import build_model, build_settings
from almoner_runner.agent.output import output_schema, output_type
from almoner_runner.agent.time_bound import time_bound
from almoner_runner.agent.toolset import HttpMeter, Meter, build_tools

if TYPE_CHECKING:
    from pydantic_ai import Agent, RunContext
    from pydantic_ai.models import Model

    from almoner_core.json_schema import Schema

MAX_TURNS_DEFAULT: Final = 50
OUTPUT_RETRIES: Final = 2
TOOL_RETRIES: Final = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out: a text, or a structured value, and what it took."""

    value: Any
    turns: int
    tool_calls: int
    input_tokens: int
    output_tokens: int


async def run(invocation: Invocation, *, model: Model | None = None, meter: Meter | None = None) -> Answer:
    """Run the conversation. `model` and `meter` replace the real ones, for tests and for runs without a cluster.

    Raises AgentFailure, whatever happened.
    """
    try:
        return await _run(invocation, model, meter)
    except Exception as error:
        failure = classify(error)
        if failure is error:
            raise
        raise failure from error


async def _run(invocation: Invocation, model: Model | None, meter: Meter | None) -> Answer:
    spec = invocation.spec
    check(spec)
    schema = output_schema(spec.output)
    inward = Guards(spec.guardrails.input, side="input")
    outward = Guards(spec.guardrails.output, side="output")
    prompt = inward.apply(invocation.input)
    tools = build_tools(spec.tools, meter or HttpMeter(invocation.meter_url))
    # Only now the heavy imports: whatever is wrong with the manifest has been said in milliseconds.
    from pydantic_ai import Agent, UsageLimits  # noqa: PLC0415

    chosen = build_model(invocation) if model is None else _heard(model, schema)
    agent: Agent[None, Any] = Agent(
        chosen,
        output_type=output_type(schema, chosen),
        instructions=spec.instructions or None,
        tools=tools,
        model_settings=build_settings(spec.model.settings, invocation.api),
        retries={"tools": TOOL_RETRIES, "output": OUTPUT_RETRIES},
    )
    _check_output(agent, schema, outward)
    result = await agent.run(
        prompt,
        usage_limits=UsageLimits(
            request_limit=spec.limits.max_turns or MAX_TURNS_DEFAULT, tool_calls_limit=spec.limits.max_tool_calls
        ),
    )
    usage = result.usage
    return Answer(result.output, usage.requests, usage.tool_calls, usage.input_tokens, usage.output_tokens)


def _heard(model: Model, schema: Schema | None) -> Model:
    from almoner_runner.agent.heard import HeardModel  # noqa: PLC0415 - heavy

    return HeardModel(model, None, structured=schema is not None)


def _problems_of(value: Any, schema: Schema | None) -> list[str]:
    """What is wrong with an answer by the schema; a value that the schema cannot be asked about is wrong too."""
    if schema is None:
        return []
    if has_non_finite(value):
        return ["NaN and Infinity are no JSON: leave the number out, or give it as a string"]
    try:
        with time_bound("output.jsonSchema"):
            return schema.problems(value)
    except SchemaError as error:
        return [str(error)]


def _check_output(agent: Agent[None, Any], schema: Schema | None, guards: Guards) -> None:
    """Have every answer checked, by the schema before and after the guardrails had their way with it."""
    from pydantic_ai import ModelRetry  # noqa: PLC0415 - heavy

    async def check(context: RunContext[None], value: Any) -> Any:
        last = context.retry >= OUTPUT_RETRIES
        problems = _problems_of(value, schema)
        if problems:
            message = "the answer does not fit output.jsonSchema: " + "; ".join(problems)
            if last:
                raise AgentFailure(AgentExitCode.INVALID_OUTPUT, message)
            raise ModelRetry(message)
        try:
            checked = guards.apply(value)
        except RetryAsked as asked:
            if last:
                raise AgentFailure(
                    AgentExitCode.GUARDRAIL_TRIPPED, f"{asked} Gave up after {last + 1} tries."
                ) from asked
            raise ModelRetry(str(asked)) from asked
        if problems := _problems_of(checked, schema):
            raise AgentFailure(
                AgentExitCode.INVALID_OUTPUT,
                "the redacted answer does not fit output.jsonSchema: " + "; ".join(problems),
            )
        return checked

    agent.output_validator(check)
