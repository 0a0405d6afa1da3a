"""`almoner ledger migrate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from almoner_ledger.database import Database

NAME = "migrate"
HELP = "bring the database's schema to the newest revision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's own arguments."""
    parser.add_argument(
        "--grant-to",
        metavar="ROLE",
        help="PostgreSQL: give the role of the service the rights that it needs, and take all others from it: with "
        "them entries cannot be changed or dropped; run the service as ROLE with --no-migrate",
    )


def run(database: Database, arguments: argparse.Namespace) -> int:
    """Migrate, and grant, in one transaction."""
    from almoner_ledger import migrations, roles

    def work(connection: Connection) -> None:
        migrations.upgrade(connection)
        if arguments.grant_to:
            roles.grant(connection, arguments.grant_to)

    database.migrate(work)
    return 0
