"""The routes of the pod's loopback: what an agent may say to the meter, and how the meter answers.

A plain dispatch on the path, no framework: every call passes here. Errors have the shape of the dialect that was
spoken, so that unmodified SDKs understand them and stop trying where that is vain.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from aiohttp import web

from almoner_core.refusals import BUDGET_IN_USE
from almoner_runner.meter import anthropic, counting, intake, openai
from almoner_runner.meter.body import Body, read_body, read_json
from almoner_runner.meter.completions import completions
from almoner_runner.meter.config import ANTHROPIC, OPENAI, Config, Provider
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.forward import AskAgainError, Forwarder, ProviderFailedError, Target, request_headers
from almoner_runner.meter.free import FreeCalls
from almoner_runner.meter.holds import RETRY_WORTH_SECONDS, Holds
from almoner_runner.meter.intake import SENDING, Budget, Claim
from almoner_runner.meter.keys import Keys
from almoner_runner.meter.progress import Progress
from almoner_runner.meter.refusals import InvalidCallError, RefusedError
from almoner_runner.meter.tools import read_call, tools_of

logger = logging.getLogger(__name__)

BODY_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of what is said to the meter itself."""
# What the providers take, by their documentation.
PROVIDER_BYTES_MAX: Final = {OPENAI: 50_000_000, ANTHROPIC: 32_000_000}
# What is refused there is a call that the agent wanted to make.
CALL_PATHS: Final = ("/openai/", "/anthropic/", "/p/", "/tools/")
PROGRESS_BYTES_MAX: Final = 64 * 1024
# Paths and status classes that are told apart in /metrics: an agent may invent paths without end.
ROUTES_COUNTED_MAX: Final = 128
# Refusals after which trying again helps.
_SLASHES: Final = re.compile(r"/{2,}")
PASSING_CODES: Final = (
    BUDGET_IN_USE,
    "too_many_calls",
    "ledger_unreachable",
    "spool_full",
    "not_started",
    "rate_limit_exceeded",
    "meter_busy",
)
TOOL_NAME_CHARS_MAX: Final = 64
KEY_REFUSED_STATUS: Final = 401

Bounder = Callable[[Provider, Body, Rules], Call]
# What of each dialect is let through, and how it is bounded. Everything else is refused by name: an unknown route may
# cost money.
ROUTES: Final[dict[str, dict[str, Bounder]]] = {
    OPENAI: {
        "chat/completions": openai.chat,
        "responses": openai.responses,
        "embeddings": openai.embeddings,
        "completions": completions,
    },
    ANTHROPIC: {"messages": anthropic.messages},
}
FREE_ROUTES: Final[dict[str, tuple[str, ...]]] = {
    OPENAI: ("moderations", "responses/input_tokens"),
    ANTHROPIC: ("messages/count_tokens",),
}
# Free at OpenAI; other servers of its dialect may bill them.
FREE_AT_OPENAI: Final = FREE_ROUTES[OPENAI]
_STORED: Final = re.compile(r"responses/([A-Za-z0-9_-]{1,128})")
_ERROR_BODIES: Final = {OPENAI: openai.error_body, ANTHROPIC: anthropic.error_body}


@dataclass(slots=True)
class Counters:
    """What /metrics tells besides the books."""

    calls: dict[tuple[str, str], int] = field(default_factory=dict)  # by route and status class

    def count(self, route: str, status: int) -> None:
        """Count one answer."""
        key = (route, f"{status // 100}xx")
        if key not in self.calls and len(self.calls) >= ROUTES_COUNTED_MAX:
            key = ("other", key[1])
        self.calls[key] = self.calls.get(key, 0) + 1


