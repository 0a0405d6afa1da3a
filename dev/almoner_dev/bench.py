"""The benchmarks' command line: `python -m almoner_dev.bench NAME [--json] [options of NAME]`.

Role: finds `almoner_dev.bench_NAME`, calls its `run(argv)`, and prints what it measured: one JSON object on standard
output with `--json`, aligned lines without; progress goes to standard error. Boundary: measures nothing itself.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from almoner_dev.binaries import BinariesMissing
from almoner_dev.postgres import PostgresMissing
from almoner_dev.processes import ProcessError

NAMES = ("admission", "history", "ledger", "meter")
USAGE = f"usage: python -m almoner_dev.bench {{{','.join(NAMES)}}} [--json] [options; NAME --help lists them]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; the exit code is 2 for a name that is none, 1 where something it needs cannot be had."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if given else 2
    name, *rest = given
    if name not in NAMES:
        print(f"{name!r} is no benchmark\n{USAGE}", file=sys.stderr)
        return 2
    as_json = "--json" in rest
    module = importlib.import_module(f"almoner_dev.bench_{name}")
    try:
        figures: dict[str, Any] = module.run([each for each in rest if each != "--json"])
    except (BinariesMissing, PostgresMissing, ProcessError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if as_json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:32} {value if not isinstance(value, dict | list) else json.dumps(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
