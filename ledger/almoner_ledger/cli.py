"""Command line: `almoner-ledger ...` and `almoner ledger ...`: `serve`, and what `almoner_ledger.commands` offers."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from almoner_core import log_lines
from almoner_core.environment import CALL_PAST_LEASE_SECONDS, LEASE_SECONDS, SILENCE_SECONDS
from almoner_ledger import commands

if TYPE_CHECKING:
    from almoner_ledger.auth import Authenticator

log = logging.getLogger("almoner_ledger")

ENV_DATABASE = "ALMONER_LEDGER_DATABASE"
DEFAULT_LISTEN = "127.0.0.1:8780"
READING_SECONDS_MAX = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to a parser."""
    offered = parser.add_subparsers(dest="ledger_command", required=True, metavar="COMMAND")
    serve = offered.add_parser("serve", help="run the ledger's HTTP service")
    _add_serve(serve)
    serve.set_defaults(run_on=None)
    for each in commands.subcommands():
        added = offered.add_parser(each.NAME, help=each.HELP)
        _add_database(added)
        each.add_arguments(added)
        added.set_defaults(run_on=each.run)


def _add_database(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--database",
        metavar="URL",
        help=f"sqlite:////data/ledger.db or postgresql://user@host/name (default: ${ENV_DATABASE}); a URL with a "
        f"password goes into ${ENV_DATABASE} or --database-file, or the password into $PGPASSFILE",
    )
    place.add_argument("--database-file", type=Path, metavar="FILE", help="a file that holds the database's URL")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_database(parser)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help=f"default: {DEFAULT_LISTEN}")
    parser.add_argument(
        "--metrics-listen",
        default="",
        metavar="HOST:PORT",
        help="serve /metrics there, and no longer beside the API, where every pod that may reach the ledger could read "
        "who spends what (default: beside the API)",
    )
    parser.add_argument(
        "--tls-dir",
        type=Path,
        metavar="DIR",
        help="serve HTTPS with the files tls.crt and tls.key there, which are read again when they change "
        "(default: HTTP)",
    )
    _add_access(parser)
    parser.add_argument(
        "--seal-seconds", type=float, default=60.0, metavar="SECONDS", help="seal new entries so often (default: 60)"
    )
    parser.add_argument("--no-migrate", action="store_true", help="leave the schema alone")
    parser.add_argument(
        "--database-patience", type=float, default=30.0, metavar="SECONDS", help="retry a transaction for so long"
    )
    parser.add_argument(
        "--lease-seconds",
        type=int,
        default=LEASE_SECONDS,
        metavar="N",
        help=f"a meter that heard nothing for so long starts no call (default: {LEASE_SECONDS})",
    )
    parser.add_argument(
        "--silence-seconds",
        type=int,
        default=SILENCE_SECONDS,
        metavar="N",
        help="an attempt that was not heard of for so long is given up, and what it held is charged off; at least "
        f"the lease, {CALL_PAST_LEASE_SECONDS} s in which its meter ends its calls, and a margin "
        f"(default: {SILENCE_SECONDS})",
    )
    # For tests of what happens at a window's end: a file with the seconds by which the ledger's clock is ahead.
    parser.add_argument("--clock-ahead-file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.add_argument(
        "--log-format", choices=log_lines.STYLES, default="json", help="of log lines, on standard error (default: json)"
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Add how to reach the API server, and who is who by its word."""
    parser.add_argument("--kubeconfig", type=Path, help="how to reach the API server; in a pod: its service account")
    parser.add_argument(
        "--keys-namespace",
        metavar="NAMESPACE",
        help="where the Secrets with keys of ClusterModelProviders lie: the operator's own namespace "
        "(default: the pod's own, else almoner-system)",
    )
    parser.add_argument(
        "--operator-user",
        action="append",
        metavar="USER",
        help="user that is the operator (default: the service account almoner-operator in almoner-system)",
    )
    parser.add_argument(
        "--reading-seconds",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for so long the API server's answer holds whether somebody may read a namespace (default: 10)",
    )
    parser.add_argument(
        "--static-tokens",
        type=Path,
        metavar="FILE",
        help='for local use without Kubernetes: a JSON list of {"token", "role", "name", "pod_uid"}',
    )


def run(arguments: argparse.Namespace) -> int:
    """Run a parsed command; gives the exit code."""
    try:
        arguments.database = _database_url(arguments.database, arguments.database_file)
        return _serve(arguments) if arguments.run_on is None else _on_database(arguments)
    except (ValueError, OSError) as error:
        print(f"almoner ledger: {_words(error)}", file=sys.stderr)
        return 2


def _words(error: Exception) -> str:
    """Say an error without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def _database_url(given: str | None, file: Path | None) -> str:
    """Find the database's URL. Raises ValueError, also where the command line shows everybody a password."""
    if file is not None:
        url = file.read_text().strip()
        if not url:
            raise ValueError(f"--database-file: {file} is empty; write the database's URL into it")
        return url
    url = given or os.environ.get(ENV_DATABASE, "")
    if not url:
        raise ValueError(f"--database: give the database's URL, or set {ENV_DATABASE}")
    if given is not None:
        from almoner_ledger.database import has_password

        if has_password(given):
            raise ValueError(
                "--database: there is a password in the URL, which everybody on this machine can read in the list of "
                f"processes: set {ENV_DATABASE}, or write the URL into a file and give --database-file, or leave the "
                "password out and set PGPASSFILE"
            )
    return url


def _serve(arguments: argparse.Namespace) -> int:
    from sqlalchemy import exc

    from almoner_ledger import auth, quiet, serving
    from almoner_ledger.database import DatabaseUnavailableError, check_file

    log_lines.configure(arguments.log_level, arguments.log_format)
    for handler in logging.getLogger().handlers:
        handler.addFilter(quiet.Quiet())
    policy = auth.Policy(frozenset(arguments.operator_user or [auth.OPERATOR_USER]))
    if not 0 <= arguments.reading_seconds <= READING_SECONDS_MAX:
        raise ValueError(f"--reading-seconds: give 0 to {READING_SECONDS_MAX}")
    host, port = serving.split_address(arguments.listen)
    judge = serving.authenticator(arguments.kubeconfig, arguments.static_tokens, policy)
    if arguments.no_migrate:
        check_file(arguments.database)
    try:
        _run_service(arguments, judge, host, port)
    except (DatabaseUnavailableError, exc.OperationalError) as error:
        # Before it listens: afterwards it waits for the database, and /readyz says so.
        said = str(error.orig if isinstance(error, exc.OperationalError) else error)
        log.critical(
            "the database cannot be used: %s; see that the URL in %s (a Secret's key, in a cluster) names the right "
            "server, database and role, that the server takes connections and writes, and that no NetworkPolicy "
            "stands between",
            said.splitlines()[0],
            ENV_DATABASE,
        )
        return 2
    return 0


def _run_service(arguments: argparse.Namespace, judge: Authenticator, host: str, port: int) -> None:
    from almoner_ledger import serving
    from almoner_ledger.leasing import LeasePolicy

    serving.run(
        arguments.database,
        host,
        port,
        judge,
        seal_seconds=arguments.seal_seconds,
        migrate=not arguments.no_migrate,
        patience_seconds=arguments.database_patience,
        lease=LeasePolicy(arguments.lease_seconds, arguments.silence_seconds),
        clock_ahead_file=arguments.clock_ahead_file,
        tls_dir=arguments.tls_dir,
        reading_seconds=arguments.reading_seconds,
        keys_namespace=arguments.keys_namespace,
        metrics_at=serving.split_address(arguments.metrics_listen, "--metrics-listen")
        if arguments.metrics_listen
        else None,
    )


def _on_database(arguments: argparse.Namespace) -> int:
    from sqlalchemy import exc

    from almoner_ledger.commands import migrate
    from almoner_ledger.database import Database, DatabaseUnavailableError, check_file, no_ledger

    if arguments.ledger_command != migrate.NAME:
        check_file(arguments.database)
    database = Database(arguments.database, patience_seconds=5.0)
    try:
        return int(arguments.run_on(database, arguments))
    except DatabaseUnavailableError as error:
        print(f"almoner ledger: the database does not answer: {error}", file=sys.stderr)
        return 2
    except exc.DatabaseError as error:
        problem = no_ledger(error)
        if problem is None:
            raise
        print(f"almoner ledger: {problem}", file=sys.stderr)
        return 2
    finally:
        database.dispose()


def main(argv: list[str] | None = None) -> int:
    """Entry of `almoner-ledger` and of `almoner ledger`."""
    parser = argparse.ArgumentParser(prog="almoner ledger", description="The ledger of Almoner.")
    add_arguments(parser)
    return run(parser.parse_args(argv))
