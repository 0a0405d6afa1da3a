"""From nothing installed to the first metered call of an agent, in restricted pods on a real node with a real model."""

from __future__ import annotations

import sys
import time
from decimal import Decimal
from typing import Any

import pytest
from kubernetes import client

from tests.support.installed import Installation, ended
from tests.support.polling import until

SECONDS = 120.0
TARGET_SECONDS = 120


def test_the_first_metered_call(
    almoner: Installation, kubernetes_api: Any, namespace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    almoner.apply("first_call.yaml", NAMESPACE=namespace)
    status = ended(kubernetes_api, namespace, "first", SECONDS, almoner)
    took = almoner.seconds + time.monotonic() - began
    with capsys.disabled():
        sys.stdout.write(
            f"\nfrom helm install to the first metered call: {took:.1f} s (target {TARGET_SECONDS} s), "
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


def test_runner_pods_keep_to_the_restricted_profile(almoner: Installation, kubernetes_api: Any, namespace: str) -> None:
    almoner.apply("first_call.yaml", NAMESPACE=namespace)

    def runner() -> client.V1Pod | None:
        found = client.CoreV1Api(kubernetes_api).list_namespaced_pod(namespace).items
        return found[0] if found else None

    # The namespace enforces `restricted`: the API server let the pod in.
    pod = until(runner, SECONDS, "the runner's pod")
    assert pod is not None
    assert pod.spec.automount_service_account_token is False
    containers = [*pod.spec.init_containers, *pod.spec.containers]
    assert all(each.security_context.read_only_root_filesystem for each in containers)
    # Keys and tokens are the meter's alone.
    (agent,) = pod.spec.containers
    mounted = {mount.name for mount in agent.volume_mounts}
    secret = {volume.name for volume in pod.spec.volumes if volume.secret or volume.projected}
    assert secret
    assert not mounted & secret
    assert ended(kubernetes_api, namespace, "first", SECONDS, almoner)["phase"] == "Succeeded"
