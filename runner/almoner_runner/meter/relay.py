"""The client's end of a stream: events as they come, byte for byte, watched for what they say of usage."""

from __future__ import annotations

from aiohttp import web

from almoner_runner.meter.answers import Seen
from almoner_runner.meter.came import Came
from almoner_runner.meter.dialect import Call
from almoner_runner.meter.sse import Splitter


class Relay:
    """Passes a stream's events to the client, and goes on reading when the client has gone."""

    def __init__(
        self, request: web.BaseRequest, response: web.StreamResponse, call: Call, *, counting: bool = False
    ) -> None:
        self.seen = Seen(call.usage_shape)
        self.came = Came(call.usage_shape) if counting else None
        self.client_gone = False
        self._request = request
        self.response = response
        self._hide = call.hide_usage
        self._splitter = Splitter()

    def _watch(self, event: bytes) -> bool:
        if self.came is not None:
            self.came.watch(event)
        return self.seen.watch(event)

    async def prepare(self) -> None:
        """Begin the client's answer."""
        try:
            await self.response.prepare(self._request)
        except ConnectionError:
            self.client_gone = True

    async def take(self, chunk: bytes) -> None:
        """Pass on what came."""
        passed = []
        for event in self._splitter.feed(chunk):
            only_usage = self._watch(event)
            if not (only_usage and self._hide):
                passed.append(event)
        await self._write(b"".join(passed))

    async def take_rest(self) -> None:
        """Pass on what came last, and is no whole event."""
        rest = self._splitter.rest()
        if not rest:
            return
        only_usage = self._watch(rest)
        if not (only_usage and self._hide):
            await self._write(rest)

    async def _write(self, data: bytes) -> None:
        if not data or self.client_gone:
            return
        try:
            await self.response.write(data)
        except ConnectionError:
            self.client_gone = True

    async def finish(self) -> None:
        """End the client's answer."""
        if self.client_gone:
            return
        try:
            await self.response.write_eof()
        except ConnectionError:
            self.client_gone = True

    def cut(self) -> None:
        """End the client's stream as the provider's ended: broken, so that nobody takes it for whole."""
        if (transport := self._request.transport) is not None:
            transport.abort()
