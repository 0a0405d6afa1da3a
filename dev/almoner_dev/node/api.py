"""The few calls to the API server that a process node needs, over aiohttp.

Role: read a kubeconfig, send a request, follow a watch. Boundary: no knowledge of pods or nodes.
Why not a generated client: five verbs on plain dictionaries are smaller than its models, and the node
passes most of what it reads straight through.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

Json = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
REQUEST_SECONDS = 20
WATCH_SECONDS = 300
LINE_BYTES_MAX = 8 * 1024 * 1024
TRIES_MAX = 5


class ApiError(RuntimeError):
    """The API server answered with an error status; `code` is its HTTP status, 0 when it was not reached."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code = code

    @property
    def worth_retrying(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.code in (0, 429) or self.code >= 500


def _material(entry: Mapping[str, Any], name: str, base: Path) -> bytes | None:
    if data := entry.get(f"{name}-data"):
        return base64.b64decode(data)
    if path := entry.get(name):
        return (base / str(path)).read_bytes()
    return None


def _named(config: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    for entry in config.get(f"{kind}s") or []:
        if entry.get("name") == name:
            value: Mapping[str, Any] = entry[kind]
            return value
    raise ValueError(f"kubeconfig: there is no {kind} named {name!r}")


class Api:
    """A connection to one API server. Use as an async context manager."""

    def __init__(self, url: str, *, token: str | None, tls: ssl.SSLContext | bool) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Self:
        """Read the current context. Raises ValueError, OSError when the file says too little."""
        config = yaml.safe_load(path.read_text())
        if not isinstance(config, dict) or not config.get("current-context"):
            raise ValueError(f"{path} is no kubeconfig with a current-context")
        context = _named(config, "context", config["current-context"])
        cluster = _named(config, "cluster", context["cluster"])
        user = _named(config, "user", context["user"])
        url = str(cluster["server"])
        tls: ssl.SSLContext | bool = True
        if url.startswith("https:"):
            authority = _material(cluster, "certificate-authority", path.parent)
            tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
            if cluster.get("insecure-skip-tls-verify"):
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            certificate = _material(user, "client-certificate", path.parent)
            key = _material(user, "client-key", path.parent)
            if certificate and key:
                with tempfile.NamedTemporaryFile() as pem:
                    pem.write(certificate + b"\n" + key)
                    pem.flush()
                    tls.load_cert_chain(pem.name)
        token = user.get("token")
        if not token and user.get("tokenFile"):
            token = (path.parent / user["tokenFile"]).read_text().strip()
        return cls(url, token=token, tls=tls)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=64)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, read_bufsize=LINE_BYTES_MAX)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        retry: bool = True,
    ) -> Json:
        """Send one request and return the object; what is worth retrying is tried five times. Raises ApiError."""
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return await self._once(method, path, body, params, content_type)
            except ApiError as error:
                if not (retry and error.worth_retrying) or attempt == TRIES_MAX:
                    raise
            await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")

    async def _once(
        self, method: str, path: str, body: Json | None, params: Mapping[str, str] | None, content_type: str
    ) -> Json:
        assert self._session is not None, "use `async with Api(...)`"
        try:
            async with self._session.request(
                method,
                self.url + path,
                params=params,
                data=json.dumps(body) if body is not None else None,
                headers={"Content-Type": content_type},
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            ) as answer:
                text = await answer.text()
                if answer.status >= 400:
                    raise ApiError(answer.status, _message(text))
                value: Json = json.loads(text)
                return value
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{method} {path}: {error or type(error).__name__}") from error

    async def get(self, path: str, **params: str) -> Json:
        """Read an object or a list."""
        return await self.request("GET", path, params=params)

    async def patch(self, path: str, body: Json, content_type: str = MERGE_PATCH) -> Json:
        """Patch an object; merge patch unless said otherwise."""
        return await self.request("PATCH", path, body, content_type=content_type)

    async def watch(self, path: str, resource_version: str, **params: str) -> AsyncIterator[Json]:
        """Yield watch events until the server ends the watch. Raises ApiError (410: list again)."""
        assert self._session is not None, "use `async with Api(...)`"
        query = {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            **params,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS, sock_read=WATCH_SECONDS + 30)
        try:
            async with self._session.get(self.url + path, params=query, timeout=timeout) as answer:
                if answer.status >= 400:
                    raise ApiError(answer.status, _message(await answer.text()))
                async for line in answer.content:
                    event: Json = json.loads(line)
                    if event.get("type") == "ERROR":
                        raise ApiError(int(event["object"].get("code", 0)), str(event["object"].get("message")))
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, f"watch {path}: {error or type(error).__name__}") from error


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message", text))[:1000]
    except (ValueError, AttributeError):
        return text[:1000]
