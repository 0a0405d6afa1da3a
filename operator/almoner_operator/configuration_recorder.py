"""What changed of the configuration and is not in the ledger's log yet.

Role: keeps, of each object whose changes are logged, every generation that was seen since the last one that the ledger
has, bounded by object and in all: where there are too many, the older ones give way, and the difference is told over
several generations. Boundary: no I/O; never raises on what an object holds, and reads nothing of it until it is told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from almoner_core import configuration, wire
from almoner_operator.news import DELETED
from almoner_operator.records import generation_of, version_of

PENDING_MAX: Final = 2000
OF_ONE_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as an event told of it; `spec` None: it was deleted."""

    kind: str
    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    metadata: Mapping[str, Any]
    spec: Any

    def to_wire(self) -> wire.ObservedObject:
        """Give what the ledger is told. Raises ValueError where the object has no usable name."""
        return wire.ObservedObject(
            kind=self.kind,
            namespace=self.namespace,
            name=self.name,
            uid=self.uid,
            generation=self.generation,
            created_unix_ms=configuration.unix_ms(self.metadata.get("creationTimestamp")),
            spec=None if self.spec is None else configuration.canonical(self.spec),
            managers=[
                wire.ManagedSpec(
                    name=each.name,
                    operation=each.operation,
                    changed_unix_ms=each.changed_ms,
                    paths=list(each.paths),
                )
                for each in (configuration.managers(self.metadata, self.spec) if self.spec is not None else ())
            ],
        )


class Known(NamedTuple):
    """What was seen last of an object."""

    version: int
    generation: int


class Recorder:
    """Objects of the configuration, and what of them is still to be told, in the order in which it was seen."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self._latest: dict[str, Known] = {}
        self._pending: dict[int, Seen] = {}
        self._of: dict[str, list[int]] = {}
        """Where the changes of each object are among those."""
        self._count = 0

    def take(self, kind: str, event: str | None, raw: Mapping[str, Any]) -> None:
        """Note an event; an event from before what is known already tells nothing."""
        metadata = raw["metadata"]
        uid = str(metadata["uid"])
        deleted = event == DELETED
        seen = Seen(
            kind,
            str(metadata.get("namespace") or ""),
            str(metadata["name"]),
            uid,
            version_of(raw),
            generation_of(raw),
            metadata,
            None if deleted else raw.get("spec") or {},
        )
        known = self._latest.get(uid)
        if deleted:
            if self._latest.pop(uid, None) is not None:
                self._add(seen)
            return
        if known is not None:
            # A list is believed: an API server that was restored counts generations anew.
            if known.generation == seen.generation and (event is not None or known.version == seen.version):
                return
            if event is not None and seen.version < known.version and seen.generation < known.generation:
                return
        self._latest[uid] = Known(seen.version, seen.generation)
        self._add(seen)

    def missing(self, known: wire.KnownObject) -> None:
        """Note that an object that the ledger knows is not there any more."""
        if known.uid not in self._latest:
            self._add(Seen(known.kind, known.namespace, known.name, known.uid, 0, known.generation, {}, None))

    def _add(self, seen: Seen) -> None:
        self._count += 1
        self._pending[self._count] = seen
        self._of.setdefault(seen.uid, []).append(self._count)
        self._thin(seen.uid, OF_ONE_MAX)
        if len(self._pending) > PENDING_MAX:
            for uid in [*self._of]:
                self._thin(uid, 1)
        self.changed.set()

    def _thin(self, uid: str, most: int) -> None:
        """Keep the newest changes of an object."""
        places = self._of[uid]
        for place in places[:-most]:
            del self._pending[place]
        del places[:-most]

    def pending(self, most: int) -> list[tuple[int, Seen]]:
        """Give what is to be told first, each with its place."""
        self.changed.clear()
        return list(itertools.islice(self._pending.items(), most))

    def told(self, place: int) -> None:
        """Forget what was told."""
        seen = self._pending.pop(place, None)
        if seen is not None:
            self._of[seen.uid].remove(place)
            if not self._of[seen.uid]:
                del self._of[seen.uid]
