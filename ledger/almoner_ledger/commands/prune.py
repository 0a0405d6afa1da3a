"""`almoner ledger prune`."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "prune"
HELP = "drop months of history whose allotments are all closed; sums, seals and what proves them stay"
QUIET_SECONDS: Final = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument(
        "--keep-months", type=int, required=True, metavar="N", help="keep this month and the N before it"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be dropped")


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Drop, and say what was dropped and what was not."""
    from almoner_ledger import retention
    from almoner_ledger.store import Store

    step, done, started = ["starting"], threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(QUIET_SECONDS):
            sys.stderr.write(f"after {time.monotonic() - started:.0f} s: {step[0]}\n")

    def progress(text: str) -> None:
        step[0] = text

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        retention.prune(Store(database), arguments.keep_months, dry_run=arguments.dry_run, say=say, progress=progress)
    finally:
        done.set()
        ticking.join()
    return 0
