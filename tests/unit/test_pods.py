"""The runner pod: who gets what, what is refused by name, and nothing that leads past the meter."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.api.agent import AgentSpec
from almoner_core.api.base import ConfigMapKeyReference
from almoner_core.api.runner import Runner
from almoner_core.contract import ANNOTATION_NAME, Dialect, MeterConfig
from almoner_dev.node.env import expand
from almoner_operator.pods import PaidProbe, PodError, PodRequest, build_pod, label_value
from tests.support.pods import SETTINGS, agent_spec, provider, request


def containers(pod: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives the meter and the agent."""
    spec = pod["spec"]
    assert [each["name"] for each in spec["initContainers"]] == ["meter"]
    assert [each["name"] for each in spec["containers"]] == ["agent"]
    return spec["initContainers"][0], spec["containers"][0]


def env(container: dict[str, Any]) -> dict[str, str]:
    """Gives the variables as the kubelet expands them; references to other objects left out."""
    result: dict[str, str] = {}
    for variable in container["env"]:
        if "value" in variable:
            result[variable["name"]] = expand(variable["value"], result)
    return result


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_its_name_and_owner_are_derived_so_that_repeating_makes_no_second() -> None:
    first, again = build_pod(request(), SETTINGS), build_pod(request(), SETTINGS)
    assert first == again
    other = build_pod(replace(request(), attempt=2), SETTINGS)
    assert other["metadata"]["name"] != first["metadata"]["name"]
    assert first["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "almoner.dev/v1alpha1",
            "kind": "Execution",
            "name": "hello",
            "uid": "11111111-2222-3333-4444-555555555555",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    assert first["metadata"]["labels"]["almoner.dev/execution-uid"] == "11111111-2222-3333-4444-555555555555"
    assert first["metadata"]["labels"]["app.kubernetes.io/component"] == "runner"


def test_the_agent_gets_no_key_no_token_and_no_spool() -> None:
    pod = build_pod(request(providers=(provider(),)), SETTINGS)
    meter, agent = containers(pod)
    assert set(mounts(agent)) == {"input", "output", "scratch"}
    assert next(each for each in agent["volumeMounts"] if each["name"] == "input")["readOnly"] is True
    assert {"token", "spool", "provider-0"} <= set(mounts(meter))
    assert "scratch" not in mounts(meter)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["enableServiceLinks"] is False
    assert pod["spec"]["shareProcessNamespace"] is False
    assert "ALMONER_METER_CONFIG" not in env(agent)
    assert env(agent)["PYTHONUNBUFFERED"] == "1", "what an agent prints is in its log at once"
    assert "the-secret" not in json.dumps(agent)


def test_an_sdk_finds_the_meter_and_placeholders() -> None:
    _, agent = containers(build_pod(request(), SETTINGS))
    seen = env(agent)
    assert seen["OPENAI_BASE_URL"] == seen["OPENAI_API_BASE"] == "http://127.0.0.1:8790/openai/v1"
    assert seen["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8790/anthropic"
    assert seen["OPENAI_API_KEY"] == seen["ANTHROPIC_API_KEY"] == "almoner-metered"
    assert seen["ALMONER_EXECUTION"] == "team-a/hello"
    assert seen["ALMONER_MODEL"] == "small"
    assert seen["ALMONER_METER_URL"] == "http://127.0.0.1:8790"
    assert seen["HOME"] == seen["TMPDIR"] == "/almoner/scratch"


def test_frameworks_find_the_model_and_send_nothing_elsewhere_unless_they_are_told_to() -> None:
    """Fault F8."""
    seen = env(containers(build_pod(request(providers=(provider(),)), SETTINGS))[1])
    assert seen["NO_PROXY"] == seen["no_proxy"] == "127.0.0.1,localhost"
    assert seen["OPENAI_AGENTS_DISABLE_TRACING"] == "1"
    assert seen["OPENAI_DEFAULT_MODEL"] == "small"
    assert "ANTHROPIC_MODEL" not in seen, "its provider does not speak that"
    own = {"NO_PROXY": "*", "OPENAI_DEFAULT_MODEL": "x"}
    runner = Runner.model_validate({"env": [{"name": name, "value": value} for name, value in own.items()]})
    seen = env(containers(build_pod(replace(request(providers=(provider(),)), runner=runner), SETTINGS))[1])
    assert own.items() <= seen.items()


def test_addresses_follow_the_one_variable_that_a_node_may_rewrite() -> None:
    _, agent = containers(build_pod(request(), SETTINGS))
    for variable in agent["env"]:
        if variable["name"] == "ALMONER_METER_ADDRESS":
            variable["value"] = "127.9.9.9:8790"
    assert env(agent)["OPENAI_BASE_URL"] == "http://127.9.9.9:8790/openai/v1"


def test_the_meter_is_a_native_sidecar_that_holds_back_the_agent() -> None:
    meter, _ = containers(build_pod(request(), SETTINGS))
    assert meter["restartPolicy"] == "Always"
    assert meter["startupProbe"]["httpGet"] == {"path": "/healthz", "port": 8791}
    assert meter["startupProbe"]["failureThreshold"] * meter["startupProbe"]["periodSeconds"] == 60
    assert meter["lifecycle"]["preStop"]["httpGet"] == {"path": "/prestop", "port": 8791}


def test_a_meter_has_a_cpu_limit_where_that_is_set() -> None:
    meter, _ = containers(build_pod(request(), SETTINGS))
    assert "cpu" not in meter["resources"]["limits"]
    meter, _ = containers(build_pod(request(), replace(SETTINGS, meter_cpu_limit="500m", meter_memory_limit="1Gi")))
    assert meter["resources"]["limits"] == {"cpu": "500m", "memory": "1Gi"}


def test_service_meshes_are_asked_to_stay_away_unless_settings_say_otherwise() -> None:
    annotations = build_pod(request(), SETTINGS)["metadata"]["annotations"]
    assert annotations["sidecar.istio.io/inject"] == "false"
    assert annotations["linkerd.io/inject"] == "disabled"
    own = replace(SETTINGS, annotations=(("team", "a"), (ANNOTATION_NAME, "of somebody else")))
    annotations = build_pod(request(), own)["metadata"]["annotations"]
    assert annotations == {"team": "a", ANNOTATION_NAME: "hello"}


def test_the_node_ends_an_agent_whose_machine_time_is_not_paid_for() -> None:
    _, agent = containers(build_pod(request(), SETTINGS))
    assert "livenessProbe" not in agent, "what costs nothing needs no paying"
    paid = PaidProbe(period_seconds=5, failures=3, timeout_seconds=2, end_seconds=54)
    meter, agent = containers(build_pod(request(paid=paid), SETTINGS))
    assert agent["livenessProbe"] == {
        "httpGet": {"path": "/paid", "port": 8791},
        "periodSeconds": 5,
        "failureThreshold": 3,
        "timeoutSeconds": 2,
        "terminationGracePeriodSeconds": request().runner.termination_grace_period_seconds,
    }
    assert MeterConfig.model_validate_json(env(meter)["ALMONER_METER_CONFIG"]).extra["end_seconds"] == 54


def test_only_who_has_the_token_makes_the_meter_drain() -> None:
    meter, agent = containers(build_pod(request(prestop_token="s3cret"), SETTINGS))
    assert meter["lifecycle"]["preStop"]["httpGet"]["httpHeaders"] == [{"name": "x-almoner-prestop", "value": "s3cret"}]
    assert "s3cret" in env(meter)["ALMONER_METER_CONFIG"]
    assert "s3cret" not in str(agent)


@pytest.mark.parametrize("index", [0, 1], ids=["meter", "agent"])
def test_both_fit_the_restricted_profile(index: int) -> None:
    pod = build_pod(request(), SETTINGS)
    security = containers(pod)[index]["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["runAsUser"] == (10002, 10001)[index]


def test_our_loop_gets_the_pinned_spec_with_the_limits_that_govern() -> None:
    limits = agent_spec().limits.model_copy(update={"max_turns": 3})
    _, agent = containers(build_pod(replace(request(), limits=limits), SETTINGS))
    spec = AgentSpec.model_validate_json(env(agent)["ALMONER_AGENT_SPEC"])
    assert spec.limits.max_turns == 3
    assert spec.instructions == agent_spec().instructions
    assert agent["command"] == ["almoner-agent"]
    assert agent["image"] == SETTINGS.image


def test_our_loop_is_told_the_providers_first_dialect_where_the_agent_chooses_none() -> None:
    one = provider()
    speaks_anthropic = replace(one, meter=one.meter.model_copy(update={"dialects": (Dialect.ANTHROPIC,)}))
    for providers, wanted in (((one,), "OpenAI"), ((speaks_anthropic,), "Anthropic")):
        _, agent = containers(build_pod(request(providers=providers), SETTINGS))
        assert json.loads(env(agent)["ALMONER_AGENT_SPEC"])["model"]["api"] == wanted


def test_an_image_of_the_users_runs_as_it_is() -> None:
    runner = Runner.model_validate({"image": "example/sdk:1", "args": ["--x"], "env": [{"name": "A", "value": "$(B)"}]})
    asked = replace(request(), runner=runner)
    with pytest.raises(PodError, match=r"limits.maxTurns: only Almoner's own loop"):
        build_pod(asked, SETTINGS)
    asked = replace(asked, limits=asked.limits.model_copy(update={"max_turns": None}))
    _, agent = containers(build_pod(asked, SETTINGS))
    assert agent["image"] == "example/sdk:1"
    assert agent["args"] == ["--x"]
    assert "command" not in agent
    assert "ALMONER_AGENT_SPEC" not in env(agent)
    assert agent["securityContext"]["readOnlyRootFilesystem"] is False
    assert {"name": "A", "value": "$(B)"} in agent["env"]


def test_a_users_variables_may_come_from_secrets_and_config_maps() -> None:
    runner = Runner.model_validate(
        {
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
                {"name": "HOME", "value": "/elsewhere"},
                {"name": "PYTHONUNBUFFERED", "value": ""},
            ]
        }
    )
    _, agent = containers(build_pod(replace(request(), runner=runner), SETTINGS))
    sources = {each["name"]: each["valueFrom"] for each in agent["env"] if "valueFrom" in each}
    assert sources == {
        "A": {"secretKeyRef": {"name": "s", "key": "k"}},
        "B": {"configMapKeyRef": {"name": "c", "key": "k"}},
    }
    assert [each["value"] for each in agent["env"] if each["name"] == "HOME"] == ["/elsewhere"]
    assert [each["value"] for each in agent["env"] if each["name"] == "PYTHONUNBUFFERED"] == [""]


def test_the_meter_is_told_all_it_needs() -> None:
    two = (provider(), provider("local", credentials=False))
    pod = build_pod(request(providers=two, remaining_seconds=90, extra={"x": 1}), SETTINGS)
    meter, _ = containers(pod)
    config = MeterConfig.model_validate_json(env(meter)["ALMONER_METER_CONFIG"])
    assert (config.execution_namespace, config.execution_name, config.attempt) == ("team-a", "hello", 1)
    assert (config.agent, config.owner, config.default_model) == ("greeter", "ann", "small")
    assert [each.key_file for each in config.providers] == ["openai/key", None]
    assert config.input == "Say hello"
    assert config.extra == {
        "grace_period_seconds": 60,
        "ledger_wait_seconds": 30,
        "call_seconds": 90,
        "x": 1,
        "price_lists": {"local": {"listed": False}, "openai": {"listed": False}},
    }
    assert pod["spec"]["activeDeadlineSeconds"] == 90 + 600
    assert pod["spec"]["terminationGracePeriodSeconds"] == 60
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    assert volumes["provider-0"]["secret"]["items"] == [{"key": "api-key", "path": "key"}]
    assert mounts(meter)["provider-0"] == "/almoner/providers/openai"
    token = volumes["token"]["projected"]["sources"][0]["serviceAccountToken"]
    assert token["audience"] == "almoner-ledger"
    assert volumes["spool"]["emptyDir"]["sizeLimit"] == "64Mi"


def test_input_from_a_config_map_is_mounted_into_the_meter_alone() -> None:
    source = ConfigMapKeyReference(name="inputs", key="first")
    pod = build_pod(replace(request(), input=None, input_from=source), SETTINGS)
    meter, agent = containers(pod)
    config = MeterConfig.model_validate_json(env(meter)["ALMONER_METER_CONFIG"])
    assert config.input is None
    assert config.input_file == "/almoner/source/input"
    assert mounts(meter)["source"] == "/almoner/source"
    assert "source" not in mounts(agent)
    volume = next(each for each in pod["spec"]["volumes"] if each["name"] == "source")
    assert volume["configMap"]["items"] == [{"key": "first", "path": "input"}]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=200))
