"""What is wrong with an Agent's spec by itself: what this version does not do, and what cannot be used.

Role: the operator judges every Agent with these checks before anything runs; the agent loop makes the same ones at its
start, since it may run another version, or without a cluster. Boundary: pure, and nothing that needs other objects.

Why each field is here: nothing in a manifest is accepted and ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final, NamedTuple

from almoner_core.api.agent import AgentSpec, Guardrail, GuardrailAction, ModelAPI, ModelSettings, Tool
from almoner_core.api.runner import Runner
from almoner_core.json_schema import Schema, SchemaError, references, resolve
from almoner_core.patterns import PatternError, compile_pattern

SPEC_BYTES_MAX: Final = 116_000
"""Most bytes of a spec as JSON, without its runner: it reaches the loop in an environment variable."""
CALCULATOR_PRECISION_DEFAULT: Final = 28
CALCULATOR_PRECISION_MAX: Final = 100


class ProblemKind(StrEnum):
    """What kind of problem it is."""

    NOT_SUPPORTED = "NotSupported"
    """Nothing in this version does that."""
    INVALID = "InvalidSpec"
    """It cannot be used as it is written."""


class Problem(NamedTuple):
    """One problem: the path of the field below spec, and what is wrong with it."""

    kind: ProblemKind
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


class Checked(NamedTuple):
    """That a spec was checked by itself, and its first problem."""

    problem: Problem | None


def first_problem(spec: AgentSpec) -> Problem | None:
    """Return the first problem of a spec; None where there is none."""
    return next(problems(spec), None)


def problems(spec: AgentSpec) -> Iterator[Problem]:
    """Yield every problem of a spec, those of an image of its own or those of our loop included."""
    yield from _not_supported(spec)
    yield from _unused_beside_image(spec) if spec.runner.image is not None else _loop(spec)


def _later(field: str, message: str) -> Problem:
    return Problem(ProblemKind.NOT_SUPPORTED, field, message)


def _invalid(field: str, message: str) -> Problem:
    return Problem(ProblemKind.INVALID, field, message)


def _not_supported(spec: AgentSpec) -> Iterator[Problem]:
    """What nothing does yet, whatever the agent's container runs."""
    text = "not supported by this version: remove it"
    if spec.model.fallbacks:
        yield _later("model.fallbacks", f"{text}; a call that fails goes to no other model")
    for index, handoff in enumerate(spec.handoffs):
        yield _later(f"handoffs[{index}]", f"{text}; nobody would hand over to {handoff.agent!r}")
    for side, guardrails in (("input", spec.guardrails.input), ("output", spec.guardrails.output)):
        for guardrail in guardrails:
            if guardrail.agent is not None:
                yield _later(f"guardrails.{side}[{guardrail.name}].agent", f"{text}; no agent would be asked")
    if spec.safety is not None and spec.safety.approval_required:
        yield _later("safety.approvalRequired", f"{text}; no call would wait for an approval")
    if spec.safety is not None and spec.safety.allowed_domains:
        yield _later(
            "safety.allowedDomains",
            f"{text}; no tool of Almoner's reaches any domain, and what other code reaches is for an egress "
            "NetworkPolicy to bound",
        )


# --- an image of the user's own ---------------------------------------------------------------------------------------


def _unused_beside_image(spec: AgentSpec) -> Iterator[Problem]:
    """Fields that our loop alone reads."""
    text = "only Almoner's own loop reads it, and runner.image runs instead: remove it"
    settings, default = spec.model.settings, ModelSettings()
    given = {
        "instructions": bool(spec.instructions),
        "guardrails.input": bool(spec.guardrails.input),
        "guardrails.output": bool(spec.guardrails.output),
        "output": spec.output is not None,
        "limits.maxTurns": spec.limits.max_turns is not None,
        "model.api": spec.model.api is not None,
        "model.settings.temperature": settings.temperature != default.temperature,
        "model.settings.topP": settings.top_p != default.top_p,
        "model.settings.seed": settings.seed != default.seed,
    }
    for field, is_given in given.items():
        if is_given:
            yield _invalid(field, text)
    for index, tool in enumerate(spec.tools):
        yield from _tool_beside_image(f"tools[{index}]", tool, text)


def _tool_beside_image(place: str, tool: Tool, text: str) -> Iterator[Problem]:
    """A tool is priced by its provider, whoever calls it; the rest is the loop's."""
    if tool.provider is None:
        yield _invalid(place, f"without a provider, {text}; calls of tools that cost nothing need not be listed")
    given = {
        "config": tool.config is not None,
        "callsPerMinute": tool.calls_per_minute is not None,
        "timeoutSeconds": tool.timeout_seconds is not None,
    }
    for field, is_given in given.items():
        if is_given:
            yield _invalid(f"{place}.{field}", text)


