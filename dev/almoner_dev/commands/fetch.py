"""`fetch`: get or build everything slow now, where its progress can be seen."""

from __future__ import annotations

import argparse
import sys

from almoner_dev import binaries, gotools, model

HELP = "find or build the control plane's binaries and fetch the local model, into the cache; says where from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `fetch`."""
    parser.add_argument("--without-model", action="store_true", help="leave the local model's weights out")
    parser.add_argument(
        "--tool",
        action="append",
        choices=[*gotools.names(), "all"],
        default=[],
        help="also build this Go tool into the cache (again for more; all: each one); the tests do not all need them",
    )


def run(options: argparse.Namespace) -> int:
    """Fills the cache; quick where it is full.

    Raises what names what is missing and what to do: binaries.BinariesMissing, or gotools.ToolMissing.
    """
    found = binaries.find()
    print(f"control plane: {found.directory} ({found.source})")
    for name in gotools.names() if "all" in options.tool else options.tool:
        print(f"{name}: {gotools.path(name)}")
    if not options.without_model:
        try:
            print(f"local model: {model.weights()}")
        except model.ModelUnavailableError as error:
            print(f"local model: {error}", file=sys.stderr)
            return 1
    return 0
