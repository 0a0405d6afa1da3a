"""The runner pod of one attempt: a pure function from what was admitted to the object that is created.

The meter is a native sidecar and alone has the provider keys and the ledger's token; the agent container gets addresses
on the pod's loopback and placeholders. Everything here fits Kubernetes' restricted pod security profile.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from almoner_core import contract
from almoner_core.api.agent import AgentSpec, Limits, ModelAPI
from almoner_core.api.base import API_VERSION, ConfigMapKeyReference, SecretKeyReference
from almoner_core.api.runner import RESERVED_ENV, RESERVED_ENV_PREFIX, EnvVar, ResourceAmounts, Runner
from almoner_core.contract import MeterConfig, MeterModel, MeterProvider, MeterTool
from almoner_core.identity import allotment_id, pod_name
from almoner_core.price_list import pack
from almoner_core.quantity import millicores, whole
from almoner_operator import pod_options
from almoner_operator.scheduling.model import Requests

Json = dict[str, Any]

# A ConfigMap's input is mounted into the meter alone, which copies it to the input file.
SOURCE_DIR: Final = "/almoner/source"
SOURCE_FILE: Final = f"{SOURCE_DIR}/input"
# An environment string is at most 128 KiB on Linux, name included.
AGENT_SPEC_BYTES_MAX: Final = 120_000
LABEL_CHARS_MAX: Final = 63
PROVIDERS_MAX: Final = 9
START_SECONDS: Final = 600  # what the pod's own deadline leaves for its start
_PROBE_PERIOD_SECONDS: Final = 1
_NOT_LABEL: Final = re.compile(r"[^-A-Za-z0-9_.]")


# A mesh's classic sidecar starts after the meter, which then waits for a network that only comes after it.
NO_MESH: Final = (("sidecar.istio.io/inject", "false"), ("linkerd.io/inject", "disabled"))


class PodError(ValueError):
    """The pod cannot be built from this spec; the message names the field and the fix."""


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """How runner pods look on this cluster, from the operator's configuration."""

    image: str
    """The runner image: it holds the meter and our agent loop."""
    ledger_url: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = "default"
    meter_command: tuple[str, ...] = ("almoner-meter",)
    agent_command: tuple[str, ...] = ("almoner-agent",)
    meter_cpu: str = "50m"
    meter_memory: str = "96Mi"
    meter_cpu_limit: str = ""
    """None where empty. A core ResourceQuota on limits.cpu lets no pod in without one."""
    meter_memory_limit: str = "640Mi"
    annotations: tuple[tuple[str, str], ...] = NO_MESH
    """What runner pods carry besides their own."""
    meter_start_seconds: int = 60
    """Seconds in which the meter must have loaded its allotment, else it is restarted."""
    meter_grace_seconds: int = 30
    """Added to the agent's grace period: so long the meter tries to reach the ledger after the agent has ended. Machine
    time is held ahead for it, and an agent that ignores SIGTERM runs on for so long."""
    token_seconds: int = 3600
    """Life of the projected token for the ledger; the kubelet renews it. At least 600."""
    spool_size: str = "64Mi"
    input_size: str = "1Mi"
    output_size: str = "16Mi"
    scratch_size: str = "1Gi"

    @property
    def meter_requests(self) -> Requests:
        """What the meter's container reserves, for `requests_of`."""
        return Requests(cpu=millicores(self.meter_cpu), memory=whole(self.meter_memory))


@dataclass(frozen=True, slots=True)
class PodProvider:
    """A provider that the meter may call (with its price cards, resolved), and where its key lies.

    `meter.key_file` or, where the ledger hands the key over (`from_ledger`), `meter.ledger_key` is filled in by
    `build_pod` where `credentials` is given. `more`: models besides those of `meter`; `listed`: whether the provider
    lists its models, so that there are none but these.
    """

    meter: MeterProvider
    credentials: SecretKeyReference | None = None
    from_ledger: bool = False
    more: tuple[MeterModel, ...] = ()
    listed: bool = False


