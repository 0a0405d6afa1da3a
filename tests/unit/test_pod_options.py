"""What a user may say of a runner's pod, and what Almoner keeps for itself whatever is stored."""

from __future__ import annotations

from typing import Any

import pytest

from almoner_core import contract
from almoner_core.api.agent import AgentReason
from almoner_core.api.runner import RESERVED_DOMAINS, Runner
from almoner_core.api.volumes import VolumeMount
from almoner_operator import pod_options
from almoner_operator.agents import AgentFacts, SecretFacts, runner_secrets_verdict
from almoner_operator.pods import PodError, build_pod
from almoner_operator.secret_facts import secrets_of
from tests.support.pods import SETTINGS, provider, request

VOLUMES: dict[str, Any] = {
    "volumes": [
        {"name": "spool", "emptyDir": {}},
        {"name": "input", "configMap": {"name": "prompts"}},
        {"name": "token", "secret": {"secretName": "crm"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "corpus"}},
    ],
    "volumeMounts": [
        {"name": "spool", "mountPath": "/spool"},
        {"name": "input", "mountPath": "/etc/prompts", "readOnly": True},
        {"name": "token", "mountPath": "/etc/crm", "readOnly": True},
        {"name": "data", "mountPath": "/data"},
    ],
}


def built(**runner: Any) -> dict[str, Any]:
    return build_pod(request(runner=Runner.model_validate(runner), providers=(provider(),)), SETTINGS)


def test_a_users_volumes_are_the_agents_alone_and_take_nobodys_place() -> None:
    plain, pod = built(), built(**VOLUMES)
    (meter,), (agent,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert meter["volumeMounts"] == plain["spec"]["initContainers"][0]["volumeMounts"]
    ours = plain["spec"]["volumes"]
    assert pod["spec"]["volumes"][: len(ours)] == ours
    assert pod["spec"]["volumes"][len(ours) :] == [
        {"name": "user-spool", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "user-input", "configMap": {"name": "prompts", "defaultMode": 0o440}},
        {"name": "user-token", "secret": {"secretName": "crm", "defaultMode": 0o440}},
        {"name": "user-data", "persistentVolumeClaim": {"claimName": "corpus", "readOnly": False}},
    ]
    names = [volume["name"] for volume in pod["spec"]["volumes"]]
    assert len(names) == len(set(names))
    before = plain["spec"]["containers"][0]["volumeMounts"]
    assert agent["volumeMounts"][: len(before)] == before
    assert {each["name"] for each in agent["volumeMounts"][len(before) :]} == {
        "user-spool", "user-input", "user-token", "user-data",
    }  # fmt: skip


def test_what_almoner_sets_stays_whatever_the_runner_says() -> None:
    runner = Runner.model_validate({"labels": {"example.com/team": "a"}, "annotations": {"example.com/a": "b"}})
    forged = runner.model_copy(update={"labels": {**runner.labels}, "annotations": {**runner.annotations}})
    pod = build_pod(request(runner=forged), SETTINGS)
    assert pod["metadata"]["labels"]["example.com/team"] == "a"
    assert pod["metadata"]["annotations"]["example.com/a"] == "b"
    plain = build_pod(request(), SETTINGS)
    for part in ("labels", "annotations"):
        assert plain["metadata"][part].items() <= pod["metadata"][part].items()


def test_placement_reaches_the_pod_in_kubernetes_own_words() -> None:
    spec = built(
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        affinity={
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        topologySpreadConstraints=[{"topologyKey": "zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}],
        priorityClassName="batch",
        runtimeClassName="gvisor",
        imagePullSecrets=[{"name": "registry"}, {"name": "registry-2"}],
    )["spec"]
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    needed = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert needed["nodeSelectorTerms"][0]["matchExpressions"] == [{"key": "zone", "operator": "In", "values": ["a"]}]
    assert spec["topologySpreadConstraints"] == [
        {
            "maxSkew": 2,
            "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {contract.LABEL_AGENT: "greeter"}},
        }
    ]
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("batch", "gvisor")
    assert spec["imagePullSecrets"][-2:] == [{"name": "registry"}, {"name": "registry-2"}]


BREAKS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"mount over {path}": ({"volume_mounts": [{"name": "a", "mountPath": path}]}, "volumeMounts")
        for path in (
            "/almoner",
            "/almoner/spool",
            "/proc/self",
            "/dev",
            "/sys/fs",
            "/a/../almoner",
            "//almoner",
            "/a/.",
        )
    },
    **{
        f"{part} of {domain}": ({part: {f"{sub}{domain}/x": "y"}}, part)
        for part in ("labels", "annotations")
        for domain in RESERVED_DOMAINS
        for sub in ("", "deeper.")
    },
    "label without a prefix": ({"labels": {"app": "web"}}, "labels"),
    "priority of the system": ({"priority_class_name": "system-node-critical"}, "priorityClassName"),
}


@pytest.mark.parametrize(("fields", "place"), BREAKS.values(), ids=BREAKS)
def test_what_would_break_isolation_is_refused_though_it_is_stored(fields: dict[str, Any], place: str) -> None:
    """As an object would be that is older than the schema."""
    runner = Runner.model_construct(**{**Runner().__dict__, **fields})
    if "volume_mounts" in fields:
        path = fields["volume_mounts"][0]["mountPath"]
        mount = VolumeMount.model_construct(name="a", mount_path=path, read_only=False)
        runner = Runner.model_construct(**{**Runner().__dict__, "volume_mounts": [mount]})
    found = pod_options.problem(runner)
    assert found is not None
    assert found.startswith(f"{place}: ")
    with pytest.raises(PodError, match=rf"runner\.{place}"):
        build_pod(request(runner=runner), SETTINGS)


def test_every_secret_of_a_runner_obeys_the_one_rule() -> None:
    runner = Runner.model_validate({**VOLUMES, "imagePullSecrets": [{"name": "registry"}]})
    assert secrets_of(runner) == ["crm", "registry"]
    readable = SecretFacts(agent_readable=True)
    for hidden in ("crm", "registry"):
        known = {"crm": readable, "registry": readable, hidden: SecretFacts()}
        verdict = runner_secrets_verdict(runner, AgentFacts(secrets=known))
        assert verdict is not None
        assert verdict.reason is AgentReason.SECRET_NOT_READABLE
        assert f"Secret {hidden} lacks the label" in verdict.message
    assert runner_secrets_verdict(runner, AgentFacts(secrets={"crm": readable, "registry": readable})) is None
