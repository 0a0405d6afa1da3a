"""A provider that answers with the bytes it is given, for what no well-kept server would say."""

from __future__ import annotations

import socketserver
import threading
from types import TracebackType
from typing import Self

READ_BYTES_MAX = 2**20


class OddProvider:
    """Answers each request with `answer`, byte for byte; with `stay` it leaves the connection open until the end."""

    def __init__(self) -> None:
        self.answer = b""
        self.stay = False
        self.bodies: list[bytes] = []
        """What it was asked, oldest first."""
        self.asked: list[str] = []
        """The first line of each request."""
        self._first: list[bytes] = []
        self._over = threading.Event()
        provider = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += self.request.recv(READ_BYTES_MAX)
                head, _, body = received.partition(b"\r\n\r\n")
                lines = [line.lower() for line in head.split(b"\r\n")]
                provider.asked.append(head.split(b"\r\n")[0].decode())
                lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
                length = lengths[0] if lengths else 0
                while len(body) < length:
                    body += self.request.recv(READ_BYTES_MAX)
                provider.bodies.append(body)
                self.request.sendall(provider._first.pop(0) if provider._first else provider.answer)
                if provider.stay:
                    provider._over.wait(60)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def say(self, body: bytes, *, status: str = "200 OK", kind: str = "application/json", stay: bool = False) -> None:
        """Answer so from now on. Without a length, unless it is an error: the end of the connection is the body's."""
        self.stay = stay
        self.answer = _answer(body, status, kind)

    def say_once(self, body: bytes, *, status: str = "200 OK", kind: str = "application/json") -> None:
        """Answer one request so, after those that wait for their turn already, and before what it says to all."""
        self._first.append(_answer(body, status, kind))

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


def _answer(body: bytes, status: str, kind: str) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n"
    return head.encode() + b"\r\n" + body
