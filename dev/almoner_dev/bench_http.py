"""The least of an HTTP client: keep-alive connections to one server on loopback, one request at a time on each.

Role: a load generator shares two cores with what it measures; a full client costs more per request than the service
does. What the ledger answers always has a Content-Length. Boundary: no TLS, no redirects, no chunked bodies; a
connection that the server closed is opened anew and the request sent again, which the operation ids make safe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

CONNECT_TRIES_MAX: Final = 3
HEAD_BYTES_MAX: Final = 65_536


class Pool:
    """At most `connections` connections to `host`:`port`."""

    def __init__(self, host: str, port: int, *, connections: int) -> None:
        self._host, self._port = host, port
        self._free = asyncio.Semaphore(connections)
        self._idle: deque[_Connection] = deque()

    async def post(self, path: str, body: bytes, headers: bytes, *, seconds: float) -> tuple[int, bytes]:
        """Send one request and give status and body. `headers` end with CRLF each. Raises OSError, TimeoutError."""
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Length: %d\r\n%b\r\n" % (
            path.encode(),
            self._host.encode(),
            len(body),
            headers,
        )
        async with self._free:
            for tried in range(CONNECT_TRIES_MAX):
                connection = self._idle.pop() if self._idle else await self._connect()
                try:
                    async with asyncio.timeout(seconds):
                        answer = await connection.exchange(head + body)
                except ConnectionError:
                    if tried == CONNECT_TRIES_MAX - 1:
                        raise
                    continue
                except BaseException:
                    connection.close()
                    raise
                if connection.open:
                    self._idle.append(connection)
                return answer
        raise AssertionError("unreachable")

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""
        self._body_from = -1
        self._length = 0
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # uvloop's transports do not derive from asyncio's
        self.open = True

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._transport is None or not self.open:
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if self._body_from < 0 and not self._read_head():
            return
        end = self._body_from + self._length
        if len(self._buffer) < end:
            return
        status, body = int(self._buffer[9:12]), self._buffer[self._body_from : end]
        if b"\r\nconnection: close" in self._buffer[: self._body_from].lower():
            self.close()
        self._buffer, self._body_from = b"", -1
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                self.close()
            return False
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        self._length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        self._body_from = end + 4
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc if isinstance(exc, ConnectionError) else ConnectionResetError("it closed"))

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.close()
