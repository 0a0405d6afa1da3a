"""What `almoner check` asks the API server, through the official client: plain JSON, read only.

Role: one method a question; what is not there is None, what may not be looked at raises DeniedError. Boundary: judges
nothing. Every answer is bounded: so many objects of a kind, so much of a log, so many seconds.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from almoner_core.api.base import GROUP, VERSION

SECONDS: Final = 15
PAGE: Final = 500
OBJECTS_MAX: Final = 5000
"""Objects of one kind that are looked at."""
LOG_LINES: Final = 40
LOG_BYTES: Final = 32_768
CERTIFICATES: Final = ("tls.crt", "ca.crt")
"""What is public of a Secret with a certificate."""
Json = dict[str, Any]


class ClusterError(Exception):
    """The cluster cannot be asked; the message says why and what to correct."""


class DeniedError(Exception):
    """Who asks may not ask that; the message says what."""


class Cluster:
    """One API server."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self._core = client.CoreV1Api(api)

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str | None) -> Cluster:
        """Read a kubeconfig: the given one, `$KUBECONFIG`, or the one in the home; in a pod, its service account.

        Raises ClusterError where there is none that can be used.
        """
        # What is tried again is no news for a person: the error at the end says it.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        try:
            if kubeconfig is None and context is None:
                config.load_config()
                return cls(client.ApiClient())
            file = str(kubeconfig) if kubeconfig is not None else None
            return cls(config.new_client_from_config(config_file=file, context=context))
        except (config.ConfigException, OSError) as error:
            raise ClusterError(f"no kubeconfig that can be used: {error}; give --kubeconfig FILE") from error

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._api.configuration.host)

    # -- questions -----------------------------------------------------------------------------------

    def version(self) -> str:
        """Kubernetes' version, such as v1.34.4."""
        found = self._ask("get /version", client.VersionApi(self._api).get_code)
        return str((found or {}).get("gitVersion", ""))

    def definition(self, name: str) -> Json | None:
        """A CustomResourceDefinition."""
        read = client.ApiextensionsV1Api(self._api).read_custom_resource_definition
        return self._ask("get customresourcedefinitions", read, name)

    def deployment(self, namespace: str, name: str) -> Json | None:
        """A Deployment."""
        read = client.AppsV1Api(self._api).read_namespaced_deployment
        return self._ask("get deployments", read, name, namespace)

    def pods(self, namespace: str, selector: str) -> list[Json]:
        """Pods by their labels."""
        found = self._ask("list pods", self._core.list_namespaced_pod, namespace, label_selector=selector, limit=PAGE)
        return list((found or {}).get("items") or [])

    def log_tail(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> str:
        """The last lines of a container's log; empty where there is none (any more)."""
        try:
            answer = self._core.read_namespaced_pod_log(
                pod,
                namespace,
                container=container,
                previous=previous,
                tail_lines=LOG_LINES,
                limit_bytes=LOG_BYTES,
                _preload_content=False,
                _request_timeout=SECONDS,
            )
        except (ApiException, HTTPError):
            return ""
        return bytes(answer.data).decode("utf-8", "replace") if answer.status < 300 else ""

    def secret_keys(self, namespace: str, name: str) -> frozenset[str] | None:
        """The names of a Secret's keys; its values are dropped at once."""
        found = self._ask(f"get secrets in {namespace}", self._core.read_namespaced_secret, name, namespace)
        return None if found is None else frozenset(found.get("data") or {})

    def certificates(self, namespace: str, name: str) -> dict[str, str] | None:
        """A Secret's certificates by file, and the names of its other keys without their values, which are dropped."""
        found = self._ask(f"get secrets in {namespace}", self._core.read_namespaced_secret, name, namespace)
        if found is None:
            return None
        data = found.get("data") or {}
        return {key: _text(value) if key in CERTIFICATES else "" for key, value in data.items()}

    def claim(self, namespace: str, name: str) -> Json | None:
        """A PersistentVolumeClaim."""
        read = self._core.read_namespaced_persistent_volume_claim
        return self._ask("get persistentvolumeclaims", read, name, namespace)

    def lease(self, namespace: str, name: str) -> tuple[Json | None, datetime | None]:
        """A Lease, and what time it is at the API server: this machine's clock may be another."""
        read = client.CoordinationV1Api(self._api).read_namespaced_lease
        headers: dict[str, str] = {}
        found = self._ask("get leases", read, name, namespace, heads=headers)
        date = headers.get("Date")
        return found, parsedate_to_datetime(date) if date else None

    def namespaces(self) -> list[Json]:
        """Namespaces, with their labels."""
        found = self._ask("list namespaces", self._core.list_namespace, limit=OBJECTS_MAX)
        return list((found or {}).get("items") or [])

    def network_policies(self) -> list[Json]:
        """NetworkPolicies of the whole cluster."""
        listed = client.NetworkingV1Api(self._api).list_network_policy_for_all_namespaces
        found = self._ask("list networkpolicies", listed, limit=OBJECTS_MAX)
        return list((found or {}).get("items") or [])

    def objects(self, plural: str) -> list[Json]:
        """Almoner's objects of one kind in every namespace, as many as are looked at; none where it is not served."""
        listed = client.CustomObjectsApi(self._api).list_cluster_custom_object
        items: list[Json] = []
        more: dict[str, Any] = {}
        while len(items) < OBJECTS_MAX:
            page = self._ask(f"list {plural}.{GROUP}", listed, GROUP, VERSION, plural, limit=PAGE, **more)
            items += (page or {}).get("items") or []
            token = ((page or {}).get("metadata") or {}).get("continue")
            if not token:
                break
            more = {"_continue": token}
        return items[:OBJECTS_MAX]

    def may(self, user: str, groups: list[str], attributes: Mapping[str, str]) -> bool:
        """Whether somebody may do something: a SubjectAccessReview."""
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": dict(attributes)},
        }
        review = client.AuthorizationV1Api(self._api).create_subject_access_review
        found = self._ask("create subjectaccessreviews", review, body)
        return bool(((found or {}).get("status") or {}).get("allowed"))

    # -- asking --------------------------------------------------------------------------------------

    def _ask(
        self,
        what: str,
        call: Callable[..., Any],
        *arguments: Any,
        heads: dict[str, str] | None = None,
        **more: Any,
    ) -> Json | None:
        """Ask one question; None where there is no such object. Raises DeniedError, ClusterError."""
        try:
            answer = call(*arguments, _preload_content=False, _request_timeout=SECONDS, **more)
            status, data = int(answer.status), bytes(answer.data)
            if heads is not None:
                heads.update({str(name).title(): str(value) for name, value in answer.headers.items()})
        except ApiException as error:
            status, data = int(error.status or 0), str(error.body or error.reason or "").encode()
        except HTTPError as error:
            raise ClusterError(
                f"the API server {self.server} does not answer: {error}; see that the kubeconfig is the right one"
            ) from error
        if status == 404:
            return None
        if status == 403:
            raise DeniedError(f"this kubeconfig may not {what}")
        if status == 401:
            raise ClusterError(f"the API server {self.server} does not know who asks (401): log in again")
        if not 200 <= status < 300:
            said = data.decode("utf-8", "replace")[:200]
            raise ClusterError(f"the API server {self.server} answers {status} to {what}: {said}")
        found: Json = json.loads(data)
        return found


def _text(value: str) -> str:
    try:
        return base64.b64decode(value).decode("utf-8", "replace")
    except binascii.Error:
        return ""
