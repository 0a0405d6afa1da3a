"""Locks and installs the frameworks of the tests.

python -m almoner_dev.frameworks install [NAME ...]   fills the cache; all of them where none is named
python -m almoner_dev.frameworks lock [NAME ...]      resolves the newest versions and writes tests/frameworks/locks
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from almoner_dev.frameworks.install import FrameworkMissingError, installed, lock, named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see the module's documentation. Returns 1 where one of them failed; the others are done."""
    parser = argparse.ArgumentParser(prog="python -m almoner_dev.frameworks", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("install", "lock"))
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    failed = 0
    frameworks = named(options.names)
    for number, framework in enumerate(frameworks, 1):
        print(f"[{number}/{len(frameworks)}] {options.what} {framework.title}", file=sys.stderr, flush=True)
        try:
            installed(framework) if options.what == "install" else lock(framework)
        except FrameworkMissingError as error:
            failed += 1
            print(f"frameworks: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
