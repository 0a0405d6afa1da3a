"""The options with which history is asked, shared by the subcommands that ask it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from almoner_ledger.database import Database
    from almoner_ledger.history.asking import Question

T = TypeVar("T")

# Those of `history.asking`, written out: importing it would make every `--help` wait for pydantic. A test compares them
# with each other.
OF_USAGE = (
    "namespace",
    "agent",
    "owner",
    "provider",
    "model",
    "resource-type",
    "operation",
    "outcome",
    "execution",
    "uid",
)
OF_EXECUTIONS = ("namespace", "agent", "owner", "execution", "uid", "kind", "state")
OF_CHANGES = ("namespace", "kind", "name", "uid")
_QUALIFIED = ("agent", "execution")


def add_question(parser: argparse.ArgumentParser, filters: tuple[str, ...]) -> None:
    """Add `--from`, `--to` and filters."""
    moment = "a day such as 2026-01-31 (UTC), or an instant such as 2026-01-31T12:00:00Z"
    parser.add_argument("--from", dest="since", metavar="WHEN", help=f"{moment}; included")
    parser.add_argument("--to", dest="until", metavar="WHEN", help="likewise; a day is included, an instant is not")
    group = parser.add_argument_group("filters", "repeat one for alternatives; all that are given have to hold")
    for name in filters:
        value = "[NAMESPACE/]NAME" if name in _QUALIFIED else name.upper().replace("-", "_")
        group.add_argument(f"--{name}", action="append", default=[], metavar=value, help=argparse.SUPPRESS)
    group.description = f"{group.description}: {', '.join(f'--{name}' for name in filters)}"


def add_output(parser: argparse.ArgumentParser, limit: int) -> None:
    """Add `--limit` and `--output`."""
    parser.add_argument("--limit", type=_positive, default=limit, help=f"most rows (default: {limit})")
    parser.add_argument("-o", "--output", choices=("table", "json", "csv"), default="table")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def question_of(arguments: argparse.Namespace, filters: tuple[str, ...]) -> Question:
    """Read what `add_question` added. Raises ValueError that names the option."""
    from almoner_ledger.history import asking

    given = {asking.By(name.replace("-", "_")): getattr(arguments, name.replace("-", "_")) for name in filters}
    return named(
        lambda: asking.Question(asking.read_filters(given), asking.read_times(arguments.since, arguments.until))
    )


def named(work: Callable[[], T]) -> T:
    """Run something that raises LedgerError about a parameter; it is raised as a ValueError about the option."""
    from almoner_ledger.errors import LedgerError

    try:
        return work()
    except LedgerError as error:
        option = f"--{error.field.replace('_', '-')}" if error.field else ""
        message = error.message.removeprefix(f"{error.field}: ")
        raise ValueError(f"{option}: {message}" if option else message) from error


def read(database: Database, query: Callable[[Connection], T]) -> T:
    """Ask, without a limit of time: who sits at a command line can interrupt it."""
    from almoner_ledger.history import reading

    return named(lambda: reading.read(database, query, seconds=None))
