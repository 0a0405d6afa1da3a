"""Until when the pod's machine time is paid, as the ledger tells it, and whether that is over.

Role: the operator charges machine time and holds it ahead; where no operator does, the ledger holds more for as long as
there is room. When neither does, or the ledger is away, what is held runs out: early enough before that, the meter
starts no call any more and fails the probe of the agent container, so that the kubelet ends the pod while that is still
paid for, with nobody else's help.

What was told counts from when it was asked for, by the monotonic clock, which a restarted meter shares: the end is kept
in a file, and when the first meter began. The ledger's own clock may jump: where it reads earlier than the span begins
that is held for, it cannot say how much of that is over, and this reckons with lengths alone. Boundary: no exchanges;
who has asked the ledger tells it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from almoner_core.environment import PAID_ALWAYS_SECONDS

logger = logging.getLogger(__name__)

FILE: Final = "paid"
NOTHING: Final = "-"
FOREVER: Final = float("inf")
LOOKS: Final = 3
"""So often the ledger is asked, at least, before what is paid runs out."""


class MachineTime:
    """One pod's machine time. `end_seconds`: what it takes to end the pod; None: its machine time costs nothing."""

    def __init__(self, end_seconds: int | None, folder: Path, clock: Callable[[], float]) -> None:
        self._end_seconds = end_seconds
        self._file = folder / FILE
        self._clock = clock
        self._began = clock()
        self._until: float | None = None  # None: the ledger has said nothing yet
        self._span: tuple[int, int] | None = None
        self._over = False
        self._silent_since: float | None = None
        self.denied = False
        """Whether the kubelet was told that it is over, so that it ends the pod."""

    @property
    def costs(self) -> bool:
        """Whether the ledger has to be asked for how long it is paid."""
        return self._end_seconds is not None

    def recover(self) -> None:
        """Take over what an earlier process of this pod was told; the first one notes when it began."""
        if not self.costs:
            return
        try:
            began, until, *span = self._file.read_text(encoding="ascii").split()
            if float(began) > self._clock():
                raise ValueError("of before the node was started anew")
            self._until = None if until == NOTHING else float(until)
            self._span = (int(span[0]), int(span[1])) if span else None
            self._began = float(began)
        except (OSError, ValueError, IndexError):
            self._until = self._span = None
            self._keep()

    def told(self, sent: float, seconds: int | None, span: Mapping[str, int] | None = None) -> None:
        """Note for how long it is paid, counted from when that was asked for; None: nothing was said.

        `span` is what that was reckoned from, by the ledger's clock (wire.PaidSpan): a clock that goes back would pay
        anew, at every look, for what is held once.
        """
        self._silent_since = None
        if not self.costs or seconds is None:
            return
        before = (self._until, self._span)
        fresh = None if span is None else (span["since_unix_ms"], span["until_unix_ms"])
        self._until = FOREVER if seconds >= PAID_ALWAYS_SECONDS else self._reckoned(sent, seconds, fresh)
        self._span = fresh
        if (self._until, self._span) != before:
            self._keep()

    def _reckoned(self, sent: float, seconds: int, span: tuple[int, int] | None) -> float:
        """Give until when it is paid, by this clock."""
        until, before, known = sent + seconds, self._until, self._span
        # The ledger's clock went back to before the span, or the span began this very second.
        unsure = span is not None and seconds >= (span[1] - span[0]) // 1000
        if before is None:
            # The pod is charged from before its first meter began.
            return min(until, self._began + (span[1] - span[0]) / 1000) if span is not None and unsure else until
        if before == FOREVER:
            return until
        if span is not None and known is not None and (unsure or span[0] == known[0]):
            until = min(until, before + max(0, span[1] - known[1]) / 1000)
        # What was promised stays held: a clock that jumped takes nothing back.
        return max(before, until)

    def unanswered(self) -> None:
        """Note that the ledger did not answer."""
        if self._silent_since is None:
            self._silent_since = self._clock()

    def _keep(self) -> None:
        fresh = self._file.with_name(f"{FILE}.new")
        try:
            until = NOTHING if self._until is None else repr(self._until)
            words = [repr(self._began), until, *(map(str, self._span) if self._span is not None else ())]
            fresh.write_text(" ".join(words), encoding="ascii")
            fresh.replace(self._file)
        except OSError as error:
            logger.warning("until when machine time is paid cannot be kept: %s", error.strerror)

    @property
    def over(self) -> bool:
        """Whether the pod has to end, so that it has ended by the time its machine time is not paid any more. For good.

        Nothing said is not paid: no agent runs before the first activation.
        """
        if self._end_seconds is not None and not self._over:
            self._over = self._until is None or self._clock() >= self._until - self._end_seconds
            if self._over:
                logger.error("%s", self.message)
        return self._over

    def deny(self) -> bool:
        """Whether the kubelet has to end the pod; noted, since the operator wants to know why that was."""
        self.denied = self.denied or self.over
        return self.denied

    @property
    def left(self) -> float:
        """Seconds until it is not paid any more."""
        return FOREVER if not self.costs else max(0.0, (self._until or 0.0) - self._clock())

    @property
    def look_seconds(self) -> float:
        """How long to wait for news at most, so that there are a few looks before it has to end."""
        return FOREVER if not self.costs else (self.left - (self._end_seconds or 0)) / LOOKS

    @property
    def message(self) -> str:
        """Why the pod ends."""
        if self._silent_since is not None:
            why = "the ledger does not answer, so nobody could extend it"
        else:
            why = "there is no room in the budget to extend it"
        return f"machine time is not paid for any longer: {why}"
