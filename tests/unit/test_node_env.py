from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_dev.node.env import (
    ConfigError,
    PodFacts,
    Rewrite,
    argv,
    container_environment,
    expand,
    field_value,
    references,
    resource_value,
)
from almoner_dev.node.isolation import linked_parents

FACTS = PodFacts("10.1.2.3", "10.1.2.1", {"cpu": "64", "memory": "64Gi"})
POD: dict[str, Any] = {
    "metadata": {
        "name": "p",
        "namespace": "ns",
        "uid": "u-1",
        "labels": {"b": "2", "a.b/c": '1"'},
        "annotations": {"x": "line\nbreak"},
    },
    "spec": {"nodeName": "n", "containers": [{"name": "other", "resources": {"limits": {"cpu": "250m"}}}]},
}
SECRET = {"kind": "Secret", "data": {"key": base64.b64encode(b"s3cret").decode(), "bad name": "eA=="}}
CONFIG = {"kind": "ConfigMap", "data": {"key": "plain"}, "binaryData": {"bin": base64.b64encode(b"\xff").decode()}}


def lookup(kind: str, name: str) -> dict[str, Any] | None:
    return {("Secret", "s"): SECRET, ("ConfigMap", "c"): CONFIG}.get((kind, name))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("$(A)", "1"),
        ("x$(A)y$(B)z", "x1y2z"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$", "$"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(LOOP)", "$(A)"),
        ("$($(A))", "$($(A))".replace("$(A)", "1")),
    ],
)
def test_expansion_follows_kubernetes(text: str, expected: str) -> None:
    assert expand(text, {"A": "1", "B": "2", "LOOP": "$(A)"}) == expected


@given(st.text(st.characters(exclude_characters="$")))
def test_text_without_dollars_is_never_changed(text: str) -> None:
    assert expand(text, {"A": "1"}) == text


def environment(env: list[dict[str, Any]], **more: Any) -> dict[str, str]:
    rewrite = more.pop("rewrite", None)
    return container_environment(POD, {"name": "c", "env": env, **more}, FACTS, lookup, rewrite)


def from_source(**source: Any) -> list[dict[str, Any]]:
    return [{"name": "X", "valueFrom": source}]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}], {"A": "1", "B": "1$(C)"}),
        ([{"name": "A", "value": "1"}, {"name": "A", "value": "$(A)2"}], {"A": "12"}),
        ([{"name": "A"}], {"A": ""}),
        (from_source(secretKeyRef={"name": "s", "key": "key"}), {"X": "s3cret"}),
        (from_source(configMapKeyRef={"name": "c", "key": "key"}), {"X": "plain"}),
        (from_source(secretKeyRef={"name": "none", "key": "key", "optional": True}), {}),
        (from_source(fieldRef={"fieldPath": "metadata.uid"}), {"X": "u-1"}),
        (from_source(fieldRef={"fieldPath": "status.podIP"}), {"X": "10.1.2.3"}),
    ],
)
def test_variables(env: list[dict[str, Any]], expected: dict[str, str]) -> None:
    assert environment(env) == expected


