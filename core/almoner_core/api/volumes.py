"""Volumes of the agent's container: the safe ones of the restricted profile, and where they may be mounted."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from almoner_core.api.base import DNS_LABEL_PATTERN, APIModel, ObjectName
from almoner_core.api.meta import Rule, exactly_one_of, validated
from almoner_core.api.quantities import Quantity

# Almoner's own, and what a container is made of.
RESERVED_PATHS: Final = ("/almoner", "/dev", "/proc", "/sys")
RESERVED_PATHS_RULE: Final = " && ".join(
    f"self.mountPath != '{path}' && !self.mountPath.startsWith('{path}/')" for path in RESERVED_PATHS
)


class EmptyDirVolume(APIModel):
    """An empty folder on the node's disk, for as long as the pod lives."""

    size_limit: Quantity | None = Field(default=None, description="Most bytes, such as '2Gi'; 1Gi where absent.")


class ConfigMapVolume(APIModel):
    """The keys of a ConfigMap, as files."""

    name: ObjectName = Field(description="Name of the ConfigMap, in the same namespace.")


class SecretVolume(APIModel):
    """The keys of a Secret, as files."""

    secret_name: ObjectName = Field(
        description='Name of a Secret in the same namespace that carries the label almoner.dev/agent-readable: "true".'
    )


class ClaimVolume(APIModel):
    """A PersistentVolumeClaim."""

    claim_name: ObjectName = Field(description="Name of the PersistentVolumeClaim, in the same namespace.")
    read_only: bool = Field(default=False, description="Whether it is mounted for reading only.")


class Volume(APIModel):
    """One volume: exactly one of emptyDir, configMap, secret, persistentVolumeClaim."""

    model_config = validated(
        exactly_one_of(
            "emptyDir",
            "configMap",
            "secret",
            "persistentVolumeClaim",
            message="must be exactly one of emptyDir, configMap, secret, persistentVolumeClaim",
        )
    )

    name: str = Field(min_length=1, max_length=50, pattern=DNS_LABEL_PATTERN, description="Its name.")
    empty_dir: EmptyDirVolume | None = Field(default=None, description="An empty folder that the pod takes with it.")
    config_map: ConfigMapVolume | None = Field(default=None, description="A ConfigMap's keys as files.")
    secret: SecretVolume | None = Field(default=None, description="A Secret's keys as files.")
    persistent_volume_claim: ClaimVolume | None = Field(default=None, description="A claim on a volume that stays.")


class VolumeMount(APIModel):
    """Where a volume appears in the agent's container."""

    model_config = validated(
        Rule(
            RESERVED_PATHS_RULE,
            f"{', '.join(RESERVED_PATHS)} and what is below them are not to be mounted over",
            ".mountPath",
            "FieldValueForbidden",
        ),
        Rule(
            "!self.mountPath.split('/').exists(part, part == '.' || part == '..')",
            "must not contain '.' or '..'",
            ".mountPath",
        ),
    )

    name: str = Field(min_length=1, max_length=50, pattern=DNS_LABEL_PATTERN, description="Name of the volume.")
    mount_path: str = Field(
        min_length=2,
        max_length=512,
        pattern=r"^(/[^/:\x00]+)+$",
        description="Absolute path in the container, without a slash at its end.",
    )
    read_only: bool = Field(default=False, description="Whether the agent may only read it.")