def test_any_input_reaches_the_meter_unchanged(text: str) -> None:
    for given_text in (text, f"$({'ALMONER_POD_IP'}) $$ {text} $$(X) $(ALMONER_INPUT_FILE)"):
        meter, _ = containers(build_pod(replace(request(), input=given_text), SETTINGS))
        assert MeterConfig.model_validate_json(env(meter)["ALMONER_METER_CONFIG"]).input == given_text


def test_gpus_are_requested_as_the_named_resource() -> None:
    runner = Runner.model_validate(
        {
            "resources": {"requests": {"cpu": "500m", "gpu": 2}, "limits": {"memory": "1Gi"}},
            "gpuResourceName": "example.com/gpu",
            "nodeSelector": {"zone": "a"},
        }
    )
    pod = build_pod(replace(request(), runner=runner), SETTINGS)
    assert containers(pod)[1]["resources"] == {
        "requests": {"cpu": "500m", "example.com/gpu": "2"},
        "limits": {"memory": "1Gi", "example.com/gpu": "2"},
    }
    assert pod["spec"]["nodeSelector"] == {"zone": "a"}


REFUSED: dict[str, tuple[PodRequest, str]] = {
    "input too large": (replace(request(), input="x" * 130_000), r"input: .*configMapKeyRef"),
    "instructions too large": (
        replace(request(), agent=agent_spec(instructions="ü" * 65_000)),
        r"Agent: its spec is \d+ bytes",
    ),
    "the meter's own user": (replace(request(), runner=Runner(run_as_user=10002)), r"runAsUser: 10002 is the meter's"),
    "a variable that leads to the meter": (
        replace(request(), runner=Runner.model_validate({"env": [{"name": "OPENAI_BASE_URL", "value": "http://x"}]})),
        r"runner\.env: OPENAI_BASE_URL is set by the runner",
    ),
    "a variable of the runner": (
        replace(request(), runner=Runner.model_validate({"env": [{"name": "ALMONER_X", "value": "1"}]})),
        r"runner\.env: ALMONER_X",
    ),
    "nothing to run": (replace(request(), agent=None, agent_name=None), r"runner\.image: needed"),
    "two inputs": (
        replace(request(), input_from=ConfigMapKeyReference(name="a", key="b")),
        "input: give either",
    ),
    "too many providers": (request(providers=tuple(provider(f"p{i}") for i in range(10))), "at most 9"),
    "a source without a source": (
        replace(request(), runner=Runner.model_validate({"env": [{"name": "A", "valueFrom": {}}]})),
        "runner.env: A has a valueFrom without a source",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_by_name(case: str) -> None:
    bad, message = REFUSED[case]
    with pytest.raises(PodError, match=message):
        build_pod(bad, SETTINGS)


@given(st.text(min_size=1, max_size=253))
def test_any_name_makes_a_valid_label(name: str) -> None:
    value = label_value(name)
    assert 0 < len(value) <= 63
    assert value[0].isalnum()
    assert value[-1].isalnum()
    assert all(char.isascii() and (char.isalnum() or char in "-_.") for char in value)


def test_long_names_keep_apart() -> None:
    assert label_value("short") == "short"
    assert label_value("a" * 100) != label_value("a" * 101)
