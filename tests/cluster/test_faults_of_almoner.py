"""Almoner's promises while parts of it, and of the node, are killed under a run: it ends once, and the books agree."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from kubernetes import client

from almoner_dev.cluster import Cluster
from tests.support.installed import SYSTEM, UNREACHED, Installation, ended, kubectl
from tests.support.polling import until
from tests.support.restricted import Pods

SECONDS = 180.0


def delete_pods_of(part: str) -> Callable[[Cluster, Installation], None]:
    def fault(_: Cluster, almoner: Installation) -> None:
        kubectl(
            almoner.kubeconfig,
            "delete",
            "pod",
            "-n",
            SYSTEM,
            "-l",
            f"app.kubernetes.io/name={part}",
            "--force",
            "--wait=false",
        )

    return fault


def kill(component: str) -> Callable[[Cluster, Installation], None]:
    def fault(node: Cluster, _: Installation) -> None:
        node.kill(component)
        node.restart(component)

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(delete_pods_of("almoner-operator"), id="operator"),
        pytest.param(delete_pods_of("almoner-ledger"), id="ledger"),
        pytest.param(kill("kubelet"), id="kubelet"),
        pytest.param(kill("containerd"), id="containerd"),
        pytest.param(kill("kube-apiserver"), id="API server"),
    ],
)
def test_a_run_ends_once_and_the_books_agree(
    *,
    almoner: Installation,
    node: Cluster,
    kubernetes_api: Any,
    namespace: str,
    pods: Pods,
    fault: Callable[[Cluster, Installation], None],
) -> None:
    almoner.apply("first_call.yaml", NAMESPACE=namespace)
    core = client.CoreV1Api(kubernetes_api)

    def started() -> client.V1Pod | None:
        found = core.list_namespaced_pod(namespace).items
        return found[0] if found and found[0].status.phase in {"Running", "Succeeded"} else None

    pod = until(started, SECONDS, "the runner's pod to run", retry_on=UNREACHED)
    assert pod is not None
    fault(node, almoner)
    status = ended(kubernetes_api, namespace, "first", SECONDS, almoner)
    assert status["phase"] == "Succeeded", f"{status}\n{almoner.logs()}"
    assert Decimal(status["usage"]["cost"]) > 0
    # One attempt, one pod: nothing ran, or was paid, twice.
    assert [each.metadata.name for each in core.list_namespaced_pod(namespace).items] in ([], [pod.metadata.name])
    kubectl(almoner.kubeconfig, "rollout", "status", "-n", SYSTEM, "deployment/almoner-ledger", "--timeout=120s")
    # It ends with another exit code where the books do not agree.
    verified = kubectl(
        almoner.kubeconfig, "exec", "-n", SYSTEM, "deployment/almoner-ledger", "--", "almoner", "ledger", "verify"
    )
    assert "violation" not in verified.replace("no violation", "")
