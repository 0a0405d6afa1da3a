"""The times that a node writes into a pod, corrected by the operator's own clock as the pod comes in.

Role: a node's clock may be minutes off, and what it writes is compared with the clocks of others: a timeout, the
seconds of machine time, whether an agent ended before it was told to stop. So each time of a node's is believed only
within a bound of when the operator first saw it. A pod that this process sees for the first time, with times that are
there already, is believed from the pod's creation (the API server's clock) until now.

Boundary: no I/O, no clock; `moment` is an argument. Who reads a pod afterwards needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

LATENCY_SECONDS: Final = 5
"""So much earlier than the operator saw it something may have happened on a node. An operator that the API server does
not answer for longer soon leads no more, and its successor sees all pods for the first time."""

Json = dict[str, Any]


def correct(raw: Mapping[str, Any], known: Mapping[str, str] | None, moment: datetime) -> tuple[Json, dict[str, str]]:
    """Give a pod's status with its node's times corrected, and the corrections, to be `known` the next time.

    `known` is what this gave for the same pod before; None: it is seen for the first time.
    """
    earliest = moment - timedelta(seconds=LATENCY_SECONDS)
    before = moment  # what is too early was written by a clock that is behind: it is as old as the look at it
    if known is None:
        created = _time((raw.get("metadata") or {}).get("creationTimestamp"))
        earliest = before = min(created, moment) if created is not None else earliest
    status = dict(raw.get("status") or {})
    corrections: dict[str, str] = {}

    def corrected(place: str, value: Any) -> Any:
        key = f"{place}/{value}"
        if known is not None and key in known:
            corrections[key] = known[key]
        else:
            time = _time(value)
            if time is None:
                return value
            believed = before if time < earliest else min(time, moment)
            corrections[key] = str(value) if believed == time else believed.isoformat()
        return corrections[key]

    if "startTime" in status:
        status["startTime"] = corrected("startTime", status["startTime"])
    for group in ("initContainerStatuses", "containerStatuses"):
        if status.get(group):
            status[group] = [_container(each, corrected) for each in status[group]]
    return status, corrections


def _container(container: Mapping[str, Any], corrected: Any) -> Json:
    changed = dict(container)
    for field in ("state", "lastState"):
        if states := container.get(field):
            name = container.get("name")
            changed[field] = {kind: dict(_times(name, state, corrected)) for kind, state in states.items()}
    return changed


def _times(name: Any, state: Mapping[str, Any] | None, corrected: Any) -> Iterator[tuple[str, Any]]:
    for field, value in (state or {}).items():
        yield field, corrected(f"{name}/{field}", value) if field in ("startedAt", "finishedAt") else value


def _time(value: Any) -> datetime | None:
    """Read a Kubernetes timestamp; None for anything else, which is left as it is."""
    try:
        parsed = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return parsed if parsed is not None and parsed.tzinfo is not None else None
