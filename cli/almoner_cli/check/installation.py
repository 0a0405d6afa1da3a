"""Judges the installation: Kubernetes, the definitions, the two Deployments and their pods, the database's Secret.

Why a pod is not ready is taken from where it says so: its scheduling, its containers' state, and the last warning in
its log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from almoner_cli.check.cluster import Json
from almoner_cli.check.findings import Finding, Place, failed, ok, warning
from almoner_core import support
from almoner_core.api.base import VERSION
from almoner_core.api.crd import all_definitions

OPERATOR: Final = "almoner-operator"
LEDGER: Final = "almoner-ledger"
DATABASE: Final = "ALMONER_LEDGER_DATABASE"
_LABEL: Final = "app.kubernetes.io/version"
_NO_START: Final = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
_NO_CREATION: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_SAID_MAX: Final = 300
_INSTALL: Final = "helm upgrade --install almoner charts/almoner (docs/install.md)"
_AT_WORK: Final = {
    OPERATOR: "what it waits for is in its log and /readyz (docs/troubleshooting.md, `The operator does not start`)",
    LEDGER: "see that the database's URL is right, that the database takes connections and writes, and that no "
    "NetworkPolicy stands between (docs/troubleshooting.md, `The ledger does not start`)",
}


def kubernetes(place: Place) -> Iterator[Finding]:
    """Whether this Kubernetes is supported."""
    text = place.cluster.version()
    problem = support.problem(text)
    if problem is None:
        yield ok("Kubernetes", f"{text} is supported")
    elif problem.too_old:
        yield failed("Kubernetes", problem.says, problem.fix)
    else:
        yield warning("Kubernetes", problem.says, problem.fix)


def definitions(place: Place) -> Iterator[Finding]:
    """Whether every CustomResourceDefinition is there, served, and of this version."""
    wrong = 0
    for plural, wanted in all_definitions().items():
        name = str(wanted["metadata"]["name"])
        found = place.cluster.definition(name)
        if found is None:
            wrong += 1
            yield failed(
                "definitions", f"{name} is not installed", "kubectl apply --server-side -f crds/, or " + _INSTALL
            )
            continue
        conditions = {each["type"]: each for each in (found.get("status") or {}).get("conditions") or []}
        established = conditions.get("Established", {})
        if established.get("status") != "True":
            wrong += 1
            said = next((each.get("message") for each in conditions.values() if each.get("status") == "False"), "")
            yield failed("definitions", f"{name} is not served: {said}", f"kubectl describe crd {name}")
        elif differs(wanted, found):
            wrong += 1
            yield failed(
                "definitions",
                f"{name} ({plural}) is of another version than this command ({place.version})",
                "kubectl apply --server-side -f crds/ of the installed version, or " + _INSTALL,
            )
    if not wrong:
        yield ok("definitions", f"all {len(all_definitions())} are installed and of version {place.version}")


def differs(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a stored definition lacks the version that is wanted, or has another schema of it."""
    stored = {each["name"]: each for each in found["spec"]["versions"]}
    if VERSION not in stored or not stored[VERSION].get("served"):
        return True
    (version,) = wanted["spec"]["versions"]
    return bool(version["schema"]["openAPIV3Schema"] != stored[VERSION]["schema"]["openAPIV3Schema"])


def operator(place: Place) -> Iterator[Finding]:
    """Whether the operator is there and ready, and one leads."""
    yield from _part(place, OPERATOR)
    if place.cluster.deployment(place.namespace, OPERATOR) is None:
        return
    lease, moment = place.cluster.lease(place.namespace, OPERATOR)
    yield leading(lease, moment)


def leading(lease: Json | None, moment: datetime | None) -> Finding:
    """Judge the Lease of the election, as it was at that moment."""
    fix = "see the operator's pods: none took or kept the Lease " + OPERATOR
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    if not holder or not renewed:
        return failed("operator", "none leads, so nothing is admitted", fix)
    seconds = int(spec.get("leaseDurationSeconds") or 15)
    late = (moment - datetime.fromisoformat(renewed)) / timedelta(seconds=1) if moment is not None else 0.0
    if late > 2 * seconds:
        return failed("operator", f"none leads: {holder} did, and was last heard {late:.0f} s ago", fix)
    return ok("operator", f"{holder} leads")


