"""The real API server, with the restricted pod security profile enforced, accepts every shape of runner pod."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from almoner_core.api.base import ConfigMapKeyReference
from almoner_core.api.runner import Runner
from almoner_operator.pods import PodRequest, build_pod
from tests.support.pods import SETTINGS, provider, request
from tests.support.polling import until


@pytest.fixture(scope="module")
def restricted(kubernetes_api: Any) -> Iterator[str]:
    """A namespace in which the restricted profile is enforced."""
    from kubernetes import client

    core = client.CoreV1Api(kubernetes_api)
    name = f"restricted-{secrets.token_hex(4)}"
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    until(
        lambda: any(each.metadata.name == "default" for each in core.list_namespaced_service_account(name).items),
        30,
        "the default service account",
    )
    yield name
    core.delete_namespace(name)


GPU = Runner.model_validate(
    {
        "image": "example/sdk:1",
        "command": ["python", "-c", "print()"],
        "resources": {"requests": {"cpu": "500m", "gpu": 1}, "limits": {"memory": "1Gi"}},
        "nodeSelector": {"zone": "a"},
        "env": [
            {"name": "A", "value": "$(B) x"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        ],
    }
)
OPTIONS = Runner.model_validate(
    {
        "image": "example/private:1",
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "spot", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60},
        ],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]},
                        {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]},
                    ]
                },
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {"weight": 5, "preference": {"matchExpressions": [{"key": "ssd", "operator": "Exists"}]}}
                ],
            }
        },
        "topologySpreadConstraints": [{"topologyKey": "topology.kubernetes.io/zone"}],
        "imagePullSecrets": [{"name": "registry"}],
        "annotations": {"example.com/cost-centre": "research, 7"},
        "labels": {"example.com/team": "research"},
        "volumes": [
            {"name": "cache", "emptyDir": {"sizeLimit": "2Gi"}},
            {"name": "input", "configMap": {"name": "prompts"}},
            {"name": "token", "secret": {"secretName": "crm"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "corpus", "readOnly": True}},
        ],
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "input", "mountPath": "/etc/prompts", "readOnly": True},
            {"name": "token", "mountPath": "/etc/crm", "readOnly": True},
            {"name": "data", "mountPath": "/data"},
        ],
    }
)
SHAPES: dict[str, PodRequest] = {
    "every option of a runner": request(runner=OPTIONS),
    "our loop": request(providers=(provider(),)),
    "an image of the user's": request(runner=GPU, remaining_seconds=60),
    "a job with a runner of its own": request(kind="TrainingJob", runner=GPU, agent=None, agent_name=None),
    "input from a ConfigMap": replace(
        request(), input=None, input_from=ConfigMapKeyReference(name="inputs", key="first.txt")
    ),
    "the longest names": request(
        name="e" * 253,
        agent_name=".".join(["a" * 50] * 4),
        attempt=101,
        providers=(provider("p" * 253), provider("q" * 253)),
    ),
    "the largest input": request(input="x" * 118_000),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_api_server_accepts_it(shape: str, restricted: str, kubernetes_api: Any) -> None:
    from kubernetes import client

    pod = build_pod(replace(SHAPES[shape], namespace=restricted), SETTINGS)
    created = client.CoreV1Api(kubernetes_api).create_namespaced_pod(restricted, pod, dry_run="All")
    stored = kubernetes_api.sanitize_for_serialization(created)["spec"]
    # Nothing that we set was dropped as unknown: what the server would store says the same.
    for part in ("initContainers", "containers"):
        for ours, theirs in zip(pod["spec"][part], stored[part], strict=True):
            assert ours["env"] == [_without_defaults(each) for each in theirs["env"]]
            assert ours["securityContext"] == theirs["securityContext"]
            assert set(ours) <= set(theirs)
    assert stored["automountServiceAccountToken"] is False
    for part in ("affinity", "topologySpreadConstraints", "imagePullSecrets"):
        assert stored.get(part) == pod["spec"].get(part)
    assert [each for each in stored["tolerations"] if "node.kubernetes.io" not in each["key"]] == (
        pod["spec"].get("tolerations") or []
    )
    assert [each["name"] for each in stored["volumes"]] == [each["name"] for each in pod["spec"]["volumes"]]


def _without_defaults(variable: dict[str, Any]) -> dict[str, Any]:
    field = variable.get("valueFrom", {}).get("fieldRef")
    if field is None:
        return variable
    return {**variable, "valueFrom": {"fieldRef": {"fieldPath": field["fieldPath"]}}}


def _run_as_root(pod: dict[str, Any]) -> None:
    pod["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0


def _privilege(pod: dict[str, Any]) -> None:
    del pod["spec"]["initContainers"][0]["securityContext"]["allowPrivilegeEscalation"]


def _host_path(pod: dict[str, Any]) -> None:
    pod["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}})


@pytest.mark.parametrize("spoil", [_run_as_root, _privilege, _host_path], ids=["root", "escalation", "host path"])
def test_the_profile_is_really_enforced(spoil: Any, restricted: str, kubernetes_api: Any) -> None:
    from kubernetes import client

    pod = copy.deepcopy(build_pod(request(namespace=restricted), SETTINGS))
    spoil(pod)
    with pytest.raises(client.ApiException, match="violates PodSecurity"):
        client.CoreV1Api(kubernetes_api).create_namespaced_pod(restricted, pod, dry_run="All")
