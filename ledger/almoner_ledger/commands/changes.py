"""`almoner ledger changes`: who changed which limit, price or provider, when, from what to what."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from almoner_ledger.commands import questions

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "changes"
HELP = "who changed which limit, price or provider, when, from what to what"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    questions.add_question(parser, questions.OF_CHANGES)
    questions.add_output(parser, 100)


def run(database: Database, arguments: argparse.Namespace) -> int:
    """List and show."""
    from almoner_ledger.history import configuration, tables

    question = questions.question_of(arguments, questions.OF_CHANGES)
    found = questions.read(
        database, lambda connection: configuration.changes(connection, question, arguments.limit, None)
    )
    sys.stdout.write(tables.changes(found, arguments.output))
    return 0
