"""The end of an agent's log, kept where its pod is not: after a timeout, a cancellation, a drain, any end.

Role: what the kubelet puts into the pod's last status is best (of a container that ended with an error: at most 2 KiB,
its very last lines). An agent that ends well when it is told to stop leaves nothing there; so where a pod is deleted,
by the operator or by anybody else, the operator reads the end of the log, beside the deletion and never before it; and
where an attempt ended otherwise and its pod is still there, before its end is written. Whatever fails only costs the
tail: nothing waits longer than five seconds for a kubelet that does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from almoner_core.contract import AGENT_CONTAINER
from almoner_core.text import LOG_TAIL_BYTES_MAX, clean
from almoner_operator.attempts import started_at
from almoner_operator.errors import ApiError
from almoner_operator.kubernetes import KubernetesClient
from almoner_operator.records import Pod

log = logging.getLogger(__name__)

READ_SECONDS: Final = 5.0
READ_LINES: Final = 80
READ_BYTES: Final = 64 * 1024
"""Read of the last lines at most: longer ones are cut at their end, as the API server does it."""
AT_ONCE_MAX: Final = 8
KEPT_MAX: Final = 1024


class LogTails:
    """Reads ends of logs, a few at once, and keeps each until its attempt is over."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)
        self._kept: dict[str, str] = {}
        self._reading: set[str] = set()

    async def read(self, pod: Pod) -> None:
        """Read the end of a pod's log while its kubelet still has it. Takes READ_SECONDS at most, waiting included."""
        if started_at(pod.raw) is None or pod.uid in self._kept or pod.uid in self._reading:
            return
        self._reading.add(pod.uid)
        try:
            async with asyncio.timeout(READ_SECONDS), self._slots:
                text = await self._client.log_tail(
                    pod.namespace, pod.name, AGENT_CONTAINER, lines=READ_LINES, bytes_max=READ_BYTES
                )
        except (ApiError, TimeoutError, OSError) as error:
            log.info("the log of pod %s/%s is not read: %s", pod.namespace, pod.name, error or "no answer in time")
            return
        finally:
            self._reading.discard(pod.uid)
        while len(self._kept) >= KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        self._kept[pod.uid] = tail_of(text)

    async def fill(self, pod: Pod | None) -> None:
        """Read the end of the log of a pod that is over and still there, unless it is known already."""
        if pod is not None and not pod.raw.get("gone") and not said_last(pod.raw):
            await self.read(pod)

    def take(self, pod: Pod | None) -> str | None:
        """Give the end of the log of a pod that is over, and forget it; None where there is none."""
        if pod is None:
            return None
        kept = self._kept.pop(pod.uid, "")
        return said_last(pod.raw) or kept or None


def said_last(pod: Mapping[str, Any]) -> str:
    """What the agent container left in the pod's status."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        if container.get("name") == AGENT_CONTAINER:
            ended = (container.get("state") or {}).get("terminated") or {}
            return tail_of(str(ended.get("message") or ""))
    return ""


def tail_of(text: str) -> str:
    """The last whole lines that fit what is kept, as text that every database takes."""
    text = clean(text).replace("\0", "\ufffd").strip()
    data = text.encode()
    if len(data) <= LOG_TAIL_BYTES_MAX:
        return text
    cut = data[-LOG_TAIL_BYTES_MAX:].decode("utf-8", "ignore")
    _, newline, rest = cut.partition("\n")
    return rest if newline else cut
