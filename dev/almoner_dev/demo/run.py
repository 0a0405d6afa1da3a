"""The demo from start to end: servers, manifests, watching, report, audit.

Role: one thing after the other, and the exit code: 0 only where everything that must succeed did and the books agree.
Boundary: what each step is lives in its own module.
"""

from __future__ import annotations

import sys
import time
from typing import Final

from rich.console import Console

from almoner_dev.demo import audit as audits
from almoner_dev.demo import report, view
from almoner_dev.demo.cluster import Cluster
from almoner_dev.demo.manifests import NAMESPACE, expected_phases, load
from almoner_dev.demo.observe import Picture
from almoner_dev.demo.servers import (
    ENVIRONMENT,
    ENVIRONMENT_ONCE,
    Servers,
    exports,
    kept,
    look_around,
    note_kept,
    preflight,
    step,
    stop_left_over,
)
from almoner_dev.state import Environment

WORK_SECONDS_MAX: Final = 300.0
SETTLE_SECONDS_MAX: Final = 20.0
POLL_SECONDS: Final = 0.4
LOG_WIDTH: Final = 140


class KeptError(RuntimeError):
    """A kept demo is in the way, or there is none; the message says what to do."""


def run(*, keep: bool) -> int:
    """Run the demo; gives the exit code. Errors that are for people are raised as their own types.

    One that is kept takes the place of the one kept before only where a person says so; one that is not runs beside it.
    """
    began = time.monotonic()
    environment = Environment(ENVIRONMENT if keep else ENVIRONMENT_ONCE)
    with environment.exclusive():
        if kept(environment):
            _ask_before_destroying(environment)
        if stopped := stop_left_over(environment):
            print(f"stopped what an earlier demo left running: {', '.join(stopped)}")
        preflight()
        servers = Servers(environment, keep=keep)
        with servers:
            passed = _work(servers)
            print(f"\nThe whole demo took {time.monotonic() - began:.0f} s.")
            if keep:
                note_kept(environment, servers)
            _tell_how_to_look_around(environment, keep=keep)
        if not keep:
            environment.remove()
            if passed:
                servers.discard()
            else:
                print(f"logs and data are in {servers.folder}")
    return 0 if passed else 1


def _ask_before_destroying(environment: Environment) -> None:
    """Ask a person whether the kept demo may go. Raises KeptError where there is none to ask, or the answer is no."""
    running = [each.name for each in environment.processes() if each.running()]
    state = f"{len(running)} processes run" if running else "its processes have ended"
    what = f"an earlier `make demo KEEP=1` was kept in {environment.facts().get('folder')} ({state})"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise KeptError(
            f"{what}. `make demo-down` stops it and deletes its ledger and objects; "
            "`make demo-env` says how to reach it; `make demo` without KEEP=1 runs beside it."
        )
    print(f"{what}.")
    try:
        answer = input("Stop it, and delete its ledger and objects? [y/N] ")
    except EOFError:
        print()
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise KeptError("nothing was changed. `make demo-env` says how to reach the demo that is there.")


def down() -> int:
    """Stop what --keep left running."""
    environment = Environment(ENVIRONMENT)
    with environment.exclusive():
        if not environment.exists():
            print("no demo is running")
            return 0
        stopped = stop_left_over(environment)
    print(f"stopped {', '.join(stopped) or 'nothing: all had ended'}")
    return 0


def show_exports() -> int:
    """Print, in the shell's words, how to reach the kept demo. Raises KeptError where there is none."""
    environment = Environment(ENVIRONMENT)
    if not kept(environment):
        raise KeptError("no demo is kept: `make demo KEEP=1` makes one")
    print("\n".join(exports(environment)))
    return 0


def _work(servers: Servers) -> bool:
    # Where it is no terminal, nobody knows how wide it is: wide enough for the tables.
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    address = servers.model.base_url.removeprefix("http://")
    objects = load({"MODEL_ADDRESS": address, "MODEL_KEY": servers.model_key})
    expected = expected_phases(objects)
    with Cluster(servers.kubeconfig, NAMESPACE) as cluster:
        with step(f"applying {len(objects)} objects of examples/demo"):
            for document in objects:
                cluster.apply(document)
        print()
        end = _follow(cluster, console)
        if not end.done:
            left = ", ".join(item.name for item in end.work if not item.done)
            print(f"gave up after {WORK_SECONDS_MAX:.0f} s; not done: {left}")
        end, found = _audit(servers, cluster)
    report.show(console, end, found, expected)
    return end.done and found.passed and not report.broken_promises(end, expected)


def _follow(cluster: Cluster, console: Console) -> Picture:
    """Show the work until all of it has ended, or time is up; gives the last picture."""
    began = time.monotonic()
    with view.choose(console) as screen:
        while True:
            seconds = time.monotonic() - began
            now = cluster.picture()
            screen.show(now, seconds)
            if now.done or seconds > WORK_SECONDS_MAX:
                return now
            time.sleep(POLL_SECONDS)


def _audit(servers: Servers, cluster: Cluster) -> tuple[Picture, audits.Audit]:
    """Compare until everything agrees: the last totals take a moment. Then have the ledger verify itself."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        sums, accounts = audits.read_sums(servers.ledger_database), audits.read_accounts(servers.ledger_database)
        end = cluster.picture()
        found = audits.compare(end, sums, accounts)
        if found.passed or time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    holds, found.verify = audits.verify(servers.stack.database)
    if not holds:
        found.problems.append("almoner ledger verify found violations, see above")
    return end, found


def _tell_how_to_look_around(environment: Environment, *, keep: bool) -> None:
    if not keep:
        print("To look around afterwards, run it with KEEP=1 (python -m almoner_dev demo --keep).")
        return
    print("Everything goes on running (the operator's credentials last a day). To look around:\n")
    print(look_around(environment))
    print('\neval "$(make -s demo-env)" does the exports in any shell; docs/start.md goes on from here.')
    print("make demo-down (python -m almoner_dev demo --down) stops it.")
