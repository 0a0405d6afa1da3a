"""The listener on the pod's address, for the kubelet and Prometheus, which do not reach loopback.

It never spends. Anything in the cluster may reach it, so it tells numbers alone, and `/prestop` wants the token that
the operator put into the pod, where it did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aiohttp import web

from almoner_core.environment import PAID_PATH, PRESTOP_HEADER, PRESTOP_PATH
from almoner_runner.meter.app import App


class Health:
    """Answers /healthz, /paid (whether machine time is), /metrics and /prestop."""

    def __init__(self, app: App, prestop: Callable[[], None], prestop_token: str | None = None) -> None:
        self._app = app
        self._prestop = prestop
        self._prestop_token = prestop_token
        self.ready = False
        self.waiting_for = "starting"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        if request.method != "GET":
            return web.Response(status=405, text="only GET here\n")
        if request.path in ("/healthz", PAID_PATH):
            failure = self._failure(request.path)
            return web.Response(text="ok\n") if failure is None else web.Response(status=503, text=f"{failure}\n")
        if request.path == "/metrics":
            return web.Response(text="".join(self._metrics()), content_type="text/plain", charset="utf-8")
        if request.path == PRESTOP_PATH:
            if self._prestop_token is not None and request.headers.get(PRESTOP_HEADER) != self._prestop_token:
                return web.Response(status=403, text=f"{PRESTOP_HEADER} is missing or wrong\n")
            self._prestop()
            return web.Response(text="ok\n")
        return web.Response(status=404, text="there is /healthz, /paid, /metrics and /prestop\n")

    def _failure(self, path: str) -> str | None:
        """Why a probe fails; None where it passes."""
        if path == PAID_PATH:
            machine = self._app.holds.books.machine
            return machine.message if machine.deny() else None
        return None if self.ready else f"not ready: {self.waiting_for}"

    def _metrics(self) -> Iterator[str]:
        """Give Prometheus' text format; no label holds what an agent could choose freely."""
        holds, books = self._app.holds, self._app.holds.books
        spool, allotment = books.spool, books.allotment
        for (route, status), calls in sorted(self._app.counters.calls.items()):
            yield _line("almoner_meter_answers_total", calls, route=route, status=status)
        for code, refused in sorted(holds.refused.items()):
            yield _line("almoner_meter_refused_total", refused, code=code)
        for name, value in spool.totals.as_dict().items():
            yield _line(f"almoner_meter_used_{name}_total", value)
        for dimension in allotment.limited:
            yield _line("almoner_meter_held", allotment.held[dimension], dimension=dimension)
            yield _line("almoner_meter_held_in_flight", allotment.in_flight[dimension], dimension=dimension)
            yield _line("almoner_meter_excess_total", allotment.excess[dimension], dimension=dimension)
        yield _line("almoner_meter_calls_in_flight", holds.in_flight)
        yield _line("almoner_meter_calls_waiting", books.waiting + books.waiting_for_rates)
        yield _line("almoner_meter_records_unposted", len(spool.pending))
        yield _line("almoner_meter_records_rejected_total", books.rejected)
        yield _line("almoner_meter_posts_failed_total", books.posts_failed)
        yield _line("almoner_meter_corrections_total", books.corrections)
        yield _line("almoner_meter_ready", int(self.ready))


def _line(name: str, value: int, **labels: Any) -> str:
    text = ",".join(f'{key}="{_escape(str(label))}"' for key, label in labels.items())
    return f"{name}{{{text}}} {value}\n" if text else f"{name} {value}\n"


def _escape(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
