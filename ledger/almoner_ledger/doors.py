"""How much of the service one caller may take: connections of an address, and requests of a caller, at a time.

Role: a pod that opens connections without end, sends nothing on them, or waits on more long polls than it can use,
takes only its own share. Boundary: who a caller is, is auth.py's; a request that is refused here is to be sent again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web

from almoner_core.wire import ErrorCode
from almoner_ledger import metrics
from almoner_ledger.auth import Caller, Role
from almoner_ledger.errors import LedgerError

CONNECTIONS_MAX: Final = 512
"""Of one address: some clusters show all pods of a node behind one."""
FIRST_REQUEST_SECONDS: Final = 20.0
"""A connection on which no request came for so long is closed."""
REQUESTS_MAX: Final = 128
LONG_POLLS_MAX: Final = 8


class Doors:
    """Guards the connections of one server. Use it from one event loop."""

    def __init__(
        self, *, connections_max: int = CONNECTIONS_MAX, first_request_seconds: float = FIRST_REQUEST_SECONDS
    ) -> None:
        self._connections_max = connections_max
        self._seconds = first_request_seconds
        self._open: Counter[str] = Counter()
        self._address: dict[Any, str] = {}
        self._silent: set[Any] = set()

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Note that a connection brought a request."""
        self._silent.discard(request.protocol)
        return await handler(request)

    def guard(self, server: web.Server) -> None:
        """Count the server's connections by address, and close those beyond the bounds."""
        made, lost = server.connection_made, server.connection_lost

        def connection_made(handler: Any, transport: asyncio.Transport) -> None:
            made(handler, transport)
            self._made(handler, transport)

        def connection_lost(handler: Any, error: BaseException | None = None) -> None:
            lost(handler, error)
            self._lost(handler)

        vars(server).update(connection_made=connection_made, connection_lost=connection_lost)

    def _made(self, handler: Any, transport: asyncio.Transport) -> None:
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        self._open[address] += 1
        self._address[handler] = address
        self._silent.add(handler)
        if self._open[address] > self._connections_max:
            metrics.TURNED_AWAY.labels("connections").inc()
            transport.abort()
            return
        asyncio.get_running_loop().call_later(self._seconds, self._hang_up, handler, transport)

    def _hang_up(self, handler: Any, transport: asyncio.Transport) -> None:
        if handler in self._silent:
            metrics.TURNED_AWAY.labels("silence").inc()
            transport.abort()

    def _lost(self, handler: Any) -> None:
        self._silent.discard(handler)
        address = self._address.pop(handler, None)
        if address is not None:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]


class Turns:
    """Counts what each caller asks at a time. The operator is not bounded: there is one, and all depends on it."""

    def __init__(self, *, requests_max: int = REQUESTS_MAX, long_polls_max: int = LONG_POLLS_MAX) -> None:
        self._most = {False: requests_max, True: long_polls_max}
        self._under_way: Counter[tuple[str, bool]] = Counter()

    @contextmanager
    def turn(self, caller: Caller | None, *, long_poll: bool) -> Iterator[None]:
        """Hold one of the caller's turns. Raises LedgerError `unavailable` where it has as many as it may."""
        if caller is None or Role.OPERATOR in caller.roles:
            yield
            return
        key = (caller.pod_uid or caller.name, long_poll)
        if self._under_way[key] >= self._most[long_poll]:
            metrics.TURNED_AWAY.labels("long_polls" if long_poll else "requests").inc()
            what = "long polls" if long_poll else "requests"
            raise LedgerError(
                ErrorCode.UNAVAILABLE, f"{self._most[long_poll]} {what} of this caller are under way; retry later"
            )
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
