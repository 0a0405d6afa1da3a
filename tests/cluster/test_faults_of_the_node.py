"""A node whose parts are killed goes on as real ones do."""

from __future__ import annotations

import pytest
from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from almoner_dev.cluster import Cluster
from tests.support.polling import until
from tests.support.restricted import SECONDS, Pods


@pytest.mark.parametrize("component", ["kubelet", "containerd", "kube-apiserver", "kube-proxy"])
def test_a_pod_outlives_a_killed_component(node: Cluster, pods: Pods, component: str) -> None:
    name = pods.start("exec sleep 3600")
    before = pods.running(name).status.container_statuses[0].container_id
    node.kill(component)
    assert node.running()[component] is False
    node.restart(component)
    assert node.running()[component] is True

    def answers() -> bool:
        return pods.execute(name, "echo", "alive") == "alive\n"

    # The kubelet and the API server need a moment to find what was restarted.
    until(answers, SECONDS, "the pod to answer", retry_on=(ApiException, HTTPError))
    status = pods.get(name).status.container_statuses[0]
    assert (status.container_id, status.restart_count) == (before, 0)
    # A new pod runs too.
    assert pods.output(pods.start("echo new")) == "new\n"
