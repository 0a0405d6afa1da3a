"""A model provider that answers by script: for what a small local model cannot do, or cannot do exactly.

Role: OpenAI chat completions, responses, embeddings and models, Anthropic messages and count_tokens, plain
and streamed, with scripted texts, tool calls, token counts, latency and faults. Boundary: understands no
prompt; a rule may look for a text in the request, and a test may choose replies by a function of its own.
Why: tool calls, exact usage, errors at a chosen moment and benchmarks need a provider whose every byte is known.

    with ScriptedProvider([Reply(text="4", usage=Usage(input_tokens=11, output_tokens=1))]) as provider:
        openai.OpenAI(base_url=provider.base_url + "/v1", api_key="any")

or `python -m almoner_dev.scripted --port 8081 --script FILE.json`, FILE being a Script as JSON. While it
runs, `POST /scripted/replies` adds replies and `GET /scripted/requests` tells what was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import re
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from almoner_dev import processes
from almoner_dev.script_responses import responses_answer, responses_stream
from almoner_dev.script_shapes import (
    Reply,
    Script,
    ToolCall,
    Usage,
    anthropic_answer,
    anthropic_stream,
    openai_answer,
    openai_stream,
)

__all__ = ["Reply", "Script", "ScriptedProvider", "ToolCall", "Usage"]

REQUESTS_KEPT_MAX = 10_000
BODY_BYTES_MAX = 32 * 1024 * 1024
START_SECONDS_MAX = 10.0
EMBEDDING = (0.25, -0.5, 0.75)

Choose = Callable[[str, dict[str, Any]], Reply | None]
"""(path, body) -> the reply to a request; None: the script's. Called by one thread at a time."""

_NEEDED = {
    "openai": ("model", "messages"),
    "responses": ("model", "input"),
    "anthropic": ("model", "messages", "max_tokens"),
}
_ANSWERS = {"openai": openai_answer, "responses": responses_answer, "anthropic": anthropic_answer}
_STREAMS = {"openai": openai_stream, "responses": responses_stream, "anthropic": anthropic_stream}


class _Cut(Exception):  # noqa: N818 - no error, the script's wish
    """Cut the connection now."""


class _Player:
    """Chooses replies and remembers requests."""

    def __init__(self, script: Script, chosen: Choose | None = None) -> None:
        self.requests: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT_MAX)
        self.replies: deque[Reply] = deque(maxlen=REQUESTS_KEPT_MAX)
        self._chosen = chosen
        self._lock = threading.Lock()
        self.load(script)

    def load(self, script: Script) -> None:
        with self._lock:
            self._script = script
            self._rules = [reply for reply in script.replies if reply.match]
            self._queue = deque(reply for reply in script.replies if not reply.match)
            self._last: Reply | None = None

    def add(self, replies: Sequence[Reply]) -> None:
        with self._lock:
            self._rules += [reply for reply in replies if reply.match]
            self._queue.extend(reply for reply in replies if not reply.match)

    def choose(self, path: str, text: str, body: dict[str, Any]) -> Reply:
        with self._lock:
            reply = (self._chosen(path, body) if self._chosen is not None else None) or self._next(text)
            self.replies.append(reply)
            return reply

    def _next(self, body: str) -> Reply:
        for rule in self._rules:
            if rule.match and re.search(rule.match, body):
                return rule
        if not self._queue and self._script.then == "cycle":
            self._queue.extend(reply for reply in self._script.replies if not reply.match)
        if self._queue:
            self._last = self._queue.popleft()
            return self._last
        if self._script.then == "error" or self._last is None:
            return Reply(status=500, message="the script has no reply left")
        return self._last


def _error(reply: Reply, dialect: str) -> web.Response:
    kinds = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(reply.status, "invalid_request_error" if reply.status < 500 else "api_error")
    if dialect == "anthropic":
        body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": reply.message}}
    else:
        body = {"error": {"message": reply.message, "type": kind, "param": None, "code": None}}
    return web.json_response(body, status=reply.status, headers=reply.headers)


def _bad_request(message: str, dialect: str) -> web.Response:
    return _error(Reply(status=400, message=message), dialect)


