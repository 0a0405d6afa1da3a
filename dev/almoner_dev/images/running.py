"""Runs one of the programs that build images, and shows how far it is.

Role: a log file, a line of progress every few seconds, a bound on the time. The program has mounts of its own: when it
is killed, however that happens, the kernel takes them down.

Boundary: knows no program by name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from almoner_dev import processes
from almoner_dev.cache import PROGRESS_EVERY_S, Say
from almoner_dev.cluster.requirements import program, search_path
from almoner_dev.images.machine import ImagesImpossible

LINE_CHARACTERS_MAX = 100
TAIL_LINES = 25


def run(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    seconds: float,
    tell: Say,
    cwd: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Runs a command to its end and returns what it printed. `seconds` is the longest that it may take.

    Raises ImagesImpossible with the end of its output when it fails or takes longer.
    """
    log.unlink(missing_ok=True)
    apart = [str(program("unshare")), "--mount", "--propagation", "private", "--"]
    environment = {**environ, "PATH": search_path(environ)}
    child = processes.start(name, [*apart, *command], log_path=log, cwd=cwd, env=environment)
    began = told = time.monotonic()
    try:
        while child.running():
            now = time.monotonic()
            if now - began > seconds:
                raise ImagesImpossible(f"{name} took longer than {seconds:g} s; the end of its output:\n{child.tail()}")
            if now - told >= PROGRESS_EVERY_S:
                told = now
                tell(f"{now - began:.0f} s: {name}: {child.tail(1)[:LINE_CHARACTERS_MAX]}")
            time.sleep(0.05)
    finally:
        child.stop(deadline_s=5)
    if child.process.returncode != 0:
        raise ImagesImpossible(f"{name} failed; the end of its output:\n{child.tail(TAIL_LINES)}")
    return log.read_text(errors="replace")
