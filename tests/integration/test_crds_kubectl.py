"""The custom resources as a person meets them: kubectl explain, get, apply."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from almoner_core.api.registry import KINDS
from almoner_dev import binaries
from almoner_dev.controlplane import ControlPlane
from almoner_dev.crds import install_crds
from tests.support.polling import until

Kubectl = Callable[..., subprocess.CompletedProcess[str]]
API_VERSION = "almoner.dev/v1alpha1"


@pytest.fixture(scope="module")
def kubectl(control_plane: ControlPlane) -> Kubectl:
    install_crds(control_plane.kubeconfig)
    program = shutil.which("kubectl") or str(binaries.find(["kubectl"]).path("kubectl"))

    def run(*arguments: str, stdin: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "--kubeconfig", str(control_plane.kubeconfig), *arguments],
            input=stdin if stdin is None or isinstance(stdin, str) else yaml.safe_dump(stdin),
            check=check,
            capture_output=True,
            text=True,
            timeout=60,
        )

    # Discovery and the OpenAPI document follow the definitions after a moment.
    until(
        lambda: run("explain", "modelprovider.spec", check=False).returncode == 0, 30, "kubectl explain to know the API"
    )
    return run


def execution(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "Execution",
        "metadata": {"name": name},
        "spec": {"agentRef": {"name": "support"}, "input": {"text": "hello"}, **spec},
    }


EXPLAINED = {
    "execution.spec.limits": [
        "Tightens the agent's limits, never widens them.",
        "maxCost",
        "Most US dollars, such as '0.25'. A string or an integer, never a float.",
        "maxTurns\t<integer>",
        "Most turns of the agent loop.",
        "timeoutSeconds\t<integer>",
        "Most seconds of running, over all attempts.",
    ],
    "execution.spec.input": ["exactly one of text, json, configMapKeyRef", "text\t<string>"],
    "execution.status.phase": ["ENUM: Pending Queued Admitted Running", "Where the execution stands"],
    "agent.spec.runner.env": ["name\t<string> -required-", "the runner's own"],
    "trainingjob.spec.parallelism": ["Pods at once."],
    "modelprovider.spec.prices": ["US dollars per million input tokens."],
    "resourcequotas.spec.budget --api-version=almoner.dev/v1alpha1": ["IANA time zone", "amount"],
    "agent": ["An Agent says what may run"],
}


@pytest.mark.parametrize("path", EXPLAINED)
def test_explain_reads_well(path: str, kubectl: Kubectl) -> None:
    shown = kubectl("explain", *path.split()).stdout
    # kubectl breaks lines: compare words.
    words = " ".join(shown.split())
    for expected in EXPLAINED[path]:
        assert " ".join(expected.split()) in words, shown


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_short_names_and_the_category_find_the_kind(kind: Any, kubectl: Kubectl, namespace: str) -> None:
    for name in (*kind.short_names, f"{kind.plural}.almoner.dev", f"{kind.singular}.almoner.dev"):
        shown = kubectl("get", name, "-n", namespace)
        assert "No resources found" in shown.stderr
    listed = kubectl("api-resources", "--categories=almoner", "--no-headers", "--cached=false").stdout
    assert f"{kind.plural} " in listed


def test_quota_still_means_the_core_kind(kubectl: Kubectl, namespace: str) -> None:
    core = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "core"}, "spec": {"hard": {"pods": 3}}}
    ours = {
        "apiVersion": API_VERSION,
        "kind": "ResourceQuota",
        "metadata": {"name": "ours"},
        "spec": {"hard": {"executions": 3}},
    }
    for manifest in (core, ours):
        kubectl("apply", "-n", namespace, "-f", "-", stdin=manifest)
    assert kubectl("get", "quota", "-n", namespace, "-o", "name").stdout.split() == ["resourcequota/core"]
    assert kubectl("get", "aq", "-n", namespace, "-o", "name").stdout.split() == ["resourcequota.almoner.dev/ours"]
    assert kubectl("get", "almoner", "-n", namespace, "-o", "name").stdout.split() == ["resourcequota.almoner.dev/ours"]


def test_columns_show_where_things_stand(kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "-n", namespace, "-f", "-", stdin=execution("ask", priority=7))
    status = {
        "phase": "Queued",
        "owner": "team-a",
        "queue": {"position": 3},
        "usage": {"cost": "0.000123", "tokens": {"total": 456}},
        "message": "waiting for 2 GPUs",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "reason": "WaitingForQuota",
                "message": "waiting for 2 GPUs",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    patch = json.dumps({"status": status})
    kubectl("patch", "execution", "ask", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    header, row = kubectl("get", "ex", "-n", namespace).stdout.splitlines()
    assert header.split() == ["NAME", "AGENT", "PHASE", "REASON", "PRIORITY", "POSITION", "COST", "AGE"]
    assert row.split()[:7] == ["ask", "support", "Queued", "WaitingForQuota", "7", "3", "0.000123"]
    wide = kubectl("get", "ex", "-n", namespace, "-o", "wide").stdout
    for words in ("OWNER", "team-a", "TOKENS", "456"):
        assert words in wide
    assert "waiting for 2 GPUs" in wide


def test_refusals_name_the_field_and_the_way_out(kubectl: Kubectl, namespace: str) -> None:
    bad = execution("ask", priority=11, retry={"backoffSeconds": 20, "backoffMaxSeconds": 10}, limits={"maxCost": "-1"})
    refused = kubectl("apply", "-n", namespace, "-f", "-", stdin=bad, check=False)
    assert refused.returncode != 0
    assert "spec.priority" in refused.stderr
    assert "spec.limits.maxCost" in refused.stderr
    assert "spec.retry.backoffSeconds: Invalid value" in refused.stderr
    assert "must not exceed backoffMaxSeconds" in refused.stderr


def test_an_edit_of_what_is_immutable_says_what_to_do(kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "-n", namespace, "-f", "-", stdin=execution("ask"))
    refused = kubectl("apply", "-n", namespace, "-f", "-", stdin=execution("ask", owner="other"), check=False)
    assert "spec.owner: Forbidden: spec.owner is immutable" in refused.stderr
    assert "create a new object instead" in refused.stderr
    kubectl("apply", "-n", namespace, "-f", "-", stdin=execution("ask", suspend=True))
    shown = kubectl("get", "ex", "ask", "-n", namespace, "-o", "jsonpath={.spec.suspend} {.metadata.generation}").stdout
    assert shown == "true 2"
