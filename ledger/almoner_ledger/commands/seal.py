"""`almoner ledger seal`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "seal"
HELP = "seal the entries that are not sealed yet, and print the newest seal"


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(database: Database, _: argparse.Namespace) -> int:
    """Seal, and print NUMBER:DIGEST of the newest seal."""
    from almoner_ledger import sealing
    from almoner_ledger.store import Store

    sealed = sealing.seal_all(Store(database), wait=True)
    newest = database.read(sealing.head)
    sys.stdout.write(f"{sealed} entries sealed; the newest seal is {newest}\n")
    return 0
