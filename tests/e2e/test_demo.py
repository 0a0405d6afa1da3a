"""`make demo`, as a user has it: the exit code, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from almoner_dev.binaries import BinariesMissing, find
from almoner_dev.model import ModelUnavailableError, weights
from tests.conftest import missing

DEMO_SECONDS_MAX = 420


@pytest.fixture(scope="module")
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the demo's record of its own, so that a demo that a person runs meanwhile is left alone."""
    try:
        find()
        weights()
    except (BinariesMissing, ModelUnavailableError) as error:
        missing(error)
    return tmp_path_factory.mktemp("state")


def demo(state_home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "almoner_dev", "demo", *arguments],
        env={**os.environ, "XDG_STATE_HOME": str(state_home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEMO_SECONDS_MAX,
        check=False,
    )


def test_the_demo_keeps_its_word_and_the_books_agree(state_home: Path) -> None:
    ended = demo(state_home, "--keep")
    try:
        assert ended.returncode == 0, ended.stdout
        said = ended.stdout
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
        assert len(listed.stdout.split()) == 12
    finally:
        down = demo(state_home, "--down")
    assert down.returncode == 0
    assert "stopped operator, ledger" in down.stdout
    assert "no demo is running" in demo(state_home, "--down").stdout
    assert not Path(found[1]).exists()
