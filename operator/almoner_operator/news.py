"""What an event of an object tells that is not known yet, and what it says of a status that is ours to write.

Role: `version` is the newest resourceVersion that was seen of an object, `base` the one of which `written` is the
status: the next write is computed from it and only holds for it. Own writes move `base` on, so their events are no
news. A status that somebody else changed becomes `written`, and the difference to what is meant is put right.

A list is believed whatever its numbers, and so is a higher generation at a lower number: those of an API server that
was restored from a snapshot begin anew.

Boundary: no I/O. Never raises on what an object holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from almoner_operator.conditions import OURS
from almoner_operator.records import generation_of, version_of

DELETED: Final = "DELETED"
CONDITIONS_MAX: Final = 16


class Record(Protocol):
    """What is kept of every object that has a status of ours."""

    version: int
    generation: int
    base: int
    writing: bool
    rank: int
    status: Any
    written: Any


class Named(Record, Protocol):
    """A record that gives way to another when its object's spec changes."""

    uid: str
    successor: Any


Found = TypeVar("Found", bound=Named)


def is_news(known: Record, event: str | None, raw: Mapping[str, Any]) -> bool:
    """Whether an event (None: a list's item) tells of anything later than what is known."""
    version = version_of(raw)
    if version > known.version:
        return True
    return (event is None and version != known.version) or generation_of(raw) > known.generation


def take_status(known: Record, raw: Mapping[str, Any]) -> bool:
    """Note an event's version and what it says of the status; True where that is not what was last written.

    While a write is under way, its answer decides; an event from before the last write says nothing of the status.
    """
    version = version_of(raw)
    went_back = version <= known.version
    known.version = version
    if known.writing or (version <= known.base and not went_back):
        return False
    return believe(known, raw)


def believe(known: Record, raw: Mapping[str, Any]) -> bool:
    """Take what an object's status is now as what is written; True where it is another than was thought."""
    known.base = version_of(raw)
    status = type(known.status)
    try:
        found = status.model_validate(raw.get("status") or {})
    except ValidationError:
        found = status()  # Nobody can read it: it is written anew.
    if found == known.written:
        return False
    known.written = found
    known.status = _with_others(known.status, found.conditions)
    return True


def _with_others(status: Any, conditions: list[Any]) -> Any:
    """Give the status with the conditions that other controllers have set."""
    own = [each for each in status.conditions if each.type in OURS]
    merged = [*own, *(each for each in conditions if each.type not in OURS)][:CONDITIONS_MAX]
    return status if merged == status.conditions else status.model_copy(update={"conditions": merged})


def observe(
    records: dict[str, Found],
    event: str | None,
    raw: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], Found],
    *,
    labels: bool = False,
) -> bool:
    """Take an event into the records of one kind in a namespace; True where somebody is to look at the object.

    `labels`: whether labels count as the spec does.
    """
    metadata = raw["metadata"]
    name, uid = str(metadata["name"]), str(metadata["uid"])
    known = records.get(name)
    if known is not None and known.uid != uid:
        if event == DELETED or (event is not None and version_of(raw) < known.version):
            return False  # Late, and of a former object of the name.
        known = None
    if event == DELETED:
        return records.pop(name, None) is not None
    if known is None:
        records[name] = parse(raw)
        return True
    if not is_news(known, event, raw):
        return False
    overwritten = take_status(known, raw)
    same = generation_of(raw) == known.generation
    if same and not (labels and dict(metadata.get("labels") or {}) != getattr(known, "labels", None)):
        return overwritten
    record = parse(raw)
    record.status, record.written, record.base = known.status, known.written, known.base
    record.writing, record.rank = known.writing, known.rank
    known.successor = records[name] = record
    return True
