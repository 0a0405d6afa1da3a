"""How long a call may take.

Role: ends a call when the run's own time is over, or so long after its meter's lease. Why both: a call may take as
long as its run (a slow model, a long stream), and a ledger that hears nothing of a meter must know from when it surely
spends no more (SILENCE_SECONDS). A meter that the ledger hears goes on with long calls; one that is cut off ends them.
Boundary: what the end costs is forward.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from almoner_core.environment import CALL_PAST_LEASE_SECONDS, CALL_SECONDS_MAX

RUN_OVER: Final = "the call took longer than the run may"
CUT_OFF: Final = "the ledger has not been reached for too long, so that the call had to end"


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Seconds: of one call, and of any call past the lease."""

    seconds: float = CALL_SECONDS_MAX
    past_lease_seconds: float = CALL_PAST_LEASE_SECONDS


class CallLimit:
    """Ends what is inside `async with`, by TimeoutError. `why` says for what cause; None: it did not."""

    def __init__(self, limits: CallLimits, lease_until: Callable[[], float]) -> None:
        self.why: str | None = None
        self._limits = limits
        self._lease_until = lease_until

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + self._limits.seconds
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._handle = self._loop.call_at(self._ends(), self._look)
        return self

    def _ends(self) -> float:
        return min(self._until, self._lease_until() + self._limits.past_lease_seconds)

    def _look(self) -> None:
        """End it, or look again where the lease was renewed meanwhile."""
        ends = self._ends()
        if self._loop.time() < ends:
            self._handle = self._loop.call_at(ends, self._look)
            return
        self.why = RUN_OVER if ends == self._until else CUT_OFF
        self._timeout.reschedule(self._loop.time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        await self._timeout.__aexit__(kind, error, trace)
