"""What a user may say of a runner's pod: placement, priority, runtime, volumes, labels, annotations, pull secrets.

Role: from `runner` to the pod's own fields, laid under what Almoner sets, so that nothing here can replace that.
Boundary: pure. The API server has checked the bounds; what isolates the meter is checked again, since a stored object
may be older than the schema.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_core import contract
from almoner_core.api.runner import RESERVED_DOMAINS, Runner
from almoner_core.api.volumes import RESERVED_PATHS, Volume

Json = dict[str, Any]

EMPTY_DIR_SIZE: Final = "1Gi"
# Before the names of a user's volumes, so that none can take the place of one of Almoner's.
VOLUME_PREFIX: Final = "user-"


def problem(runner: Runner) -> str | None:
    """Say what would break the pod's isolation, with the field below runner; None where nothing does."""
    for mount in runner.volume_mounts:
        parts = mount.mount_path.split("/")
        if not mount.mount_path.startswith("/") or any(part in ("", ".", "..") for part in parts[1:]):
            return f"volumeMounts: {mount.mount_path} is no absolute path without '.', '..' and '//'"
        if any(mount.mount_path == path or mount.mount_path.startswith(f"{path}/") for path in RESERVED_PATHS):
            return f"volumeMounts: {mount.mount_path} must not be mounted over: choose another path"
    for field, keys in (("annotations", runner.annotations), ("labels", runner.labels)):
        for key in keys:
            domain, slash, _ = key.partition("/")
            if not slash or any(domain == each or domain.endswith(f".{each}") for each in RESERVED_DOMAINS):
                return f"{field}: {key} is not of a domain of your own: remove it"
    if runner.priority_class_name is not None and runner.priority_class_name.startswith("system-"):
        return f"priorityClassName: {runner.priority_class_name} is the cluster's own: choose another"
    return None


def spec_of(runner: Runner, agent_label: str | None) -> Json:
    """Return the fields of the pod's spec that a runner asks for. `agent_label` selects the Agent's pods."""
    spec: Json = {}
    if runner.node_selector:
        spec["nodeSelector"] = dict(runner.node_selector)
    if runner.tolerations:
        spec["tolerations"] = [toleration.to_wire() for toleration in runner.tolerations]
    if runner.affinity is not None:
        spec["affinity"] = _without_empty(runner.affinity.to_wire())
    if runner.topology_spread_constraints and agent_label is not None:
        selector = {"matchLabels": {contract.LABEL_AGENT: agent_label}}
        spec["topologySpreadConstraints"] = [
            {**spread.to_wire(), "labelSelector": selector} for spread in runner.topology_spread_constraints
        ]
    if runner.priority_class_name is not None:
        spec["priorityClassName"] = runner.priority_class_name
    if runner.runtime_class_name is not None:
        spec["runtimeClassName"] = runner.runtime_class_name
    return spec


def volumes_of(runner: Runner) -> list[Json]:
    """Return the user's volumes."""
    return [_volume(volume) for volume in runner.volumes]


def mounts_of(runner: Runner) -> list[Json]:
    """Return the user's mounts, for the agent's container alone."""
    return [
        {"name": f"{VOLUME_PREFIX}{mount.name}", "mountPath": mount.mount_path, "readOnly": mount.read_only}
        for mount in runner.volume_mounts
    ]


def _without_empty(value: Any) -> Any:
    """Leave out empty lists, as Kubernetes does. As deep as the type is, no deeper."""
    if isinstance(value, dict):
        return {key: _without_empty(below) for key, below in value.items() if below != []}
    return [_without_empty(each) for each in value] if isinstance(value, list) else value


def _volume(volume: Volume) -> Json:
    named: Json = {"name": f"{VOLUME_PREFIX}{volume.name}"}
    if volume.config_map is not None:
        named["configMap"] = {"name": volume.config_map.name, "defaultMode": 0o440}
    elif volume.secret is not None:
        named["secret"] = {"secretName": volume.secret.secret_name, "defaultMode": 0o440}
    elif volume.persistent_volume_claim is not None:
        named["persistentVolumeClaim"] = volume.persistent_volume_claim.to_wire()
    else:
        limit = volume.empty_dir.size_limit if volume.empty_dir is not None else None
        named["emptyDir"] = {"sizeLimit": EMPTY_DIR_SIZE if limit is None else str(limit)}
    return named
