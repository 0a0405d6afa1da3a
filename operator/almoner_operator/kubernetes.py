"""The one place that talks to the API server, outside kopf's watches.

Role: few and small writes decide how many executions a second an operator can run. So: plain aiohttp on kept-alive
connections, bounded concurrency and pace (limiter.py), merge patches on /status of only what changed, answers cut to
the metadata, retries where a retry is safe. Of Secrets only the metadata is read, so the operator sees no provider key;
the one with the ledger's certificate, which it makes, is read whole.

Boundary: speaks Kubernetes' REST, knows nothing of quotas or executions.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp

from almoner_core.api.base import GROUP, VERSION
from almoner_core.nesting import loads
from almoner_operator import metrics
from almoner_operator.credentials import Credentials
from almoner_operator.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from almoner_operator.limiter import Limiter, Rank

FIELD_MANAGER: Final = "almoner-operator"
REQUEST_SECONDS: Final = 30.0
LIST_PAGE: Final = 500
TRIES_MAX: Final = 6
BACKOFF_SECONDS: Final = 0.1
BACKOFF_SECONDS_MAX: Final = 5.0
MESSAGE_CHARS_MAX: Final = 500
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
MERGE_PATCH: Final = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the API: its path and its plural. Where it is not `namespaced`, objects have no namespace."""

    api: str
    plural: str
    kind: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Give the URL path of a collection, an object or its subresource."""
        parts = [self.api]
        if namespace is not None and self.namespaced:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


_OURS = f"/apis/{GROUP}/{VERSION}"
AGENTS: Final = Resource(_OURS, "agents", "Agent")
EXECUTIONS: Final = Resource(_OURS, "executions", "Execution")
TRAINING_JOBS: Final = Resource(_OURS, "trainingjobs", "TrainingJob")
QUOTAS: Final = Resource(_OURS, "resourcequotas", "ResourceQuota")
PROVIDERS: Final = Resource(_OURS, "modelproviders", "ModelProvider")
TOOL_PROVIDERS: Final = Resource(_OURS, "toolproviders", "ToolProvider")
CLUSTER_PROVIDERS: Final = Resource(_OURS, "clustermodelproviders", "ClusterModelProvider", namespaced=False)
CLUSTER_TOOL_PROVIDERS: Final = Resource(_OURS, "clustertoolproviders", "ClusterToolProvider", namespaced=False)
PODS: Final = Resource("/api/v1", "pods", "Pod")
SECRETS: Final = Resource("/api/v1", "secrets", "Secret")
CONFIG_MAPS: Final = Resource("/api/v1", "configmaps", "ConfigMap")
REVISIONS: Final = Resource("/apis/apps/v1", "controllerrevisions", "ControllerRevision")
EVENTS: Final = Resource("/apis/events.k8s.io/v1", "events", "Event")
LEASES: Final = Resource("/apis/coordination.k8s.io/v1", "leases", "Lease")
OURS: Final = (
    AGENTS,
    EXECUTIONS,
    TRAINING_JOBS,
    QUOTAS,
    PROVIDERS,
    TOOL_PROVIDERS,
    CLUSTER_PROVIDERS,
    CLUSTER_TOOL_PROVIDERS,
)
BY_KIND: Final = {each.kind: each for each in (*OURS, PODS)}


class KubernetesClient:
    """An asynchronous client for one API server. Use as a context manager.

    `concurrent_max` requests are under way at once; they start at most `rate` a second after a first `burst`.
    """

    def __init__(
        self, credentials: Credentials, *, concurrent_max: int = 48, rate: float = 1000.0, burst: float = 2000.0
    ) -> None:
        self._credentials = credentials
        self._limiter = Limiter(concurrent_max=concurrent_max, rate=rate, burst=burst)
        self._concurrent_max = concurrent_max
        self._session: aiohttp.ClientSession | None = None
        self._random = random.Random()  # noqa: S311 - jitter

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._credentials.ssl_context(), limit=self._concurrent_max + 4)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            headers={"User-Agent": FIELD_MANAGER, "Accept": "application/json"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return self._limiter.waiting

    # -- reading -------------------------------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str, name: str, *, rank: Rank = Rank.STATUS) -> dict[str, Any]:
        """Read one object. Raises NotFoundError."""
        return await self._request("GET", resource.path(namespace, name), rank=rank)

    async def log_tail(self, namespace: str, name: str, container: str, *, lines: int, bytes_max: int) -> str:
        """Read the last lines of a container's log. Asked once: a log is nothing to insist on. Raises ApiError."""
        assert self._session is not None, "use the client as a context manager"
        query = {"container": container, "tailLines": str(lines), "limitBytes": str(bytes_max)}
        authorization = self._credentials.authorization()
        headers = {"Authorization": authorization} if authorization else {}
        url = self._credentials.server + PODS.path(namespace, name, "log")
        try:
            async with (
                self._limiter.slot(Rank.BACKGROUND),
                self._session.get(url, params=query, headers={**headers, "Accept": "*/*"}) as answer,
            ):
                # Bounded here too: what answers for the kubelet need not heed the limit.
                content = await answer.content.read(bytes_max)
                while len(content) < bytes_max and (more := await answer.content.read(bytes_max - len(content))):
                    content += more
                if answer.status >= 300:
                    raise _error(answer.status, content, None)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, type(error).__name__, f"GET {url}: {error}"[:MESSAGE_CHARS_MAX]) from error
        return content.decode("utf-8", "replace")

    async def get_metadata(self, resource: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        """Read an object's metadata alone (so never a Secret's data), or None where there is no such object."""
        try:
            found = await self._request(
                "GET", resource.path(namespace, name), rank=Rank.STATUS, headers={"Accept": METADATA_ONLY}
            )
        except NotFoundError:
            return None
        metadata: dict[str, Any] = found.get("metadata") or {}
        return metadata

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str | None = None,
        metadata_only: bool = False,
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """List objects page by page. A list that expires on the way starts anew, so an object may come twice."""
        token: str | None = None
        while True:
            query: dict[str, str] = {"limit": str(LIST_PAGE)}
            if token:
                query["continue"] = token
            if label_selector:
                query["labelSelector"] = label_selector
            headers = {"Accept": METADATA_LIST} if metadata_only else {}
            try:
                page = await self._request(
                    "GET", resource.path(namespace), rank=Rank.STATUS, query=query, headers=headers
                )
            except ApiError as error:
                if error.status == 410 and token:
                    token = None
                    continue
                raise
            yield page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return

    async def served(self, api: str) -> set[str]:
        """Give the plurals of the resources that discovery lists under a group's version, such as /apis/apps/v1."""
        try:
            found = await self._request("GET", api, rank=Rank.STATUS)
        except NotFoundError:
            return set()
        return {str(each.get("name")) for each in found.get("resources") or []}

    # -- writing -------------------------------------------------------------------------------------

    async def create(
        self,
        resource: Resource,
        namespace: str,
        body: Mapping[str, Any],
        *,
        rank: Rank = Rank.ADMIT,
    ) -> dict[str, Any]:
        """Create an object and give its metadata. Raises AlreadyExistsError: look whose it is."""
        created = await self._create(resource, namespace, body, rank, headers={"Accept": METADATA_ONLY})
        metadata: dict[str, Any] = created.get("metadata") or {}
        return metadata

    async def create_whole(self, resource: Resource, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object and give what became of it: the cluster may add to it. Raises AlreadyExistsError."""
        return await self._create(resource, namespace, body, Rank.ADMIT)

    async def _create(
        self,
        resource: Resource,
        namespace: str,
        body: Mapping[str, Any],
        rank: Rank,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        return await self._request(
            "POST",
            resource.path(namespace),
            rank=rank,
            body=body,
            query={"fieldManager": FIELD_MANAGER},
            headers=headers,
        )

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        status: Mapping[str, Any],
        rank: Rank = Rank.STATUS,
        resource_version: str | None = None,
    ) -> str:
        """Merge into the status of that very object (by uid) and give its new resourceVersion.

        Lists are replaced whole, None deletes a field. Raises NotFoundError when the object is gone and ConflictError
        when another of its name took its place, or when `resource_version` is given and it has changed.
        """
        metadata: dict[str, Any] = {"uid": uid}
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        metrics.PATCHES.labels(resource.kind).inc()
        patched = await self._request(
            "PATCH",
            resource.path(namespace, name, "status"),
            rank=rank,
            body={"metadata": metadata, "status": status},
            query={"fieldManager": FIELD_MANAGER},
            headers={"Accept": METADATA_ONLY, "Content-Type": MERGE_PATCH},
        )
        return str((patched.get("metadata") or {}).get("resourceVersion", ""))

    async def annotate(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str,
        annotations: Mapping[str, str],
        rank: Rank = Rank.STATUS,
        resource_version: str | None = None,
    ) -> str:
        """Add annotations to that very object (by uid) and give its new resourceVersion.

        Raises NotFoundError and ConflictError as `patch_status` does.
        """
        metadata: dict[str, Any] = {"uid": uid, "annotations": dict(annotations)}
        if resource_version is not None:
            metadata["resourceVersion"] = resource_version
        patched = await self._request(
            "PATCH",
            resource.path(namespace, name),
            rank=rank,
            body={"metadata": metadata},
            query={"fieldManager": FIELD_MANAGER},
            headers={"Accept": METADATA_ONLY, "Content-Type": MERGE_PATCH},
        )
        return str((patched.get("metadata") or {}).get("resourceVersion", ""))

    async def merge(
        self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any], *, rank: Rank
    ) -> None:
        """Merge into an object, whatever its version. Raises NotFoundError when it is gone."""
        await self._request(
            "PATCH",
            resource.path(namespace, name),
            rank=rank,
            body=body,
            query={"fieldManager": FIELD_MANAGER},
            headers={"Accept": METADATA_ONLY, "Content-Type": MERGE_PATCH},
        )

    async def replace(self, resource: Resource, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace an object; the resourceVersion in `body` must still be current, or ConflictError is raised."""
        return await self._request("PUT", resource.path(namespace, name), rank=Rank.LEASE, body=body)

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        rank: Rank = Rank.ADMIT,
    ) -> bool:
        """Start deleting that very object (by uid, where given); False where it was gone already."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._request("DELETE", resource.path(namespace, name), rank=rank, body=options)
        except NotFoundError:
            return False
        except ConflictError:  # Another object of that name: the one that was meant is gone.
            return False
        return True

    # -- the wire ------------------------------------------------------------------------------------

    async def _request(
        self,
        method: str,
        path: str,
        *,
        rank: Rank,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send, and send again what was throttled or not answered.

        Every write here may be repeated: creations have fixed names, patches and deletions name a uid.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        problem: ApiError | None = None
        for attempt in range(TRIES_MAX):
            if attempt:
                await asyncio.sleep(self._backoff(attempt, problem))
            try:
                asked = time.perf_counter()
                async with self._limiter.slot(rank):
                    metrics.API_WAIT_SECONDS.observe(time.perf_counter() - asked)
                    with metrics.API_SECONDS.labels(method).time():
                        return await self._once(method, path, data, query, headers)
            except ApiError as error:
                if not _worth_a_retry(error):
                    raise
                problem = error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = UnavailableError(0, type(error).__name__, f"{method} {path}: {error}"[:MESSAGE_CHARS_MAX])
            metrics.API_RETRIES.inc()
        assert problem is not None
        raise UnavailableError(problem.status, problem.reason, problem.message)

    async def _once(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        assert self._session is not None, "use the client as a context manager"
        sent = dict(headers or {})
        authorization = self._credentials.authorization()
        if authorization:
            sent["Authorization"] = authorization
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        async with self._session.request(
            method, self._credentials.server + path, data=data, params=query, headers=sent
        ) as answer:
            content = await answer.read()
            if answer.status < 300:
                decoded: dict[str, Any] = loads(content) if content else {}
                return decoded
            raise _error(answer.status, content, answer.headers.get("Retry-After"))

    def _backoff(self, attempt: int, problem: ApiError | None) -> float:
        longest = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2 ** (attempt - 1))
        asked = float((problem.details if problem else {}).get("retryAfterSeconds") or 0)
        wait: float = longest * (0.5 + self._random.random() / 2)
        return max(min(asked, BACKOFF_SECONDS_MAX), wait)


def _worth_a_retry(error: ApiError) -> bool:
    # 401: the token file may be being replaced. A quota of core Kubernetes that is full answers 403: not here.
    return error.status in (401, 429, 500, 502, 503, 504)


def _error(status: int, content: bytes, retry_after: str | None) -> ApiError:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = {}
    if not isinstance(answer, dict):
        answer = {}
    reason = str(answer.get("reason") or "")
    message = str(answer.get("message") or content[:200].decode(errors="replace"))[:MESSAGE_CHARS_MAX]
    details = answer.get("details") if isinstance(answer.get("details"), dict) else {}
    assert isinstance(details, dict)
    if retry_after and retry_after.isdigit():
        details = {**details, "retryAfterSeconds": int(retry_after)}
    if status == 404:
        return NotFoundError(status, reason, message, details)
    if status == 409:
        kind = AlreadyExistsError if reason == "AlreadyExists" else ConflictError
        return kind(status, reason, message, details)
    if status in (400, 415, 422):
        # A uid that differs from the stored object's is reported as an invalid change of an immutable field.
        if reason == "Invalid" and "metadata.uid" in message:
            return ConflictError(status, reason, message, details)
        return InvalidError(status, reason, message, details)
    if status == 403:
        return ForbiddenError(status, reason, message, details)
    return ApiError(status, reason, message, details)
