"""The model as the loop hears it: answers that are usable and whole, or the end of the run that says why not.

Role: between pydantic-ai's model and its agent; the HTTP below it. Boundary: no turn is repeated here. Why an answer
that was cut off ends the run: half an answer used as a whole one is worse than none, and the same call would be cut
again.
"""

from __future__ import annotations

import json
from typing import Any, Final

import httpx2
from pydantic_ai import ModelMessage, ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.exceptions import AgentRunError, UnexpectedModelBehavior, UserError
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from almoner_core.contract import AgentExitCode
from almoner_core.environment import OUTPUT_LIMITED_HEADER
from almoner_runner.agent.failures import UNEXPECTED_EXIT_CODE, AgentFailure, classify, one_line
from almoner_runner.agent.mending import NoAnswerError, clean, mend_answer, mend_arguments

ID_CHARS_MAX: Final = 40
REASON_CHARS_MAX: Final = 300
_OK: Final = 200
_BAD_GATEWAY: Final = 502


class MendingTransport(httpx2.AsyncBaseTransport):
    """HTTP to the meter, no proxy between. An answer that is none becomes an error that SDKs do not repeat."""

    def __init__(self, *, anthropic: bool, wrapped: httpx2.AsyncBaseTransport | None = None) -> None:
        self.output_limit: int | None = None
        """To how many tokens the meter limited the last answer, where it did."""
        self._anthropic = anthropic
        self._wrapped = wrapped or httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Do one request, and read its answer whole: the loop streams nothing."""
        answer = await self._wrapped.handle_async_request(request)
        try:
            body = await answer.aread()
        finally:
            await answer.aclose()
        limit = answer.headers.get(OUTPUT_LIMITED_HEADER, "")
        self.output_limit = int(limit) if limit.isdecimal() else None
        headers = httpx2.Headers(answer.headers)
        for name in ("content-length", "content-encoding", "transfer-encoding"):
            headers.pop(name, None)
        status = answer.status_code
        if status == _OK:
            headers["content-type"] = "application/json"
            try:
                body = mend_answer(body, anthropic=self._anthropic)
            except NoAnswerError as error:
                status = _BAD_GATEWAY
                headers["x-should-retry"] = "false"  # the whole run may be tried again, as its owner says
                body = json.dumps({"error": {"type": "api_error", "message": str(error)}}).encode()
        return httpx2.Response(status, headers=headers, content=body, extensions={})

    async def aclose(self) -> None:
        """Close what is below."""
        await self._wrapped.aclose()


class HeardModel(WrapperModel):
    """A model whose answers are mended, whole, and have tool calls with ids of their own."""

    def __init__(self, wrapped: Model, transport: MendingTransport | None, *, structured: bool) -> None:
        super().__init__(wrapped)
        self._transport = transport
        self._structured = structured
        self._ids: set[str] = set()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Do one call. Raises AgentFailure where its answer is of no use, and what the SDK makes of an error."""
        try:
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            self._mend(response)
        except UnexpectedModelBehavior as error:
            raise _unreadable(error.message) from error
        except (AgentRunError, AgentFailure, UserError):
            raise
        except Exception as error:
            if classify(error).exit_code != UNEXPECTED_EXIT_CODE:
                raise
            # Shapes that the SDK did not foresee; that this is the provider's failure has it tried again.
            raise _unreadable(f"{type(error).__name__}: {error}") from error
        self._check_whole(response, model_settings)
        return response

    def _mend(self, response: ModelResponse) -> None:
        for part in response.parts:
            if isinstance(part, TextPart | ThinkingPart):
                part.content = clean(part.content) if isinstance(part.content, str) else ""
            elif isinstance(part, ToolCallPart):
                if not isinstance(part.tool_name, str):
                    raise TypeError("a tool call has no name")
                part.tool_name = clean(part.tool_name)
                part.args = mend_arguments(part.args)
                part.tool_call_id = self._unused_id(part.tool_call_id)

    def _unused_id(self, given: object) -> str:
        """Results are matched to calls by id, over the whole conversation; some models use an id again."""
        unused = clean(given) if isinstance(given, str) and 0 < len(given) <= ID_CHARS_MAX else "call_1"
        number = 1
        while unused in self._ids:
            number += 1
            unused = f"call_{len(self._ids)}_{number}"
        self._ids.add(unused)
        return unused

    def _check_whole(self, response: ModelResponse, settings: ModelSettings | None) -> None:
        details = response.provider_details or {}
        reason = details.get("finish_reason")
        if response.finish_reason == "content_filter":
            said = details.get("refusal") or reason or "no reason given"
            raise AgentFailure(
                AgentExitCode.INVALID_OUTPUT,
                f"the model refused, or its provider filtered the answer: {one_line(str(said), REASON_CHARS_MAX)}",
            )
        if response.finish_reason != "length" or (self._structured and _is_object(response)):
            return
        if reason == "model_context_window_exceeded":
            message = "the answer was cut off: it does not fit the model's context window beside the conversation"
        elif self._transport is not None and self._transport.output_limit is not None:
            message = (
                f"the answer was cut off after {self._transport.output_limit} tokens: the budget (or another limit) "
                "had room for no more; raise it, or ask for a shorter answer"
            )
        else:
            tokens = (settings or {}).get("max_tokens")
            message = (
                f"the answer did not fit model.settings.maxOutputTokens{f', {tokens} tokens' if tokens else ''}; "
                "raise it, or ask for a shorter answer"
            )
        raise AgentFailure(AgentExitCode.LIMIT_EXCEEDED, message)


def _is_object(response: ModelResponse) -> bool:
    """Whether the text is a whole JSON object: then nothing that counts was cut off."""
    if any(isinstance(part, ToolCallPart) for part in response.parts):
        return False
    try:
        value: Any = json.loads("".join(part.content for part in response.parts if isinstance(part, TextPart)))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _unreadable(what: str) -> AgentFailure:
    return AgentFailure(
        AgentExitCode.PROVIDER_FAILED, f"the model provider failed: its answer cannot be read: {one_line(what, 400)}"
    )
