"""Judges whether operator and ledger have the rights that they need: those of deploy/rbac.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Final

from almoner_cli.check.findings import Finding, Place, failed, ok

FILE: Final = "rights.json"
"""Generated from deploy/rbac.yaml: who needs what."""
SHOWN_MAX: Final = 12


def needed() -> list[dict[str, str]]:
    """Give every right: service account, scope (`cluster` or `namespace`), group, resource, subresource, verb, name."""
    text = resources.files("almoner_cli.check").joinpath(FILE).read_text(encoding="utf-8")
    found: list[dict[str, str]] = json.loads(text)
    return found


def _some(what: list[str]) -> str:
    more = f" and {len(what) - SHOWN_MAX} more" if len(what) > SHOWN_MAX else ""
    return ", ".join(what[:SHOWN_MAX]) + more


def rights(place: Place) -> Iterator[Finding]:
    """Ask the API server of each right."""
    lacking: dict[str, list[str]] = {}
    count = 0
    for right in needed():
        count += 1
        asked = {name: right[name] for name in ("group", "resource", "subresource", "verb", "name") if right.get(name)}
        if right["scope"] == "namespace":
            asked["namespace"] = place.namespace
        user = f"system:serviceaccount:{place.namespace}:{right['account']}"
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{place.namespace}", "system:authenticated"]
        if not place.cluster.may(user, groups, asked):
            resource = "/".join(part for part in (right["resource"], right.get("subresource")) if part)
            whole = f"{resource}.{right['group']}" if right["group"] else resource
            lacking.setdefault(right["account"], []).append(f"{right['verb']} {whole}")
    for account, what in lacking.items():
        yield failed(
            "rights",
            f"service account {place.namespace}/{account} may not {_some(what)}",
            "apply the roles of the installed version: helm upgrade, or kubectl apply -f deploy/rbac.yaml",
        )
    if not lacking:
        yield ok("rights", f"operator and ledger have all {count} rights that they need")
