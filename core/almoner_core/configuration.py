"""What of a cluster's configuration is kept watch over: canonical texts of specs, their differences, who manages them.

Role: PURE. An object's spec as one canonical JSON text, what differs between two of them field by field, and which
field managers own which fields by `metadata.managedFields`. Everything is bounded: a spec may be as large and as deep
as the API server stores it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from almoner_core.nesting import DEPTH_MAX, depth_of

KINDS: Final[Mapping[str, str]] = {
    "ResourceQuota": "resourcequotas",
    "ModelProvider": "modelproviders",
    "ToolProvider": "toolproviders",
    "ClusterModelProvider": "clustermodelproviders",
    "ClusterToolProvider": "clustertoolproviders",
}
"""Kinds whose changes are recorded, with their resources in the group almoner.dev."""
NAMESPACED: Final = ("ResourceQuota", "ModelProvider", "ToolProvider")

SPEC_CHARS_MAX: Final = 65_536
FIELDS_MAX: Final = 100
"""Fields of one difference that are named."""
VALUE_CHARS_MAX: Final = 1024
PATH_CHARS_MAX: Final = 256
MANAGERS_MAX: Final = 16
PATHS_MAX: Final = 200
"""Paths that are told of one manager."""
NODES_MAX: Final = 5000
ITEMS_MAX: Final = 200
"""How much of managedFields, and of a list, is looked at."""
NAME_CHARS_MAX: Final = 128
EMPTY: Final = "{}"


class Change(NamedTuple):
    """One field: its path within the spec, and its value as JSON before and after; None: it was not there."""

    path: str
    before: str | None
    after: str | None


class Difference(NamedTuple):
    """The fields that differ, and how many more do."""

    fields: list[Change]
    left_out: int


class Managed(NamedTuple):
    """A field manager: what the client that wrote called itself, how and when, and which fields of the spec it owns."""

    name: str
    operation: str
    changed_ms: int | None
    paths: tuple[str, ...]


def canonical(spec: Any) -> str:
    """Write a spec as canonical JSON: sorted, in ASCII.

    One that is too large or too deep to be kept is given by its size and SHA-256 instead, and so still differs from
    any other.
    """
    if not isinstance(spec, dict):
        spec = {}
    if depth_of(spec) > DEPTH_MAX:
        # Never written out: the encoder recurses.
        return _summary("deeper", _flat(spec))
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return text if len(text) <= SPEC_CHARS_MAX else _summary("larger", (text,))


def _summary(what: str, parts: Iterable[str]) -> str:
    content, characters = hashlib.sha256(), 0
    for part in parts:
        content.update(part.encode())
        characters += len(part)
    return json.dumps({f"{what} than what is kept": {"characters": characters, "sha256": content.hexdigest()}})


def _flat(value: Any) -> Iterator[str]:
    """Write a value of any depth as one stream of texts, without recursion."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            yield f"{{{len(each)}"
            for key in sorted(each, reverse=True):
                stack += [each[key], key]
        elif isinstance(each, list):
            yield f"[{len(each)}"
            stack += reversed(each)
        else:
            yield json.dumps(each)


def digest(text: str) -> str:
    """Give the SHA-256 of a canonical text, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def difference(before: str | None, after: str | None) -> Difference:
    """Compare two canonical texts field by field, in the order of their paths. None: there was, or is, no object."""
    old, new = _leaves(before), _leaves(after)
    changed = [path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)]
    fields = [Change(_cut(path, PATH_CHARS_MAX), _value(old, path), _value(new, path)) for path in changed[:FIELDS_MAX]]
    return Difference(fields, len(changed) - len(fields))


def _leaves(text: str | None) -> dict[str, str]:
    """Give the scalars, and the empty objects and lists, of a canonical text by their paths."""
    found: dict[str, str] = {}
    stack: list[tuple[str, Any]] = [("", json.loads(text or EMPTY))]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and (value or not path):
            stack += [(f"{path}.{_key(key)}" if path else _key(key), each) for key, each in value.items()]
        elif isinstance(value, list) and value:
            stack += [(f"{path}[{index}]", each) for index, each in enumerate(value)]
        else:
            found[path] = json.dumps(value)
    return found


def _key(key: str) -> str:
    """Write a key so that paths do not take it for two."""
    return json.dumps(key) if not key or any(each in key for each in '.[]"') else key


def _value(leaves: Mapping[str, str], path: str) -> str | None:
    value = leaves.get(path)
    return None if value is None else _cut(value, VALUE_CHARS_MAX)


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    end = f"… ({len(text)} characters)"
    return text[: most - len(end)] + end


def managers(metadata: Mapping[str, Any], spec: Any = None) -> list[Managed]:
    """Read who manages an object's spec from its `managedFields`, the latest first. Never raises.

    Items of lists are named by their places in `spec`.
    """
    found = []
    entries = metadata.get("managedFields")
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or entry.get("subresource"):
            continue
        fields = entry.get("fieldsV1")
        owned = fields.get("f:spec") if isinstance(fields, dict) else None
        if not isinstance(owned, dict):
            continue
        name, operation = str(entry.get("manager") or ""), str(entry.get("operation") or "")
        moment = unix_ms(entry.get("time"))
        found.append(Managed(name[:NAME_CHARS_MAX], operation[:16], moment, _owned(owned, spec)))
    found.sort(key=lambda each: (-(each.changed_ms or 0), each.name))
    return found[:MANAGERS_MAX]


def _owned(fields: Mapping[str, Any], spec: Any) -> tuple[str, ...]:
    """Give the paths of a fieldsV1; where they are too many, those of the spec's own fields alone."""
    found: set[str] = set()
    stack: list[tuple[str, Mapping[str, Any], Any]] = [("", fields, spec)]
    for _ in range(NODES_MAX):
        if not stack:
            break
        path, owned, value = stack.pop()
        below = [_below(path, key, value) for key in owned if key != "."]
        if path and (not below or None in below):
            found.add(path[:PATH_CHARS_MAX])
        keys = [key for key in owned if key != "."]
        stack += [
            (each[0], _mapping(owned[key]), each[1]) for key, each in zip(keys, below, strict=True) if each is not None
        ]
    if stack or len(found) > PATHS_MAX:
        found = {_key(key[2:])[:PATH_CHARS_MAX] for key in fields if key.startswith("f:")}
    return tuple(sorted(found))[:PATHS_MAX]


def _below(path: str, key: str, value: Any) -> tuple[str, Any] | None:
    """Where a key of a fieldsV1 leads, and what is there: a field, or an item of a list by its key, value or place."""
    kind, _, rest = key.partition(":")
    if kind == "f":
        return f"{path}.{_key(rest)}" if path else _key(rest), value.get(rest) if isinstance(value, dict) else None
    if not isinstance(value, list) or len(value) > ITEMS_MAX:
        return None
    try:
        wanted = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    for index, item in enumerate(value):
        by_key = kind == "k" and isinstance(item, dict) and isinstance(wanted, dict) and wanted.items() <= item.items()
        if by_key or (kind == "v" and item == wanted) or (kind == "i" and index == wanted):
            return f"{path}[{index}]", item
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def unix_ms(moment: Any) -> int | None:
    """Read a Kubernetes time as Unix milliseconds; None where it is none."""
    if not isinstance(moment, str):
        return None
    try:
        found = datetime.fromisoformat(moment)
    except ValueError:
        return None
    if found.tzinfo is None or found.year < 1970:
        return None
    return int(found.timestamp() * 1000)


def changed_by(managed: Sequence[Managed], fields: Sequence[Change]) -> list[Managed]:
    """Give the managers that own a field that was changed; where nobody does (it was taken away), the latest ones."""
    owners = [each for each in managed if any(_touches(path, field.path) for path in each.paths for field in fields)]
    if owners:
        return owners
    latest = max((each.changed_ms or 0 for each in managed), default=0)
    return [each for each in managed if (each.changed_ms or 0) == latest]


def _touches(one: str, other: str) -> bool:
    """Whether one path is the other or above it."""
    short, long = sorted((one, other), key=len)
    return long == short or (long.startswith(short) and long[len(short)] in ".[")
