"""kustomize renames what Almoner's kinds name: generated Secrets and ConfigMaps, and one another."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from almoner_core.api.crd import custom_resource_definition
from almoner_core.api.registry import KINDS
from almoner_dev import binaries, name_references
from tests.conftest import missing

ROOT = Path(__file__).resolve().parents[2]
NAMED = {"Secret": "key", "ConfigMap": "text", "PersistentVolumeClaim": "claim"}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def kubectl() -> str:
    try:
        return str(binaries.find(["kubectl"]).path("kubectl"))
    except binaries.BinariesMissing as error:
        missing(error)


def fields(kind: Any) -> dict[str, Any]:
    (version,) = custom_resource_definition(kind)["spec"]["versions"]
    return dict(name_references.fields(version["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec"))


def put(document: Json, path: str, value: str, of: dict[str, Any]) -> None:
    """Write a value at a path, with a list of one item wherever the schema has a list."""
    parts, here, walked = path.split("/"), document, ""
    for part in parts[:-1]:
        walked = f"{walked}/{part}".lstrip("/")
        is_list = of.get(walked, {}).get("type") == "array"
        below = here.setdefault(part, [{}] if is_list else {})
        here = below[0] if is_list else below
    here[parts[-1]] = value


def at(document: Any, path: str) -> Any:
    for part in path.split("/"):
        document = (document[0] if isinstance(document, list) else document)[part]
    return document


def test_every_field_that_names_an_object_of_the_namespace_is_known() -> None:
    known = {(kind, path) for kind, path, _ in name_references.paths()}
    for kind in KINDS:
        for path, schema in fields(kind).items():
            if schema.get("type") == "string" and re.search(r"Name of .* namespace", schema.get("description", "")):
                assert (kind.kind, path) in known, "add the end of its path to almoner_dev.name_references"


def test_what_is_renamed_is_renamed_wherever_it_is_named(kubectl: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / name_references.CONFIGURATION, tmp_path / "almoner.yaml")
    documents: dict[str, Json] = {
        name: {"apiVersion": "almoner.dev/v1alpha1", "kind": name, "metadata": {"name": name.lower()}, "spec": {}}
        for name in (each.kind for each in KINDS)
    }
    places = list(name_references.paths())
    by_kind = {each.kind: fields(each) for each in KINDS}
    for where, path, target in places:
        put(documents[where], path, NAMED.get(target, target.lower()), by_kind[where])
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "claim"}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all([*documents.values(), claim]))
    kustomization = {
        "namePrefix": "blue-",
        "resources": ["all.yaml"],
        "configurations": ["almoner.yaml"],
        "secretGenerator": [{"name": "key", "literals": ["key=1"]}],
        "configMapGenerator": [{"name": "text", "literals": ["text=hello"]}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    done = subprocess.run([kubectl, "kustomize", tmp_path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    built = {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}
    assert re.fullmatch(r"blue-key-\w{10}", built["Secret"]["metadata"]["name"])
    assert re.fullmatch(r"blue-text-\w{10}", built["ConfigMap"]["metadata"]["name"])
    named = {(where, path): at(built[where], path) for where, path, _ in places}
    assert named == {(where, path): built[target]["metadata"]["name"] for where, path, target in places}
    assert {target for _, _, target in places} >= {"Secret", "ConfigMap", "Agent", "ModelProvider", "ToolProvider"}
