"""`almoner ledger migrate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

NAME = "migrate"
HELP = "bring the database's schema to the newest revision"


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing."""


def run(database: Database, _: argparse.Namespace) -> int:
    """Migrate."""
    from almoner_ledger import migrations

    database.migrate(migrations.upgrade)
    return 0