@dataclass(frozen=True, slots=True)
class PaidProbe:
    """How the kubelet ends a pod whose machine time is not paid for any more: with nobody's help but the meter's."""

    period_seconds: int
    failures: int
    timeout_seconds: int
    end_seconds: int
    """So long before it is not paid for any more the meter begins to fail the probe."""


@dataclass(frozen=True, slots=True)
class PodRequest:
    """One attempt that was admitted.

    `agent` is the pinned AgentSpec, None for a TrainingJob with a runner of its own. `limits` are the effective ones.
    `input` is the text (or JSON) as it is to be written to the input file; `input_from` a ConfigMap key instead.
    `remaining_seconds` is what is left of the timeout over all attempts; None without one. `extra` reaches the meter
    as it is. `prestop_token` is a secret that the kubelet shows the meter so that nobody else can make it drain. By its
    `nonce` the operator knows the pod for its own while it does not know its uid. `paid` is given where machine
    time costs something. `ledger_ca`: by which certificates the meter knows the ledger, in PEM; None: its image's.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    attempt: int
    owner: str
    runner: Runner
    agent_name: str | None = None
    agent: AgentSpec | None = None
    limits: Limits = field(default_factory=Limits)
    providers: tuple[PodProvider, ...] = ()
    tools: tuple[MeterTool, ...] = ()
    input: str | None = None
    input_from: ConfigMapKeyReference | None = None
    remaining_seconds: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    prestop_token: str | None = None
    nonce: str = ""
    paid: PaidProbe | None = None
    ledger_ca: str | None = None


def build_pod(request: PodRequest, settings: RunnerSettings) -> Json:
    """Give the Pod object (JSON form) for an attempt. Raises PodError naming what is too large or malformed."""
    _check(request)
    runner = request.runner
    spec: Json = {
        "restartPolicy": "Never",
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": _grace(request, settings),
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": contract.SHARED_GROUP,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_meter(request, settings)],
        "containers": [_agent(request, settings)],
        "volumes": _volumes(request, settings),
    }
    pull = dict.fromkeys([*settings.image_pull_secrets, *(each.name for each in runner.image_pull_secrets)])
    if pull:
        spec["imagePullSecrets"] = [{"name": name} for name in pull]
    labels = _labels(request)
    spec = {**pod_options.spec_of(runner, labels.get(contract.LABEL_AGENT)), **spec}
    if request.remaining_seconds is not None:
        # For when no operator is there to stop it in time. It counts from before the start, image pulls included.
        spec["activeDeadlineSeconds"] = max(1, request.remaining_seconds) + START_SECONDS
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(request.name, request.uid, request.attempt),
            "namespace": request.namespace,
            "labels": {**runner.labels, **labels},
            "annotations": {
                **runner.annotations,
                **dict(settings.annotations),
                contract.ANNOTATION_NAME: request.name,
                **({contract.ANNOTATION_NONCE: request.nonce} if request.nonce else {}),
            },
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": request.kind,
                    "name": request.name,
                    "uid": request.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": spec,
    }


def reserved_env(env: list[EnvVar]) -> str | None:
    """Give the first variable that a user may not set, since it leads to the meter; None where there is none."""
    for variable in env:
        if variable.name in RESERVED_ENV or variable.name.startswith(RESERVED_ENV_PREFIX):
            return variable.name
    return None


def label_value(name: str) -> str:
    """Make a label's value of a name: as it is where it fits, else its beginning and a digest of the whole."""
    clean = _NOT_LABEL.sub("-", name).strip("-_.")
    if clean == name and len(name) <= LABEL_CHARS_MAX:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{clean[: LABEL_CHARS_MAX - 9].rstrip('-_.')}-{digest}".lstrip("-")


