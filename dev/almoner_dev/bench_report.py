"""What every benchmark's report needs besides its figures: the machine, percentiles, ratios, progress.

Role: describes the machine without naming it (no host name, no user, no path), so that a figure can be judged later.
Boundary: reads /proc and installed versions; measures nothing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Coroutine, Sequence
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
