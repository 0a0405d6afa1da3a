"""Where the Go tools come from: the cache while their sources are the same, a build otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from almoner_dev import cache, golang, gotools
from almoner_dev.gotools import ToolMissing


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sources of one tool, `fitting`, in a folder of tools."""
    folder = tmp_path / "gotools" / "fitting"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text(
        "module almoner.dev/gotools/fitting\n\ngo 1.24.0\n\ntool example.org/x/cmd/fitting\n"
    )
    (folder / "go.sum").write_text("")
    monkeypatch.setattr(gotools, "sources", lambda: tmp_path / "gotools")
    return folder


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was built: packages and linker's flags. The compiler is replaced by one that writes a script."""
    made: list[tuple[str, str]] = []

    def compile_module(_: Path, output: Path, *, package: str, ldflags: str, **__: object) -> None:
        made.append((package, ldflags))
        output.write_text("#!/bin/sh\n")
        output.chmod(0o755)

    monkeypatch.setattr(golang, "compile_module", compile_module)
    monkeypatch.setattr(golang, "refusals", lambda *_, **__: [])
    return made


def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": str(tmp_path)}


def quiet(_: str) -> None: ...


def test_a_tool_is_built_once_until_its_sources_change(
    tool: Path, builds: list[tuple[str, str]], tmp_path: Path
) -> None:
    first = gotools.path("fitting", environ=environ(tmp_path), tell=quiet)
    assert first.is_relative_to(tmp_path / "cache" / "almoner" / "gotools" / "fitting")
    assert (first.name, gotools.path("fitting", environ=environ(tmp_path), tell=quiet)) == ("fitting", first)
    assert builds == [("example.org/x/cmd/fitting", "-s -w")]
    found = {first}
    for name, text in {
        "go.sum": "x",
        "ldflags": "-X a.b=v1",
        "main.go": "package main",
        "sub/x.go": "package x",
    }.items():
        (tool / name).parent.mkdir(exist_ok=True)
        (tool / name).write_text(text)
        found.add(gotools.path("fitting", environ=environ(tmp_path), tell=quiet))
    (tool / "README.md").write_text("changes nothing")
    found.add(gotools.path("fitting", environ=environ(tmp_path), tell=quiet))
    assert len(found) == len(builds) == 5


def test_the_versions_of_the_linker_are_over_several_lines(tool: Path) -> None:
    (tool / "ldflags").write_text("-X a.b=v1\n{kubernetes}\n")
    flags = gotools.ldflags(tool)
    assert flags.startswith("-s -w -X a.b=v1 ")
    assert f"gitVersion={cache.KUBERNETES_VERSION}" in flags


def test_a_module_without_a_tool_line_is_built_itself(tool: Path) -> None:
    (tool / "go.mod").write_text("module almoner.dev/gotools/fitting\n")
    assert gotools.package(tool) == "."


@pytest.mark.parametrize(
    "lines",
    [pytest.param("tool a.b/c\ntool a.b/d\n", id="two lines"), pytest.param("tool (\n\ta.b/c\n)\n", id="block")],
)
def test_one_folder_is_one_tool(tool: Path, lines: str) -> None:
    (tool / "go.mod").write_text(f"module almoner.dev/gotools/fitting\n\n{lines}")
    with pytest.raises(ToolMissing, match="a folder of its own"):
        gotools.package(tool)


def test_an_unknown_tool_names_those_there_are(tool: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match=r"no Go tool 'spanner' in .*; there are: fitting"):
        gotools.path("spanner", environ=environ(tmp_path), tell=quiet)


def test_what_is_not_built_yet_is_not_in_the_cache(tool: Path, builds: list[tuple[str, str]], tmp_path: Path) -> None:
    assert gotools.cached("fitting", environ(tmp_path)) is None
    built = gotools.path("fitting", environ=environ(tmp_path), tell=quiet)
    assert gotools.cached("fitting", environ(tmp_path)) == built


def test_tags_of_the_build_are_words_in_a_file(tool: Path, tmp_path: Path) -> None:
    assert gotools.tags(tool) == []
    before = gotools.cache_key(tool)
    (tool / "tags").write_text("without_this\nwithout_that\n")
    assert gotools.tags(tool) == ["without_this", "without_that"]
    assert gotools.cache_key(tool) != before


def test_without_go_the_message_says_how_to_get_it(tool: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ToolMissing, match=r"fitting cannot be built here:\n  - Go is not on the PATH: install Go 1\.24"
    ):
        gotools.path("fitting", environ=environ(tmp_path), tell=quiet)
    assert not list((tmp_path / "cache").rglob("fitting/*/fitting"))


def test_the_tools_of_this_repository_are_whole(repository: Path) -> None:
    assert gotools.sources() == repository / "dev" / "gotools"
    assert "helm" in gotools.names()
    for name in gotools.names():
        folder = gotools.sources() / name
        required = "require" in (folder / "go.mod").read_text()
        assert (folder / "go.sum").exists() == required, name
        assert (gotools.package(folder) == ".") == (folder / "main.go").exists(), name
