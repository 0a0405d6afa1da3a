"""Canonical specs, their differences, and whose they are by managedFields: pure, and bounded whatever is stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core import configuration
from almoner_core.configuration import (
    FIELDS_MAX,
    SPEC_CHARS_MAX,
    VALUE_CHARS_MAX,
    Change,
    Managed,
    canonical,
    changed_by,
    difference,
    managers,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)
SPECS = st.dictionaries(st.text(max_size=6), JSON, max_size=5)


@pytest.mark.parametrize(
    ("before", "after", "fields"),
    [
        ({"budget": {"amount": "5"}}, {"budget": {"amount": "9"}}, [("budget.amount", '"5"', '"9"')]),
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"b": 1}, [("a", "1", None), ("b", None, "1")]),
        (None, {"a": {"b": True}}, [("a.b", None, "true")]),
        ({"a": {"b": None}}, None, [("a.b", "null", None)]),
        ({"l": [1, 2]}, {"l": [1, 3, 4]}, [("l[1]", "2", "3"), ("l[2]", None, "4")]),
        ({"l": []}, {"l": [{}]}, [("l", "[]", None), ("l[0]", None, "{}")]),
        ({"a.b": 1}, {"a": {"b": 1}}, [('"a.b"', "1", None), ("a.b", None, "1")]),
        ({"n": 1}, {"n": 1.0}, [("n", "1", "1.0")]),
        ({}, {}, []),
    ],
)
def test_what_differs_is_named_field_by_field(before: Any, after: Any, fields: list[tuple[str, Any, Any]]) -> None:
    texts = [None if each is None else canonical(each) for each in (before, after)]
    assert difference(texts[0], texts[1]) == ([Change(*each) for each in fields], 0)


@given(SPECS, SPECS)
def test_there_is_a_difference_where_and_only_where_the_specs_differ(one: Any, other: Any) -> None:
    before, after = canonical(one), canonical(other)
    found = difference(before, after)
    assert bool(found.fields) == (before != after)
    assert [(each.path, each.after, each.before) for each in found.fields] == list(difference(after, before).fields)


def test_a_difference_is_cut_and_says_how_much_is_left_out() -> None:
    after = {"long": "x" * 5000, **{f"k{number:04}": number for number in range(500)}}
    found = difference(canonical({}), canonical(after))
    assert (len(found.fields), found.left_out) == (FIELDS_MAX, 401)
    long = difference(canonical({}), canonical({"long": "x" * 5000})).fields[0].after
    assert long is not None
    assert len(long) == VALUE_CHARS_MAX
    assert long.endswith("(5002 characters)")


def nested(depth: int, leaf: Any) -> Any:
    value = leaf
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [1, 63, 64, 100, 9000])
def test_however_deep_a_spec_is_it_is_written_and_differs_from_another(depth: int) -> None:
    one, other = canonical(nested(depth, 1)), canonical(nested(depth, 2))
    assert one != other
    assert difference(one, other).fields
    assert canonical(nested(depth, 1)) == one


def test_a_spec_that_is_too_large_is_given_by_its_digest() -> None:
    one, other = canonical({"x": "a" * SPEC_CHARS_MAX}), canonical({"x": "b" * SPEC_CHARS_MAX})
    assert len(one) < 300
    assert one != other
    assert [each.path.rpartition(".")[2] for each in difference(one, other).fields] == ["sha256"]


@pytest.mark.parametrize("spec", [None, [], "text", 5])
def test_what_is_no_object_is_an_empty_spec(spec: Any) -> None:
    assert canonical(spec) == "{}"


def test_strange_text_is_kept_as_json_that_a_database_can_hold() -> None:
    text = canonical({"x": "\0\ud800é"})
    assert text.isascii()
    assert "\0" not in text
    assert json.loads(text) == {"x": "\0\ud800é"}


# --- whose ------------------------------------------------------------------------------------------------------------


def entry(manager: str, fields: Any, time: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    return {"manager": manager, "operation": "Update", "time": time, "fieldsV1": {"f:spec": fields}, **more}


METADATA = {
    "managedFields": [
        entry("almoner-operator", {"f:x": {}}, subresource="status"),
        entry("argocd", {"f:budget": {".": {}, "f:amount": {}}, "f:owners": {}}, operation="Apply"),
        entry("kubectl-edit", {"f:budget": {"f:period": {}}}, "2026-01-02T00:00:00Z"),
        entry("prices", {"f:prices": {'k:{"model":"m"}': {"f:input": {}}}}, "2026-01-03T00:00:00Z"),
    ]
}


def test_items_of_lists_are_named_by_their_places() -> None:
    owned = {
        "f:prices": {'k:{"model":"b"}': {".": {}, "f:input": {}}, 'k:{"model":"gone"}': {"f:input": {}}},
        "f:owners": {'v:"ann"': {}},
        "f:steps": {"i:1": {}},
    }
    spec = {
        "prices": [{"model": "a", "input": "1"}, {"model": "b", "input": "2"}],
        "owners": ["bob", "ann"],
        "steps": [1, 2],
    }
    (found,) = managers({"managedFields": [entry("x", owned)]}, spec)
    assert found.paths == ("owners[1]", "prices", "prices[1].input", "steps[1]")


def test_the_managers_of_a_spec_are_read_with_what_they_own() -> None:
    assert managers(METADATA) == [
        Managed("prices", "Update", 1_767_398_400_000, ("prices",)),
        Managed("kubectl-edit", "Update", 1_767_312_000_000, ("budget.period",)),
        Managed("argocd", "Apply", 1_767_225_600_000, ("budget.amount", "owners")),
    ]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("budget.amount", ["argocd"]),
        ("budget.period", ["kubectl-edit"]),
        ("budget", ["kubectl-edit", "argocd"]),
        ("prices[0].input", ["prices"]),
        ("owners[3]", ["argocd"]),
        ("ownersOfAll", ["prices"]),
        ("gone", ["prices"]),
    ],
)
def test_a_change_is_by_whoever_owns_the_field_or_by_the_latest(path: str, names: list[str]) -> None:
    found = changed_by(managers(METADATA), [Change(path, "1", "2")])
    assert [each.name for each in found] == names


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"managedFields": None},
        {"managedFields": [None, 5, {}, {"fieldsV1": 5}, {"fieldsV1": {"f:spec": []}}]},
        {"managedFields": [entry("x" * 999, {"f:a": None, "f:": {}}, "never")]},
        {"managedFields": [entry("x", {f"f:k{number}": {} for number in range(999)})] * 99},
        {"managedFields": [entry("x", {"f:l": {"k:{": {}, "k:[]": {}, "v:": {}, "?": {}, "": {}}})]},
        {"managedFields": [entry("x", nested(3000, {}))]},
    ],
)
def test_managers_are_bounded_and_read_from_anything(metadata: Any) -> None:
    found = managers(metadata, {"l": [1, {"a": []}]})
    assert len(found) <= configuration.MANAGERS_MAX
    assert all(len(each.name) <= configuration.NAME_CHARS_MAX for each in found)
    assert all(len(each.paths) <= configuration.PATHS_MAX for each in found)
