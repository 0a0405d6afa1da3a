"""`almoner ledger correct`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "correct"
HELP = "say what an entry costs after all: the difference becomes a new entry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("record", metavar="RECORD", help="id of the record of usage")
    parser.add_argument("--cost", required=True, metavar="USD", help="what it costs in US dollars, such as 0.0123")
    parser.add_argument("--reason", required=True, help="why; kept with the correction")


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Correct and say what changed."""
    from almoner_core.money import Money
    from almoner_ledger import correcting
    from almoner_ledger.store import Store

    store = Store(database)
    return correcting.correct(store, arguments.record, Money.parse(arguments.cost), arguments.reason)
