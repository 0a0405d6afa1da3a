"""Probes and metrics: /healthz and /readyz on one port, /metrics on another (0 switches one off).

A process that stands by is healthy, and ready while it hears the API server: it is there to take over. One that leads
is ready once it has everything in its cache and has agreed with the ledger; it is unhealthy when its loop stands still.
What is not in order is in the answer's `problem`, for people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


@dataclass(slots=True)
class Health:
    """What the probes tell. `alive` gives what is wrong, or an empty text."""

    leader: bool = False
    synced: bool = False
    alive: Callable[[], str] = lambda: ""
    ledger: Callable[[], bool] = lambda: False
    heard: Callable[[], str] = lambda: ""
    """What is wrong with how a process that stands by hears the API server; empty where nothing is."""
    waiting_for: str = "the election"
    """What a process that leads, and is not synced, waits for."""

    def problem(self) -> str:
        """Say why it is not ready, or an empty text."""
        if not self.leader:
            return self.heard()
        if not self.synced:
            return f"leads, and is not ready yet: {self.waiting_for}"
        return self.alive()


class HealthServer:
    """Serves the probes and the metrics."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._runners: list[web.AppRunner] = []

    async def start(self, address: str, health_port: int, metrics_port: int) -> None:
        """Listen. Raises OSError where a port is taken."""
        probes = [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]
        metrics = [web.get("/metrics", self._metrics)]
        if health_port == metrics_port:
            await self._serve(address, health_port, [*probes, *metrics])
            return
        await self._serve(address, health_port, probes)
        await self._serve(address, metrics_port, metrics)

    async def _serve(self, address: str, port: int, routes: list[web.RouteDef]) -> None:
        if port == 0:
            return
        application = web.Application()
        application.add_routes(routes)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, address, port).start()

    async def stop(self) -> None:
        """Stop listening."""
        for runner in self._runners:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        problem = self._health.alive()
        return web.json_response({"ok": not problem, "problem": problem}, status=503 if problem else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        health = self._health
        problem = health.problem()
        return web.json_response(
            {
                "ok": not problem,
                "problem": problem,
                "leader": health.leader,
                "synced": health.synced,
                "ledger": health.ledger(),
            },
            status=503 if problem else 200,
        )

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
