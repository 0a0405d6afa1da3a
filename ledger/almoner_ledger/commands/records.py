"""`almoner ledger records`: entries one by one."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from almoner_ledger.commands import questions

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "records"
HELP = "the newest entries, one by one; `export` gives all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    questions.add_question(parser, questions.OF_USAGE)
    questions.add_output(parser, 100)


def run(database: Database, arguments: argparse.Namespace) -> int:
    """List and show."""
    from almoner_ledger.history import entries, tables

    question = questions.question_of(arguments, questions.OF_USAGE)
    found = questions.read(database, lambda connection: entries.page(connection, question, arguments.limit, None))
    sys.stdout.write(tables.entries(found, arguments.output))
    return 0
