"""`almoner ledger rerate`."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "rerate"
HELP = "rate a period again under other prices: each difference becomes a new entry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("--from", dest="since", required=True, type=_day, metavar="DAY", help="first day (UTC)")
    parser.add_argument("--to", dest="until", required=True, type=_day, metavar="DAY", help="last day (UTC)")
    parser.add_argument("--provider", help="only records of this ModelProvider")
    parser.add_argument("--model", help="only records of this model")
    prices = parser.add_mutually_exclusive_group(required=True)
    prices.add_argument("--prices", type=Path, metavar="FILE", help="YAML with `version` and `prices`: docs/prices.md")
    prices.add_argument("--genai-prices", action="store_true", help="the public price data that is installed")
    parser.add_argument(
        "--as",
        dest="named",
        action="append",
        default=[],
        metavar="PROVIDER=ID",
        help="with --genai-prices: what the public data calls a ModelProvider, such as my-openai=openai",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def _day(text: str) -> dt.date:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write it as 2026-01-31") from None


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Rate again and show the sums by model, before and after."""
    from almoner_ledger import price_lists, rerating
    from almoner_ledger.store import Store

    prices = (
        price_lists.public(arguments.named)
        if arguments.genai_prices
        else price_lists.read(arguments.prices.read_bytes())
    )
    period = rerating.Period(arguments.since, arguments.until, provider=arguments.provider, model=arguments.model)
    found = rerating.rerate(Store(database), period, prices, dry_run=arguments.dry_run)
    return rerating.show(found, arguments.output, dry_run=arguments.dry_run)
