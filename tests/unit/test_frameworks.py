"""The table of frameworks, its locks, and the page that is made from both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from almoner_dev.frameworks import page, results
from almoner_dev.frameworks.install import LOCKS, lock_path, named, without_places
from almoner_dev.frameworks.table import FRAMEWORKS, QUICK, SCENARIOS, Api, Framework, Language

CLIENTS = Path(__file__).parents[1] / "frameworks" / "clients"


def test_every_framework_has_a_lock_and_a_client_and_nothing_else_has() -> None:
    assert len({each.name for each in FRAMEWORKS}) == len(FRAMEWORKS) >= 28
    locks = {lock_path(each) for each in FRAMEWORKS}
    assert locks == {path for path in (Path(__file__).parents[2] / LOCKS).iterdir() if path.name != "README.md"}
    suffixes = {Language.PYTHON: "py", Language.NODE: "mjs"}
    clients = {f"with_{each.name.replace('-', '_')}.{suffixes[each.language]}" for each in FRAMEWORKS}
    assert clients == {path.name for path in CLIENTS.glob("with_*")}


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda each: each.name)
def test_a_lock_pins_the_framework_and_names_no_registry(framework: Framework) -> None:
    text = lock_path(framework).read_text()
    assert re.fullmatch(r"\d+(\.\w+)+", page.version(framework, text))
    assert "://" not in text
    assert not any(line.startswith("-") for line in text.splitlines())


def test_clients_set_no_address_but_where_the_framework_reads_none() -> None:
    own = {path.name for path in CLIENTS.glob("with_*") if "_URL" in path.read_text().replace("PNG_URL", "")}
    assert own == {"with_mistralai.py", "with_codex.mjs"}


def test_the_quick_ones_are_of_the_table() -> None:
    assert len(QUICK) == 8
    assert all(api in named([name])[0].apis for name, api in QUICK)


def test_a_package_lock_loses_where_packages_came_from() -> None:
    entry = {"version": "1.0.0", "resolved": "https://somewhere/x.tgz", "integrity": "sha512-x", "funding": {}}
    assert without_places({"lockfileVersion": 3, "packages": {"node_modules/x": entry}}) == {
        "lockfileVersion": 3,
        "packages": {"node_modules/x": {"version": "1.0.0", "integrity": "sha512-x"}},
    }


def test_the_page_has_a_row_for_each_client_and_says_what_was_not_run() -> None:
    locks = {each.name: lock_path(each).read_text() for each in FRAMEWORKS}
    first = FRAMEWORKS[0]
    cells = {str(scenario): "ok" for scenario in SCENARIOS}
    text = page.page({first.name: {str(first.apis[0]): cells}}, locks)
    rows = [line for line in text.splitlines() if any(f"| {api} |" in line for api in Api)]
    assert len(rows) == sum(len(each.apis) for each in FRAMEWORKS)
    assert rows[0].count("| ok ") == len(SCENARIOS)
    assert "not run" in rows[1]
    for framework in FRAMEWORKS:
        assert all(reason in text for reason in framework.lacks.values())


def test_new_results_take_the_place_of_the_same_clients_and_stay_in_the_order_of_the_table(tmp_path: Path) -> None:
    (tmp_path / results.RESULTS).parent.mkdir(parents=True)
    results.merge([{"framework": "anthropic", "api": "messages", "cells": {"plain": "fails"}}], tmp_path)
    news = [
        {"framework": "anthropic", "api": "messages", "cells": {"streamed": "ok", "plain": "ok"}},
        {"framework": "openai", "api": "chat", "cells": {"plain": "ok"}},
    ]
    results.merge(news, tmp_path)
    found = results.read(tmp_path)
    assert list(found) == ["openai", "anthropic"]
    assert list(found["anthropic"]["messages"].items()) == [("plain", "ok"), ("streamed", "ok")]
