"""One try: send the bounded call to its provider, pass the answer on as it comes, learn what was billed.

What is billed where:
- an answer with status 400 or above: nothing was generated, nothing is billed; but some are a gateway's word that it
  gave up on what lies behind, which may bill all the same: the hold is taken (`estimated`);
- no connection: nothing was sent;
- sent, and no whole answer (a broken stream, a timeout, an answer without usage): unknown, so the hold is taken
  (`estimated`); where a stream said its input before it broke, only the output is taken from the hold, and of that no
  more than can have come, where all of the output is in the stream (came.py);
- a client that hangs up: the provider's answer is read to its end in its stead, for a bounded time, and billed as it
  says. Cutting the connection would not stop the bill, only hide it.
One try a call: retries, fallbacks and circuit breakers belong between `Holds.begin` and this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from aiohttp import web
from multidict import MultiMapping

from almoner_core.environment import OUTPUT_LIMITED_HEADER
from almoner_core.pricing import TokenCounts
from almoner_runner.meter.answers import BOM, Seen
from almoner_runner.meter.body import Body
from almoner_runner.meter.came import Came, shows_all
from almoner_runner.meter.config import ANTHROPIC
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.holds import Holds, Try
from almoner_runner.meter.limit import CallLimit, CallLimits
from almoner_runner.meter.maxima import LEARNED_MAX, field_told, limit_told, message_of
from almoner_runner.meter.relay import Relay

logger = logging.getLogger(__name__)

CONNECT_SECONDS_MAX: Final = 10.0
FREE_SECONDS_MAX: Final = 300.0
# For an answer whose client has hung up.
ABANDONED_SECONDS_MAX: Final = 120.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
# By these a gateway says that it lost sight of the provider: 408 and 504 in RFC 9110, 499 nginx's, 520 and 524
# Cloudflare's, 598 and 599 of other proxies. Cloudflare's 521 to 523, 525 and 526 say that there was no connection.
GATEWAY_STATUSES: Final = frozenset({408, 499, 502, 504, 520, 524, 598, 599})
COUNT_TIMEOUT: Final = aiohttp.ClientTimeout(total=10.0)
STORED_MAX: Final = 4096
STORED_MARGIN_TOKENS: Final = 64
MAXIMUM_REFUSED: Final = frozenset({400, 422})
LINGER_SECONDS: Final = 2.0
"""A stream that said that it is over is closed so long after: some servers leave the connection open."""
# How long a call may take, its CallLimit says; a connection whose other end is gone is found out by TCP's keepalive.
TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS_MAX, sock_read=None)
FREE_TIMEOUT: Final = aiohttp.ClientTimeout(total=FREE_SECONDS_MAX, sock_connect=CONNECT_SECONDS_MAX)

# What passes from the agent to the provider. Everything else stays here: credentials, cookies, the account to bill.
REQUEST_HEADERS: Final = ("accept", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta")
# What does not pass from the provider to the agent: it speaks of the connection, or of another one's session.
RESPONSE_HEADERS_DROPPED: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "trailer", "upgrade"}
    | {"set-cookie", "server", "date", "proxy-authenticate", "alt-svc", "strict-transport-security"}
)
OUTPUT_CHOSEN_HEADER: Final = "x-almoner-output-max"
"""The output maximum that was sent, where the client said none."""
ENDING: Final = "the call was cut off"
NO_USAGE: Final = "the provider's answer has no usage, or not all of it"


class ProviderFailedError(Exception):
    """The provider gave no answer that could be passed on."""

    def __init__(self, status: int, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.sent = sent
        """Whether the call may have reached the provider: then a repetition would cost once more."""


class AskAgainError(Exception):
    """The provider refused the output maximum that the meter chose, unbilled. The call has the one that it said now."""


@dataclass(slots=True)
class Target:
    """Where a call goes, with its credentials. Never logged."""

    url: str
    headers: dict[str, str]


def request_headers(given: MultiMapping[str], dialect: str, key: str) -> dict[str, str]:
    """Give the headers that go to the provider: few of the agent's, and our key in place of its."""
    # Several lines of a header are one list (RFC 9110, 5.3); some SDKs send a line for each beta.
    headers = {name: ",".join(given.getall(name)) for name in REQUEST_HEADERS if name in given}
    headers["content-type"] = "application/json"
    # Usage must be readable, and the pod's loopback gains nothing from compression.
    headers["accept-encoding"] = "identity"
    if dialect == ANTHROPIC:
        headers.setdefault("anthropic-version", "2023-06-01")
        if key:
            headers["x-api-key"] = key
    elif key:
        headers["authorization"] = f"Bearer {key}"
    return headers


def response_headers(given: Mapping[str, str], call: Call | None = None) -> dict[str, str]:
    """Give the headers that go to the agent."""
    headers = {name: value for name, value in given.items() if name.lower() not in RESPONSE_HEADERS_DROPPED}
    if call is not None and call.output_chosen:
        headers[OUTPUT_CHOSEN_HEADER] = str(call.output_max)
    if call is not None and call.limited_from is not None:
        headers[OUTPUT_LIMITED_HEADER] = str(call.output_max)
    return headers


