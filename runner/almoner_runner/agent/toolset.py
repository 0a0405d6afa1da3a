"""Tools as the agent loop calls them: checked by schema, paced, metered, timed, and answered in one shape.

Role: from a manifest's tool to pydantic-ai's. Boundary: the tool does the work, the meter counts it; this asks the
meter before every call. Why errors are answers: the model is told what went wrong and goes on, except where a limit of
the run is reached, which ends it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from almoner_core.api.agent import Tool
from almoner_core.json_schema import Schema, SchemaError
from almoner_runner.agent.failures import (
    AgentFailure,
    invalid_input,
    no_room,
    one_line,
    provider_message,
    says_no_room,
)
from almoner_runner.agent.mending import NOT_AN_OBJECT
from almoner_runner.tools.base import BuiltinTool, ToolConfigError
from almoner_runner.tools.errors import ToolError, ToolErrorCode
from almoner_runner.tools.registry import build

if TYPE_CHECKING:
    from pydantic_ai import Tool as FrameworkTool

MINUTE_SECONDS: Final = 60.0
TOOL_SECONDS_DEFAULT: Final = 30
# Longer than the meter itself waits for room.
METER_TIMEOUT_SECONDS: Final = 60.0
# Where the meter says that waiting helps, or is just restarting.
METER_RETRIES: Final = 2
METER_PAUSE_SECONDS_MAX: Final = 5.0
METER_ANSWER_BYTES_MAX: Final = 65_536


class Meter(Protocol):
    """Where a call of a tool is counted. Returns, or raises ToolError (try later) or AgentFailure (the run ends)."""

    async def reserve(self, tool: str) -> None:
        """Reserve one call."""
        ...


class HttpMeter:
    """The meter of this pod: POST /tools/{tool}/calls."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    async def reserve(self, tool: str) -> None:
        """Ask in a thread: it is loopback, a millisecond, and needs no further library."""
        for tries_left in range(METER_RETRIES, -1, -1):
            try:
                await asyncio.to_thread(self._reserve, tool)
            except _PassingError as error:
                if not tries_left:
                    raise error.failure from error
                await asyncio.sleep(error.pause_seconds)
            else:
                return

    def _reserve(self, tool: str) -> None:
        import json  # noqa: PLC0415 - with urllib, only where tools are
        import urllib.error  # noqa: PLC0415
        import urllib.request  # noqa: PLC0415

        request = urllib.request.Request(f"{self._url}/tools/{tool}/calls", data=b"{}", method="POST")  # noqa: S310 - the meter's own URL
        request.add_header("content-type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never proxied
        try:
            with opener.open(request, timeout=METER_TIMEOUT_SECONDS) as answer:
                granted = json.loads(answer.read(METER_ANSWER_BYTES_MAX)).get("granted")
        except urllib.error.HTTPError as error:
            body = _json_or_none(error.read(METER_ANSWER_BYTES_MAX))
            should_retry = error.headers.get("x-should-retry")
            failure = _refused(tool, error.code, body, should_retry)
            if should_retry == "true":
                raise _PassingError(failure, error.headers.get("retry-after")) from error
            raise failure from error
        except (OSError, ValueError) as error:
            failure = AgentFailure(1, f"the meter does not answer for tool {tool}: {error}")
            if isinstance(getattr(error, "reason", None), ConnectionRefusedError):  # it was not asked at all
                raise _PassingError(failure, None) from error
            raise failure from error
        if granted is not True:
            raise AgentFailure(1, f"the meter did not grant a call of tool {tool}")


class _PassingError(Exception):
    """Another try may help, after a pause; `failure` is what is left to say if it does not."""

    def __init__(self, failure: Exception, retry_after: str | None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        asked = float(retry_after) if retry_after is not None and retry_after.isdecimal() else 1.0
        self.pause_seconds = min(asked, METER_PAUSE_SECONDS_MAX)


def _json_or_none(content: bytes) -> object:
    import json  # noqa: PLC0415 - as above

    try:
        return json.loads(content)
    except ValueError:
        return None


def _refused(tool: str, status: int, body: object, should_retry: str | None) -> Exception:
    """What a refusal means: a rate passes, a limit ends the run."""
    said = provider_message(body) or f"the meter answered {status}"
    if status == 402 or (status == 429 and (says_no_room(body) or should_retry == "false")):
        return no_room(f"tool {tool}: {said}")
    if status == 429:
        return ToolError(ToolErrorCode.RATE_LIMIT_EXCEEDED, said)
    return AgentFailure(1, f"the meter refused a call of tool {tool}: {said}")


class Pace:
    """At most so many calls in any minute, on a monotonic clock. None: as many as come."""

    def __init__(self, calls_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = calls_per_minute
        self._clock = clock
        self._starts: deque[float] = deque(maxlen=calls_per_minute or 1)

    def take(self) -> None:
        """Count one call. Raises ToolError (RateLimitExceeded) with the seconds to wait."""
        if self._limit is None:
            return
        now = self._clock()
        if len(self._starts) == self._limit:
            wait = self._starts[0] + MINUTE_SECONDS - now
            if wait > 0:
                raise ToolError(
                    ToolErrorCode.RATE_LIMIT_EXCEEDED,
                    f"at most {self._limit} calls a minute; call again in {int(wait) + 1} seconds",
                )
        self._starts.append(now)


class MeteredTool:
    """One tool of one run."""

    def __init__(self, manifest: Tool, tool: BuiltinTool, meter: Meter, pace: Pace | None = None) -> None:
        self._manifest = manifest
        self._tool = tool
        self._meter = meter
        self._schema = Schema(tool.input_schema)
        self._pace = pace or Pace(manifest.calls_per_minute)

    async def call(self, /, **arguments: Any) -> dict[str, Any]:
        """Give what the model sees, an error in the tool's shape included. Raises AgentFailure where the run ends.

        Arguments are whatever the model said, by whatever names.
        """
        began = time.monotonic()
        code = "ok"
        try:
            return await self._call(arguments)
        except ToolError as error:
            code = error.code.value
            return error.answer(self._tool.name, datetime.now(UTC))
        except AgentFailure:
            code = "refused"
            raise
        finally:
            took_ms = (time.monotonic() - began) * 1000
            print(f"almoner-agent: tool {self._tool.name}: {code}, {took_ms:.1f} ms", file=sys.stderr, flush=True)  # noqa: T201 - the audit line

    async def _call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.keys() == {NOT_AN_OBJECT}:
            raise ToolError(ToolErrorCode.TOOL_INPUT_INVALID, "the arguments must be one JSON object, by their names")
        try:
            problems = self._schema.problems(arguments)
        except SchemaError as error:
            problems = [str(error)]
        if problems:
            raise ToolError(ToolErrorCode.TOOL_INPUT_INVALID, "; ".join(problems))
        self._pace.take()
        await self._meter.reserve(self._tool.name)
        seconds = self._manifest.timeout_seconds or TOOL_SECONDS_DEFAULT
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._tool.run, arguments), timeout=seconds)
        except TimeoutError as error:
            raise ToolError(ToolErrorCode.TOOL_TIMEOUT, f"no result after {seconds} seconds") from error
        except ToolError:
            raise
        except Exception as error:
            raise ToolError(
                ToolErrorCode.TOOL_EXECUTION_FAILED, one_line(f"{type(error).__name__}: {error}", 256)
            ) from error

    def for_framework(self) -> FrameworkTool[None]:
        """Give the tool as pydantic-ai takes it."""
        from pydantic_ai import Tool as FrameworkTool  # noqa: PLC0415 - heavy

        return FrameworkTool.from_schema(
            self.call,
            name=self._tool.name,
            description=self._tool.description,
            json_schema=self._tool.input_schema,
        )


def build_tools(tools: Sequence[Tool], meter: Meter) -> list[FrameworkTool[None]]:
    """Give all tools of the manifest. Raises AgentFailure (INVALID_INPUT): unknown tool, unusable setting."""
    try:
        built = build(tools)
    except ToolError as error:
        raise invalid_input(f"{error.code.value}: tools: {error}") from error
    except ToolConfigError as error:
        raise invalid_input(f"tools: {error}") from error
    return [MeteredTool(manifest, tool, meter).for_framework() for manifest, tool in built]