# --- our loop ---------------------------------------------------------------------------------------------------------


def _loop(spec: AgentSpec) -> Iterator[Problem]:
    if spec.model.api is ModelAPI.ANTHROPIC and spec.model.settings.seed is not None:
        yield _invalid("model.settings.seed", "Anthropic's API has no seed: remove it")
    for index, tool in enumerate(spec.tools):
        yield from _tool(f"tools[{index}]", tool)
    for side, guardrails in (("input", spec.guardrails.input), ("output", spec.guardrails.output)):
        for guardrail in guardrails:
            yield from _guardrail(f"guardrails.{side}[{guardrail.name}]", guardrail, side)
    if spec.output is not None:
        yield from _output(spec.output.json_schema)
    told = spec.model_copy(update={"runner": Runner()})
    size = len(json.dumps(told.to_wire(), ensure_ascii=False).encode("utf-8", "replace"))
    if size > SPEC_BYTES_MAX:
        yield _invalid(
            "instructions", f"the spec has {size} bytes as JSON, at most {SPEC_BYTES_MAX}: shorten texts or schemas"
        )


def calculator_precision(config: dict[str, Any]) -> int:
    """Read the calculator's settings. Raises ValueError naming the setting."""
    if unknown := sorted(set(config) - {"precision"}):
        raise ValueError(f"calculator: unknown setting {unknown[0]!r}; the only one is precision")
    precision = config.get("precision", CALCULATOR_PRECISION_DEFAULT)
    if type(precision) is not int or not 1 <= precision <= CALCULATOR_PRECISION_MAX:
        raise ValueError(f"calculator: precision must be an integer from 1 to {CALCULATOR_PRECISION_MAX}")
    return precision


BUILT_IN_TOOLS: Final[dict[str, Callable[[dict[str, Any]], object]]] = {"calculator": calculator_precision}
"""Tools of our loop, and what reads the settings of each."""


def _tool(place: str, tool: Tool) -> Iterator[Problem]:
    read = BUILT_IN_TOOLS.get(tool.name)
    if read is None:
        known = ", ".join(sorted(BUILT_IN_TOOLS))
        yield _invalid(f"{place}.name", f"there is no tool named {tool.name!r}; this version has: {known}")
        return
    try:
        read(tool.config or {})
    except ValueError as error:
        yield _invalid(f"{place}.config", str(error))


def _guardrail(place: str, guardrail: Guardrail, side: str) -> Iterator[Problem]:
    if side == "input" and guardrail.action is GuardrailAction.RETRY:
        yield _invalid(f"{place}.action", "Retry has no meaning for the input; use Trip or Redact")
    if guardrail.pattern is not None:
        try:
            compile_pattern(guardrail.pattern)
        except PatternError as error:
            yield _invalid(f"{place}.pattern", f"not a regular expression of RE2: {error}")
    elif guardrail.json_schema is not None:
        if guardrail.action is GuardrailAction.REDACT:
            yield _invalid(f"{place}.action", "a jsonSchema says nothing to redact; use Trip or Retry")
        yield from _schema(f"{place}.jsonSchema", guardrail.json_schema)
    elif guardrail.max_length is None and guardrail.agent is None:
        yield _invalid(place, "needs one of pattern, maxLength, jsonSchema")


def _schema(place: str, document: dict[str, Any]) -> Iterator[Problem]:
    try:
        Schema(document)
    except SchemaError as error:
        yield _invalid(place, str(error))


def _output(document: dict[str, Any]) -> Iterator[Problem]:
    """An answer is asked of models as one object, with its definitions written out where they are used."""
    place = "output.jsonSchema"
    if document.get("type") != "object":
        yield _invalid(f"{place}.type", "must be 'object'; wrap a list or a value in an object")
    found = next(_schema(place, document), None)
    if found is not None:
        yield found
        return
    if circle := _circle(document):
        yield _invalid(place, f"$ref {circle!r} contains itself; models are given schemas without references")


def _circle(document: dict[str, Any]) -> str | None:
    """Return a reference that leads back to itself, None where there is none. Does not recurse."""
    follows = {
        target: {each for _, each in references(resolve(document, target))} for _, target in references(document)
    }
    while follows:
        # Take away what refers to nothing that is left; what then remains goes round.
        ends = [target for target, others in follows.items() if not others & follows.keys()]
        if not ends:
            return min(follows)
        for target in ends:
            del follows[target]
    return None
