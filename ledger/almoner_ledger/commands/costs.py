"""`almoner ledger costs`."""

from __future__ import annotations

import argparse
import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "costs"
HELP = "what was spent, from the daily sums"
BY = ("agent", "owner", "model", "day", "namespace", "provider", "resource_type", "execution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("--by", choices=BY, default="agent", help="grouping (default: agent)")
    parser.add_argument("--from", dest="since", type=dt.date.fromisoformat, metavar="DAY", help="first day (UTC)")
    parser.add_argument("--to", dest="until", type=dt.date.fromisoformat, metavar="DAY", help="last day (UTC)")
    parser.add_argument("--limit", type=int, default=1000, help="most rows (default: 1000)")
    parser.add_argument("-o", "--output", choices=("table", "json", "csv"), default="table")


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Sum and show."""
    from almoner_ledger import costs

    return costs.report(
        database,
        arguments.by,
        since=arguments.since,
        until=arguments.until,
        limit=arguments.limit,
        output=arguments.output,
    )
