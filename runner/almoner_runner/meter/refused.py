"""Which calls were refused, by the meter or by their provider: what the last word tells of them.

Pure; times are monotonic seconds. A call that succeeds takes back what was refused before it began: the agent went on.
One that was under way already says nothing: of several calls at once some are refused, and the rest come through.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from almoner_core.refusals import (
    COUNT_MAX,
    LASTING_STATUSES,
    LIMIT_CODES,
    ProviderRefused,
    Refused,
)
from almoner_runner.meter.refusals import RefusedError

NEVER: Final = float("-inf")


class RefusedCalls:
    """What was refused since a call last came through, and how often in all."""

    __slots__ = ("_answered_at", "_refused_at", "by_meter", "by_provider")

    def __init__(self) -> None:
        self.by_meter: Refused | None = None
        self.by_provider: ProviderRefused | None = None
        self._refused_at = NEVER
        self._answered_at = NEVER

    def refuse(self, error: RefusedError, now: float) -> None:
        """Note that the meter refused a call.

        Want of room stays what is told, whatever is refused after it: an agent that gets no answer tries other models,
        fields and routes.
        """
        before, count = self.by_meter, 1
        if before is not None:
            count = min(before.count + 1, COUNT_MAX)
            if before.last and before.code in LIMIT_CODES and error.code not in LIMIT_CODES:
                self.by_meter = replace(before, count=count)
                return
        self.by_meter = Refused(count, error.code, error.message, last=True)
        self._refused_at = now

    def succeed(self, began: float) -> None:
        """Note that a call came through that began then."""
        if self.by_meter is not None and began >= self._refused_at:
            self.by_meter = replace(self.by_meter, last=False)
        if began >= self._answered_at:
            self.by_provider = None

    def fail(self, provider: str, status: int | None, now: float) -> None:
        """Note that a provider answered a call with an error, or (`status` None) gave no answer."""
        self._answered_at = now
        self.by_provider = ProviderRefused(provider, status) if status in LASTING_STATUSES else None
