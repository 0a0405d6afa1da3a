"""`demo`: Almoner's main job on a real control plane of this machine, with an audited account at the end."""

from __future__ import annotations

import argparse
import sys

HELP = "run examples/demo on a real control plane, show it live, and audit what was spent"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `demo`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--keep", action="store_true", help="leave everything running at the end")
    which.add_argument("--down", action="store_true", help="stop what --keep left running, and delete its data")
    which.add_argument("--env", action="store_true", help="print the shell's exports that lead to what --keep left")


def run(options: argparse.Namespace) -> int:
    """Runs the demo: 0 where everything that must succeed did and the books agree."""
    from almoner_dev.demo import run as demo  # noqa: PLC0415 - heavy, and --help does not need it
    from almoner_dev.model import ModelUnavailableError  # noqa: PLC0415

    try:
        if options.down:
            return demo.down()
        if options.env:
            return demo.show_exports()
        return demo.run(keep=options.keep)
    except demo.KeptError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except ModelUnavailableError as error:
        print(f"ModelUnavailableError: {error}", file=sys.stderr)
        return 1