def _check(request: PodRequest) -> None:
    """Refuse what would only fail on the node, or open a way round the meter."""
    runner = request.runner
    if runner.run_as_user == contract.METER_USER:
        raise PodError(f"runner.runAsUser: {contract.METER_USER} is the meter's own user: choose another")
    if (problem := pod_options.problem(runner)) is not None:
        raise PodError(f"runner.{problem}")
    name = reserved_env(runner.env)
    if name is not None:
        raise PodError(f"runner.env: {name} is set by the runner: remove it, or give it another name")
    if len(request.providers) > PROVIDERS_MAX:
        raise PodError(f"model.fallbacks: {len(request.providers)} providers, at most {PROVIDERS_MAX}: name fewer")
    if runner.image is None and request.agent is None:
        raise PodError("runner.image: needed, since there is no agent whose loop could run")
    if runner.image is not None and request.limits.max_turns is not None:
        raise PodError(
            "limits.maxTurns: only Almoner's own loop counts turns, and runner.image runs instead: remove it"
        )
    if request.input is not None and request.input_from is not None:
        raise PodError("input: give either the input itself or a ConfigMap's key, not both")


def _grace(request: PodRequest, settings: RunnerSettings) -> int:
    return request.runner.termination_grace_period_seconds + settings.meter_grace_seconds


def _labels(request: PodRequest) -> dict[str, str]:
    labels = {
        contract.LABEL_MANAGED_BY: "almoner",
        contract.LABEL_COMPONENT: contract.RUNNER_COMPONENT,
        contract.LABEL_KIND: request.kind,
        contract.LABEL_EXECUTION_UID: request.uid,
        contract.LABEL_ATTEMPT: str(request.attempt),
    }
    if request.agent_name:
        labels[contract.LABEL_AGENT] = label_value(request.agent_name)
    return labels


# --- containers -------------------------------------------------------------------------------------------------------


