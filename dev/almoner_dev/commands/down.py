"""`down`: stops what `up` started, and nothing else."""

from __future__ import annotations

import argparse

from almoner_dev.cache import say
from almoner_dev.state import Environment, environments

HELP = "stop what up started, and remove its data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `down`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--name", default="default", help="name of the environment")
    which.add_argument("--all", action="store_true", help="every environment")
    parser.add_argument("--keep", action="store_true", help="keep data and logs; the next up goes on with them")


def run(options: argparse.Namespace) -> int:
    """Stops the environment's processes, last started first; nothing to stop is fine too."""
    for environment in environments() if options.all else [Environment(options.name)]:
        with environment.exclusive():
            if not environment.exists():
                say(f"environment {environment.name} is not up")
                continue
            stopped = environment.stop()
            if not options.keep:
                environment.remove()
            say(f"environment {environment.name}: stopped {', '.join(stopped) or 'nothing, all had ended'}")
    return 0
