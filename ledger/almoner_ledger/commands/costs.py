"""`almoner ledger costs`: what was spent, summed by up to three dimensions."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from almoner_ledger.commands import questions

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "costs"
HELP = "what was spent, by any dimension and time"
BY = "hour, day, week, month, namespace, agent, owner, provider, model, resource_type, operation, outcome, execution"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument(
        "--by", default="agent", metavar="A[,B[,C]]", help=f"one to three of {BY}; times are UTC (default: agent)"
    )
    parser.add_argument(
        "--order", metavar="NAME", help="`key`, or a sum such as cost_nanos or output_tokens, the largest first"
    )
    questions.add_question(parser, questions.OF_USAGE)
    questions.add_output(parser, 1000)


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Sum and show."""
    from almoner_ledger.history import asking, tables, usage

    question = questions.question_of(arguments, questions.OF_USAGE)
    by = questions.named(lambda: asking.read_by(arguments.by))
    grouping = usage.Grouping(by, arguments.order, arguments.limit)
    found = questions.read(database, lambda connection: usage.usage(connection, question, grouping))
    sys.stdout.write(tables.usage(found, arguments.output))
    return 0
