"""A proxy that lets nothing through and remembers where programs wanted to go."""

from __future__ import annotations

import socketserver
import threading
from typing import Self
from urllib.parse import urlsplit

LINE_BYTES_MAX = 8192


class Outside:
    """For HTTP_PROXY and HTTPS_PROXY, which may be set in anybody's image."""

    def __init__(self) -> None:
        self.hosts: set[str] = set()
        outside = self

        class Handler(socketserver.StreamRequestHandler):
            timeout = 10

            def handle(self) -> None:
                words = self.rfile.readline(LINE_BYTES_MAX).decode(errors="replace").split()
                if len(words) > 1:
                    target = words[1] if "://" in words[1] else f"//{words[1]}"
                    outside.hosts.add(urlsplit(target).hostname or target)
                self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._server.server_close()
