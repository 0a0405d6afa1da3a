"""Judges what teams have set up: providers' Secrets, what is not Ready, and hints on policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from almoner_cli.check.cluster import Cluster, DeniedError, Json
from almoner_cli.check.findings import Finding, Place, failed, ok, warning
from almoner_cli.check.installation import secret
from almoner_core.contract import LABEL_COMPONENT, RUNNER_COMPONENT

PROVIDERS: Final = {
    "modelproviders": "ModelProvider",
    "toolproviders": "ToolProvider",
    "clustermodelproviders": "ClusterModelProvider",
    "clustertoolproviders": "ClusterToolProvider",
}
JUDGED: Final = {**PROVIDERS, "agents": "Agent", "resourcequotas": "ResourceQuota"}
SHOWN_MAX: Final = 20
_SECRET_REASONS: Final = frozenset({"SecretNotFound"})
_ENFORCE: Final = "pod-security.kubernetes.io/enforce"
_MESSAGE_MAX: Final = 300


def provider_secrets(place: Place) -> Iterator[Finding]:
    """Whether the Secrets that providers name exist, with the key."""
    count, going = 0, _going(place.cluster)
    for plural, kind in PROVIDERS.items():
        for each in _staying(place.cluster, plural, going):
            reference = (each.get("spec") or {}).get("credentials")
            if not reference:
                continue
            count += 1
            found = _secret(place, kind, each, reference)
            if found is not None:
                yield found
    yield ok("providers", f"{count} of them name a Secret")


def _going(cluster: Cluster) -> set[str]:
    """Namespaces that are being deleted: there Secrets may go before what names them."""
    try:
        return {each["metadata"]["name"] for each in cluster.namespaces() if each["metadata"].get("deletionTimestamp")}
    except DeniedError:
        return set()


def _staying(cluster: Cluster, plural: str, going: set[str]) -> list[Json]:
    """Objects that are not on their way out."""
    return [
        each
        for each in cluster.objects(plural)
        if not each["metadata"].get("deletionTimestamp") and each["metadata"].get("namespace") not in going
    ]


def _secret(place: Place, kind: str, provider: Json, reference: Json) -> Finding | None:
    name = provider["metadata"]["name"]
    namespace = provider["metadata"].get("namespace") or place.namespace  # A cluster-scoped one's lies with Almoner.
    purpose = f"the key of {kind} {name}"
    try:
        found = secret(place, "providers", namespace, name=reference["name"], key=reference["key"], purpose=purpose)
    except DeniedError:
        # The operator has looked, and says so.
        ready = _condition(provider, "Ready")
        if ready.get("reason") not in _SECRET_REASONS:
            return None
        return failed(
            "providers", f"{kind} {_named(provider)}: {ready.get('message')}", "create that Secret, with the key"
        )
    return found if found.fix else None


def not_ready(place: Place) -> Iterator[Finding]:
    """What the operator says that it cannot use."""
    found: list[Finding] = []
    count, going = 0, _going(place.cluster)
    for plural, kind in JUDGED.items():
        for each in _staying(place.cluster, plural, going):
            count += 1
            ready = _condition(each, "Ready")
            if ready.get("status") == "False":
                where = _named(each)
                said = f"{ready.get('reason')}: {ready.get('message')}"[:_MESSAGE_MAX]
                fix = f"docs/troubleshooting.md has {ready.get('reason')}"
                found.append(warning("objects", f"{kind} {where} is not Ready: {said}", fix))
    yield from found[:SHOWN_MAX]
    if len(found) > SHOWN_MAX:
        yield warning(
            "objects",
            f"{len(found) - SHOWN_MAX} more are not Ready",
            "kubectl get almoner -A",
        )
    if not found:
        yield ok("objects", f"{count} agents, quotas and providers, none that is not Ready")


def policies(place: Place) -> Iterator[Finding]:
    """Hints: what agents could walk past, and where pods may be more than they need to be."""
    guarded = {each["metadata"]["namespace"] for each in place.cluster.network_policies() if _holds_runners(each)}
    bypassable = sorted(
        _named(each)
        for each in place.cluster.objects("modelproviders")
        if _condition(each, "Bypassable").get("status") == "True" and each["metadata"]["namespace"] not in guarded
    )
    open_to_all = sorted(
        _named(each)
        for each in place.cluster.objects("clustermodelproviders")
        if _condition(each, "Bypassable").get("status") == "True"
    )
    if open_to_all:
        yield warning(
            "policies",
            f"agents can call {_some(open_to_all)} (ClusterModelProvider) past the meter: no credential",
            "give it a credential, or let only namespaces use it whose egress a NetworkPolicy bounds",
        )
    if bypassable:
        yield warning(
            "policies",
            f"agents can call {_some(bypassable)} past the meter: no credential, and no egress NetworkPolicy there",
            "name them in networkPolicy.runnerNamespaces, and leave the model out of networkPolicy.providers",
        )
    used = {each["metadata"]["namespace"] for each in place.cluster.objects("agents")}
    loose = sorted(_loose(place.cluster, used))
    if loose:
        yield warning(
            "policies",
            f"namespaces with agents that do not enforce Pod Security `restricted`: {_some(loose)}",
            f"kubectl label namespace NAME {_ENFORCE}=restricted; runner pods keep to it",
        )
    if not bypassable and not open_to_all and not loose:
        yield ok("policies", "no hint")


def _named(found: Json) -> str:
    """Give an object's namespace and name; the name alone where it is the cluster's."""
    namespace, name = found["metadata"].get("namespace"), found["metadata"]["name"]
    return f"{namespace}/{name}" if namespace else str(name)


def _loose(cluster: Cluster, used: set[str]) -> Iterator[str]:
    for each in cluster.namespaces():
        labels = each["metadata"].get("labels") or {}
        if each["metadata"]["name"] in used and labels.get(_ENFORCE) != "restricted":
            yield each["metadata"]["name"]


def _holds_runners(policy: Json) -> bool:
    """Whether a NetworkPolicy says where runner pods may go."""
    spec: dict[str, Any] = policy.get("spec") or {}
    wanted = (spec.get("podSelector") or {}).get("matchLabels") or {}
    return "Egress" in (spec.get("policyTypes") or []) and (
        not spec.get("podSelector") or wanted.get(LABEL_COMPONENT) == RUNNER_COMPONENT
    )


def _condition(found: Json, kind: str) -> Json:
    conditions = (found.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN_MAX])
    return shown + (f" and {len(names) - SHOWN_MAX} more" if len(names) > SHOWN_MAX else "")
