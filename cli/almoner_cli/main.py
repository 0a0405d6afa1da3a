"""The `almoner` command: one front door to the parts, each imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.metadata import version
from typing import Final

# Part -> (module, function that takes the rest of the arguments and gives the exit code, help).
PARTS: Final = {
    "ledger": ("almoner_ledger.cli", "main", "the books: what was spent, audits, corrections, the service"),
    "certificates": ("almoner_operator.certificates_command", "main", "the ledger's self-signed certificate"),
    "operator": ("almoner_operator.__main__", "main", "run the operator"),
    "status": ("almoner_cli.check.status", "main", "what is installed, and what goes on"),
    "check": (
        "almoner_cli.check.command",
        "main",
        "is everything installed and in order, and how to correct what is not",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="almoner",
        description="Run AI agents on Kubernetes inside hard limits.",
        epilog="`almoner PART --help` says what a part offers. What users do is done with kubectl: docs/start.md.",
    )
    parser.add_argument("--version", action="version", version=f"almoner {version('almoner')}")
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, (_, _, text) in PARTS.items():
        part = parts.add_parser(name, help=text, add_help=False)
        part.add_argument("rest", nargs=argparse.REMAINDER)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a part of almoner; gives the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    # The rest goes to the part as it is: options before a subcommand would confuse a REMAINDER.
    if arguments and arguments[0] in PARTS:
        return _run(arguments[0], arguments[1:])
    if not arguments:
        _parser().print_help(sys.stderr)
        return 2
    _parser().parse_args(arguments)
    return 2


def _run(name: str, rest: list[str]) -> int:
    module, function, _ = PARTS[name]
    try:
        part = importlib.import_module(module)
    except ImportError as error:
        print(f"almoner {name}: not installed ({error}); install almoner[{name}]", file=sys.stderr)
        return 2
    return int(getattr(part, function)(rest) or 0)


if __name__ == "__main__":
    sys.exit(main())
