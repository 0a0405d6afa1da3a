"""`fetch`: get or build everything slow now, where its progress can be seen."""

from __future__ import annotations

import argparse
import sys

from almoner_dev import binaries, model

HELP = "find or build the control plane's binaries and fetch the local model, into the cache; says where from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `fetch`."""
    parser.add_argument("--without-model", action="store_true", help="leave the local model's weights out")


def run(options: argparse.Namespace) -> int:
    """Fills the cache; quick where it is full. Raises binaries.BinariesMissing with what is missing and what to do."""
    found = binaries.find()
    print(f"control plane: {found.directory} ({found.source})")
    if not options.without_model:
        try:
            print(f"local model: {model.weights()}")
        except model.ModelUnavailableError as error:
            print(f"local model: {error}", file=sys.stderr)
            return 1
    return 0
