"""Carries status to the API server: only what changed, the important first, many changes of one object as one patch.

Role: every record has the `status` that is meant and the `written` one that the API server has; this writes the
difference, one patch at a time for one object. Numbers that change fast are marked with a delay and written together.

Boundary: knows records and the client; what a status should say is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pydantic import BaseModel

from almoner_core.api.base import APIModel
from almoner_operator import metrics
from almoner_operator.errors import (
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    LeadershipLostError,
    NotFoundError,
)
from almoner_operator.kubernetes import KubernetesClient, Resource
from almoner_operator.limiter import Rank, TokenBucket

log = logging.getLogger(__name__)

COALESCE_SECONDS: Final = 0.3
RETRY_SECONDS: Final = 2.0
CONFLICTS_MAX: Final = 5
"""So often in a row an object is read again that others change all the time; then it waits its turn."""
BACKGROUND_RATE: Final = 50.0
BACKGROUND_BURST: Final = 500.0


class Written(Protocol):
    """What a record must have to be written."""

    version: int
    generation: int
    base: int
    writing: bool
    rank: int

    @property
    def status(self) -> APIModel:
        """What is meant."""

    @property
    def written(self) -> APIModel:
        """What the API server has."""


class Target:
    """One object whose status is written: its record and where it lies."""

    __slots__ = ("_record", "name", "namespace", "resource", "uid")

    def __init__(self, record: Any, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._record = record
        self.resource = resource
        self.namespace = namespace
        self.name = name
        self.uid = uid

    @property
    def record(self) -> Any:
        """The newest record of the object: a changed spec may have put another in its place since the mark."""
        while (newer := getattr(self._record, "successor", None)) is not None:
            self._record = newer
        return self._record


class StatusWriter:
    """Writes statuses in the background, or at once where the caller must know that it is written.

    A write only holds for the version that it was computed from. Where the object changed meanwhile it is read again,
    `seen` takes that in, and what still differs from what is meant is written. `gone` is told of what is no more;
    `leads` says whether this process surely leads.
    """

    def __init__(
        self,
        client: KubernetesClient,
        *,
        gone: Callable[[Target], None],
        seen: Callable[[Target, Mapping[str, Any]], None],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._client = client
        self._gone = gone
        self._seen = seen
        self._leads = leads
        self._tasks: set[asyncio.Task[None]] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._later: dict[str, tuple[float, asyncio.TimerHandle]] = {}
        self._background = TokenBucket(BACKGROUND_RATE, BACKGROUND_BURST)
        self.stopped = False

    @property
    def pending(self) -> int:
        """How many objects wait to be written or are being written."""
        return len(self._later) + len(self._tasks)

    def mark(self, target: Target, rank: Rank = Rank.STATUS, *, delay: float = 0.0) -> None:
        """Write the target's status soon. An earlier or more important mark wins."""
        if self.stopped:
            return
        loop = asyncio.get_running_loop()
        if rank is Rank.BACKGROUND:
            delay = max(delay, self._background.take(loop.time()))
        due = loop.time() + delay
        known = self._later.get(target.uid)
        target.record.rank = min(target.record.rank, int(rank))
        if known is not None:
            if known[0] <= due:
                return
            known[1].cancel()
        self._later[target.uid] = (due, loop.call_later(delay, self._start, target))

    def _start(self, target: Target) -> None:
        self._later.pop(target.uid, None)
        if self.stopped or target.record.writing:
            return  # Whoever writes looks again when done.
        task = asyncio.get_running_loop().create_task(self._quietly(target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _quietly(self, target: Target) -> None:
        try:
            await self.flush(target, Rank(min(target.record.rank, int(Rank.BACKGROUND))))
        except InvalidError as error:
            # A defect of ours: said once for every try, and never a crash loop.
            log.error(  # noqa: TRY400 - the API server's message says it all
                "status of %s %s/%s refused: %s", target.resource.kind, target.namespace, target.name, error
            )
        except LeadershipLostError as error:
            log.warning("status of %s %s/%s: %s", target.resource.kind, target.namespace, target.name, error)
        except ApiError as error:
            log.warning(
                "status of %s %s/%s not written yet: %s", target.resource.kind, target.namespace, target.name, error
            )
            self.mark(target, Rank.STATUS, delay=RETRY_SECONDS)

    async def flush(self, target: Target, rank: Rank = Rank.ADMIT) -> bool:
        """Write until the API server has what is meant; False where the object is gone. Raises ApiError otherwise."""
        lock = self._locks.setdefault(target.uid, asyncio.Lock())
        try:
            async with lock:
                target.record.writing = True
                try:
                    return await self._write(target, rank)
                finally:
                    target.record.writing = False
                    target.record.rank = 9
        finally:
            if not lock.locked():
                self._locks.pop(target.uid, None)

    async def _write(self, target: Target, rank: Rank) -> bool:
        conflicts = 0
        while True:
            record = target.record
            meant = record.status
            patch = difference(record.written, meant)
            if not patch:
                metrics.PATCHES_SKIPPED.inc()
                return True
            self._assert_leading()
            try:
                await self._stamp(target, rank)
                version = await self._client.patch_status(
                    target.resource,
                    target.namespace,
                    target.name,
                    uid=target.uid,
                    status=patch,
                    rank=rank,
                    resource_version=str(record.base) if record.base else None,
                )
            except NotFoundError:
                self._gone(target)
                return False
            except ConflictError:
                # Changed by somebody else, or gone and another has its name: read, and judged anew.
                metrics.PATCH_CONFLICTS.labels(target.resource.kind).inc()
                conflicts += 1
                if conflicts > CONFLICTS_MAX:
                    raise
                if not await self._read_again(target, rank):
                    return False
                continue
            record = target.record  # It may have changed hands while the patch was under way.
            record.written = meant
            if version.isdigit():
                record.base = int(version)
            if record.version > record.base and not await self._read_again(target, rank):
                return False  # Whatever came while the patch was under way was not looked at.
            if record.written is meant and record.status is meant:
                return True

    async def _stamp(self, target: Target, rank: Rank) -> None:
        """Write the annotation that an object lacks, before the first status: a copy is known by it. Raises ApiError.

        Where the API server refuses it, the status is written all the same, but for one that a pod is created by.
        """
        record = target.record
        due = getattr(record, "stamp_due", None)
        if not due or (record.unstamped and not record.stamp_needed):
            return
        try:
            version = await self._client.annotate(
                target.resource,
                target.namespace,
                target.name,
                uid=target.uid,
                annotations=due,
                rank=rank,
                resource_version=str(record.base) if record.base else None,
            )
        except (InvalidError, ForbiddenError) as error:
            record.unstamped = True
            if record.stamp_needed:
                raise
            log.warning("%s %s/%s cannot be annotated: %s", target.resource.kind, target.namespace, target.name, error)
            return
        record.stamp = target.uid
        if version.isdigit():
            record.base = int(version)

    async def _read_again(self, target: Target, rank: Rank) -> bool:
        """Take in what the API server has now; False where the object is gone. Raises ApiError."""
        try:
            raw = await self._client.get(target.resource, target.namespace, target.name, rank=rank)
        except NotFoundError:
            raw = {}
        if (raw.get("metadata") or {}).get("uid") != target.uid:
            self._gone(target)  # The watch says so too, soon.
            return False
        self._seen(target, raw)
        return True

    def _assert_leading(self) -> None:
        """A process that was paused may have lost the lead: what it meant to say then is nobody's word now."""
        if not self._leads():
            raise LeadershipLostError("the lease ran out before a write")

    async def drain(self, seconds: float) -> None:
        """Write what is marked, for a clean stop."""
        for due, handle in list(self._later.values()):
            del due
            if not handle.cancelled():
                handle.cancel()
        self._later.clear()
        self.stopped = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)


def difference(old: APIModel, new: APIModel) -> dict[str, Any]:
    """Give the merge patch that turns one status into another: changed fields, lists whole, None for what went."""
    patch: dict[str, Any] = {}
    if old is new:
        return patch
    for name, info in type(new).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before is after or before == after:
            continue
        patch[info.alias or name] = _wire(after)
    return patch


def _wire(value: Any) -> Any:
    if isinstance(value, APIModel):
        # Nulls clear what the stored object may still have.
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, list):
        return [item.to_wire() if isinstance(item, APIModel) else item for item in value]
    if isinstance(value, BaseModel | Mapping):
        return value
    return _Scalar(value=value).model_dump(mode="json")["value"]


class _Scalar(BaseModel):
    value: Any = None
