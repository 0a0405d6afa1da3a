"""The demo's way to the API server: apply objects, and take a picture of all of them.

Role: the few calls that a user makes with kubectl. Boundary: an ordinary client, without ways of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from kubernetes import client, config

from almoner_core.api.base import GROUP, VERSION
from almoner_dev.demo.observe import Picture, picture

_CORE: Final = {"Namespace": "namespaces", "Secret": "secrets"}
_KINDS: Final = {
    "Agent": "agents",
    "Execution": "executions",
    "TrainingJob": "trainingjobs",
    "ResourceQuota": "resourcequotas",
    "ModelProvider": "modelproviders",
    "ToolProvider": "toolproviders",
}
_FIELD_MANAGER: Final = "almoner-demo"
CALL_SECONDS_MAX: Final = 30


class ApplyError(RuntimeError):
    """The API server did not take an object; the message is its own."""


class Cluster:
    """A client of one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str) -> None:
        self._api = config.new_client_from_config(str(kubeconfig))
        self._objects = client.CustomObjectsApi(self._api)
        self._namespace = namespace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()

    def apply(self, document: Mapping[str, Any]) -> None:
        """Apply one object, server-side, as `kubectl apply --server-side` does."""
        kind, metadata = document["kind"], document["metadata"]
        prefix = "/api/v1" if kind in _CORE else f"/apis/{GROUP}/{VERSION}"
        where = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        path = f"{prefix}{where}/{_CORE.get(kind) or _KINDS[kind]}/{metadata['name']}"
        headers = {"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], path, "PATCH", document)
        answer = self._api.call_api(
            "PATCH",
            f"{self._api.configuration.host}{path}?fieldManager={_FIELD_MANAGER}&fieldValidation=Strict",
            header_params=headers,
            body=document,
            _request_timeout=CALL_SECONDS_MAX,
        )
        content = answer.read()
        if not 200 <= answer.status < 300:
            said = json.loads(content).get("message", answer.reason)
            raise ApplyError(f"{kind} {metadata['name']}: {said}")

    def picture(self) -> Picture:
        """Give everything as it stands."""
        return picture(self._list("executions"), self._list("trainingjobs"), self._list("resourcequotas"))

    def _list(self, plural: str) -> list[dict[str, Any]]:
        answer = self._objects.list_namespaced_custom_object(
            GROUP, VERSION, self._namespace, plural, limit=500, _request_timeout=CALL_SECONDS_MAX
        )
        items: list[dict[str, Any]] = answer["items"]
        return items