def ledger(place: Place) -> Iterator[Finding]:
    """Whether the ledger is there, and ready: its readiness probe asks the database."""
    yield from _part(place, LEDGER)


def database(place: Place) -> Iterator[Finding]:
    """Whether the Secret with the database's URL has the key, or the volume of a trial is bound."""
    found = place.cluster.deployment(place.namespace, LEDGER)
    if found is None:
        return
    pod = found["spec"]["template"]["spec"]
    named = set()
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if variable["name"] == DATABASE and reference:
                named.add((str(reference["name"]), str(reference["key"])))
    for name, key in sorted(named):
        yield secret(place, "database", place.namespace, name=name, key=key, purpose="the database's URL")
    for volume in pod.get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim:
            yield _claim(place.cluster.claim(place.namespace, claim), claim)


def secret(place: Place, about: str, namespace: str, *, name: str, key: str, purpose: str) -> Finding:
    """Judge whether a Secret has a key. Raises DeniedError."""
    keys = place.cluster.secret_keys(namespace, name)
    make = f"kubectl create secret generic {name} --namespace {namespace} --from-literal={key}=..."
    if keys is None:
        return failed(about, f"there is no Secret {namespace}/{name}, which should hold {purpose}", make)
    if key not in keys:
        has = ", ".join(sorted(keys)) or "none"
        says = f"Secret {namespace}/{name} has no key {key}, which should hold {purpose}; its keys: {has}"
        return failed(about, says, f"kubectl edit secret {name} --namespace {namespace}, or name the right key")
    return ok(about, f"Secret {namespace}/{name} has the key {key}")


def _claim(claim: Json | None, name: str) -> Finding:
    if claim is None:
        return failed("database", f"there is no claim {name} for the books", _INSTALL)
    phase = (claim.get("status") or {}).get("phase")
    if phase != "Bound":
        wanted = claim["spec"].get("storageClassName") or "the default"
        fix = "set ledger.storage.storageClassName to one of `kubectl get storageclass`"
        return failed("database", f"the claim {name} is {phase}, not Bound (StorageClass: {wanted})", fix)
    return ok("database", f"the books are a file on the volume of claim {name}: a trial")


def versions(place: Place) -> Iterator[Finding]:
    """Whether operator, ledger, runner pods and this command are of one version."""
    found = {name: place.cluster.deployment(place.namespace, name) for name in (OPERATOR, LEDGER)}
    there = {name: each for name, each in found.items() if each is not None}
    if len(there) < len(found):
        return
    labels = {name: str((each["metadata"].get("labels") or {}).get(_LABEL, "none")) for name, each in there.items()}
    images = {name: _image(each) for name, each in there.items()}
    if len(set(labels.values())) > 1 or len(set(images.values())) > 1:
        says = "; ".join(f"{name}: {labels[name]}, image {images[name]}" for name in there)
        yield failed("versions", f"operator and ledger are not of one version: {says}", _INSTALL)
        return
    (version,) = set(labels.values())
    runner = _runner_image(there[OPERATOR])
    if runner is not None and _tag(runner) != _tag(images[OPERATOR]):
        says = f"runner pods have the image {runner}, the operator {images[OPERATOR]}"
        yield warning("versions", says, "set image.runner.tag and image.operator.tag alike, or leave both empty")
    elif version != place.version:
        says = f"{version} is installed, and this command is {place.version}"
        yield warning("versions", says, f"use the command of version {version}: what it expects may differ")
    else:
        yield ok("versions", f"everything is of version {version}")


