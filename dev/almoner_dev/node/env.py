"""Pure: what a container's environment, command and arguments become, by Kubernetes' rules.

Role: resolve `env`, `envFrom`, `$(VAR)`, the downward API; rewrite paths where a node has no mounts.
Boundary: no I/O; objects that are referred to come in through a lookup. Why apart: these rules are
easy to get subtly wrong, so they are tested as tables.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING

from almoner_core.quantity import parse_quantity
from almoner_dev.node.api import Json

METER_ADDRESS_VARIABLE = "ALMONER_METER_ADDRESS"
_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")
_ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")

Lookup = Callable[[str, str], "Json | None"]
"""(kind, name) -> the Secret or ConfigMap of the pod's namespace, None where there is none."""


class ConfigError(Exception):
    """The container cannot be made from what its pod says; kubelet's CreateContainerConfigError."""


@dataclass(frozen=True)
class PodFacts:
    """What the downward API tells of a pod beyond its manifest."""

    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value; unknown names stay as written, `$$(NAME)` becomes `$(NAME)`."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


def object_data(found: Json) -> dict[str, bytes]:
    """The decoded content of a Secret or ConfigMap."""
    data = found.get("data") or {}
    if found.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in data.items()}
    plain = {key: str(value).encode() for key, value in data.items()}
    return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


def field_value(path: str, pod: Json, facts: PodFacts) -> str:
    """A `fieldRef` as text. Raises ConfigError for a path that is not supported."""
    metadata, spec = pod["metadata"], pod["spec"]
    if match := _SUBSCRIPT.match(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = metadata.get(path.split(".")[1]) or {}
        return "\n".join(f'{key}="{_quoted(value)}"' for key, value in sorted(entries.items()))
    values = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path not in values:
        raise ConfigError(f"fieldRef: {path!r} is not supported")
    return str(values[path])


def _quoted(value: str) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def resource_value(reference: Json, pod: Json, container: Json, facts: PodFacts) -> str:
    """A `resourceFieldRef` as text: rounded up in units of its divisor. Raises ConfigError."""
    wanted, resource = str(reference["resource"]).split(".", 1)
    spec = pod["spec"]
    name = reference.get("containerName")
    if name:
        every = [*(spec.get("initContainers") or []), *spec["containers"]]
        container = next((c for c in every if c["name"] == name), {})
    resources = container.get("resources") or {}
    amount = (resources.get(wanted) or {}).get(resource)
    if amount is None and wanted == "limits":
        amount = facts.allocatable.get(resource)
    try:
        divisor = parse_quantity(reference.get("divisor") or "1")
        quotient = parse_quantity(amount or "0") / (divisor or 1)
    except ValueError as error:
        raise ConfigError(f"resourceFieldRef {reference['resource']}: {error}") from error
    return str(int(quotient.to_integral_value(ROUND_CEILING)))


def _from_key(kind: str, reference: Json, lookup: Lookup) -> str | None:
    name, key = reference.get("name", ""), reference["key"]
    found = lookup(kind, name)
    data = object_data(found) if found is not None else {}
    if key in data:
        return data[key].decode(errors="replace")
    if reference.get("optional"):
        return None
    lower = "secret" if kind == "Secret" else "configmap"
    raise ConfigError(f'{lower} "{name}" not found' if found is None else f'{lower} "{name}" has no key "{key}"')


def _from_whole(entry: Json, lookup: Lookup) -> dict[str, str]:
    prefix = entry.get("prefix") or ""
    for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        reference = entry.get(field)
        if reference is None:
            continue
        found = lookup(kind, reference.get("name", ""))
        if found is None:
            if reference.get("optional"):
                continue
            raise ConfigError(f'{kind.lower()} "{reference.get("name", "")}" not found')
        values = {prefix + key: value.decode(errors="replace") for key, value in object_data(found).items()}
        return {key: value for key, value in values.items() if _ENV_NAME.match(key)}
    return {}


def _source_value(source: Json, pod: Json, container: Json, facts: PodFacts, lookup: Lookup) -> str | None:
    if "fieldRef" in source:
        return field_value(source["fieldRef"]["fieldPath"], pod, facts)
    if "resourceFieldRef" in source:
        return resource_value(source["resourceFieldRef"], pod, container, facts)
    if "secretKeyRef" in source:
        return _from_key("Secret", source["secretKeyRef"], lookup)
    if "configMapKeyRef" in source:
        return _from_key("ConfigMap", source["configMapKeyRef"], lookup)
    raise ConfigError(f"env: valueFrom {sorted(source)} is not supported")


def container_environment(
    pod: Json, container: Json, facts: PodFacts, lookup: Lookup, rewrite: Rewrite | None = None
) -> dict[str, str]:
    """The variables of `envFrom` and `env`, in order, later ones winning. Raises ConfigError.

    With `rewrite`, values are rewritten before later variables refer to them.
    """
    result: dict[str, str] = {}
    for entry in container.get("envFrom") or []:
        result |= _from_whole(entry, lookup)
    for entry in container.get("env") or []:
        name = entry["name"]
        if source := entry.get("valueFrom"):
            value = _source_value(source, pod, container, facts, lookup)
            if value is None:
                continue
            result[name] = rewrite.variable(name, value) if rewrite else value
        else:
            # Rewritten before expansion: what a variable refers to was rewritten when it was set.
            value = entry.get("value") or ""
            result[name] = expand(rewrite.variable(name, value) if rewrite else value, result)
    return result


@dataclass(frozen=True)
class Rewrite:
    """How manifests are bent to a node that gives pods no mounts and no network of their own.

    `paths` maps a mount path to the folder that stands for it; `address` replaces the loopback address in
    the one variable that names the meter's listener.
    """

    paths: Mapping[str, str]
    address: str

    def variable(self, name: str, value: str) -> str:
        """The value of one variable."""
        if name == METER_ADDRESS_VARIABLE:
            host, _, port = value.rpartition(":")
            return f"{self.address}:{port}" if host in ("127.0.0.1", "localhost") else value
        return self.text(value)

    def text(self, value: str) -> str:
        """Any text, each mount path in it (whole path components alone) replaced; the longest match wins."""
        if not self.paths:
            return value
        longest_first = sorted(self.paths, key=len, reverse=True)
        pattern = "|".join(re.escape(path.rstrip("/")) for path in longest_first)
        known = {path.rstrip("/"): folder for path, folder in self.paths.items()}
        return re.sub(rf"(?<![\w./-])({pattern})(?![\w.-])", lambda match: known[match[1]], value)


def references(container: Json) -> set[tuple[str, str]]:
    """The (kind, name) of each Secret and ConfigMap that a container's environment refers to."""
    found: set[tuple[str, str]] = set()
    for entry in container.get("envFrom") or []:
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in entry:
                found.add((kind, entry[field].get("name", "")))
    for entry in container.get("env") or []:
        source = entry.get("valueFrom") or {}
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if field in source:
                found.add((kind, source[field].get("name", "")))
    return found


def argv(
    container: Json,
    variables: Mapping[str, str],
    image_commands: Mapping[str, Sequence[str]],
    rewrite: Rewrite | None = None,
) -> list[str] | None:
    """Command and arguments, expanded; None where only the image would know the command."""
    command = container.get("command") or image_commands.get(container.get("image", ""))
    if not command:
        return None
    parts = [*command, *(container.get("args") or [])]
    return [expand(rewrite.text(part) if rewrite else part, variables) for part in parts]
