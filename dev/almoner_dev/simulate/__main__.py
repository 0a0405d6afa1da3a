"""The simulation's command line: `python -m almoner_dev.simulate --seed N --schedules M --json`.

Role: runs schedules one after another, says how it goes on standard error, and prints the summary. Exit code 1 where
anything was overspent, lost or violated: the failing seed is printed, and `--seed S --schedules 1` replays it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from almoner_dev.postgres import Postgres, PostgresMissing
from almoner_dev.processes import ProcessError
from almoner_dev.simulate import bounding, processes, schedule
from almoner_dev.simulate.databases import PostgresSource, Source, SqliteSource, scratch
from almoner_dev.simulate.report import Result, Summary


def parser() -> argparse.ArgumentParser:
    """Return the parser."""
    top = argparse.ArgumentParser(
        prog="python -m almoner_dev.simulate",
        description="Simulates meters, ledger replicas and an operator over a real database, with everything that can "
        "go wrong going wrong: 0 overspent, 0 lost, every invariant held.",
    )
    top.add_argument("--seed", type=int, default=1, help="seed of the first schedule; the next has the next (1)")
    top.add_argument("--schedules", type=int, default=20, help="how many schedules (20)")
    top.add_argument("--sqlite", action="store_true", help="on SQLite instead of PostgreSQL")
    top.add_argument(
        "--processes", action="store_true", help="with real ledger processes on PostgreSQL, in real time, all schedules"
    )
    top.add_argument(
        "--every", type=int, default=25, help="so many virtual schedules to one with processes; 0: none (25)"
    )
    top.add_argument("--json", action="store_true", help="print the summary as JSON")
    top.add_argument("--stop", action="store_true", help="stop at the first schedule that fails")
    return top


@contextlib.contextmanager
def _source(*, sqlite: bool) -> Iterator[Source]:
    if sqlite:
        with scratch() as folder:
            yield SqliteSource(Path(folder))
    else:
        with Postgres() as postgres:
            yield PostgresSource(postgres)


def _run(seed: int, source: Source, options: argparse.Namespace) -> Result:
    """Run one schedule, as its seed says: a single one is replayed in the way in which it ran among many."""
    real = options.processes or (options.every > 0 and seed % options.every == 0)
    return processes.run(seed, source) if real and not options.sqlite else schedule.run(seed, source)


def _say(result: Result) -> None:
    print(result.verdict, file=sys.stderr, flush=True)
    for text in result.violations[:12] if not result.ok else ():
        print(f"    {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the simulation; gives the exit code."""
    options = parser().parse_args(arguments)
    summary = Summary(options.seed)
    began = time.perf_counter()
    try:
        with _source(sqlite=options.sqlite) as source:
            for seed in range(options.seed, options.seed + options.schedules):
                result = _run(seed, source, options)
                summary.results.append(result)
                _say(result)
                bodies = bounding.run(seed)
                summary.bodies.append(bodies)
                _say(bodies)
                if options.stop and not (result.ok and bodies.ok):
                    break
    except (PostgresMissing, ProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    summary.seconds = time.perf_counter() - began
    if options.json:
        print(json.dumps(summary.to_dict(), indent=2))
    else:
        for name, value in summary.to_dict().items():
            print(f"{name}: {value}")
    for each in {each.seed: each for each in summary.failed}.values():
        flag = " --sqlite" if options.sqlite else " --processes" if options.processes else ""
        print(f"replay: python -m almoner_dev.simulate --seed {each.seed} --schedules 1{flag}", file=sys.stderr)
    return 0 if summary.ok else 1


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of a schedule: the same in every process.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "almoner_dev.simulate", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
