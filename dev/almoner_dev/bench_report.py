"""What every benchmark's report needs besides its figures: the machine, percentiles, ratios, progress.

Role: describes the machine without naming it (no host name, no user, no path), so that a figure can be judged later.
Boundary: reads /proc and installed versions; measures nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

PACKAGES = ("SQLAlchemy", "psycopg2-binary", "aiohttp", "uvloop", "pydantic", "kopf")


def say(text: str) -> None:
    """Tell a person on standard error how far the benchmark is; standard output is the result's alone."""
    print(text, file=sys.stderr, flush=True)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a uvloop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory in GiB, kernel, load of others, versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "load_average_1m": round(os.getloadavg()[0], 2),
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


@dataclass(frozen=True, slots=True)
class Processor:
    """Processor time used up to a moment, in seconds: by the whole machine, and by this process and its descendants."""

    at: float
    everyone: float
    ours: float

    @classmethod
    def now(cls) -> Processor:
        """Read it."""
        return cls(time.monotonic(), _busy_seconds(), sum(map(cpu_seconds, _tree(os.getpid()))))

    def since(self, before: Processor) -> dict[str, float]:
        """Give the shares of the machine's processors that others and we used since then, 0 to 1.

        A figure that was measured while others used much is a lower bound.
        """
        capacity = max(1e-9, (self.at - before.at) * (os.cpu_count() or 1))
        ours = max(0.0, self.ours - before.ours)
        others = max(0.0, self.everyone - before.everyone - ours)
        return {"ours": round(ours / capacity, 3), "others": round(others / capacity, 3)}


def cpu_seconds(pid: int) -> float:
    """Give the processor time of a process and of its children that have ended, in seconds; 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = text[text.rindex(")") + 2 :].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float | None:
    """Give the most memory that a process had resident, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1000, 1)
    return None


def _busy_seconds() -> float:
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _wait, interrupt, soft, _steal = map(int, fields)
    return (user + nice + system + interrupt + soft) / os.sysconf("SC_CLK_TCK")


def _tree(root: int) -> list[int]:
    """Give a process and its living descendants, whatever sessions they lead."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                text = (entry / "stat").read_text()
                parents[int(entry.name)] = int(text[text.rindex(")") + 2 :].split()[1])
    found = [root]
    for each in found:
        found += [pid for pid, parent in parents.items() if parent == each]
    return found


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Give the nearest-rank percentile, None of nothing: a missing figure is not 0."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def rounded(value: float | None, digits: int = 1) -> float | None:
    """Round a figure that may be missing."""
    return None if value is None else round(value, digits)


def ratio(value: float | None, to: float | None) -> float | None:
    """Give one figure as a share of another, None where either is missing or the other is 0."""
    return None if value is None or not to else round(value / to, 4)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