def test_env_from_comes_first_and_leaves_out_what_is_no_name() -> None:
    found = environment(
        [{"name": "P_key", "value": "mine, not $(P_key)"}],
        envFrom=[{"prefix": "P_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "gone", "optional": True}}],
    )
    assert found == {"P_key": "mine, not s3cret"}


@pytest.mark.parametrize(
    ("env", "more", "message"),
    [
        (from_source(secretKeyRef={"name": "gone", "key": "k"}), {}, 'secret "gone" not found'),
        (from_source(configMapKeyRef={"name": "c", "key": "k"}), {}, 'configmap "c" has no key "k"'),
        (from_source(fieldRef={"fieldPath": "status.phase"}), {}, "'status.phase' is not supported"),
        (from_source(fileKeyRef={}), {}, "fileKeyRef"),
        ([], {"envFrom": [{"secretRef": {"name": "gone"}}]}, 'secret "gone" not found'),
    ],
)
def test_what_is_missing_is_named(env: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        environment(env, **more)


def test_references_name_every_object() -> None:
    container = {
        "env": [*from_source(secretKeyRef={"name": "a", "key": "k"}), {"name": "B", "value": "1"}],
        "envFrom": [{"configMapRef": {"name": "b"}}],
    }
    assert references(container) == {("Secret", "a"), ("ConfigMap", "b")}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.labels['a.b/c']", '1"'),
        ("metadata.annotations['absent']", ""),
        ("metadata.labels", 'a.b/c="1\\""\nb="2"'),
        ("metadata.annotations", 'x="line\\nbreak"'),
        ("spec.serviceAccountName", "default"),
        ("status.hostIP", "10.1.2.1"),
    ],
)
def test_downward_fields(path: str, expected: str) -> None:
    assert field_value(path, POD, FACTS) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "1500"),
        ({"resource": "requests.memory", "divisor": "1Mi"}, "2"),
        ({"resource": "requests.cpu"}, "0"),
        ({"resource": "limits.memory", "divisor": "1Gi"}, "64"),
        ({"resource": "limits.cpu", "containerName": "other", "divisor": "1m"}, "250"),
        ({"resource": "limits.cpu", "divisor": "0"}, "2"),
    ],
)
def test_resources_round_up_in_units_of_the_divisor(reference: dict[str, Any], expected: str) -> None:
    container = {"resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "1100Ki"}}}
    assert resource_value(reference, POD, container, FACTS) == expected


REWRITE = Rewrite({"/almoner/input": "/s/v/input", "/almoner": "/s/v/all", "/tmp": "/s/v/tmp"}, "127.9.0.1")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ALMONER_METER_ADDRESS", "127.0.0.1:8790", "127.9.0.1:8790"),
        ("ALMONER_METER_ADDRESS", "10.0.0.1:8790", "10.0.0.1:8790"),
        ("OTHER", "127.0.0.1:8790", "127.0.0.1:8790"),
        ("X", "/almoner/input", "/s/v/input"),
        ("X", "/almoner/input/file.txt", "/s/v/input/file.txt"),
        ("X", "/almoner/inputs", "/s/v/all/inputs"),
        ("X", "/almoner-other/input", "/almoner-other/input"),
        ("X", "/data/almoner/input", "/data/almoner/input"),
        ("X", '{"a": "/almoner/input/x", "b": "/tmp"}', '{"a": "/s/v/input/x", "b": "/s/v/tmp"}'),
        ("X", "/tmp:/almoner", "/s/v/tmp:/s/v/all"),
    ],
)
def test_rewriting_replaces_whole_components_alone(name: str, value: str, expected: str) -> None:
    assert REWRITE.variable(name, value) == expected


def test_a_rewritten_variable_is_not_rewritten_again_where_it_is_used() -> None:
    inside = Rewrite({"/tmp": "/tmp/scratch/tmp"}, "127.9.0.1")
    env = [
        {"name": "ALMONER_METER_ADDRESS", "value": "127.0.0.1:1"},
        {"name": "DIR", "value": "/tmp"},
        {"name": "FILE", "value": "$(DIR)/x http://$(ALMONER_METER_ADDRESS)"},
    ]
    found = environment(env, rewrite=inside)
    assert found["FILE"] == "/tmp/scratch/tmp/x http://127.9.0.1:1"
    command = {"command": ["run", "$(FILE)", "/tmp/y"]}
    assert argv(command, found, {}, inside) == ["run", found["FILE"], "/tmp/scratch/tmp/y"]


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({"command": ["a", "$(V)"], "args": ["$$(V)"]}, ["a", "1", "$(V)"]),
        ({"image": "known", "args": ["x"]}, ["entry", "x"]),
        ({"image": "unknown", "args": ["x"]}, None),
        ({"image": "known", "command": ["own"]}, ["own"]),
    ],
)
def test_commands(container: dict[str, Any], expected: list[str] | None) -> None:
    assert argv(container, {"V": "1"}, {"known": ["entry"]}) == expected


def test_the_parent_of_mounts_is_a_folder_of_links_unless_this_machine_has_one(tmp_path: Path) -> None:
    sources = {name: tmp_path / name for name in ("first", "second", "temporary")}
    for name, source in sources.items():
        source.mkdir()
        (source / "key").write_text(name)
    paths = {
        "/no-such-place/providers/first": str(sources["first"]),
        "/no-such-place/providers/second/": str(sources["second"]),
        "/tmp/mount": str(sources["temporary"]),
    }
    for _ in range(2):  # a container that is started again finds its links
        found = linked_parents(paths, tmp_path / "links")
    assert set(found) == {"/no-such-place/providers"}
    folder = Rewrite(found | paths, "127.9.0.1").text("/no-such-place/providers")
    assert [(Path(folder) / name / "key").read_text() for name in ("first", "second")] == ["first", "second"]
