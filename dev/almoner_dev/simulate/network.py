"""The network between clients and the ledger: messages are lost, doubled, delayed, and so reordered.

Role: one exchange of a client is a request that may arrive never, late, or twice, at one replica or at two, and an
answer that may not come back. A copy that comes late may find a world in which its sender is long dead: operation ids
must make it harmless. Boundary: carries bytes; knows no message. Where the ledger is, is a `Door`'s business.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from almoner_dev.simulate.faults import Faults
from almoner_dev.simulate.pausing import outside
from almoner_dev.simulate.replica import GoneError
from almoner_runner.meter.ledger import EXCHANGE_SECONDS_MAX, LedgerClient, LedgerUnreachableError, Secret, _read

T = TypeVar("T")

LATENCY_S: Final = (0.0005, 0.03)
Answer = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Exchange:
    """One decision of the ledger, as it was made: what was asked, and the answer."""

    method: str
    path: str
    body: Any
    status: int
    answer: Any


Heard = Callable[[Exchange], None]


class Door(Protocol):
    """One replica of the ledger."""

    @property
    def up(self) -> bool:
        """Whether it takes connections."""

    async def handle(self, method: str, path: str, token: str, body: bytes) -> Answer:
        """Answer one request. Raises ConnectionError."""


class Network:
    """Carries requests to any replica."""

    def __init__(self, doors: Sequence[Door], faults: Faults, chance: random.Random) -> None:
        self.doors = doors
        self.faults = faults
        self.chance = chance
        self.messages = 0
        self.silences = True
        """Whether nobody may notice that a connection broke, until a timeout."""
        self.heard: list[Heard] = []
        """Told of each decision as the ledger makes it, whether or not its answer arrives."""
        # In their order: that of a set would not be the seed's.
        self._under_way: dict[asyncio.Task[Any], None] = {}

    async def ask(self, method: str, path: str, token: str, body: Any = None, *, seconds: float = 10.0) -> Answer:
        """Make one exchange; `body` is bytes, or becomes JSON.

        Raises ConnectionError, TimeoutError: then it may or may not have happened.
        """
        data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode() if body else b""
        self.messages += 1
        async with asyncio.timeout(seconds):
            return await self._exchange(method, path, token, data)

    async def _exchange(self, method: str, path: str, token: str, data: bytes) -> Answer:
        faults = self.faults
        mutation = bool(data)
        if mutation and faults.strikes("doubled"):
            self._later(method, path, token, data)
        if faults.strikes("request_lost"):
            await self._silence()
        await asyncio.sleep(self._latency())
        # What is under way arrives, whatever becomes of its sender meanwhile.
        answer = await asyncio.shield(self._send(self._deliver(method, path, token, data)))
        if faults.strikes("answer_lost"):
            await self._silence()
        await asyncio.sleep(self._latency())
        return answer

    def _latency(self) -> float:
        if self.faults.strikes("delayed"):
            return self.chance.uniform(0.0, self.faults.delay_longest_s)
        return self.chance.uniform(*LATENCY_S)

    async def _silence(self) -> None:
        """Nothing comes any more: the connection breaks at once, or nobody notices."""
        if self.chance.random() < 0.5 or not self.silences:
            raise ConnectionResetError("the connection was lost")
        await asyncio.Event().wait()

    def _later(self, method: str, path: str, token: str, data: bytes) -> None:
        """Deliver a copy some time, to whichever replica; nobody hears its answer."""

        async def copy() -> None:
            await asyncio.sleep(self.chance.uniform(0.0, self.faults.delay_longest_s))
            try:
                await self._deliver(method, path, token, data)
            except ConnectionError:
                return

        self._send(copy())

    def _send(self, message: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = outside(message, self._arrived)
        self._under_way[task] = None
        return task

    def _arrived(self, task: asyncio.Task[Any]) -> None:
        self._under_way.pop(task, None)
        if not task.cancelled():
            task.exception()  # Its sender may have gone: nobody else asks.

    async def _deliver(self, method: str, path: str, token: str, data: bytes) -> Answer:
        doors = [door for door in self.doors if door.up]
        if not doors:
            raise GoneError("no replica of the ledger is up")
        status, raw = await self.chance.choice(doors).handle(method, path, token, data)
        if self.heard:
            body, answer = json.loads(data) if data else None, json.loads(raw) if raw else None
            exchange = Exchange(method, path, body, status, answer)
            for heard in self.heard:
                heard(exchange)
        return status, raw

    async def quiet(self) -> None:
        """Wait until no message is under way any more."""
        while self._under_way:
            await asyncio.wait(tuple(self._under_way))


class MeterClient(LedgerClient):
    """The meter's own client, over the simulated network in place of HTTP."""

    def __init__(self, network: Network, allotment: str, token: str) -> None:
        # The base class is made for a session that is not there: everything that would use one is replaced.
        super().__init__("http://ledger", allotment, Secret(None), None)  # type: ignore[arg-type]
        self._network = network
        self._path = f"/v1/allotments/{allotment}"
        self._bearer = token
        self.cut_off = False

    def join(self) -> None:
        """Be connected again."""
        self.cut_off = False

    async def exchange(
        self, method: str, verb: str, body: dict[str, Any] | None = None, *, seconds: float = EXCHANGE_SECONDS_MAX
    ) -> dict[str, Any]:
        """Do one exchange and give the answer. Raises LedgerError, LedgerUnreachableError."""
        try:
            if self.cut_off:
                raise ConnectionRefusedError("the pod's network is cut off")
            status, raw = await self._network.ask(method, f"{self._path}/{verb}", self._bearer, body, seconds=seconds)
        except (TimeoutError, ConnectionError) as error:
            raise LedgerUnreachableError(f"{method} {verb}: {type(error).__name__}") from error
        if self.cut_off:
            raise LedgerUnreachableError(f"{method} {verb}: the pod's network is cut off")
        return _read(status, raw)
