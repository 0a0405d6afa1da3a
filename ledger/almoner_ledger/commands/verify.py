"""`almoner ledger verify`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "verify"
HELP = "audit every invariant of the books; exits 1 on a violation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument(
        "--head",
        action="store_true",
        help="only print the newest seal, as NUMBER:DIGEST: kept elsewhere, it shows later whether the chain was "
        "rewritten",
    )
    parser.add_argument(
        "--expect-head",
        action="append",
        default=[],
        metavar="NUMBER:DIGEST",
        help="a seal that was kept elsewhere: the chain must still have it (may be given again)",
    )


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Audit, and name what is wrong."""
    from almoner_ledger import sealing, verify

    expected = dict(sealing.parse_head(text) for text in arguments.expect_head)
    if arguments.head:
        sys.stdout.write(f"{database.read(sealing.head)}\n")
        return 0
    return verify.report(database, as_json=arguments.output == "json", expected=expected)
