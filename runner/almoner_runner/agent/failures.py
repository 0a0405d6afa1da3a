"""Why a run of the agent loop ended badly: one exception, with the exit code and one line for a person.

Role: translate what the SDKs and the framework raise into exit codes of the contract. Boundary: no I/O. Why one line:
the last line of the agent's log becomes the message in the Execution's status.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_core.contract import AgentExitCode
from almoner_core.refusals import BUDGET_IN_USE, INSUFFICIENT_QUOTA, is_own_limit
from almoner_core.text import LOG_TAIL_BYTES_MAX, short, short_bytes

MESSAGE_CHARS_MAX: Final = 900
LINE_BYTES_MAX: Final = LOG_TAIL_BYTES_MAX - 64  # of a longer one the kubelet would keep the end alone
UNEXPECTED_EXIT_CODE: Final = 1
_STATUS_PAYMENT_REQUIRED: Final = 402
_STATUS_TOO_MANY_REQUESTS: Final = 429
# How the meter says that there is no room: in OpenAI's shape as the error's code, in Anthropic's before the message.
NO_ROOM: Final = (INSUFFICIENT_QUOTA, BUDGET_IN_USE)
# ... and that a rate has none: not soon, or never for so large a call.
RATES: Final = ("rate_limit_exceeded", "request_exceeds_rate")


class AgentFailure(Exception):  # noqa: N818 - it is the end of a run, not a fault of the program
    """The run ends here: `exit_code` says why to the operator, the message to a person."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    @property
    def line(self) -> str:
        """The message as one bounded line."""
        return one_line(str(self))


def one_line(text: str, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Fold whitespace and cut, so that the text fits one line of a log."""
    return short_bytes(short(" ".join(text.split()), chars_max), LINE_BYTES_MAX)


def invalid_input(message: str) -> AgentFailure:
    """The agent's spec or its input cannot be used."""
    return AgentFailure(AgentExitCode.INVALID_INPUT, message)


def classify(error: BaseException) -> AgentFailure:
    """Give the failure that an exception of a run means. Unknown ones exit with 1."""
    for cause in _causes(error):
        if isinstance(cause, AgentFailure):
            return cause
    for cause in _causes(error):
        failure = _classify_framework(cause)
        if failure is not None:
            return failure
    return AgentFailure(UNEXPECTED_EXIT_CODE, f"{type(error).__name__}: {error}")


def _causes(error: BaseException) -> list[BaseException]:
    """The exception, those within it and those behind it, outermost first; bounded."""
    found: list[BaseException] = []
    waiting: list[BaseException] = [error]
    while waiting and len(found) < 32:
        current = waiting.pop(0)
        if current in found:
            continue
        found.append(current)
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)
        waiting.extend(cause for cause in (current.__cause__, current.__context__) if cause is not None)
    return found


def _classify_framework(error: BaseException) -> AgentFailure | None:
    from pydantic_ai import exceptions  # noqa: PLC0415 - heavy: loaded already where such an error was raised

    if isinstance(error, exceptions.UsageLimitExceeded):
        return AgentFailure(AgentExitCode.LIMIT_EXCEEDED, _without_hint(str(error)))
    if isinstance(error, exceptions.ModelAPIError):
        return _classify_provider(error)
    if isinstance(error, exceptions.OutputTokenLimitExceeded | exceptions.IncompleteToolCall):
        return AgentFailure(
            AgentExitCode.LIMIT_EXCEEDED,
            "the answer did not fit model.settings.maxOutputTokens; raise it, or ask for a shorter answer",
        )
    if isinstance(error, exceptions.UnexpectedModelBehavior):
        return AgentFailure(AgentExitCode.INVALID_OUTPUT, f"the model's answer cannot be used: {error.message}")
    if isinstance(error, exceptions.UserError):
        return invalid_input(f"the agent cannot be run: {error.message}")
    return None


def _classify_provider(error: Any) -> AgentFailure:
    from pydantic_ai import exceptions  # noqa: PLC0415 - as above

    said = provider_message(error.body) or str(error)
    rate = says_code(error.body, *RATES)
    if rate is not None:
        return AgentFailure(AgentExitCode.RATE_LIMITED, said.removeprefix(f"{rate}: "))
    if isinstance(error, exceptions.ModelQuotaExceededError) or _is_refusal(error):
        return no_room(said)
    if isinstance(error, exceptions.ModelContextWindowExceededError):
        return invalid_input(f"the conversation does not fit the model's context window: {said}")
    return AgentFailure(AgentExitCode.PROVIDER_FAILED, f"the model provider failed: {said}")


def _is_refusal(error: Any) -> bool:
    """Whether it was refused for want of room: said so, or waiting is vain."""
    status = getattr(error, "status_code", None)
    if status == _STATUS_PAYMENT_REQUIRED:
        return True
    if status != _STATUS_TOO_MANY_REQUESTS:
        return False
    return says_no_room(error.body) or getattr(error, "provider_retry_hint", None) is False


def says_no_room(body: object) -> bool:
    """Whether an error body, in either dialect's shape, is the meter's refusal for want of room."""
    return says_code(body, *NO_ROOM) is not None


def says_code(body: object, *codes: str) -> str | None:
    """Give which of the meter's codes an error body has, in either dialect's shape; None where it has none of them."""
    if not isinstance(body, dict):
        return None
    inner = body.get("error", body)
    if not isinstance(inner, dict):
        return None
    message = str(inner.get("message", ""))
    return next((code for code in codes if inner.get("code") == code or message.startswith(f"{code}:")), None)


def no_room(said: str) -> AgentFailure:
    """A limit has no room for the next call: the execution's own, or a budget."""
    code = AgentExitCode.LIMIT_EXCEEDED if is_own_limit(said) else AgentExitCode.BUDGET_EXHAUSTED
    for name in NO_ROOM:
        said = said.removeprefix(f"{name}: ")
    return AgentFailure(code, said)


def provider_message(body: object) -> str | None:
    """Read the message out of an error body in OpenAI's or Anthropic's shape; None where there is none."""
    if not isinstance(body, dict):
        return None
    inner = body.get("error", body)
    message = inner.get("message") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) and message else None


def _without_hint(message: str) -> str:
    """The framework's own message, without its pointer to the framework's documentation."""
    return message.partition(" Consider raising the limit")[0].replace("request_limit", "maxTurns")
