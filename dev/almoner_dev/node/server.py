"""The one part of the kubelet's API that people miss at once: container logs, for `kubectl logs`.

Role: a small TLS server on the node's address. Boundary: answers this machine alone, never a pod: the
pods of a node share a network with this address, and logs of others are none of their business.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from almoner_dev.certificates import Authority
from almoner_dev.processes import free_port

if TYPE_CHECKING:
    from almoner_dev.node.container import Container
    from almoner_dev.node.pod import PodWorker

CHUNK_BYTES = 64 * 1024
FOLLOW_SECONDS = 0.1


class LogServer:
    """Serves `/containerLogs/{namespace}/{pod}/{container}` with tailLines, limitBytes, previous and follow."""

    def __init__(self, find: Callable[[str, str], PodWorker | None]) -> None:
        self.port = 0
        self._find = find
        self._address = ""
        self._runner: web.AppRunner | None = None

    async def start(self, address: str) -> None:
        """Listen on a free port of the address, with a certificate that nobody is asked to trust."""
        self._address = address
        application = web.Application()
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            authority = Authority(Path(folder))
            authority.ensure()
            certificate, key = authority.issue("node", "process-node", names=[address])
            tls.load_cert_chain(certificate, key)
        self.port = free_port(address)
        await web.TCPSite(self._runner, address, self.port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _refuse_pods(self, request: web.Request) -> None:
        if request.remote not in (self._address, "127.0.0.1"):
            raise web.HTTPForbidden(text="logs are served to this machine alone")

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def _container(self, request: web.Request) -> Container:
        worker = self._find(request.match_info["namespace"], request.match_info["pod"])
        wanted = request.match_info["container"]
        for container in worker.containers if worker else []:
            if container.name == wanted:
                return container
        raise web.HTTPNotFound(text=f"there is no log of container {wanted!r} on this node")

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        self._refuse_pods(request)
        container = self._container(request)
        previous = request.query.get("previous") == "true"
        path = container.log_path.with_suffix(".previous") if previous else container.log_path
        try:
            stream = path.open("rb")
        except OSError:
            raise web.HTTPBadRequest(text=f"container {container.name!r} has not run") from None
        try:
            tail = int(request.query.get("tailLines", "-1"))
            limit = int(request.query.get("limitBytes", "0")) or None
        except ValueError:
            raise web.HTTPBadRequest(text="tailLines and limitBytes are numbers") from None
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        with stream:
            stream.seek(tail_offset(path, tail) if tail >= 0 else 0)
            await response.prepare(request)
            follow = request.query.get("follow") == "true" and not previous
            while True:
                over = container.gone.is_set()
                while chunk := stream.read(CHUNK_BYTES if limit is None else min(CHUNK_BYTES, limit)):
                    await response.write(chunk)
                    limit = None if limit is None else limit - len(chunk)
                if over or not follow or limit == 0:
                    break
                await asyncio.sleep(FOLLOW_SECONDS)
                if stream.tell() > path.stat().st_size:
                    stream.seek(0)
        await response.write_eof()
        return response


def tail_offset(path: Path, lines: int) -> int:
    """Where the last lines of a file begin."""
    size = path.stat().st_size
    position, found = size, -1
    with path.open("rb") as stream:
        while position > 0:
            start = max(0, position - CHUNK_BYTES)
            stream.seek(start)
            block = stream.read(position - start)
            if position == size and not block.endswith(b"\n"):
                found += 1
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                found += 1
                if found >= lines:
                    return start + at + 1
            position = start
    return 0
