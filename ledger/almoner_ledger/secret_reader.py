"""Reads Secrets of the ledger's own namespace: their labels and data, never anything else's.

Role: the only place where the ledger sees a Secret. What is read is kept for a few seconds in memory, so that a burst
of pods is one request, and a key that was rotated is soon the one that is handed over. Boundary: which Secret may be
looked at at all is the operator's word (granted_keys), and whether its label lets it be handed over is provider_keys'.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from almoner_ledger.kubernetes import IN_CLUSTER, Access, KubernetesUnavailableError

READ_SECONDS: Final = 5
ANSWER_BYTES_MAX: Final = 2 * 1024 * 1024
"""A Secret has at most a mebibyte, a third more as Base64."""
FRESH_SECONDS: Final = 5.0
CACHED_MAX: Final = 64
AT_ONCE_MAX: Final = 8
DEFAULT_NAMESPACE: Final = "almoner-system"


@dataclass(frozen=True, slots=True)
class Seen:
    """A Secret as it was read. Its data are never shown."""

    labels: dict[str, str]
    data: dict[str, bytes] = field(repr=False)


class SecretReader:
    """Reads Secrets of one namespace; of the pod's own where none is named. Use it from one event loop."""

    def __init__(self, access: Access, namespace: str | None = None) -> None:
        self._access = access
        self.namespace = namespace or own_namespace()
        self._session: aiohttp.ClientSession | None = None
        self._cached: dict[str, tuple[float, Seen | None]] = {}
        self._under_way: dict[str, asyncio.Task[Seen | None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE_MAX)

    async def close(self) -> None:
        """Close the connections and forget what was read."""
        self._cached.clear()
        if self._session is not None:
            await self._session.close()

    async def read(self, name: str) -> Seen | None:
        """Give a Secret, at most FRESH_SECONDS old; None where there is none. Raises KubernetesUnavailableError."""
        oldest = time.monotonic() - FRESH_SECONDS
        self._cached = {each: known for each, known in self._cached.items() if known[0] >= oldest}
        if (known := self._cached.get(name)) is not None:
            return known[1]
        task = self._under_way.get(name)
        if task is None:
            task = self._under_way[name] = asyncio.create_task(self._read(name))
            task.add_done_callback(lambda _: self._under_way.pop(name, None))
        return await asyncio.shield(task)

    async def _read(self, name: str) -> Seen | None:
        asked = time.monotonic()
        async with self._slots:
            status, content = await self._ask(name)
        if status == 404:
            seen = None
        elif status == 200:
            seen = _seen(content)
        else:
            fix = f": grant the ledger get on secrets in {self.namespace}" if status == 403 else ""
            raise KubernetesUnavailableError(f"reading a Secret answered {status}{fix}")
        if len(self._cached) < CACHED_MAX:
            self._cached[name] = (asked, seen)
        return seen

    async def _ask(self, name: str) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=READ_SECONDS))
        path = f"/api/v1/namespaces/{quote(self.namespace, safe='')}/secrets/{quote(name, safe='')}"
        try:
            async with self._session.get(
                self._access.server + path,
                headers=self._access.authorization(),
                ssl=self._access.tls if self._access.tls is not None else True,
                allow_redirects=False,
            ) as answer:
                content = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    content += chunk
                    if len(content) > ANSWER_BYTES_MAX:
                        raise KubernetesUnavailableError("reading a Secret: the answer is too large")
                return answer.status, bytes(content)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise KubernetesUnavailableError(f"reading a Secret failed: {type(error).__name__}") from None


def own_namespace() -> str:
    """Give the namespace of the pod that this runs in; almoner-system outside a cluster."""
    try:
        return (IN_CLUSTER / "namespace").read_text(encoding="utf-8").strip() or DEFAULT_NAMESPACE
    except OSError:
        return DEFAULT_NAMESPACE


def _seen(content: bytes) -> Seen:
    """Read the API server's answer. Its content goes into no error: it holds keys."""
    try:
        document: Any = json.loads(content)
        labels = {str(name): str(value) for name, value in (document["metadata"].get("labels") or {}).items()}
        data = {str(key): base64.b64decode(value) for key, value in (document.get("data") or {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        raise KubernetesUnavailableError("reading a Secret: the answer is none") from None
    return Seen(labels, data)
