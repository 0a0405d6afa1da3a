"""`up`: a control plane that goes on running when the command ends."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from almoner_dev.cache import say
from almoner_dev.state import Environment

HELP = "start a control plane in the background and print how to reach it, in the shell's words"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `up`."""
    parser.add_argument("--name", default="default", help="name of the environment; several run side by side")
    parser.add_argument(
        "--bind-address",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a further address of this machine to serve the API on, such as a bridge's; may be repeated",
    )
    parser.add_argument("--without-controller-manager", action="store_true", help="leave out the controllers")
    parser.add_argument("--without-scheduler", action="store_true", help="leave out the scheduler")


def run(options: argparse.Namespace) -> int:
    """Starts the control plane unless it runs; prints `export KUBECONFIG=...` on standard output."""
    environment = Environment(options.name)
    with environment.exclusive():
        recorded = environment.processes()
        if recorded and all(each.running() for each in recorded):
            say(f"environment {environment.name} is up already")
        else:
            if recorded:
                gone = [each.name for each in recorded if not each.running()]
                say(f"{', '.join(gone)} ended; stopping the rest and starting again on the same data")
                environment.stop()
            _start(environment, options)
    facts = environment.facts()
    print(f"export KUBECONFIG={shlex.quote(facts['kubeconfig'])}")
    if shutil.which("kubectl") is None and (Path(facts["binaries"]) / "kubectl").exists():
        print(f'export PATH={shlex.quote(facts["binaries"])}:"$PATH"  # kubectl')
    return 0


def _start(environment: Environment, options: argparse.Namespace) -> None:
    from almoner_dev.controlplane import ControlPlane  # noqa: PLC0415 - heavy, and --help does not need it

    plane = ControlPlane(
        directory=environment.directory / "controlplane",
        with_controller_manager=not options.without_controller_manager,
        with_scheduler=not options.without_scheduler,
        bind_addresses=options.bind_address,
        detached=True,
        on_start=environment.record,
    )
    plane.start()
    assert plane.binaries is not None
    environment.note(
        kubeconfig=str(plane.kubeconfig),
        url=plane.url,
        binaries=str(plane.binaries.directory),
        binaries_source=plane.binaries.source,
    )
    say(f"environment {environment.name} is up at {plane.url} (binaries: {plane.binaries.source})")
