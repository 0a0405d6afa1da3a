"""`almoner ledger executions`: every execution that the ledger knows, deleted ones too."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from almoner_ledger.commands import questions

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "executions"
HELP = "the history of executions, deleted ones too"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    questions.add_question(parser, questions.OF_EXECUTIONS)
    questions.add_output(parser, 100)


def run(database: Database, arguments: argparse.Namespace) -> int:
    """List and show."""
    from almoner_ledger.history import executions, tables

    question = questions.question_of(arguments, questions.OF_EXECUTIONS)
    found = questions.read(
        database, lambda connection: executions.executions(connection, question, arguments.limit, None)
    )
    sys.stdout.write(tables.executions(found, arguments.output))
    return 0
