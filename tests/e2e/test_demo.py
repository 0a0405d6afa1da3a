"""`make demo` and docs/start.md, as a newcomer has them: a reader types the page, line by line, into one shell.

One kept demo serves all of it. Nothing of a demo that a person keeps meanwhile is touched.
"""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from almoner_dev.binaries import BinariesMissing, find
from almoner_dev.model import ModelUnavailableError, weights
from almoner_dev.state import Environment
from tests.conftest import missing
from tests.support.pages import Block, Typed, blocks_of, judged, sections_of, shown, type_in

ROOT = Path(__file__).resolve().parents[2]
PAGE_SECONDS_MAX = 540
COMMAND_SECONDS_MAX = 60
ON_A_CLUSTER = {"On a cluster: from `helm install`", "Leave the cluster as it was"}
"""What the page says to do instead, where there is a cluster."""
# The stamp of .venv is not looked at: nothing may be installed under the tests that run from it.
MAKE = 'make() { command make --old-file=.venv/.installed "$@"; }'


@dataclass(frozen=True, slots=True)
class Reader:
    """Who typed the page, but for its last block, and what came of it."""

    environ: dict[str, str]
    blocks: list[Block]
    typed: list[Typed]

    @property
    def record(self) -> Environment:
        """The record of the kept demo."""
        return Environment("demo", environ=self.environ)

    def demo(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the demo's command where nobody can be asked."""
        return subprocess.run(
            [sys.executable, "-m", "almoner_dev", "demo", *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def type(self, lines: tuple[str, ...]) -> list[Typed]:
        """Type lines."""
        return type_in(lines, before=MAKE, cwd=ROOT, env=self.environ, seconds=PAGE_SECONDS_MAX)

    def running(self) -> set[int]:
        """Process ids of the kept demo."""
        return {each.pid for each in self.record.processes() if each.running()}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    try:
        find()
        weights()
    except (BinariesMissing, ModelUnavailableError) as error:
        missing(error)
    if not (ROOT / ".venv" / "bin" / "python").exists() or shutil.which("make") is None:
        missing(RuntimeError("no make, or no .venv: `make setup` makes it"))
    here = str(Path(sys.executable).parent)
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ALMONER_"))},
        # A home for the demo's record of its own; and `almoner` is not on the path but by what the page says.
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
        "PATH": os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part != here),
    }
    environ.pop("KUBECONFIG", None)
    sections = sections_of((ROOT / "docs" / "start.md").read_text(encoding="utf-8"))
    assert set(sections) >= ON_A_CLUSTER, "tests/cluster/test_pages.py types these"
    blocks = [block for title, text in sections.items() if title not in ON_A_CLUSTER for block in blocks_of(text)]
    made = Reader(environ, blocks, [])
    try:
        made.typed.extend(made.type(tuple(line for block in blocks[:-1] for line in block.lines)))
        yield made
    finally:
        made.demo("--down")


def test_the_demo_keeps_its_word_and_the_books_agree(reader: Reader) -> None:
    first = reader.typed[0]
    assert first.line == "make demo KEEP=1"
    assert first.code == 0, first.output
    said = first.output
    assert "What did not end as it must" not in said
    assert "team-blue-money has no room" in said or "no room for this call" in said
    assert "almoner ledger verify: every invariant holds" in said
    assert "passed: every status agrees with its entries, nothing is overspent, nothing is still held" in said
    found = re.search(r"export KUBECONFIG=(\S+)", said)
    assert found is not None
    listed = subprocess.run(
        [find().path("kubectl"), "--kubeconfig", found[1], "get", "executions", "-n", "demo", "-o", "name"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len([name for name in listed.stdout.split() if "/red-" in name or "/blue-" in name]) == 12


def test_every_line_of_the_first_steps_works_and_shows_what_the_page_says(reader: Reader) -> None:
    judged(reader.blocks[:-1], reader.typed)


def test_a_kept_demo_is_not_destroyed_unasked(reader: Reader) -> None:
    before = reader.running()
    assert before
    refused = reader.demo("--keep")
    assert refused.returncode == 1
    assert "demo: an earlier `make demo KEEP=1` was kept in " in refused.stdout
    assert "`make demo-down` stops it and deletes its ledger and objects" in refused.stdout
    assert "Traceback" not in refused.stdout
    code, asked = on_a_terminal(reader, b"n\n")
    assert "Stop it, and delete its ledger and objects? [y/N]" in asked
    assert "nothing was changed" in asked
    assert code == 1
    assert reader.running() == before
    assert "export KUBECONFIG=" in reader.demo("--env").stdout


def on_a_terminal(reader: Reader, answer: bytes) -> tuple[int, str]:
    """Run `demo --keep` on a terminal and give that answer."""
    ours, theirs = pty.openpty()
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "almoner_dev", "demo", "--keep"],
            env=reader.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, answer)
        said = b""
        try:
            while chunk := os.read(ours, 4096):
                said += chunk
        except OSError:  # what reading from a terminal gives when nobody has its other side any more
            pass
        return child.wait(COMMAND_SECONDS_MAX), said.decode()
    finally:
        os.close(ours)


def test_a_demo_that_is_not_kept_runs_beside_it_and_tells_at_once(reader: Reader) -> None:
    before = reader.running()
    child = subprocess.Popen(
        [sys.executable, "-m", "almoner_dev", "demo"],
        env={name: value for name, value in reader.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert child.stdout is not None
        said = ""
        # Through a pipe: each line comes when it is printed, long before the end.
        while "==> control plane: etcd" not in said:
            line = child.stdout.readline()
            assert line, said
            said += line
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        said += child.communicate(timeout=COMMAND_SECONDS_MAX)[0]
    finally:
        child.kill()
    assert child.returncode == 130, said
    kept = re.search(r"logs and data are in (\S+)", said)
    assert kept is not None, said
    shutil.rmtree(kept[1])  # what was interrupted keeps its logs until the next demo
    assert "stopped what an earlier demo left running" not in said
    assert reader.running() == before


def test_it_is_put_away_as_the_page_says(reader: Reader) -> None:
    kubeconfig, folder = (Path(reader.record.facts()[name]) for name in ("kubeconfig", "folder"))
    assert kubeconfig.exists()
    (last,) = reader.type(reader.blocks[-1].lines)
    assert last.line == "make demo-down"
    assert last.code == 0
    assert shown(reader.blocks[-1].shows, last.output) is None, last.output
    assert not folder.exists()
    assert "no demo is running" in reader.demo("--down").stdout
    none = reader.demo("--env")
    assert none.returncode == 1
    assert none.stdout == "demo: no demo is kept: `make demo KEEP=1` makes one\n"
