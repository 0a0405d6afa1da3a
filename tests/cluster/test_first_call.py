"""From nothing installed to the first metered call of an agent, in restricted pods on a real node with a real model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.conftest import Site
from tests.support.installed import SYSTEM, Installation, install, kubectl, load_image
from tests.support.polling import until
from tests.support.restricted import Pods

SECONDS = 120.0
TARGET_SECONDS = 120
ENDED = {"Succeeded", "Failed", "Cancelled", "Rejected"}


@pytest.fixture(scope="module")
def almoner(site: Site, kubernetes_api: Any) -> Iterator[Installation]:
    """Almoner in the cluster, from an image of this checkout."""
    if site.node is None:
        pytest.skip("the image of this checkout can only be loaded into the node that `make e2e` starts by itself")
    load_image(site.node)
    yield install(site.kubeconfig, kubernetes_api)
    kubectl(site.kubeconfig, "delete", "namespace", SYSTEM, "--wait=false")


def execution(api: Any, namespace: str, name: str) -> dict[str, Any]:
    found = client.CustomObjectsApi(api).get_namespaced_custom_object(
        "almoner.dev", "v1alpha1", namespace, "executions", name
    )
    return dict(found.get("status") or {})


def test_the_first_metered_call(
    almoner: Installation, kubernetes_api: Any, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    almoner.apply("first_call.yaml", NAMESPACE=namespace)

    def ended() -> dict[str, Any] | None:
        status = execution(kubernetes_api, namespace, "first")
        return status if status.get("phase") in ENDED else None

    try:
        until(ended, SECONDS, "the execution to end")
        status = until(
            lambda: (s := execution(kubernetes_api, namespace, "first")) and s.get("usage", {}).get("cost") and s,
            SECONDS,
            "the cost of the execution",
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{almoner.logs()}") from error
    took = almoner.seconds + time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(
            f"\nfrom the first manifest to the first metered call: {took:.1f} s (target {TARGET_SECONDS} s), "
            f"of which {almoner.seconds:.1f} s until Almoner was ready\n"
        )
    assert status["phase"] == "Succeeded", f"{status}\n{almoner.logs()}"
    assert status["output"]
    usage = status["usage"]
    assert usage["requests"] >= 1
    tokens = usage["tokens"]
    # The price list of the provider, to the last digit.
    expected = (Decimal(tokens["input"]) * Decimal("0.60") + Decimal(tokens["output"]) * 30) / 1_000_000
    assert Decimal(usage["cost"]) == expected


def test_runner_pods_keep_to_the_restricted_profile(
    almoner: Installation, kubernetes_api: Any, namespace: str, pods: Pods
) -> None:
    almoner.apply("first_call.yaml", NAMESPACE=namespace)

    def runner() -> client.V1Pod | None:
        found = client.CoreV1Api(kubernetes_api).list_namespaced_pod(namespace).items
        return found[0] if found else None

    # The namespace enforces `restricted`: the API server let the pod in.
    pod = until(runner, SECONDS, "the runner's pod")
    assert pod is not None
    assert pod.spec.automount_service_account_token is False
    until(
        lambda: execution(kubernetes_api, namespace, "first").get("phase") in ENDED,
        SECONDS,
        "the execution to end",
    )