def _container_security(user: int, *, read_only: bool) -> Json:
    """What the restricted profile asks of every container."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _meter(request: PodRequest, settings: RunnerSettings) -> Json:
    """The sidecar: alone with keys, token and spool."""
    mounts: list[Json] = [
        {"name": "input", "mountPath": contract.INPUT_DIR},
        {"name": "output", "mountPath": contract.OUTPUT_DIR},
        {"name": "spool", "mountPath": contract.SPOOL_DIR},
        {"name": "token", "mountPath": contract.TOKEN_DIR, "readOnly": True},
    ]
    if request.input_from is not None:
        mounts.append({"name": "source", "mountPath": SOURCE_DIR, "readOnly": True})
    mounts.extend(
        {"name": volume, "mountPath": f"{contract.PROVIDERS_DIR}/{provider.meter.name}", "readOnly": True}
        for volume, provider in _credentials(request)
    )
    probe = {"httpGet": {"path": "/healthz", "port": contract.HEALTH_PORT}}
    return {
        "name": contract.METER_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": list(settings.meter_command),
        "restartPolicy": "Always",
        "env": [
            {"name": contract.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            *_plain_env(
                {
                    contract.ENV_METER_ADDRESS: contract.METER_ADDRESS,
                    contract.ENV_HEALTH_PORT: str(contract.HEALTH_PORT),
                    contract.ENV_SPOOL_DIR: contract.SPOOL_DIR,
                    contract.ENV_LEDGER_TOKEN_FILE: contract.LEDGER_TOKEN_FILE,
                    contract.ENV_PROVIDERS_DIR: contract.PROVIDERS_DIR,
                    contract.ENV_INPUT_FILE: contract.INPUT_FILE,
                    contract.ENV_OUTPUT_FILE: contract.OUTPUT_FILE,
                    contract.ENV_METER_CONFIG: _meter_config(request, settings),
                }
            ),
        ],
        "volumeMounts": mounts,
        "resources": {
            "requests": {"cpu": settings.meter_cpu, "memory": settings.meter_memory},
            "limits": {
                **({"cpu": settings.meter_cpu_limit} if settings.meter_cpu_limit else {}),
                "memory": settings.meter_memory_limit,
            },
        },
        "startupProbe": {
            **probe,
            "periodSeconds": _PROBE_PERIOD_SECONDS,
            "timeoutSeconds": 2,
            "failureThreshold": max(1, settings.meter_start_seconds // _PROBE_PERIOD_SECONDS),
        },
        "lifecycle": {"preStop": {"httpGet": _prestop(request)}},
        "terminationMessagePolicy": "File",
        "securityContext": _container_security(contract.METER_USER, read_only=True),
    }


def _prestop(request: PodRequest) -> Json:
    call: Json = {"path": contract.PRESTOP_PATH, "port": contract.HEALTH_PORT}
    if request.prestop_token is not None:
        call["httpHeaders"] = [{"name": contract.PRESTOP_HEADER, "value": request.prestop_token}]
    return call


def _agent(request: PodRequest, settings: RunnerSettings) -> Json:
    """The container that does the work: no key, no token, no spool."""
    runner = request.runner
    ours = runner.image is None
    container: Json = {
        "name": contract.AGENT_CONTAINER,
        "image": settings.image if runner.image is None else runner.image,
        "env": _agent_env(request, ours=ours),
        "volumeMounts": [
            {"name": "input", "mountPath": contract.INPUT_DIR, "readOnly": True},
            {"name": "output", "mountPath": contract.OUTPUT_DIR},
            {"name": "scratch", "mountPath": contract.SCRATCH_DIR},
            *pod_options.mounts_of(runner),
        ],
        "workingDir": contract.SCRATCH_DIR,
        "resources": _resources(runner),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _container_security(runner.run_as_user, read_only=ours),
    }
    if request.paid is not None:
        container["livenessProbe"] = {
            "httpGet": {"path": contract.PAID_PATH, "port": contract.HEALTH_PORT},
            "periodSeconds": request.paid.period_seconds,
            "failureThreshold": request.paid.failures,
            "timeoutSeconds": request.paid.timeout_seconds,
            # The pod's own would be the agent's and the meter's, and the meter's comes after it.
            "terminationGracePeriodSeconds": max(1, runner.termination_grace_period_seconds),
        }
    if ours:
        container["imagePullPolicy"] = settings.image_pull_policy
        container["command"] = list(runner.command or settings.agent_command)
    else:
        del container["workingDir"]  # the image's own: its code may count on it
        if runner.command is not None:
            container["command"] = list(runner.command)
    if runner.args is not None:
        container["args"] = list(runner.args)
    return container


def _agent_env(request: PodRequest, *, ours: bool) -> list[Json]:
    """Addresses of the meter and placeholder keys, then the user's own variables."""
    address = f"http://$({contract.ENV_METER_ADDRESS})"
    before: dict[str, str] = {
        "HOME": contract.SCRATCH_DIR,
        "TMPDIR": contract.SCRATCH_DIR,
        "PYTHONUNBUFFERED": "1",  # what it prints is in the log at once, also of a run that is killed
        **contract.AGENT_DEFAULTS,
        **_default_models(request),
    }
    plain = {
        contract.ENV_METER_ADDRESS: contract.METER_ADDRESS,
        contract.ENV_EXECUTION: f"{request.namespace}/{request.name}",
        contract.ENV_ATTEMPT: str(request.attempt),
        contract.ENV_INPUT_FILE: contract.INPUT_FILE,
        contract.ENV_OUTPUT_FILE: contract.OUTPUT_FILE,
        contract.ENV_OPENAI_API_KEY: contract.PLACEHOLDER_KEY,
        contract.ENV_ANTHROPIC_API_KEY: contract.PLACEHOLDER_KEY,
    }
    if request.agent is not None:
        plain[contract.ENV_MODEL] = request.agent.model.name
        if ours:
            plain[contract.ENV_AGENT_SPEC] = _agent_spec(request)
    own = [_user_env(variable) for variable in request.runner.env]
    named = {variable["name"] for variable in own}
    return [
        *_plain_env({name: value for name, value in before.items() if name not in named}),
        *_plain_env(plain),
        {"name": contract.ENV_METER_URL, "value": address},
        {"name": contract.ENV_OPENAI_BASE_URL, "value": f"{address}/openai/v1"},
        {"name": contract.ENV_OPENAI_API_BASE, "value": f"{address}/openai/v1"},
        {"name": contract.ENV_ANTHROPIC_BASE_URL, "value": f"{address}/anthropic"},
        *own,
    ]


