"""Kubernetes events: what a person reads with `kubectl describe`, without flooding the API server.

Role: equal events of one object are told once in ten minutes; all are paced, and dropped (and counted) past a bound.
Nothing waits for an event, and none is sent twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections import OrderedDict, deque
from datetime import UTC, datetime
from typing import Any, Final

from almoner_core.api.base import API_VERSION
from almoner_core.text import EVENT_NOTE_BYTES_MAX, short_bytes
from almoner_operator import metrics
from almoner_operator.errors import ApiError
from almoner_operator.kubernetes import EVENTS, KubernetesClient
from almoner_operator.limiter import Rank, TokenBucket

log = logging.getLogger(__name__)

REPEAT_SECONDS: Final = 600.0
REMEMBERED_MAX: Final = 4096
QUEUE_MAX: Final = 256
RATE: Final = 5.0
BURST: Final = 50.0
NAME_CHARS_MAX: Final = 200


class EventRecorder:
    """Queues events and sends them in the background (`run`)."""

    def __init__(self, client: KubernetesClient, *, instance: str) -> None:
        self._client = client
        self._instance = instance[:128] or "almoner-operator"
        self._queue: deque[tuple[str, dict[str, Any]]] = deque()
        self._told: OrderedDict[tuple[str, str, str], float] = OrderedDict()
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
    ) -> None:
        """Queue an event about an object of ours. `reason` is CamelCase, `note` is for people.

        `once` names what happened: the API server takes one event of that name, whoever tells it again.
        """
        now = time.monotonic()
        key = (uid, reason, note)
        if now - self._told.get(key, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        if len(self._queue) >= QUEUE_MAX:
            metrics.EVENTS_DROPPED.inc()
            return
        self._told[key] = now
        if len(self._told) > REMEMBERED_MAX:
            self._told.popitem(last=False)
        body = self._body(kind, namespace, name, uid, reason, note, warning=warning)
        if once:
            digest = hashlib.sha256(f"{uid}/{once}".encode()).hexdigest()[:16]
            body["metadata"]["name"] = _named(name, digest)
        self._queue.append((namespace, body))
        self._something.set()

    def _body(  # noqa: PLR0917 - fields of one object
        self, kind: str, namespace: str, name: str, uid: str, reason: str, note: str, *, warning: bool
    ) -> dict[str, Any]:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": _named(name, uuid.uuid4().hex[:16]), "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "almoner.dev/operator",
            "reportingInstance": self._instance,
            "action": reason,
            "reason": reason,
            "note": short_bytes(note, EVENT_NOTE_BYTES_MAX),
            "type": "Warning" if warning else "Normal",
            "regarding": {"apiVersion": API_VERSION, "kind": kind, "namespace": namespace, "name": name, "uid": uid},
        }

    async def run(self) -> None:
        """Send what is queued, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._something.wait()
            self._something.clear()
            while self._queue:
                namespace, body = self._queue.popleft()
                wait = self._bucket.take(loop.time())
                if wait:
                    await asyncio.sleep(wait)
                try:
                    await self._client.create(EVENTS, namespace, body, rank=Rank.BACKGROUND)
                except ApiError as error:
                    log.debug("event not sent: %s", error)
                    metrics.EVENTS_DROPPED.inc()


def _named(name: str, suffix: str) -> str:
    """Name an event of an object: where the name is cut, not before a dot or at a dash, which names may not have."""
    return f"{name[:NAME_CHARS_MAX].rstrip('-.')}.{suffix}"
