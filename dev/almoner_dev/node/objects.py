"""What pods refer to: Secrets, ConfigMaps and service account tokens, each asked for at most so often.

Role: a small cache before the API server, shared by all pods of a node. Boundary: reads, and asks for
tokens; writes nothing. Why a cache and not watches: a development node follows changes within seconds,
and one poll per object is less machinery than one watch per object.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import NamedTuple

from almoner_dev.node.api import Api, ApiError, Json

OBJECT_SECONDS = 3.0
OBJECTS_MAX = 2000
_PLURAL = {"Secret": "secrets", "ConfigMap": "configmaps"}


class Token(NamedTuple):
    """A service account token and the monotonic second at which it should be replaced."""

    value: str
    refresh_at: float


class Objects:
    """Reads with a memory of three seconds."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[tuple[str, str, str], tuple[float, Json | None]] = {}
        self._locks: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def read(self, kind: str, namespace: str, name: str) -> Json | None:
        """A Secret or ConfigMap, None where there is none. Raises ApiError when the server cannot say."""
        key = (kind, namespace, name)
        if len(self._known) > OBJECTS_MAX:
            self._known.clear()
            self._locks = {k: lock for k, lock in self._locks.items() if lock.locked()}
        async with self._locks.setdefault(key, asyncio.Lock()):
            known = self._known.get(key)
            if known is not None and time.monotonic() - known[0] < OBJECT_SECONDS:
                return known[1]
            try:
                found = await self._api.get(f"/api/v1/namespaces/{namespace}/{_PLURAL[kind]}/{name}")
            except ApiError as error:
                if error.code != 404:
                    raise
                value = None
            else:
                value = {**found, "kind": kind}
            self._known[key] = (time.monotonic(), value)
            return value

    async def token(self, pod: Json, audience: str | None, seconds: int) -> Token:
        """A token of the pod's service account, bound to the pod. Raises ApiError."""
        metadata = pod["metadata"]
        account = pod["spec"].get("serviceAccountName") or "default"
        spec: Json = {
            "expirationSeconds": seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
        }
        if audience:
            spec["audiences"] = [audience]
        answer = await self._api.request(
            "POST",
            f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        )
        status = answer["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"])
        lifetime = (expires - datetime.now(expires.tzinfo)).total_seconds()
        # As the kubelet: at 80 % of its life, and never later than after a day.
        return Token(status["token"], time.monotonic() + min(0.8 * lifetime, 86_400.0))
