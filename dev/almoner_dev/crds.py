"""Installs the generated CustomResourceDefinitions in a cluster, and waits until they are served.

Role: the one way in which tests, the demo and `make up` install the API. Boundary: knows where `crds/` lies and how the
API server says that a definition is established; nothing of what is in the definitions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes import config
from kubernetes.client import ApiClient, ApiException

FIELD_MANAGER: Final = "almoner-install"
PATH: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REQUEST_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.1


class CRDError(RuntimeError):
    """A definition is missing, refused, or not established in time; the message says which and why."""


def crds_directory() -> Path:
    """Find the folder of the generated definitions: at the root of the checkout, or beside this package in a wheel."""
    here = Path(__file__).resolve()
    for folder in (here.parents[2] / "crds", here.parents[1] / "almoner_crds"):
        if any(folder.glob("*.yaml")):
            return folder
    raise CRDError("no generated CRDs found: run `python -m almoner_dev.generate` in the checkout")


def load_crds() -> list[dict[str, Any]]:
    """Read the definitions, in order of their file names."""
    return [yaml.safe_load(path.read_text()) for path in sorted(crds_directory().glob("*.yaml"))]


def install_crds(kubeconfig: str | Path, *, seconds: float = 60.0) -> list[str]:
    """Apply every definition (server-side, forced) and wait until all are established. Gives their names.

    May be called again at any time. Raises CRDError with the API server's own words.
    """
    definitions = load_crds()
    with config.new_client_from_config(str(kubeconfig)) as api:
        for definition in definitions:
            _apply(api, definition)
        deadline = time.monotonic() + seconds
        for definition in definitions:
            _wait_established(api, definition["metadata"]["name"], deadline)
            _wait_served(api, definition, deadline)
    return [definition["metadata"]["name"] for definition in definitions]


def _apply(api: ApiClient, definition: Mapping[str, Any]) -> None:
    name = definition["metadata"]["name"]
    try:
        _request(api, "PATCH", f"{PATH}/{name}?fieldManager={FIELD_MANAGER}&force=true", definition)
    except ApiException as error:
        raise CRDError(f"{name} is refused: {_message(error)}") from error


def _wait_established(api: ApiClient, name: str, deadline: float) -> None:
    while True:
        status = _request(api, "GET", f"{PATH}/{name}").get("status") or {}
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        if conditions.get("NonStructuralSchema", {}).get("status") == "True":
            raise CRDError(f"{name}: {conditions['NonStructuralSchema']['message']}")
        if all(conditions.get(each, {}).get("status") == "True" for each in ("NamesAccepted", "Established")):
            return
        if time.monotonic() > deadline:
            raise CRDError(f"{name} is not established in time: {json.dumps(list(conditions.values()))}")
        time.sleep(POLL_SECONDS)


def _wait_served(api: ApiClient, definition: Mapping[str, Any], deadline: float) -> None:
    """Wait until the kind can be listed: established definitions are served a moment later."""
    spec = definition["spec"]
    path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}?limit=1"
    while True:
        try:
            _request(api, "GET", path)
        except ApiException as error:
            if error.status != 404 or time.monotonic() > deadline:
                raise CRDError(f"{definition['metadata']['name']} is not served: {_message(error)}") from error
            time.sleep(POLL_SECONDS)
        else:
            return


def _request(api: ApiClient, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Accept": "application/json"}
    if method == "PATCH":
        headers["Content-Type"] = "application/apply-patch+yaml"
    api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
    response = api.call_api(
        method, api.configuration.host + path, header_params=headers, body=body, _request_timeout=REQUEST_SECONDS
    )
    content = response.read()
    if not 200 <= response.status < 300:
        raise ApiException(status=response.status, reason=response.reason, body=content.decode(errors="replace"))
    parsed: dict[str, Any] = json.loads(content)
    return parsed


def _message(error: ApiException) -> str:
    """Give the API server's words, or the HTTP reason where there are none."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