class _Application:
    """The routes."""

    def __init__(self, player: _Player) -> None:
        self._player = player
        self._number = 0
        self.web = web.Application(client_max_size=BODY_BYTES_MAX)
        self.web.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/responses", self._responses),
                web.post("/v1/embeddings", self._embeddings),
                web.post("/v1/messages", self._messages),
                web.post("/v1/messages/count_tokens", self._count),
                web.get("/scripted/requests", self._asked),
                web.post("/scripted/replies", self._add),
            ]
        )

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _request: web.Request) -> web.Response:
        entry = {"id": "scripted", "object": "model", "created": 1_700_000_000, "owned_by": "almoner"}
        return web.json_response({"object": "list", "data": [entry]})

    async def _read(self, request: web.Request) -> tuple[dict[str, Any], Reply]:
        """The body, and the reply to it. Raises ValueError for a body that is no JSON object."""
        text = await request.text()
        body = json.loads(text)
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")  # noqa: TRY004 - the caller answers 400
        self._number += 1
        headers = {k.lower(): v for k, v in request.headers.items()}
        entry = {"path": request.path, "headers": headers, "text": text, "body": body}
        self._player.requests.append(entry)
        reply = self._player.choose(request.path, text, body)
        if reply.latency_ms:
            await asyncio.sleep(reply.latency_ms / 1000)
        return body, reply

    async def _answer(self, request: web.Request, dialect: str) -> web.StreamResponse:
        try:
            body, reply = await self._read(request)
        except ValueError as error:
            return _bad_request(str(error), dialect)
        if missing := [name for name in _NEEDED[dialect] if name not in body]:
            return _bad_request(f"{missing[0]}: field required", dialect)
        if reply.status >= 400:
            return _error(reply, dialect)
        if body.get("stream"):
            return await self._stream(request, _STREAMS[dialect](reply, body, self._number), reply)
        if reply.hang:
            await asyncio.Event().wait()
        if reply.break_after is not None:
            _cut(request)
        return web.json_response(_ANSWERS[dialect](reply, body, self._number), headers=reply.headers)

    async def _stream(self, request: web.Request, events: list[str], reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **reply.headers})
        await response.prepare(request)

        async def pieces() -> AsyncIterator[str]:
            for index, event in enumerate(events):
                if reply.break_after is not None and index >= reply.break_after:
                    raise _Cut
                yield event
                if reply.hang:
                    await asyncio.Event().wait()
                if reply.chunk_ms:
                    await asyncio.sleep(reply.chunk_ms / 1000)

        try:
            async for piece in pieces():
                await response.write(piece.encode())
        except _Cut:
            _cut(request)
        await response.write_eof()
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "openai")

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "responses")

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, "anthropic")

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        try:
            body, reply = await self._read(request)
        except ValueError as error:
            return _bad_request(str(error), "openai")
        if reply.status >= 400:
            return _error(reply, "openai")
        given = body.get("input")
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": EMBEDDING} for index in range(count)]
        answer: dict[str, Any] = {"object": "list", "model": body.get("model", ""), "data": data}
        if reply.usage is not None:
            answer["usage"] = {"prompt_tokens": reply.usage.input_tokens, "total_tokens": reply.usage.input_tokens}
        return web.json_response(answer)

    async def _count(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        reply = Reply(usage=Usage(input_tokens=max(1, len(text) // 4)))
        assert reply.usage is not None
        return web.json_response({"input_tokens": reply.usage.input_tokens})

    async def _asked(self, _request: web.Request) -> web.Response:
        return web.json_response(list(self._player.requests))

    async def _add(self, request: web.Request) -> web.Response:
        try:
            replies = TypeAdapter(tuple[Reply, ...]).validate_json(await request.read())
        except ValidationError as error:
            return web.Response(status=400, text=str(error))
        self._player.add(replies)
        return web.json_response({"added": len(replies)})


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        # What was written goes out, but the end of the body never comes.
        request.transport.close()
    raise ConnectionResetError("cut by the script")


class ScriptedProvider:
    """The provider in a thread of this process, listening when `with` is entered."""

    def __init__(
        self,
        script: Script | Sequence[Reply] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        choose: Choose | None = None,
    ) -> None:
        if not isinstance(script, Script):
            script = Script(replies=tuple(script) or (Reply(),))
        self.host = host
        self.port = port
        self._player = _Player(script, choose)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._listening = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def base_url(self) -> str:
        """`http://host:port`: add `/v1` for OpenAI's SDK."""
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """What was asked so far: path, headers (lower case), body."""
        return list(self._player.requests)

    @property
    def replies(self) -> list[Reply]:
        """What it answered, in the order of the requests."""
        return list(self._player.replies)

    def add(self, *replies: Reply) -> None:
        """Give these out after those that are left."""
        self._player.add(replies)

    def load(self, script: Script | Sequence[Reply]) -> None:
        """Start over with another script; requests are kept."""
        self._player.load(script if isinstance(script, Script) else Script(replies=tuple(script)))

    async def serve(self, stop: asyncio.Event) -> None:
        """Listen until the event is set."""
        # Cut connections are what the script wants, not errors to be logged with a trace.
        quiet = logging.getLogger("almoner_dev.scripted")
        quiet.setLevel(logging.CRITICAL + 1)
        runner = web.AppRunner(_Application(self._player).web, access_log=None, logger=quiet, shutdown_timeout=0.1)
        await runner.setup()
        self.port = self.port or processes.free_port(self.host)
        try:
            await web.TCPSite(runner, self.host, self.port).start()
            self._listening.set()
            await stop.wait()
        finally:
            await runner.cleanup()

    async def _thread_main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self.serve(self._stop)
        except OSError as error:
            self._failure = error
            self._listening.set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._thread_main()), name="scripted", daemon=True)
        self._thread.start()
        if not self._listening.wait(START_SECONDS_MAX) or self._failure is not None:
            raise processes.ProcessError(f"the scripted provider does not listen on {self.base_url}: {self._failure}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._stop is not None and self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_SECONDS_MAX)


def main(arguments: list[str] | None = None) -> int:
    """Command line: see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m almoner_dev.scripted", description="A model provider that answers by script."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8081, help="port to listen on (default: %(default)s)")
    parser.add_argument("--script", type=Path, help='JSON: {"replies": [{"text": "..."}, ...], "then": "last"}')
    options = parser.parse_args(arguments)
    try:
        script = Script.model_validate_json(options.script.read_bytes()) if options.script else Script()
    except (OSError, ValidationError) as error:
        print(f"scripted: {options.script}: {error}", file=sys.stderr)
        return 1
    provider = ScriptedProvider(script, host=options.host, port=options.port)
    print(f"scripted: {provider.base_url}", file=sys.stderr, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(provider.serve(asyncio.Event()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
