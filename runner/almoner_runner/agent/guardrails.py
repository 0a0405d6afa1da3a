"""Guardrails: checks of what comes in and of what goes out.

Role: apply a list of guardrails, in their order, to a text or to a structured value. Boundary: pure; what a retry is,
the loop knows. What cannot be used was refused before (almoner_core.agent_checks). Each check is bounded in time: RE2
is linear, but a JSON Schema may be asked about one value in exponentially many ways.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from almoner_core.api.agent import Guardrail, GuardrailAction
from almoner_core.contract import AgentExitCode
from almoner_core.json_schema import Schema, SchemaError
from almoner_core.patterns import PatternError, compile_pattern
from almoner_runner.agent.failures import AgentFailure, invalid_input
from almoner_runner.agent.time_bound import time_bound

REDACTED: Final = "[redacted]"


class RetryAsked(Exception):  # noqa: N818 - a request, not a fault
    """A guardrail with action Retry tripped; the message tells the model what to change."""


@dataclass(frozen=True, slots=True)
class _Check:
    """One guardrail, compiled. `problem` says what is wrong with a text, None where nothing is."""

    name: str
    action: GuardrailAction
    problem: Callable[[str], str | None]
    redact: Callable[[str], str] | None


class Guards:
    """The guardrails of one side, ready to be applied. Raises AgentFailure (INVALID_INPUT) for one that cannot be."""

    def __init__(self, guardrails: list[Guardrail], *, side: str) -> None:
        self._side = side
        self._checks = [_compile(guardrail, f"guardrails.{side}[{guardrail.name}]") for guardrail in guardrails]

    def apply(self, value: Any) -> Any:
        """Give the value, redacted where asked.

        `value` is a text, or the structured answer: that is checked as its JSON text, and redacted in its strings.
        Raises AgentFailure (GUARDRAIL_TRIPPED) for Trip and RetryAsked for Retry.
        """
        for check in self._checks:
            with time_bound(f"guardrail {check.name}"):
                problem = check.problem(_text(value))
            if problem is None:
                continue
            if check.action is GuardrailAction.RETRY:
                raise RetryAsked(f"Guardrail {check.name}: {problem}. Answer again without that.")
            if check.action is GuardrailAction.REDACT and check.redact is not None:
                value = _redact(value, check.redact)
                # What redaction cannot reach, such as the keys, still trips; the placeholder itself does not.
                problem = check.problem(_text(value).replace(REDACTED, ""))
            if problem is not None:
                raise AgentFailure(
                    AgentExitCode.GUARDRAIL_TRIPPED, f"guardrail {check.name} tripped on the {self._side}: {problem}"
                )
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _redact(value: Any, redact: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [_redact(item, redact) for item in value]
    if isinstance(value, dict):
        return {key: _redact(item, redact) for key, item in value.items()}
    return value


def _compile(guardrail: Guardrail, place: str) -> _Check:
    redact: Callable[[str], str] | None
    if guardrail.pattern is not None:
        problem, redact = _pattern(guardrail.pattern, place)
    elif guardrail.max_length is not None:
        problem, redact = _max_length(guardrail.max_length)
    elif guardrail.json_schema is not None:
        problem, redact = _json_schema(guardrail.json_schema, place), None
    else:
        raise invalid_input(f"{place}: needs one of pattern, maxLength, jsonSchema")
    return _Check(guardrail.name, guardrail.action, problem, redact)


def _pattern(pattern: str, place: str) -> tuple[Callable[[str], str | None], Callable[[str], str]]:
    try:
        compiled = compile_pattern(pattern)
    except PatternError as error:
        raise invalid_input(f"{place}.pattern: not a regular expression: {error}") from error

    def problem(text: str) -> str | None:
        # What matched is not repeated: it may be the very thing that must not get out.
        return "the text matches a pattern that must not appear" if compiled.found_in(text) else None

    return problem, lambda text: compiled.replace(text, REDACTED)


def _max_length(length: int) -> tuple[Callable[[str], str | None], Callable[[str], str]]:
    def problem(text: str) -> str | None:
        return f"{len(text)} characters, at most {length} are allowed" if len(text) > length else None

    return problem, lambda text: text[:length]


def _json_schema(document: dict[str, Any], place: str) -> Callable[[str], str | None]:
    try:
        schema = Schema(document)
    except SchemaError as error:
        raise invalid_input(f"{place}.jsonSchema: {error}") from error

    def problem(text: str) -> str | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "the text is not JSON"
        try:
            return "; ".join(schema.problems(value)) or None
        except SchemaError as error:
            return str(error)

    return problem
