"""Command line of a process node; see --help.

Role: options, logging, signals, the choice of isolation. Boundary: the node itself is agent.py's.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from almoner_dev.node.agent import NodeAgent, NodeSettings
from almoner_dev.node.api import Api, ApiError
from almoner_dev.node.isolation import Isolation, SharedMachine, exposed_folders
from almoner_dev.node.namespaces import IsolationError, Namespaces, probe

PR_SET_CHILD_SUBREAPER = 36
log = logging.getLogger("almoner_dev.node")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m almoner_dev.node", description="A Kubernetes node whose pods are processes of this machine."
    )
    parser.add_argument("--kubeconfig", type=Path, required=True, help="kubeconfig of an administrator")
    parser.add_argument("--name", default="process-0", help="the node's name (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for volumes and logs (default: a temporary one)")
    parser.add_argument(
        "--isolation",
        choices=("auto", "namespaces", "none"),
        default="auto",
        help="namespaces: networks and mounts of their own, needs root; none: plain processes; auto: namespaces where "
        "they work (default)",
    )
    parser.add_argument("--cpu", default="64", help="cpu to offer (default: %(default)s)")
    parser.add_argument("--memory", default="64Gi", help="memory to offer (default: %(default)s)")
    parser.add_argument("--pods", type=int, default=500, help="pods to take (default: %(default)s)")
    parser.add_argument("--resource", action="append", default=[], metavar="NAME=N", help="e.g. nvidia.com/gpu=2")
    parser.add_argument("--expose", action="append", type=Path, default=[], help="folder that containers see")
    parser.add_argument(
        "--image-command", action="append", default=[], metavar="IMAGE=JSON", help="command of an image, a JSON list"
    )
    parser.add_argument("--ready-file", type=Path, help="written once the node is ready: JSON with host_address")
    return parser


async def choose(wanted: str, exposed: list[str]) -> Isolation:
    """The isolation to use. Raises IsolationError where namespaces are demanded and do not work."""
    if wanted != "none":
        why_not = await probe()
        if why_not is None:
            return Namespaces(exposed)
        if wanted == "namespaces":
            raise IsolationError(f"isolation namespaces does not work here: {why_not}")
        log.warning("no namespaces here (%s): falling back to isolation none", why_not)
    return SharedMachine()


def _scratch(wanted: Path | None) -> Path:
    scratch = (wanted or Path(tempfile.mkdtemp(prefix="almoner-node-"))).absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    # What an earlier life of this node left.
    shutil.rmtree(scratch / "pods", ignore_errors=True)
    return scratch


async def _main(options: argparse.Namespace) -> int:
    scratch = _scratch(options.scratch)
    settings = NodeSettings(
        name=options.name,
        scratch=scratch,
        cpu=options.cpu,
        memory=options.memory,
        pods=options.pods,
        resources=dict(entry.split("=", 1) for entry in options.resource),
        image_commands={name: json.loads(text) for name, text in (e.split("=", 1) for e in options.image_command)},
        ready_file=options.ready_file,
    )
    try:
        isolation = await choose(options.isolation, exposed_folders(tuple(options.expose)))
        async with Api.from_kubeconfig(options.kubeconfig) as api:
            agent = NodeAgent(settings, api, isolation)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, agent.stop.set)
            await agent.run()
    except (IsolationError, ApiError, ValueError, OSError) as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people, not a trace
        return 1
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    return 0


def main() -> int:
    """Run a node until SIGTERM or SIGINT."""
    options = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if sys.platform != "linux":
        log.error("a process node needs Linux")
        return 1
    # What outlives its container's first process becomes this node's child, not init's.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if sys.version_info < (3, 12):
        # The default watcher of 3.11 spends a thread on each child.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    return asyncio.run(_main(options))


if __name__ == "__main__":
    sys.exit(main())
