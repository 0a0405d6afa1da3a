"""`almoner ledger verify`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "verify"
HELP = "audit every invariant of the books; exits 1 on a violation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Audit, and name what is wrong."""
    from almoner_ledger import verify

    return verify.report(database, as_json=arguments.output == "json")