class App:
    """Answers the agent."""

    def __init__(self, config: Config, holds: Holds, forwarder: Forwarder, progress: Progress, keys: Keys) -> None:
        self.config = config
        self.holds = holds
        self.counters = Counters()
        self.input = b""
        self._forwarder = forwarder
        self._progress = progress
        self._free = FreeCalls()
        self._bodies = Budget(intake.budget_bytes())
        self.keys = keys
        self._tools = tools_of(config)
        self._rules: Rules | None = None
        self._rules_of = 0  # the version of the rates that they go by

    @property
    def rules(self) -> Rules:
        """What calls are checked against; fixed once the allotment says what is limited, but for rates."""
        books = self.holds.books
        if self._rules is None or self._rules_of != books.rates.version or not books.active:
            limited = books.allotment.limited
            self._rules_of = books.rates.version
            self._rules = Rules(
                strict="usd" in limited or "tokens" in limited or books.rates.counts("usd", "tokens"),
                priced="usd" in limited,
                default_output=self.config.max_output_tokens,
                learned=self._forwarder.learned,
                stored=self._forwarder.stored,
            )
        return self._rules

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the agent's."""
        path = request.path
        dialect = ANTHROPIC if path.startswith("/anthropic/") or path.endswith("/messages") else OPENAI
        route = path
        try:
            await intake.go_on(request)
            route, response = await self._dispatch(request, path)
        except RefusedError as error:
            if path.startswith(CALL_PATHS):
                self.holds.refused_calls.refuse(error, time.monotonic())
            response = _refusal(dialect, error)
            logger.info("refused %s: %s: %s", path[:128], error.code, error.message)
        except ProviderFailedError as error:
            body = _ERROR_BODIES[dialect]("provider_failed", error.message, error.status, None)
            # What was sent may be billed: an SDK that repeats it would pay again, for the same end.
            headers = {"x-should-retry": "false"} if error.sent else None
            response = web.json_response(body, status=error.status, headers=headers)
            logger.warning("%s: %s", path[:128], error.message)
        except web.HTTPRequestEntityTooLarge:
            response = _refusal(dialect, RefusedError(413, "body_too_large", f"at most {BODY_BYTES_MAX} bytes"))
        self.counters.count(route if len(route) <= 64 else "other", response.status)
        return response

    async def _dispatch(self, request: web.BaseRequest, path: str) -> tuple[str, web.StreamResponse]:
        path = _SLASHES.sub("/", path).rstrip("/")
        if path.startswith("/openai/v1/"):
            return await self._provider_call(request, OPENAI, self.config.provider_for(OPENAI), path[11:])
        if path.startswith("/anthropic/"):
            # Some clients take the base for one that ends with /v1, as OpenAI's does.
            route = path[11:].removeprefix("v1/")
            return await self._provider_call(request, ANTHROPIC, self.config.provider_for(ANTHROPIC), route)
        if path.startswith("/p/"):
            name, _, rest = path[3:].partition("/v1/")
            dialect = ANTHROPIC if rest.partition("/")[0] == "messages" else OPENAI
            provider = self.config.provider_named(name)
            if provider is not None and dialect not in provider.dialects:
                provider = None
            return await self._provider_call(request, dialect, provider, rest)
        if path.startswith("/tools/"):
            return "tools", await self._tool(request, path[7:])
        local = self._local.get((request.method, path))
        if local is None:
            raise RefusedError(404, "unknown_route", f"there is no {request.method} {path[:128]} here")
        return path, await local(self, request)

    # --- providers ----------------------------------------------------------------------------------------------------

    async def _provider_call(
        self, request: web.BaseRequest, dialect: str, provider: Provider | None, route: str
    ) -> tuple[str, web.StreamResponse]:
        if request.method == "GET" and (route == "models" or route.startswith("models/")):
            return "models", self._models(dialect, provider, route)
        if request.headers.get("upgrade", "").lower() == "websocket":
            raise RefusedError(426, "no_websockets", "the meter speaks plain HTTP: send the request by POST")
        if (
            request.method == "GET"
            and dialect == OPENAI
            and (stored := _STORED.fullmatch(route))
            and provider is not None
        ):
            return "responses/{id}", await self._stored_response(request, provider, stored[1])
        bounder = ROUTES[dialect].get(route)
        if request.method != "POST" or (bounder is None and route not in FREE_ROUTES[dialect]):
            known = ", ".join([*ROUTES[dialect], *FREE_ROUTES[dialect], "models"])
            raise RefusedError(
                404, "unknown_route", f"{request.method} {route[:64]!r} is not let through; known routes: {known}"
            )
        if provider is None:
            raise RefusedError(404, "unknown_provider", f"no provider of this agent speaks {dialect} here")
        if route in FREE_AT_OPENAI and provider.type != openai.OPENAI_TYPE:
            raise RefusedError(
                404, "unknown_route", f"POST {route!r} is let through to OpenAI alone, where it costs nothing"
            )
        claim = Claim(self._bodies)
        try:
            content = await intake.read(request, claim, self._bodies, PROVIDER_BYTES_MAX[dialect])
            payload = read_body(content)
            payload.when_released = partial(claim.to, SENDING * len(content))
            del content
            return route, self._heed(provider, await self._answer(request, dialect, provider, route, payload))
        finally:
            claim.to(0)

    async def _stored_response(
        self, request: web.BaseRequest, provider: Provider, response_id: str
    ) -> web.StreamResponse:
        """Give a response that the provider keeps: one of this run's alone, since other runs share the key."""
        if f"{provider.name}/{response_id}" not in self._forwarder.stored:
            raise RefusedError(
                404, "unknown_response", f"response {response_id!r} was not made by this run, or long ago"
            )
        if request.query_string:
            raise InvalidCallError("only a whole response is given here: leave the query out")
        target = self._target(request, OPENAI, provider, f"responses/{response_id}")
        with self._free.one(provider.name):
            return self._heed(provider, await self._forwarder.free(None, target))

    async def _answer(
        self, request: web.BaseRequest, dialect: str, provider: Provider, route: str, payload: Body
    ) -> web.StreamResponse:
        """Bound a call and make it, or pass it on where it costs nothing."""
        target = self._target(request, dialect, provider, route)
        bounder = ROUTES[dialect].get(route)
        if bounder is None:
            with self._free.one(provider.name):
                payload.release()
                return await self._forwarder.free(payload, target)
        rules = self.rules
        if window := anthropic.window_asked(request.headers.getall("anthropic-beta", ())):
            rules = replace(rules, window_least=window)
        call = bounder(provider, payload, rules)
        call.count = partial(self._count, request, call)
        tried = await self.holds.begin(call)
        try:
            return await self._forwarder.forward(request, tried, target, again=True)
        except AskAgainError:
            tried = await self.holds.begin(call)
            return await self._forwarder.forward(request, tried, target)

    async def _count(self, request: web.BaseRequest, call: Call) -> int | None:
        """Have the provider count a call's input; None where it does not, or gives no answer in time."""
        asked = counting.question(call)
        if asked is None:
            return None
        route, body = asked
        provider = call.provider
        dialect = ANTHROPIC if call.usage_shape == "anthropic" else OPENAI
        try:
            with self._free.one(provider.name):
                answer = await self._forwarder.count(body, self._target(request, dialect, provider, route))
        except (RefusedError, ProviderFailedError) as error:
            logger.info("the input of a call is not counted: %s", error)
            return None
        return counting.bound_of(call, answer)

    def _heed(self, provider: Provider, response: web.StreamResponse) -> web.StreamResponse:
        """Have the key asked for anew where the provider does not know it (any more)."""
        if response.status == KEY_REFUSED_STATUS:
            self.keys.refused(provider.name)
        return response

    def _target(self, request: web.BaseRequest, dialect: str, provider: Provider, route: str) -> Target:
        try:
            key = self.keys.read(provider.name)
        except (OSError, ValueError) as error:
            logger.error("the key of provider %s cannot be read: %s", provider.name, type(error).__name__)  # noqa: TRY400 - the error may quote the file
            raise RefusedError(
                503, "no_credentials", f"the key of provider {provider.name!r} cannot be read", retry_after=5
            ) from None
        # The one query that an SDK sends: Anthropic's beta namespace marks itself.
        query = "?beta=true" if dialect == ANTHROPIC and request.query_string == "beta=true" else ""
        return Target(provider.url(dialect, route) + query, request_headers(request.headers, dialect, key))

    def _models(self, dialect: str, provider: Provider | None, route: str) -> web.Response:
        """List the models that this agent may call, from the configuration: it costs nothing and asks nobody."""
        models = [] if provider is None else list(provider.models.values())
        owner = "" if provider is None else provider.name
        if dialect == ANTHROPIC:
            entries = [
                {"type": "model", "id": m.name, "display_name": m.name, "created_at": "1970-01-01T00:00:00Z"}
                for m in models
            ]
            listing: dict[str, Any] = {"data": entries, "has_more": False, "first_id": None, "last_id": None}
            if entries:
                listing |= {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]}
        else:
            entries = [{"id": m.name, "object": "model", "created": 0, "owned_by": owner} for m in models]  # type: ignore[dict-item]
            listing = {"object": "list", "data": entries}
        if route == "models":
            return web.json_response(listing)
        name = route.removeprefix("models/")
        for entry in entries:
            if entry["id"] == name:
                return web.json_response(entry)
        raise RefusedError(404, "model_not_found", f"model {name[:128]!r} is not one of this agent's", param="model")

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def _tool(self, request: web.BaseRequest, rest: str) -> web.Response:
        """Meter a call of a tool that runs in the agent: POST /tools/{tool}/calls takes one tool call."""
        tool, _, action = rest.partition("/")
        known = self._tools.get(tool)
        if known is None or action != "calls" or request.method != "POST":
            raise RefusedError(
                404,
                "unknown_tool",
                f"the meter has no tool {tool[:TOOL_NAME_CHARS_MAX]!r}; it counts POST "
                f"/tools/{{tool}}/calls of: {', '.join(sorted(self._tools))}",
            )
        tried = await self.holds.begin_tool(read_call(known, await request.read()))
        self.holds.settle_tool(tried)
        return web.json_response({"granted": True})

    async def _usage(self, request: web.BaseRequest) -> web.Response:
        """Say what this run has used and has left, so that an agent may plan by it."""
        del request
        books, config = self.holds.books, self.config
        allotment = books.allotment
        return web.json_response(
            {
                "execution": f"{config.execution_namespace}/{config.execution_name}",
                "attempt": config.attempt,
                "used": books.spool.totals.as_dict(),
                "limited": list(allotment.limited),
                "held": allotment.held,
                "in_flight": allotment.in_flight,
                "remaining_at_start": books.remaining,
                "max_per_request": books.max_per_request,
                "rates": books.rates.told,
            }
        )

    async def _input(self, request: web.BaseRequest) -> web.Response:
        del request
        return web.Response(body=self.input, content_type="application/octet-stream")

    async def _progress_report(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        if len(body) > PROGRESS_BYTES_MAX:
            raise RefusedError(413, "body_too_large", f"progress: at most {PROGRESS_BYTES_MAX} bytes")
        try:
            self._progress.report(read_json(body))
        except ValueError as error:
            raise InvalidCallError(str(error)[:256]) from None
        return web.json_response({"accepted": True}, status=202)

    _local: Final[dict[tuple[str, str], Callable[[App, web.BaseRequest], Awaitable[web.Response]]]] = {
        ("GET", "/usage"): _usage,
        ("GET", "/input"): _input,
        ("POST", "/progress"): _progress_report,
    }


def _refusal(dialect: str, error: RefusedError) -> web.Response:
    """Answer a refusal in the dialect's own shape, with the headers by which SDKs decide whether to try again."""
    headers: dict[str, str] = {}
    worth = error.code in PASSING_CODES
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
        worth = worth or error.retry_after <= RETRY_WORTH_SECONDS
    headers["x-should-retry"] = "true" if worth else "false"
    status = error.status
    if dialect == ANTHROPIC and error.code == "insufficient_quota" and not worth:
        # Anthropic's own word for it: its clients take 429 for a reason to wait, and some wait for minutes.
        status = 402
    body = _ERROR_BODIES[dialect](error.code, error.message, status, error.param)
    return web.json_response(body, status=status, headers=headers)
