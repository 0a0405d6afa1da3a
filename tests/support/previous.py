"""The version before this one: what `make e2e` upgrades from and rolls back to."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from tests.support.installed import ROOT

COMMIT = "c4910f44f39b8b73316e5ba7568b9a3cf0c3e44a"
"""The newest commit that migrations, chart and programs must be able to come from and go back to."""
IMAGE = "localhost/almoner-previous:1"


class PreviousMissing(RuntimeError):  # noqa: N818 - the name says what is the matter
    """The older version's sources are not to be had here; the message says why."""


def sources(folder: Path) -> Path:
    """Write that version's sources into an empty folder and return it. Raises PreviousMissing."""
    archive = folder.with_suffix(".tar")
    command = ["git", "-C", str(ROOT), "archive", "--output", str(archive), COMMIT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PreviousMissing(
            f"the version before this one ({COMMIT[:12]}) is not in this clone: {done.stderr.strip()} "
            "(git fetch --unshallow)"
        )
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    return folder
