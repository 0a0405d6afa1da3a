"""Command line: `almoner-ledger ...` and `almoner ledger ...`: serve, migrate, verify, costs."""

from __future__ import annotations

import argparse
import datetime as dt
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from almoner_ledger.database import Database

ENV_DATABASE = "ALMONER_LEDGER_DATABASE"
DEFAULT_LISTEN = "127.0.0.1:8780"
BY = ("agent", "owner", "model", "day", "namespace", "provider", "resource_type", "execution")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to a parser."""
    commands = parser.add_subparsers(dest="ledger_command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the ledger's HTTP service"))
    migrate = commands.add_parser("migrate", help="bring the database's schema to the newest revision")
    _add_database(migrate)
    verify = commands.add_parser("verify", help="audit every invariant of the books; exits 1 on a violation")
    _add_database(verify)
    verify.add_argument("-o", "--output", choices=("text", "json"), default="text")
    costs = commands.add_parser("costs", help="what was spent, from the daily sums")
    _add_database(costs)
    costs.add_argument("--by", choices=BY, default="agent", help="grouping (default: agent)")
    costs.add_argument("--from", dest="since", type=dt.date.fromisoformat, metavar="DAY", help="first day (UTC)")
    costs.add_argument("--to", dest="until", type=dt.date.fromisoformat, metavar="DAY", help="last day (UTC)")
    costs.add_argument("--limit", type=int, default=1000, help="most rows (default: 1000)")
    costs.add_argument("-o", "--output", choices=("table", "json", "csv"), default="table")


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        default=os.environ.get(ENV_DATABASE),
        metavar="URL",
        help=f"sqlite:////data/ledger.db or postgresql://user:password@host/name (default: ${ENV_DATABASE})",
    )


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_database(parser)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"default: {DEFAULT_LISTEN}")
    parser.add_argument("--kubeconfig", type=Path, help="how to reach the API server; in a pod: its service account")
    parser.add_argument(
        "--operator-user",
        action="append",
        metavar="USER",
        help="user that is the operator (default: the service account almoner-operator in almoner-system)",
    )
    parser.add_argument("--reader-user", action="append", default=[], metavar="USER", help="user that may read")
    parser.add_argument("--reader-group", action="append", default=[], metavar="GROUP", help="group that may read")
    parser.add_argument(
        "--static-tokens",
        type=Path,
        metavar="FILE",
        help='for local use without Kubernetes: a JSON list of {"token", "role", "name", "pod_uid"}',
    )
    parser.add_argument("--no-migrate", action="store_true", help="leave the schema alone")
    parser.add_argument(
        "--database-patience", type=float, default=30.0, metavar="SECONDS", help="retry a transaction for so long"
    )
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command; gives the exit code."""
    if not arguments.database:
        print(f"--database: give the database's URL, or set {ENV_DATABASE}", file=sys.stderr)
        return 2
    try:
        return _serve(arguments) if arguments.ledger_command == "serve" else _on_database(arguments)
    except (ValueError, OSError) as error:
        print(f"almoner ledger: {error}", file=sys.stderr)
        return 2


def _serve(arguments: argparse.Namespace) -> int:
    from almoner_ledger import auth, serving

    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
    policy = auth.Policy(
        operators=frozenset(arguments.operator_user or [auth.OPERATOR_USER]),
        reader_users=frozenset(arguments.reader_user),
        reader_groups=auth.Policy().reader_groups | set(arguments.reader_group),
    )
    host, port = serving.split_address(arguments.listen)
    judge = serving.authenticator(arguments.kubeconfig, arguments.static_tokens, policy)
    serving.run(
        arguments.database,
        host,
        port,
        judge,
        migrate=not arguments.no_migrate,
        patience_seconds=arguments.database_patience,
    )
    return 0


def _on_database(arguments: argparse.Namespace) -> int:
    from almoner_ledger.database import Database, DatabaseUnavailableError

    database = Database(arguments.database, patience_seconds=5.0)
    try:
        return _run_on(database, arguments)
    except DatabaseUnavailableError as error:
        print(f"almoner ledger: the database does not answer: {error}", file=sys.stderr)
        return 2
    finally:
        database.dispose()


def _run_on(database: Database, arguments: argparse.Namespace) -> int:
    from almoner_ledger import costs, migrations, verify

    if arguments.ledger_command == "migrate":
        database.migrate(migrations.upgrade)
        return 0
    if arguments.ledger_command == "verify":
        return verify.report(database, as_json=arguments.output == "json")
    return costs.report(
        database,
        arguments.by,
        since=arguments.since,
        until=arguments.until,
        limit=arguments.limit,
        output=arguments.output,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry of `almoner-ledger` and of `almoner ledger`."""
    parser = argparse.ArgumentParser(prog="almoner-ledger", description="The ledger of Almoner.")
    add_arguments(parser)
    return run(parser.parse_args(argv))
