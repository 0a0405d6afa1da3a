"""The subcommands of `almoner ledger` that work on the database, a module each.

A module named in MODULES has `NAME`, `HELP`, `add_arguments(parser)` and `run(database, arguments)`, which gives the
exit code. `--database` is added for it, and the errors that it raises (ValueError, OSError, DatabaseUnavailableError)
are printed by `almoner_ledger.cli`. It imports what is heavy inside `run`, so that `--help` needs no database library.
"""

from __future__ import annotations

import argparse
import importlib
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from almoner_ledger.database import Database

MODULES: Final = (
    "migrate",
    "verify",
    "seal",
    "prune",
    "correct",
    "settle",
    "rerate",
    "costs",
    "executions",
    "records",
    "changes",
    "export",
)
"""In the order in which `--help` lists them."""


class Subcommand(Protocol):
    """What a module of this package offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's own arguments."""

    def run(self, database: Database, arguments: argparse.Namespace) -> int:
        """Do the work, write to standard output, and give the exit code."""


def subcommands() -> list[Subcommand]:
    """Import every subcommand."""
    return [cast("Subcommand", importlib.import_module(f"{__name__}.{name}")) for name in MODULES]
