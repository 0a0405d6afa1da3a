"""The release on a real node: Helm's own test, the network policies, and an upgrade and a rollback while agents run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from kubernetes import client

from almoner_dev import gotools
from tests.support.installed import ROLLOUT, ROOT, SYSTEM, Installation, ended, kubectl
from tests.support.polling import until
from tests.support.restricted import Pods

SECONDS = 180.0


def helm(kubeconfig: Path, *arguments: str) -> str:
    """Run Helm as the administrator and return what it printed; a failure shows what it said."""
    command = [str(gotools.path("helm")), *arguments, "--kubeconfig", str(kubeconfig), "--namespace", SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


def test_its_own_test_passes(almoner: Installation) -> None:
    assert "Succeeded" in helm(almoner.kubeconfig, "test", "almoner", "--timeout", "120s")


def test_a_stranger_does_not_reach_the_ledger(almoner: Installation, pods: Pods) -> None:
    """Runner pods and the operator do, other pods do not, whatever their namespace."""
    url = f"--no-check-certificate https://almoner-ledger.{SYSTEM}.svc:8780/readyz"
    # Whoever enforces policies takes a moment to know of a new pod: runners' meters try again, and so does this one.
    runner = {"app.kubernetes.io/component": "runner", "app.kubernetes.io/managed-by": "almoner"}
    # Nobody but the operator makes such a pod.
    operator = f"system:serviceaccount:{SYSTEM}:almoner-operator"
    reached = pods.start(f"until /bin/wget -T 2 -qO- {url}; do sleep 0.2; done", labels=runner, user=operator)
    assert pods.output(reached).splitlines()[-1] == "ok"
    stranger = pods.start(f"for _ in 1 2 3 4 5; do /bin/wget -T 2 -qO- {url} && exit 1; sleep 0.5; done; true")
    assert "ok" not in pods.output(stranger).splitlines()


def test_an_upgrade_and_a_rollback_lose_nothing_and_run_nothing_twice(
    almoner: Installation, kubernetes_api: Any, namespace: str
) -> None:
    chart = str(ROOT / "charts" / "almoner")
    core = client.CoreV1Api(kubernetes_api)
    before = revision(almoner)
    almoner.apply("first_call.yaml", NAMESPACE=namespace)
    until(lambda: core.list_namespaced_pod(namespace).items, SECONDS, "the runner's pod")
    # Both parts are restarted: their arguments change.
    changed = "operator.settings.log-level=debug,ledger.settings.log-level=debug"
    wait = ("--wait", "--timeout", ROLLOUT)
    helm(almoner.kubeconfig, "upgrade", "almoner", chart, "--reuse-values", "--set", changed, *wait)
    first = ended(kubernetes_api, namespace, "first", SECONDS, almoner)
    kubectl(almoner.kubeconfig, "delete", "execution", "first", "-n", namespace)
    almoner.apply("first_call.yaml", NAMESPACE=namespace)
    helm(almoner.kubeconfig, "rollback", "almoner", before, *wait)
    second = ended(kubernetes_api, namespace, "first", SECONDS, almoner)
    for status in (first, second):
        assert status["phase"] == "Succeeded", f"{status}\n{almoner.logs()}"
        assert [each["outcome"] for each in status["attempts"]] == ["Succeeded"]
    said = kubectl(
        almoner.kubeconfig, "exec", "-n", SYSTEM, "deployment/almoner-ledger", "--", "almoner-ledger", "verify"
    )
    assert said.startswith("every invariant holds")


def revision(almoner: Installation) -> str:
    """The release's newest revision."""
    return (
        helm(almoner.kubeconfig, "history", "almoner", "--max", "1", "-o", "json").split('"revision":')[1].split(",")[0]
    )