class Forwarder:
    """Sends tries and settles them, whatever happens."""

    def __init__(self, session: aiohttp.ClientSession, holds: Holds, limits: CallLimits | None = None) -> None:
        self._session = session
        self._holds = holds
        self._limits = limits or CallLimits()
        self.learned: dict[str, int] = {}
        """Output maxima that providers said, by provider/model: only of those that they refused a larger one for."""
        self.stored: dict[str, int] = {}
        """Tokens of responses that the provider keeps, by provider/id: what a call that names one gets as input."""

    async def forward(
        self, request: web.BaseRequest, tried: Try, target: Target, *, again: bool = False
    ) -> web.StreamResponse:
        """Do one try. The try is settled when this returns or raises. Raises ProviderFailedError, AskAgainError.

        again: where the provider wants another output maximum than the meter chose, say so rather than pass that on.
        """
        call = tried.call
        assert call is not None
        limit = CallLimit(self._limits, lambda: self._holds.books.lease_until)
        try:
            async with limit:
                return await self._try(request, tried, target, limit, again=again and call.output_chosen)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Nothing was sent.
            what = f"no connection: {type(error).__name__}"
            self._holds.settle(tried, "error", TokenCounts(), error=what, requests=0)
            self._failed(tried)
            raise ProviderFailedError(502, "the provider cannot be reached", sent=False) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            late = isinstance(error, TimeoutError)
            message = f"the provider's answer did not come whole: {limit.why or type(error).__name__}"
            if tried.hold.open:
                self._settle(tried, "error", message)
                self._failed(tried)
            raise ProviderFailedError(504 if late else 502, message) from None
        finally:
            if tried.hold.open:
                # Cut off from outside (the meter is ending), or a fault of our own: what was sent may be billed.
                self._settle(tried, "cancelled", ENDING)

    async def _try(
        self, request: web.BaseRequest, tried: Try, target: Target, limit: CallLimit, *, again: bool
    ) -> web.StreamResponse:
        call = tried.call
        assert call is not None
        body = call.body()
        counting = call.stream and shows_all(call)
        if not again:
            call.payload.release()
        async with self._session.post(
            target.url, data=body, headers=target.headers, timeout=TIMEOUT, allow_redirects=False
        ) as answer:
            if answer.status >= 300:
                return await self._pass_error(answer, tried, again=again)
            call.payload.release()
            first = b""
            if call.stream:
                # Some servers give a stream another content type, and some answer with one object all the same.
                if answer.content_type != "text/event-stream":
                    first = await anext(answer.content.iter_any(), b"")
                if not _begins_object(first):
                    response = web.StreamResponse(status=answer.status, headers=response_headers(answer.headers, call))
                    relay = Relay(request, response, call, counting=counting)
                    return await self._pass_stream(answer, tried, relay, first, limit)
            body = await _read(answer, first)
            seen = Seen(call.usage_shape)
            seen.read(_object_of(body))
            self._settle_seen(tried, seen, None, gone=not _connected(request))
            return web.Response(status=answer.status, body=body, headers=response_headers(answer.headers, call))

    async def free(self, payload: Body | None, target: Target) -> web.StreamResponse:
        """Pass on a call that costs nothing; without a payload it only reads. Raises ProviderFailedError."""
        method, data = ("GET", None) if payload is None else ("POST", payload.content())
        try:
            async with self._session.request(
                method, target.url, data=data, headers=target.headers, timeout=FREE_TIMEOUT, allow_redirects=False
            ) as answer:
                body = await _read(answer)
                return web.Response(status=answer.status, body=body, headers=response_headers(answer.headers))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderFailedError(502, f"the provider did not answer: {type(error).__name__}", sent=False) from None

    async def count(self, body: dict[str, Any], target: Target) -> dict[str, Any]:
        """Ask a provider to count, which costs nothing; gives its answer. Raises ProviderFailedError."""
        try:
            async with self._session.post(
                target.url, json=body, headers=target.headers, timeout=COUNT_TIMEOUT, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise ProviderFailedError(502, f"the provider does not count: HTTP {answer.status}")
                return _object_of(await _read(answer))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderFailedError(502, f"the provider does not count: {type(error).__name__}") from None

    def _remember(self, call: Call, seen: Seen, tokens: TokenCounts) -> None:
        """Keep how many tokens a response has that later calls may name: its input, and its output."""
        if seen.response_id is not None:
            if len(self.stored) >= STORED_MAX:
                del self.stored[next(iter(self.stored))]
            self.stored[f"{call.provider.name}/{seen.response_id}"] = tokens.total + STORED_MARGIN_TOKENS

    def _failed(self, tried: Try, status: int | None = None) -> None:
        """Note for the last word that a provider answered with an error, or (`status` None) gave no whole answer."""
        assert tried.call is not None
        self._holds.refused_calls.fail(tried.call.provider.name, status, time.monotonic())

    def _settle(self, tried: Try, outcome: str, error: str) -> None:
        """Settle a try of whose answer nothing is known."""
        self._holds.settle(tried, outcome, None, error=error)

    def _settle_seen(self, tried: Try, seen: Seen, error: str | None, *, gone: bool, came: Came | None = None) -> None:
        """Settle a try by what its answer said; `error` broke it off, and `gone` is a client that hung up."""
        call = tried.call
        assert call is not None
        call.served, call.beyond = seen.tier, seen.beyond(call.price)
        tokens, error = seen.tokens(), seen.error or error
        if error is not None:
            self._failed(tried)
        elif not gone:
            self._holds.refused_calls.succeed(tried.began)
        # Usage that came before the answer broke may not be the last word: counts of a stream are cumulative.
        if tokens is not None and (seen.complete or error is None):
            outcome = "error" if seen.error else "cancelled" if gone else "ok"
            self._remember(call, seen, tokens)
            self._holds.settle(tried, outcome, tokens, error=error)
        elif (known := seen.input_tokens()) is not None or (came is not None and came.bound is not None):
            output = None if came is None or came.bound is None else max(came.bound, tokens.output if tokens else 0)
            self._holds.settle_partly(tried, known, error or NO_USAGE, output)
        else:
            self._holds.settle(tried, "ok", None, error=error or NO_USAGE)

    async def _pass_error(
        self, answer: aiohttp.ClientResponse, tried: Try, *, again: bool = False
    ) -> web.StreamResponse:
        """Pass an error on as it is: nothing was generated, unless a gateway speaks for a provider it lost sight of."""
        unknown = answer.status in GATEWAY_STATUSES
        self._holds.settle(tried, "error", None if unknown else TokenCounts(), error=f"HTTP {answer.status}")
        self._failed(tried, answer.status)
        if answer.status < 400:
            raise ProviderFailedError(502, f"the provider redirects (HTTP {answer.status}): correct its base URL")
        body = await _read(answer)
        if again and answer.status in MAXIMUM_REFUSED and tried.call is not None and self._learn(tried.call, body):
            raise AskAgainError
        return web.Response(status=answer.status, body=body, headers=response_headers(answer.headers))

    def _learn(self, call: Call, body: bytes) -> bool:
        """Heed what a refusal says of the output maximum that the meter chose; gives whether it says anything."""
        message = message_of(_object_of(body))
        limit = limit_told(message, call.output_max)
        name = field_told(message, call.output_fields[0])
        if limit is None and name is None:
            return False
        if limit is not None and len(self.learned) < LEARNED_MAX:
            self.learned[f"{call.provider.name}/{call.model.name}"] = limit
        call.choose_output(limit or call.output_max, name)
        return True

    async def _pass_stream(
        self, answer: aiohttp.ClientResponse, tried: Try, relay: Relay, first: bytes, limit: CallLimit
    ) -> web.StreamResponse:
        """Pass events on as they come, watching for usage; hides the event that only we asked for."""
        error: str | None = None
        try:
            await relay.prepare()
            await relay.take(first)
            await self._relay(answer, relay)
        except TimeoutError:
            error = None if relay.seen.complete else "the provider's stream did not end in time"
        except (aiohttp.ClientError, OSError) as failure:
            error = f"the provider's stream broke: {type(failure).__name__}"
        except asyncio.CancelledError:
            error = limit.why or ENDING
            if limit.why is None:
                raise
        finally:
            self._settle_seen(tried, relay.seen, error, gone=relay.client_gone, came=relay.came)
        if error is not None:
            relay.cut()
        else:
            await relay.finish()
        return relay.response

    async def _relay(self, answer: aiohttp.ClientResponse, relay: Relay) -> None:
        """Pass a stream on to its end. Raises TimeoutError where that does not come."""
        now = asyncio.get_running_loop().time
        async with asyncio.timeout(None) as limit:
            async for chunk in answer.content.iter_any():
                await relay.take(chunk)
                if relay.seen.complete:
                    limit.reschedule(min(limit.when() or now() + LINGER_SECONDS, now() + LINGER_SECONDS))
                elif relay.client_gone and limit.when() is None:
                    limit.reschedule(now() + ABANDONED_SECONDS_MAX)
            await relay.take_rest()


def _connected(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is not None and not transport.is_closing()


async def _read(answer: aiohttp.ClientResponse, first: bytes = b"") -> bytes:
    """Read an answer whole, after what was read. Raises ClientPayloadError where it is larger than ANSWER_BYTES_MAX."""
    parts, size = [first], len(first)
    async for chunk in answer.content.iter_any():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            raise aiohttp.ClientPayloadError(f"the answer is larger than {ANSWER_BYTES_MAX} bytes")
        parts.append(chunk)
    return b"".join(parts)


def _begins_object(first: bytes) -> bool:
    return first.removeprefix(BOM).lstrip()[:1] == b"{"


def _object_of(body: bytes) -> dict[str, Any]:
    """Read an answer's object; empty where it is none."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
