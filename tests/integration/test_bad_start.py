"""A ledger that cannot begin says in its log, in words, what is wrong and what to look at: no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SECONDS = 60


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://almoner:hidden@127.0.0.1:1/books", "Connection refused"),
        ("sqlite:////nowhere/at/all/books.db", "unable to open database file"),
    ],
    ids=["postgresql", "sqlite"],
)
def test_a_database_that_is_not_there(tmp_path: Path, url: str, says: str) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "users": [{"name": "x", "user": {"token": "x"}}],
            }
        )
    )
    options = ["--kubeconfig", str(kubeconfig), "--listen", "127.0.0.1:0", "--database-patience", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "almoner_ledger", "serve", *options],
        env={**os.environ, "ALMONER_LEDGER_DATABASE": url},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr
    last = json.loads(done.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert last["message"].startswith("the database cannot be used: ")
    assert says in last["message"]
    assert "the URL in ALMONER_LEDGER_DATABASE (a Secret's key, in a cluster)" in last["message"]
