"""The benchmarks' own client of the API server: creates in bulk, watches, and reads what the server counted.

Role: load and yardsticks that do not lean on the product under test: bulk creates with a bounded number in flight,
a watch that notes when objects were first seen, the API server's own counters, a pod's token.

Boundary: plain objects over HTTPS with an administrator's kubeconfig of a local control plane.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import yaml

IN_FLIGHT: Final = 64
REQUEST_SECONDS: Final = 60.0
TRIES_MAX: Final = 6
BACKOFF_SECONDS: Final = 0.1
MUTATING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE", "DELETECOLLECTION", "APPLY"})
WATCH_LINE_BYTES_MAX: Final = 4 * 1024 * 1024
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
COUNTER: Final = re.compile(r"^apiserver_request_total\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


class ApiError(RuntimeError):
    """The API server refused a request of the benchmark; `status` is HTTP's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


@dataclass(slots=True)
class Writes:
    """Mutating requests that the API server counted, by verb and resource."""

    by_kind: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_kind.values())

    def since(self, before: Writes) -> Writes:
        """Give what was added after `before`, the most frequent first."""
        more = {kind: number - before.by_kind.get(kind, 0) for kind, number in self.by_kind.items()}
        return Writes(dict(sorted(((k, n) for k, n in more.items() if n), key=lambda pair: -pair[1])))


class Kube:
    """A client of one API server. Use as a context manager."""

    def __init__(self, kubeconfig: Path, *, connections: int = IN_FLIGHT + 16) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.url: str = cluster["server"]
        self.token: str = user["token"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._ssl = ssl.create_default_context(cadata=authority)
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, ssl=self._ssl),
            headers={"Authorization": f"Bearer {self.token}", "User-Agent": "almoner-bench"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request and give the answer's JSON; 429 and 503 are tried again. Raises ApiError otherwise."""
        assert self._session is not None
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data is not None else {}
        for attempt in range(TRIES_MAX):
            async with self._session.request(method, self.url + path, data=data, headers=headers) as response:
                if response.status < 300:
                    return await response.json()
                if response.status not in (429, 503) or attempt == TRIES_MAX - 1:
                    raise ApiError(response.status, await response.text())
            await asyncio.sleep(BACKOFF_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    async def text(self, path: str) -> str:
        """Get a page that is not JSON."""
        assert self._session is not None
        async with self._session.get(self.url + path) as response:
            if response.status != 200:
                raise ApiError(response.status, await response.text())
            return await response.text()

    async def create_all(
        self, items: Sequence[tuple[str, dict[str, Any]]], *, note: Callable[[int], None] | None = None
    ) -> None:
        """Create objects (collection path, body), 64 in flight. `note` hears the index just before it is sent."""
        left = iter(enumerate(items))

        async def worker() -> None:
            for index, (path, body) in left:
                if note is not None:
                    note(index)
                await self.request("POST", path, body)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(IN_FLIGHT, len(items))):
                group.create_task(worker())

    async def writes(self) -> Writes:
        """Read the API server's own counter of mutating requests (answered ones, refusals included)."""
        found = Writes()
        for labels, value in COUNTER.findall(await self.text("/metrics")):
            named = dict(LABEL.findall(labels))
            if named.get("verb") in MUTATING:
                resource = "/".join(part for part in (named.get("resource"), named.get("subresource")) if part)
                kind = f"{named['verb']} {resource}"
                found.by_kind[kind] = found.by_kind.get(kind, 0) + int(float(value))
        return found

    async def watch(self, path: str, *, metadata_only: bool = False) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Give (type, object) of every change from now on; starts again where the server ends a watch.

        `metadata_only` spares server and benchmark the rest of the object.
        """
        assert self._session is not None
        headers = {"Accept": METADATA_ONLY} if metadata_only else {}
        listed = await self.request("GET", f"{path}?limit=1")
        version = listed["metadata"]["resourceVersion"]
        while True:
            query = f"{path}?watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds=3000"
            timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
            async with self._session.get(
                self.url + query, timeout=timeout, headers=headers, read_bufsize=WATCH_LINE_BYTES_MAX
            ) as response:
                if response.status != 200:
                    raise ApiError(response.status, await response.text())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ApiError(int(event["object"].get("code", 0)), str(event["object"].get("message")))
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield event["type"], event["object"]


async def raw_writes_per_s(
    kubeconfig: Path, *, seconds: float, namespace: str = "default"
) -> tuple[float, list[float]]:
    """Give ConfigMap creates a second with 64 in flight, and their latencies in ms: the API server's yardstick."""
    latencies: list[float] = []
    numbers = iter(range(10**9))
    async with Kube(kubeconfig) as kube:
        path = f"/api/v1/namespaces/{namespace}/configmaps"
        end = time.monotonic() + seconds
        begun = time.monotonic()

        async def worker() -> None:
            while time.monotonic() < end:
                name = f"bench-raw-{next(numbers)}"
                sent = time.monotonic()
                await kube.request("POST", path, {"metadata": {"name": name}, "data": {"shape": "x" * 512}})
                latencies.append((time.monotonic() - sent) * 1000)

        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(worker())
        rate = len(latencies) / (time.monotonic() - begun)
        await kube.request("DELETE", path)
    return rate, latencies