def _default_models(request: PodRequest) -> dict[str, str]:
    """The agent's model under the names that frameworks read, in the dialects that its provider speaks."""
    if request.agent is None or not request.providers:
        return {}
    names = {
        contract.Dialect.OPENAI: contract.ENV_OPENAI_DEFAULT_MODEL,
        contract.Dialect.ANTHROPIC: contract.ENV_ANTHROPIC_MODEL,
    }
    dialects = request.providers[0].meter.dialects
    return {variable: request.agent.model.name for dialect, variable in names.items() if dialect in dialects}


def _plain_env(values: dict[str, str]) -> list[Json]:
    """Values that Kubernetes must hand over as they are: `$` is doubled, or it would expand `$(NAME)` in them."""
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _user_env(variable: EnvVar) -> Json:
    """A user's own variable, with Kubernetes' own rules (`$(NAME)` included)."""
    source = variable.value_from
    if source is None:
        return {"name": variable.name, "value": variable.value or ""}
    for key, reference in (("secretKeyRef", source.secret_key_ref), ("configMapKeyRef", source.config_map_key_ref)):
        if reference is not None:
            return {"name": variable.name, "valueFrom": {key: {"name": reference.name, "key": reference.key}}}
    raise PodError(f"runner.env: {variable.name} has a valueFrom without a source: name a Secret or a ConfigMap")


def _agent_spec(request: PodRequest) -> str:
    """The pinned spec for our loop: with limits and dialect as they apply, without the runner, which it needs not."""
    agent = request.agent
    assert agent is not None
    model = agent.model
    if model.api is None and request.providers and request.providers[0].meter.dialects:
        model = model.model_copy(update={"api": ModelAPI(request.providers[0].meter.dialects[0])})
    told = agent.model_copy(update={"limits": request.limits, "runner": Runner(), "model": model})
    text = _json(told.to_wire())
    size = len(text.encode())
    if size > AGENT_SPEC_BYTES_MAX:
        raise PodError(
            f"Agent: its spec is {size} bytes as JSON, at most {AGENT_SPEC_BYTES_MAX}: shorten instructions or schemas"
        )
    return text


def _resources(runner: Runner) -> Json:
    """Kubernetes' requests and limits; an extended resource's request equals its limit."""
    result: Json = {}
    for name, amounts in (("requests", runner.resources.requests), ("limits", runner.resources.limits)):
        values = _amounts(amounts)
        if values:
            result[name] = values
    gpu = max(runner.resources.requests.gpu or 0, runner.resources.limits.gpu or 0)
    if gpu:
        for name in ("requests", "limits"):
            result.setdefault(name, {})[runner.gpu_resource_name] = str(gpu)
    return result


def _amounts(amounts: ResourceAmounts) -> dict[str, str]:
    pairs = (("cpu", amounts.cpu), ("memory", amounts.memory))
    return {name: str(value) for name, value in pairs if value is not None}


# --- configuration and volumes ----------------------------------------------------------------------------------------


