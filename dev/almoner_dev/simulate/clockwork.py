"""Virtual time: an event loop whose clock jumps to the next event, and the clocks and ids of what runs on it.

Role: nothing sleeps, and nothing depends on the machine: `loop.time()` moves only when all tasks wait; functions for
threads run at once, in place; wall clocks, monotonic clocks and UUIDs of the meter and the service are the world's.
Boundary: replaces names in modules while a schedule runs, and puts them back.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import selectors
import uuid
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Final
from unittest import mock

from almoner_dev.simulate import pausing
from almoner_ledger import service as ledger_service
from almoner_ledger import signals as ledger_signals
from almoner_operator import ledger_client as operator_ledger_client
from almoner_runner.meter import books as meter_books
from almoner_runner.meter import holds as meter_holds
from almoner_runner.meter import ids as meter_ids
from almoner_runner.meter import lifecycle as meter_lifecycle
from almoner_runner.meter import spool as meter_spool

BEGIN_UNIX_S: Final = 1_798_759_200
"""2026-12-31T22:00 UTC: hours, days, months and the year are about to end."""


class StalledError(RuntimeError):
    """Every task waits for another: nothing will ever happen again."""


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for its timeout, moves the clock by it."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: Callable[[float], None] = lambda _seconds: None

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StalledError("all tasks wait, and no timer is set")
        if timeout > 0:
            self.moved(timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time."""

    def __init__(self) -> None:
        selector = _Selector()
        super().__init__(selector)
        selector.moved = self._move
        self._now = 1000.0

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def _move(self, seconds: float) -> None:
        # A hair further: a timer must not be a rounding error away for ever.
        self._now += seconds + 1e-9

    def call_soon(  # type: ignore[override]  # a star of types is more than is needed here
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """Call soon, or when the process that this belongs to goes on."""
        process = pausing.current(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        return super().call_soon(process.run, callback, *args, context=context)

    def call_at(  # type: ignore[override]  # likewise
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call at a time, or when the process that this belongs to goes on after it."""
        process = pausing.current(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        return super().call_at(when, process.run, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """Run at once: a thread's progress would not be the seed's."""
        del executor
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - handed on to whoever waits
            future.set_exception(error)
        return future


class Clock:
    """Wall clocks: the database's jumps by itself; each meter's node has its own error."""

    def __init__(self, loop: asyncio.AbstractEventLoop, begin_unix_s: int = BEGIN_UNIX_S) -> None:
        self._loop = loop
        self._begin = loop.time()
        self._begin_ms = begin_unix_s * 1000
        self.jumped_ms = 0
        self.jumps = 0

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the schedule began."""
        return self._loop.time() - self._begin

    def true_ms(self) -> int:
        """Unix milliseconds of a clock that never jumps."""
        return self._begin_ms + int(self.elapsed * 1000)

    def database_ms(self) -> int:
        """Unix milliseconds as the database has them."""
        return self.true_ms() + self.jumped_ms

    def jump(self, seconds: int) -> None:
        """Have the database's clock jump, back where `seconds` is negative."""
        self.jumped_ms += seconds * 1000
        self.jumps += 1


class _Time:
    """Stands for the module `time` where virtual time rules."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self._clock.elapsed

    def perf_counter(self) -> float:
        """Virtual seconds."""
        return self._clock.elapsed

    def time(self) -> float:
        """Virtual Unix seconds."""
        return self._clock.true_ms() / 1000

    def time_ns(self) -> int:
        """Virtual Unix nanoseconds."""
        return self._clock.true_ms() * 1_000_000


class Ids:
    """UUIDs of the seed's making."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def __call__(self) -> str:
        """Give a fresh one."""
        return str(uuid.UUID(int=self._chance.getrandbits(128), version=4))


@contextlib.contextmanager
def installed(clock: Clock, ids: Ids, seed: str) -> Iterator[None]:
    """Give the meter's and the service's modules the world's clock and ids."""
    time = _Time(clock)
    before = random.getstate()
    # What draws jitter from the shared generator draws the seed's.
    random.seed(seed)
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (meter_ids, "time", time),
            (meter_holds, "time", time),
            (ledger_service, "time", time),
            (ledger_signals, "time", time),
            (meter_holds, "uuid7", ids),
            (meter_books, "uuid7", ids),
            (meter_lifecycle, "uuid7", ids),
            (operator_ledger_client, "time", time),
            (meter_spool, "os", pausing.Disk()),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        try:
            yield
        finally:
            random.setstate(before)