def _part(place: Place, name: str) -> Iterator[Finding]:
    about = name.removeprefix("almoner-")
    found = place.cluster.deployment(place.namespace, name)
    if found is None:
        says = f"there is no Deployment {name} in namespace {place.namespace}"
        yield failed(about, says, _INSTALL + ", or give --namespace")
        return
    wanted, ready = int(found["spec"].get("replicas") or 0), int((found.get("status") or {}).get("readyReplicas") or 0)
    if wanted == 0:
        yield failed(about, "it is scaled to 0", f"kubectl scale --replicas=1 deployment/{name} -n {place.namespace}")
        return
    if ready >= wanted:
        yield ok(about, f"{ready} of {wanted} ready")
        return
    pods = place.cluster.pods(place.namespace, f"app.kubernetes.io/name={name}")
    reasons = [trouble for pod in pods if (trouble := _trouble(place, pod, name)) is not None]
    if not pods:
        says = next(
            (
                str(each.get("message"))
                for each in (found.get("status") or {}).get("conditions") or []
                if each["type"] == "ReplicaFailure" and each["status"] == "True"
            ),
            "it has no pods",
        )
        reasons = [(says[:_SAID_MAX], f"kubectl describe deployment,replicaset -n {place.namespace}")]
    says, fix = reasons[0] if reasons else ("its pods are starting", f"kubectl get pods -n {place.namespace} -w")
    judged = warning if ready else failed
    yield judged(about, f"{ready} of {wanted} ready: {says}", fix)


def _trouble(place: Place, pod: Json, part: str) -> tuple[str, str] | None:
    """Say why a pod is not ready, and what to do; None where it is."""
    status, name = pod.get("status") or {}, pod["metadata"]["name"]
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        said = str(scheduled.get("message", ""))[:_SAID_MAX]
        return (
            f"no node takes pod {name}: {said}",
            "give it room, or set nodeSelector, tolerations, resources or the volume",
        )
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = (each.get("state") or {}).get("waiting") or {}
        reason, said = str(waiting.get("reason", "")), str(waiting.get("message", ""))[:_SAID_MAX]
        if reason in _NO_START:
            return (
                f"pod {name}: {reason}: {said}",
                "set image.registry, image.operator.tag and image.pullSecrets to what the cluster can pull",
            )
        if reason in _NO_CREATION:
            return f"pod {name}: {reason}: {said}", "create the Secret or key that it names"
        ended = (each.get("lastState") or {}).get("terminated") or {}
        if reason == "CrashLoopBackOff" or (ended and not each.get("ready")):
            log = place.cluster.log_tail(place.namespace, name, each["name"], previous=True)
            last = complaint(log) or "it says nothing"
            return f"pod {name}: container {each['name']} ends again and again: {last}", _AT_WORK[part]
    for each in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        if (each.get("state") or {}).get("running") and not each.get("ready"):
            last = complaint(place.cluster.log_tail(place.namespace, name, each["name"]))
            return f"pod {name} is not ready: {last or 'it says nothing in its log'}", _AT_WORK[part]
    return f"pod {name} is {status.get('phase', 'Pending')}", f"kubectl describe pod {name} -n {place.namespace}"


def complaint(log: str) -> str:
    """Give the last line of a log that complains, else the last that is no JSON, cut; empty where there is none."""
    last = plain = ""
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            plain = line.strip() or plain
            continue
        if isinstance(entry, dict) and str(entry.get("level", "")).lower() in {"warning", "error", "critical"}:
            last = str(entry.get("message", ""))
    return (last or plain)[:_SAID_MAX]


def _image(deployment: Json) -> str:
    return str(deployment["spec"]["template"]["spec"]["containers"][0].get("image", ""))


def _runner_image(deployment: Json) -> str | None:
    arguments = deployment["spec"]["template"]["spec"]["containers"][0].get("args") or []
    return next((each.partition("=")[2] for each in arguments if each.startswith("--runner-image=")), None)


def _tag(image: str) -> str:
    found = re.search(r"(?::([^:/@]+))?(?:@.*)?$", image)
    return (found[1] if found else None) or "latest"
