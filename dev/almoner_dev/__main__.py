"""The command line of the development tools: `python -m almoner_dev COMMAND`.

Role: finds the subcommands in almoner_dev.commands, parses, and turns errors meant for people into one
message and exit code 1. Boundary: no work of its own.
"""

from __future__ import annotations

import argparse
import importlib
import io
import pkgutil
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, Protocol, cast

from almoner_dev import commands
from almoner_dev.binaries import BinariesMissing
from almoner_dev.cluster.requirements import NodeImpossible
from almoner_dev.gotools import ToolMissing
from almoner_dev.images.machine import ImagesImpossible
from almoner_dev.model import ModelUnavailableError
from almoner_dev.processes import ProcessError
from almoner_dev.state import StateError


class Command(Protocol):
    """What a module in almoner_dev.commands has."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds its options."""

    def run(self, options: argparse.Namespace) -> int:
        """Does it; returns the exit code."""


def registry() -> dict[str, Command]:
    """Returns the subcommands by name."""
    names = sorted(info.name for info in pkgutil.iter_modules(commands.__path__) if not info.name.startswith("_"))
    return {name: cast("Command", importlib.import_module(f"almoner_dev.commands.{name}")) for name in names}


def parser() -> argparse.ArgumentParser:
    """Returns the parser with every subcommand."""
    top = argparse.ArgumentParser(
        prog="python -m almoner_dev", description="Almoner's development tools: real servers on this machine alone."
    )
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in registry().items():
        sub = subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit code: 1 for errors that are explained, 130 when interrupted."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # Whoever reads a pipe sees each line at once, as on a terminal.
    try:
        code: int = options.run(options)
    except (
        *(BinariesMissing, ImagesImpossible, ModelUnavailableError, NodeImpossible),
        *(ProcessError, StateError, ToolMissing),
    ) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was being started has been stopped", file=sys.stderr)
        return 130
    return code


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    # Like ^C: unwind, so that what was started is stopped.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
