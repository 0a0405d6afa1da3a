"""`almoner ledger settle`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "settle"
HELP = "say what an attempt that vanished really spent: the rest of its unaccounted charge is given back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("allotment", metavar="ALLOTMENT", help="id of the attempt's allotment")
    parser.add_argument("--cost", required=True, metavar="USD", help="what it spent in US dollars, such as 0.0123")
    for name in ("tokens", "requests", "tool-calls"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{name} it used (default: they stay charged)")
    parser.add_argument("--reason", required=True, help="how that is known; kept with the entry")


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Settle and say what changed."""
    from almoner_core.money import Money
    from almoner_ledger import correcting
    from almoner_ledger.store import Store

    return correcting.settle(
        Store(database),
        arguments.allotment,
        Money.parse(arguments.cost),
        arguments.reason,
        tokens=arguments.tokens,
        requests=arguments.requests,
        tool_calls=arguments.tool_calls,
    )
