"""Kubernetes events: what a person reads with `kubectl describe`, without flooding the API server.

Role: equal events of one object are one event: the second makes a series of it, whose count and time are brought up to
date at most once a minute. All are paced, warnings before milestones, and dropped (and counted) past a bound. Nothing
waits for an event, and none is sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from almoner_core.api.base import API_VERSION
from almoner_core.text import EVENT_NOTE_BYTES_MAX, short_bytes
from almoner_operator import metrics
from almoner_operator.errors import AlreadyExistsError, ApiError
from almoner_operator.kubernetes import EVENTS, KubernetesClient
from almoner_operator.limiter import Rank, TokenBucket

log = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 600.0
SERIES_SECONDS: Final = 60.0
"""So often at most the count of a series is written."""
REMEMBERED_MAX: Final = 4096
QUEUE_MAX: Final = 256
RATE: Final = 5.0
BURST: Final = 50.0
NAME_CHARS_MAX: Final = 200


@dataclass(slots=True)
class _Told:
    """An event that was told: when last, under which name, how often; when its count was last written."""

    key: tuple[str, str, str]
    at: float
    namespace: str
    name: str
    count: int = 1
    written_at: float = 0.0
    sent: bool = False


@dataclass(frozen=True, slots=True)
class _Sending:
    """What is to be sent: a new event (`body`), or, where that is None, the count of a series."""

    told: _Told
    body: dict[str, Any] | None = None


CLUSTER_EVENTS: Final = "default"
"""Where the API server takes events of objects that have no namespace."""


class EventRecorder:
    """Queues events and sends them in the background (`run`)."""

    def __init__(self, client: KubernetesClient, *, instance: str) -> None:
        self._client = client
        self._instance = instance[:128] or "almoner-operator"
        self._queue: deque[_Sending] = deque()
        self._milestones: deque[_Sending] = deque()
        self._told: OrderedDict[tuple[str, str, str], _Told] = OrderedDict()
        self._bucket = TokenBucket(RATE, BURST)
        self._something = asyncio.Event()

    def tell(
        self,
        kind: str,
        namespace: str,
        name: str,
        uid: str,
        *,
        reason: str,
        note: str,
        warning: bool = False,
        once: str = "",
        milestone: bool = False,
    ) -> None:
        """Queue an event about an object of ours. `reason` is CamelCase, `note` is for people.

        `once` names what happened: the API server takes one event of that name, whoever tells it again. A `milestone`
        is what goes as it should: it is sent when nothing else is to be said.
        """
        now = time.monotonic()
        queue = self._milestones if milestone else self._queue
        key = (uid, reason, note)
        known = self._told.get(key)
        if known is not None and now - known.at < REPEAT_SECONDS:
            if not once:
                self._again(known, now, queue)
            return
        if len(queue) >= QUEUE_MAX:
            metrics.EVENTS_DROPPED.inc()
            return
        body = self._body(kind, namespace, name, uid, reason, note, warning=warning)
        if once:
            digest = hashlib.sha256(f"{uid}/{once}".encode()).hexdigest()[:16]
            body["metadata"]["name"] = _named(name, digest)
        told = self._told[key] = _Told(key, now, body["metadata"]["namespace"], body["metadata"]["name"])
        self._told.move_to_end(key)
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)
        queue.append(_Sending(told, body))
        self._something.set()

    def _again(self, known: _Told, now: float, queue: deque[_Sending], *, count: int = 1) -> None:
        """Count an event that was told before, and have the count written where that was not done for a while."""
        known.at = now
        known.count += count
        if not known.sent or now - known.written_at < SERIES_SECONDS or len(queue) >= QUEUE_MAX:
            return
        known.written_at = now
        queue.append(_Sending(known))
        self._something.set()

    def _body(  # noqa: PLR0917 - fields of one object
        self, kind: str, namespace: str, name: str, uid: str, reason: str, note: str, *, warning: bool
    ) -> dict[str, Any]:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": _named(name, uuid.uuid4().hex[:16]), "namespace": namespace or CLUSTER_EVENTS},
            "eventTime": _moment(),
            "reportingController": "almoner.dev/operator",
            "reportingInstance": self._instance,
            "action": reason,
            "reason": reason,
            "note": short_bytes(note, EVENT_NOTE_BYTES_MAX),
            "type": "Warning" if warning else "Normal",
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": kind,
                **({"namespace": namespace} if namespace else {}),
                "name": name,
                "uid": uid,
            },
        }

    async def run(self) -> None:
        """Send what is queued, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._something.wait()
            self._something.clear()
            while self._queue or self._milestones:
                wait = self._bucket.take(loop.time())
                if wait:
                    await asyncio.sleep(wait)
                await self._send((self._queue or self._milestones).popleft())

    async def _send(self, sending: _Sending) -> None:
        told = sending.told
        try:
            if sending.body is not None:
                await self._client.create(EVENTS, told.namespace, sending.body, rank=Rank.BACKGROUND)
                told.sent = True
                if told.count > 1:  # It was told again while it was on its way.
                    self._again(told, time.monotonic(), self._queue, count=0)
            else:
                series = {"series": {"count": told.count, "lastObservedTime": _moment()}}
                await self._client.merge(EVENTS, told.namespace, told.name, series, rank=Rank.BACKGROUND)
        except AlreadyExistsError:
            log.debug("event %s/%s was told already", told.namespace, told.name)
        except ApiError as error:
            log.debug("event not sent: %s", error)
            metrics.EVENTS_DROPPED.inc()
            if self._told.get(told.key) is told:
                del self._told[told.key]  # Where it comes again it is told anew.


def _moment() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _named(name: str, suffix: str) -> str:
    """Name an event of an object: where the name is cut, not before a dot or at a dash, which names may not have."""
    return f"{name[:NAME_CHARS_MAX].rstrip('-.')}.{suffix}"