def _meter_config(request: PodRequest, settings: RunnerSettings) -> str:
    """All that the meter is told, as JSON. Raises PodError where it does not fit an environment variable."""
    agent = request.agent
    config = MeterConfig(
        execution_namespace=request.namespace,
        execution_name=request.name,
        execution_uid=request.uid,
        kind=request.kind,
        attempt=request.attempt,
        agent=request.agent_name or "",
        owner=request.owner,
        allotment=allotment_id(request.uid, request.attempt),
        ledger_url=settings.ledger_url,
        ledger_ca=request.ledger_ca,
        providers=tuple(_meter_provider(provider) for provider in request.providers),
        tools=request.tools,
        default_model=agent.model.name if agent else None,
        max_output_tokens=agent.model.settings.max_output_tokens if agent else None,
        input=request.input,
        input_file=SOURCE_FILE if request.input_from is not None else None,
        extra={
            contract.EXTRA_GRACE_SECONDS: _grace(request, settings),
            contract.EXTRA_LEDGER_WAIT_SECONDS: settings.meter_grace_seconds,
            **(
                {}
                if request.remaining_seconds is None
                else {contract.EXTRA_CALL_SECONDS: max(1, request.remaining_seconds)}
            ),
            **({} if request.paid is None else {contract.EXTRA_END_SECONDS: request.paid.end_seconds}),
            **({} if request.prestop_token is None else {contract.EXTRA_PRESTOP_TOKEN: request.prestop_token}),
            **request.extra,
        },
    )
    # Without what is the default: an older runner takes the configuration as long as nothing newer is in it.
    told = config.model_dump(mode="json", exclude_defaults=True)
    text = _with_price_lists(told, request.providers)
    size = len(text.encode())
    if size > contract.METER_CONFIG_BYTES_MAX:
        given = len((request.input or "").encode())
        raise PodError(
            f"input: the meter's configuration is {size} bytes ({given} of them input), at most "
            f"{contract.METER_CONFIG_BYTES_MAX}: put the input into a ConfigMap (input.configMapKeyRef), or name fewer "
            "models at the provider"
        )
    return text


def _with_price_lists(told: Json, providers: tuple[PodProvider, ...]) -> str:
    """Give the configuration as JSON, with the prices of more models, as far as there is room for them.

    Those that a provider lists always go along: it would be refused rather than be without.
    """
    lists: dict[str, Json] = {}
    for provider in providers:
        lists[provider.meter.name] = {"listed": provider.listed}
        if provider.more:
            lists[provider.meter.name]["prices"] = pack(provider.more)
    told["extra"][contract.EXTRA_PRICE_LISTS] = lists
    text = _json(told)
    for provider in reversed(providers):
        if len(text.encode()) > contract.METER_CONFIG_BYTES_MAX and provider.more and not provider.listed:
            lists[provider.meter.name] = {"listed": False, "left_out": True}
            text = _json(told)
    return text


def _meter_provider(provider: PodProvider) -> MeterProvider:
    if provider.credentials is None:
        return provider.meter
    key = {"ledger_key": True} if provider.from_ledger else {"key_file": f"{provider.meter.name}/key"}
    return provider.meter.model_copy(update=key)


def _credentials(request: PodRequest) -> list[tuple[str, PodProvider]]:
    """Volume names of the providers whose key is mounted; names of providers may be longer than a volume's may."""
    return [
        (f"provider-{index}", provider)
        for index, provider in enumerate(request.providers)
        if provider.credentials is not None and not provider.from_ledger
    ]


def _volumes(request: PodRequest, settings: RunnerSettings) -> list[Json]:
    volumes: list[Json] = [
        {"name": "input", "emptyDir": {"sizeLimit": settings.input_size}},
        {"name": "output", "emptyDir": {"sizeLimit": settings.output_size}},
        {"name": "spool", "emptyDir": {"sizeLimit": settings.spool_size}},
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch_size}},
        {
            "name": "token",
            "projected": {
                "defaultMode": 0o440,
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": contract.LEDGER_AUDIENCE,
                            "expirationSeconds": max(600, settings.token_seconds),
                            "path": contract.LEDGER_TOKEN_FILE.rpartition("/")[2],
                        }
                    }
                ],
            },
        },
    ]
    if request.input_from is not None:
        source = request.input_from
        items = [{"key": source.key, "path": "input"}]
        volumes.append({"name": "source", "configMap": {"name": source.name, "items": items, "defaultMode": 0o440}})
    for volume, provider in _credentials(request):
        if (reference := provider.credentials) is not None:
            items = [{"key": reference.key, "path": "key"}]
            secret = {"secretName": reference.name, "items": items, "defaultMode": 0o440}
            volumes.append({"name": volume, "secret": secret})
    volumes.extend(pod_options.volumes_of(request.runner))
    return volumes


def _json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
