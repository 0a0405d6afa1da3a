"""`almoner ledger export`: all entries into a CSV or Parquet file."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from almoner_ledger.commands import questions

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "export"
HELP = "all entries, as CSV or Parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument("file", metavar="FILE", help="a name that ends in .csv or .parquet; -: standard output, as CSV")
    parser.add_argument("--format", choices=("csv", "parquet"), help="whatever the file's name")
    questions.add_question(parser, questions.OF_USAGE)


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Write; how far it is goes to standard error where it takes more than two seconds."""
    from pathlib import Path

    from almoner_ledger.history import export

    question = questions.question_of(arguments, questions.OF_USAGE)
    progress = export.Progress(lambda text: print(f"almoner ledger export: {text}", file=sys.stderr, flush=True))
    try:
        form = export.format_of(arguments.file, arguments.format)
        if arguments.file != "-":
            count = export.to_file(database, question, Path(arguments.file), form, progress)
            print(f"{count} entries in {arguments.file}", file=sys.stderr)
            return 0
        export.to_stream(database, question, sys.stdout.buffer, export.open_writer(form), progress)
        sys.stdout.buffer.flush()
    except export.ExportError as error:
        print(f"almoner ledger export: {error}", file=sys.stderr)
        return 2
    except FileNotFoundError:
        print(f"almoner ledger export: {arguments.file}: there is no such folder", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader had enough, such as head(1). Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0
