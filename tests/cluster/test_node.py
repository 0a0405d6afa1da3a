"""What Almoner relies on in a cluster is there: restricted pods, sidecars, DNS, Services, tokens, volumes, policies."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client
from kubernetes.client import ApiException

from tests.support.polling import until
from tests.support.restricted import SECONDS, Pods, container, pod

HTTP_PORT = 8080
SERVER = (
    f"mkdir /tmp/www && echo hello from $(hostname) > /tmp/www/index.html && exec httpd -f -p {HTTP_PORT} -h /tmp/www"
)
SCRATCH: dict[str, Any] = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
MOUNT = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}


def test_the_nodes_are_ready(kubernetes_api: Any) -> None:
    nodes = client.CoreV1Api(kubernetes_api).list_node().items
    ready = {n.metadata.name: {c.type: c.status for c in n.status.conditions}["Ready"] for n in nodes}
    assert set(ready.values()) == {"True"}, ready


def test_a_restricted_pod_has_no_right(pods: Pods) -> None:
    script = "id -u; touch /x 2> /dev/null || echo read-only; cat /proc/self/status"
    script += "; test -e /var/run/secrets || echo no token"
    printed = pods.output(pods.start(script))
    lines = [line.replace("\t", " ") for line in printed.splitlines()]
    assert lines[0] == "10001"
    assert {"read-only", "no token", "NoNewPrivs: 1", "Seccomp: 2", "CapEff: 0000000000000000"} <= set(lines)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        pytest.param({"hostNetwork": True}, "hostNetwork", id="the node's network"),
        pytest.param({"securityContext": {}}, "runAsNonRoot", id="root"),
        pytest.param({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}, "hostPath", id="the node's files"),
    ],
)
def test_pod_security_refuses_more(pods: Pods, change: dict[str, Any], word: str) -> None:
    with pytest.raises(ApiException, match=word) as error:
        pods.start("true", **change)
    assert error.value.status == 403


def test_a_native_sidecar_starts_first_and_ends_last(pods: Pods) -> None:
    sidecar = container(pods.image, "touch /tmp/up; trap 'exit 0' TERM; while true; do sleep 0.1; done", **MOUNT)
    sidecar |= {
        "name": "sidecar",
        "restartPolicy": "Always",
        "startupProbe": {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1},
    }
    main = container(
        pods.image, "test -e /tmp/up && echo the sidecar was up; echo done > /dev/termination-log", **MOUNT
    )
    name = pods.create(pod(main, initContainers=[sidecar], **SCRATCH))
    assert pods.output(name) == "the sidecar was up\n"
    status = pods.get(name).status
    assert status.container_statuses[0].state.terminated.message == "done\n"
    assert status.init_container_statuses[0].state.terminated is not None


def serve(pods: Pods, kubernetes_api: Any, name: str = "web") -> str:
    """Start an HTTP server behind a Service; returns the pod's name."""
    server = pods.create(pod(container(pods.image, SERVER, **MOUNT), labels={"app": name}, **SCRATCH))
    service = {
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": HTTP_PORT}]},
    }
    client.CoreV1Api(kubernetes_api).create_namespaced_service(pods.namespace, service)
    pods.running(server)
    return server


def test_a_service_is_reached_by_its_name(pods: Pods, kubernetes_api: Any) -> None:
    server = serve(pods, kubernetes_api)
    asked = pods.start(f"until /bin/wget -T 2 -qO- http://web.{pods.namespace}.svc; do sleep 0.2; done")
    assert f"hello from {server}" in pods.output(asked)


def test_a_pod_reaches_the_api_server_and_itself_through_its_service(pods: Pods, kubernetes_api: Any) -> None:
    # Hairpin: the answer of a Service that leads back to the pod that asks.
    server = serve(pods, kubernetes_api)

    def itself() -> bool:
        return server in pods.execute(server, "/bin/wget", "-T", "2", "-qO-", "http://web")

    until(itself, SECONDS, "a pod to reach itself through its Service")
    # Anybody may ask for the version.
    asked = pods.start("/bin/wget --no-check-certificate -T 10 -qO- https://kubernetes.default.svc/version")
    assert '"gitVersion"' in pods.output(asked)


def test_a_projected_token_is_bound_to_its_pod(pods: Pods, kubernetes_api: Any) -> None:
    source = {"serviceAccountToken": {"path": "token", "audience": "almoner-test", "expirationSeconds": 600}}
    volume = {"name": "token", "projected": {"sources": [source]}}
    mount = {"volumeMounts": [{"name": "token", "mountPath": "/token"}]}
    name = pods.create(pod(container(pods.image, "cat /token/token", **mount), volumes=[volume]))
    token = pods.output(name)
    review = {"spec": {"token": token.strip(), "audiences": ["almoner-test"]}}
    status = client.AuthenticationV1Api(kubernetes_api).create_token_review(review).status
    assert status.authenticated, status.error
    assert status.user.username == f"system:serviceaccount:{pods.namespace}:default"
    assert status.user.extra["authentication.kubernetes.io/pod-name"] == [name]


def test_logs_and_exec(pods: Pods) -> None:
    name = pods.start("echo started; exec sleep 3600")
    pods.running(name)
    assert pods.logs(name) == "started\n"
    assert pods.execute(name, "sh", "-c", "echo out; id -u") == "out\n10001\n"


def test_a_claim_is_bound_and_writable_by_a_group(pods: Pods, kubernetes_api: Any) -> None:
    claim = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    client.CoreV1Api(kubernetes_api).create_namespaced_persistent_volume_claim(pods.namespace, claim)
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    for script, expected in (("echo kept > /data/file; cat /data/file", "kept\n"), ("cat /data/file", "kept\n")):
        name = pods.create(pod(container(pods.image, script, **mount), volumes=[volume]))
        assert pods.output(name) == expected


def test_network_policies_are_enforced(pods: Pods, kubernetes_api: Any) -> None:
    serve(pods, kubernetes_api)
    asker = pods.start("exec sleep 3600", labels={"app": "asker"})
    pods.running(asker)
    network = client.NetworkingV1Api(kubernetes_api)

    def reached() -> bool:
        return "hello" in pods.execute(asker, "/bin/wget", "-T", "2", "-qO-", "http://web")

    until(reached, SECONDS, "the server to be reached")
    nobody = {
        "metadata": {"name": "nobody"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
    }
    network.create_namespaced_network_policy(pods.namespace, nobody)
    until(lambda: not reached(), SECONDS, "the policy to close the server")
    peer = {"podSelector": {"matchLabels": {"app": "asker"}}}
    allowed = {
        "metadata": {"name": "asker"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peer], "ports": [{"port": HTTP_PORT}]}],
        },
    }
    network.create_namespaced_network_policy(pods.namespace, allowed)
    until(reached, SECONDS, "the second policy to open it again")
    other = pods.start("/bin/wget -T 3 -qO- http://web || echo refused")
    assert pods.output(other).endswith("refused\n")
