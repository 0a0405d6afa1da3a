"""How an attempt ended, and what follows: pure functions over the pod's status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from almoner_core.api.execution import AttemptOutcome, FailureReason, Retry
from almoner_operator.scheduling.model import StopCause


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended. `reason` is None where it succeeded or was stopped on purpose."""

    outcome: AttemptOutcome
    reason: FailureReason | None = None
    message: str = ""
    exit_code: int | None = None
    started: datetime | None = None
    finished: datetime | None = None


def started_at(pod: Mapping[str, Any]) -> datetime | None:
    """When the agent container started; None while it has not."""
    raise NotImplementedError


def has_terminated(pod: Mapping[str, Any] | None) -> bool:
    """Whether the pod holds nothing any more: gone, or all its containers have terminated."""
    raise NotImplementedError


def classify(
    pod: Mapping[str, Any] | None,
    *,
    now: datetime,
    intent: StopCause | None = None,
    timed_out: bool = False,
    start_deadline_seconds: int = 600,
) -> AttemptEnd | None:
    """Classify a pod (JSON form; None: it vanished). None while the agent may still end by itself.

    `intent` is why the operator told it to stop, `timed_out` that it did so because the timeout ran out.
    """
    raise NotImplementedError


def retry_at(
    uid: str, attempt: int, reason: FailureReason, retry: Retry, *, failures: int, finished: datetime
) -> datetime | None:
    """When the next attempt may start, or None where there is none. `failures` counts failed attempts, this one included
    (preempted, suspended and drained ones are not failures).
    """
    raise NotImplementedError


def remaining_seconds(timeout_seconds: int | None, used_seconds: int) -> int | None:
    """What is left of a timeout over all attempts; None without one; 0: it has run out."""
    raise NotImplementedError
