"""`status`: what runs, and where."""

from __future__ import annotations

import argparse
import json
from typing import Any

from almoner_dev.state import Environment, environments

HELP = "say what runs; the exit code is 0 when something does and all of it, 3 otherwise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `status`."""
    parser.add_argument("--name", help="name of the environment; without it, all of them")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="form of the answer")


def run(options: argparse.Namespace) -> int:
    """Prints the environments and their processes."""
    chosen = environments() if options.name is None else [Environment(options.name)]
    found = [_describe(environment) for environment in chosen if environment.exists()]
    if options.output == "json":
        print(json.dumps(found, indent=2))
    elif not found:
        print("nothing is up")
    else:
        for each in found:
            _print(each)
    running = [process["running"] for each in found for process in each["processes"]]
    return 0 if running and all(running) else 3


def _describe(environment: Environment) -> dict[str, Any]:
    return {
        "name": environment.name,
        "directory": str(environment.directory),
        **environment.facts(),
        "processes": [
            {"name": each.name, "pid": each.pid, "running": each.running(), "log": each.log}
            for each in environment.processes()
        ],
    }


def _print(environment: dict[str, Any]) -> None:
    print(f"{environment['name']}  {environment.get('url', '')}")
    if "kubeconfig" in environment:
        print(f"  export KUBECONFIG={environment['kubeconfig']}")
    for process in environment["processes"]:
        state = f"running, pid {process['pid']}" if process["running"] else f"ended, see {process['log']}"
        print(f"  {process['name']:<26} {state}")
