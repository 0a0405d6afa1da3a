"""Tables of cases in YAML: a base manifest, and what each case sets and removes in it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).resolve().parents[1] / "data"


def load(name: str) -> dict[str, Any]:
    """Read one table below tests/data."""
    loaded: dict[str, Any] = yaml.safe_load((DATA / name).read_text(encoding="utf-8"))
    return loaded


def malformed() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Give (kind/case, manifest, case) of every malformed manifest."""
    out = []
    for path in sorted((DATA / "malformed").glob("*.yaml")):
        table = load(f"malformed/{path.name}")
        out += [(f"{path.stem}/{name}", patched(table["base"], case), case) for name, case in table["cases"].items()]
    return out


def patched(base: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """Give a copy of the manifest with the case's `remove` and `set` done; keys are dotted paths."""
    manifest = copy.deepcopy(base)
    for path in case.get("remove", []):
        parent, last = _parent(manifest, path)
        parent.pop(last, None)
    for path, value in case.get("set", {}).items():
        parent, last = _parent(manifest, path)
        parent[last] = _expanded(value)
    return manifest


def _parent(manifest: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    *steps, last = path.split(".")
    at = manifest
    for step in steps:
        at = at.setdefault(step, {})
    return at, last


def _expanded(value: Any) -> Any:
    """Write `{repeat: x, times: n}` out."""
    if isinstance(value, dict):
        if set(value) == {"repeat", "times"}:
            return value["repeat"] * value["times"]
        return {key: _expanded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return value
