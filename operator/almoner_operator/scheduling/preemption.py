"""Who has to make room: for counts and machines only, never for money; never in vain.

Victims are preemptible, strictly less important than who needs the room, and stand in a line that is short. A victim
that queues again comes after the one it made room for, since that one is more important and its room is kept: nothing
ping-pongs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from almoner_operator.scheduling.admission import DIMENSIONS, Line, Vector, ask_of
from almoner_operator.scheduling.model import Workload

LinesOf = Callable[[Workload], tuple[Line, ...]]


def deficits(short: Sequence[Line], ask: Vector) -> list[list[int]]:
    """What is missing in each short line, once all that was told to stop is gone; not above 0: enough."""
    return [
        [
            line.used[i] - line.freeing[i] + line.kept[i] + ask[i] - line.limits[i] if ask[i] else 0
            for i in range(DIMENSIONS)
        ]
        for line in short
    ]


def enough(missing: Sequence[Sequence[int]]) -> bool:
    """Whether nothing is missing any more."""
    return all(amount <= 0 for row in missing for amount in row)


def victims_for(workload: Workload, short: Sequence[Line], lines_of: LinesOf, taken: set[str]) -> list[Workload] | None:
    """Choose whom to stop so that a workload fits its short lines. None: not even all of them would be enough.

    `taken` are the uids of those that were chosen already. Greedy (least important first, then least work lost), then
    those that turn out not to be needed are dropped, the most valuable first.
    """
    missing = deficits(short, ask_of(workload))
    if enough(missing):
        return []
    candidates: dict[str, Workload] = {}
    for line in short:
        for other in line.preemptible:
            if other.priority < workload.priority and other.key.uid not in taken:
                candidates[other.key.uid] = other
    ordered = sorted(candidates.values(), key=_least_lost)
    chosen: list[Workload] = []
    for other in ordered:
        if _apply(missing, short, lines_of(other), ask_of(other), helps_only=True):
            chosen.append(other)
            if enough(missing):
                break
    else:
        return None
    for other in reversed(chosen.copy()):
        _apply(missing, short, lines_of(other), ask_of(other), sign=-1)
        if enough(missing):
            chosen.remove(other)
        else:
            _apply(missing, short, lines_of(other), ask_of(other))
    return chosen


def _least_lost(workload: Workload) -> tuple[object, ...]:
    began = workload.admitted or workload.created
    return (workload.priority, -began.timestamp(), workload.key.uid)


def _apply(
    missing: list[list[int]],
    short: Sequence[Line],
    lines: tuple[Line, ...],
    ask: Vector,
    *,
    sign: int = 1,
    helps_only: bool = False,
) -> bool:
    """Take (or with sign -1, put back) what a victim would free. With `helps_only`, only where it lessens a deficit."""
    touched = [row for row, line in zip(missing, short, strict=True) if line in lines]
    if helps_only and not any(row[i] > 0 and ask[i] for row in touched for i in range(DIMENSIONS)):
        return False
    for row in touched:
        for i in range(DIMENSIONS):
            row[i] -= sign * ask[i]
    return True
