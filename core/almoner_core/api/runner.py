"""How an agent's container runs: image, command, environment, resources. Shared by Agent and TrainingJob."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from almoner_core import contract
from almoner_core.api.base import (
    LABEL_KEY_PATTERN,
    LABEL_VALUE_PATTERN,
    APIModel,
    ConfigMapKeyReference,
    LocalObjectReference,
    ObjectName,
    SecretKeyReference,
)
from almoner_core.api.meta import Rule, exactly_one_of, not_above, validated
from almoner_core.api.placement import Affinity, Toleration, TopologySpread
from almoner_core.api.quantities import Quantity
from almoner_core.api.volumes import Volume, VolumeMount

# What the operator sets itself: whoever could set these would call a provider past the meter.
RESERVED_ENV_PREFIX: Final = "ALMONER_"
RESERVED_ENV: Final = (
    contract.ENV_OPENAI_BASE_URL,
    contract.ENV_OPENAI_API_BASE,
    contract.ENV_OPENAI_API_KEY,
    contract.ENV_ANTHROPIC_BASE_URL,
    contract.ENV_ANTHROPIC_API_KEY,
)


# Annotations and labels that are somebody's instructions about the pod's network, its security or its containers.
RESERVED_DOMAINS: Final = (
    "almoner.dev",
    "kubernetes.io",
    "k8s.io",
    "cncf.io",
    "istio.io",
    "linkerd.io",
    "cilium.io",
    "projectcalico.org",
    "hashicorp.com",
    "dapr.io",
)
_RESERVED: Final = "|".join(domain.replace(".", "[.]") for domain in RESERVED_DOMAINS)
# Without a prefix a label may be what a Service or a NetworkPolicy of somebody else's selects.
_OWN_KEY: Final = f"key.contains('/') && !key.matches('^(.*[.])?({_RESERVED})/')"
_KEYS: Final = (
    "needs keys with a prefix of your own, such as example.com/team: keys without one, and those of "
    + ", ".join(RESERVED_DOMAINS)
    + " (and below them), decide who else selects or changes the pod"
)


class EnvVarSource(APIModel):
    """Where the value of an environment variable comes from: exactly one of the two."""

    model_config = validated(
        exactly_one_of(
            "secretKeyRef", "configMapKeyRef", message="must be exactly one of secretKeyRef, configMapKeyRef"
        )
    )

    secret_key_ref: SecretKeyReference | None = Field(
        default=None,
        description='A key of a Secret that carries the label almoner.dev/agent-readable: "true".',
    )
    config_map_key_ref: ConfigMapKeyReference | None = Field(default=None, description="A key of a ConfigMap.")


class EnvVar(APIModel):
    """One environment variable of the agent container: exactly one of value and valueFrom."""

    model_config = validated(
        Rule(
            f"!self.name.startsWith('{RESERVED_ENV_PREFIX}')",
            f"names that begin with {RESERVED_ENV_PREFIX} are the runner's own: choose another name",
            ".name",
            "FieldValueForbidden",
        ),
        Rule(
            f"!(self.name in {list(RESERVED_ENV)})",
            f"{', '.join(RESERVED_ENV)} lead to the meter and are set by Almoner: remove the variable",
            ".name",
            "FieldValueForbidden",
        ),
        exactly_one_of("value", "valueFrom", message="must be exactly one of value, valueFrom"),
    )

    name: str = Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the variable. Names that begin with ALMONER_ are the runner's own.",
    )
    value: str | None = Field(default=None, max_length=8192, description="The value as text.")
    value_from: EnvVarSource | None = Field(default=None, description="Where the value comes from.")


class ResourceAmounts(APIModel):
    """Amounts of machine resources."""

    cpu: Quantity | None = Field(default=None, description="Processor cores, such as '500m' or 2.")
    memory: Quantity | None = Field(default=None, description="Memory, such as '512Mi'.")
    gpu: int | None = Field(default=None, ge=0, le=1024, description="Whole GPUs.")


class Resources(APIModel):
    """Requests and limits of the agent container."""

    model_config = validated(
        *(
            not_above(
                name,
                name,
                f"requests.{name} must not exceed limits.{name}",
                path=("self.requests", "self.limits"),
                field=f".requests.{name}",
            )
            for name in ("cpu", "memory")
        ),
        Rule(
            "!has(self.requests) || !has(self.requests.gpu) || !has(self.limits) || !has(self.limits.gpu) || "
            "self.requests.gpu == self.limits.gpu",
            "requests.gpu must equal limits.gpu: Kubernetes knows no other amount than the one that is used",
            ".requests.gpu",
        ),
    )

    requests: ResourceAmounts = Field(
        default=ResourceAmounts(), description="What the pod reserves, and what counts against a ResourceQuota."
    )
    limits: ResourceAmounts = Field(default=ResourceAmounts(), description="What the container may use at most.")


class Runner(APIModel):
    """The container that does the work: our agent loop where `image` is absent, else any image of the user's."""

    model_config = validated(
        Rule(
            "!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) && "
            "self.volumes.exists(volume, volume.name == mount.name))",
            "every mount must name one of runner.volumes",
            ".volumeMounts",
        ),
        Rule(
            "!has(self.volumes) || self.volumes.all(volume, has(self.volumeMounts) && "
            "self.volumeMounts.exists(mount, mount.name == volume.name))",
            "every volume must be mounted by one of runner.volumeMounts",
            ".volumes",
        ),
        Rule(
            f"!has(self.annotations) || self.annotations.all(key, {_OWN_KEY})",
            f"annotations {_KEYS}",
            ".annotations",
            "FieldValueForbidden",
        ),
        Rule(
            f"!has(self.labels) || self.labels.all(key, {_OWN_KEY})",
            f"labels {_KEYS}",
            ".labels",
            "FieldValueForbidden",
        ),
        Rule(
            "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
            "priority classes that begin with system- are the cluster's own",
            ".priorityClassName",
            "FieldValueForbidden",
        ),
    )

    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=512,
        description="Image to run instead of Almoner's own agent loop. It gets OPENAI_BASE_URL, ANTHROPIC_BASE_URL and "
        "placeholder keys, so unmodified SDKs run metered.",
    )
    command: list[Annotated[str, Field(min_length=1, max_length=4096)]] | None = Field(
        default=None, min_length=1, max_length=64, description="Command of the container; the image's own where absent."
    )
    args: list[Annotated[str, Field(max_length=4096)]] | None = Field(
        default=None, max_length=64, description="Arguments of the command."
    )
    env: list[EnvVar] = Field(
        default=[],
        max_length=64,
        description="Environment variables of the agent container.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    resources: Resources = Field(default=Resources(), description="Machine resources of the agent container.")
    gpu_resource_name: str = Field(
        default="nvidia.com/gpu",
        max_length=253,
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="Extended resource that a GPU is requested as.",
    )
    node_selector: dict[
        Annotated[str, Field(max_length=317, pattern=LABEL_KEY_PATTERN)],
        Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)],
    ] = Field(default={}, max_length=16, description="Labels that the node must carry.")
    run_as_user: int = Field(
        default=10001, ge=1, le=2147483647, description="Numeric user of the agent container; root is not allowed."
    )
    termination_grace_period_seconds: int = Field(
        default=30, ge=1, le=3600, description="Seconds between SIGTERM and SIGKILL, for writing a last checkpoint."
    )
    tolerations: list[Toleration] = Field(default=[], max_length=16, description="Taints that the pod tolerates.")
    affinity: Affinity | None = Field(default=None, description="Nodes that the pod needs, and nodes that it prefers.")
    topology_spread_constraints: list[TopologySpread] = Field(
        default=[],
        max_length=4,
        description="How the pods of this Agent are spread over nodes or zones.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["topologyKey"]},
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the pod. Which run is admitted first is spec.priority."
    )
    runtime_class_name: ObjectName | None = Field(
        default=None, description="RuntimeClass of the pod, such as one for gVisor or for GPUs."
    )
    image_pull_secrets: list[LocalObjectReference] = Field(
        default=[],
        max_length=8,
        description="Secrets to pull the image with, in the same namespace; each carries the label "
        'almoner.dev/agent-readable: "true".',
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    annotations: dict[
        Annotated[str, Field(max_length=317, pattern=LABEL_KEY_PATTERN)], Annotated[str, Field(max_length=4096)]
    ] = Field(default={}, max_length=16, description="Annotations of the pod, with keys of a domain of your own.")
    labels: dict[
        Annotated[str, Field(max_length=317, pattern=LABEL_KEY_PATTERN)],
        Annotated[str, Field(max_length=63, pattern=LABEL_VALUE_PATTERN)],
    ] = Field(default={}, max_length=16, description="Labels of the pod, with keys of a domain of your own.")
    volumes: list[Volume] = Field(
        default=[],
        max_length=16,
        description="Volumes of the pod.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    volume_mounts: list[VolumeMount] = Field(
        default=[],
        max_length=16,
        description="Where the volumes appear in the agent's container.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
    )
