"""`almoner status`: what is installed and what goes on, in a few lines. `almoner check` is what judges."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from almoner_cli.check.cluster import OBJECTS_MAX, Cluster, ClusterError, DeniedError, Json
from almoner_cli.check.installation import LEDGER, OPERATOR

RUNS: Final = {"executions": "executions", "trainingjobs": "training jobs"}
OBJECTS: Final = {
    "agents": "agents",
    "resourcequotas": "quotas",
    "modelproviders": "model providers",
    "toolproviders": "tool providers",
    "clustermodelproviders": "cluster model providers",
    "clustertoolproviders": "cluster tool providers",
}
EXIT_USAGE: Final = 2
NOT_ALLOWED: Final = "may not be looked at"
_NEW: Final = "New"


def parser() -> argparse.ArgumentParser:
    """Give the command line's parser."""
    made = argparse.ArgumentParser(
        prog="almoner status",
        description="Shows what is installed and what goes on in the whole cluster. Needs a kubeconfig and no more.",
        epilog="Example: almoner status -o json. Exit code: 0, or 2 where the cluster cannot be asked. Whether all is "
        "in order says almoner check.",
    )
    made.add_argument("--kubeconfig", type=Path, help="kubeconfig file; $KUBECONFIG or the usual one where not given")
    made.add_argument("--context", help="context of the kubeconfig; its current one where not given")
    made.add_argument(
        "-n", "--namespace", default="almoner-system", help="where operator and ledger run (default: %(default)s)"
    )
    made.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: %(default)s")
    return made


def status(cluster: Cluster, namespace: str) -> dict[str, Any]:
    """Give what there is: parts by name, runs by phase, objects and how many of them are not Ready.

    Raises ClusterError where the API server does not answer.
    """
    return {
        "kubernetes": cluster.version(),
        "command": version("almoner"),
        "parts": {
            name: _asked(lambda name=name: part(cluster.deployment(namespace, name))) for name in (OPERATOR, LEDGER)
        },
        "runs": {plural: _asked(lambda plural=plural: phases(cluster.objects(plural))) for plural in RUNS},
        "objects": {plural: _asked(lambda plural=plural: readiness(cluster.objects(plural))) for plural in OBJECTS},
    }


def part(deployment: Json | None) -> str:
    """Say in words how a part stands."""
    if deployment is None:
        return "not installed"
    wanted = int(deployment["spec"].get("replicas") or 0)
    ready = int((deployment.get("status") or {}).get("readyReplicas") or 0)
    label = (deployment["metadata"].get("labels") or {}).get("app.kubernetes.io/version", "of no known version")
    return f"{label}, {ready} of {wanted} ready"


def phases(runs: list[Json]) -> dict[str, int]:
    """Count runs by phase; one that no operator has seen yet is New."""
    return dict(sorted(Counter(str((each.get("status") or {}).get("phase") or _NEW) for each in runs).items()))


def readiness(objects: list[Json]) -> dict[str, int]:
    """Count objects, and those whose condition Ready is False."""
    conditions = ((each.get("status") or {}).get("conditions") or [] for each in objects)
    bad = sum(any(each.get("type") == "Ready" and each.get("status") == "False" for each in of) for of in conditions)
    return {"all": len(objects), "notReady": bad}


def lines(found: dict[str, Any]) -> list[str]:
    """Give it as lines for people."""
    said = [f"{'Kubernetes':<24} {found['kubernetes']}"]
    said += [f"{name:<24} {text}" for name, text in found["parts"].items()]
    for plural, counted in found["runs"].items():
        text = counted if isinstance(counted, str) else _counted(counted)
        said.append(f"{RUNS[plural]:<24} {text}")
    for plural, counted in found["objects"].items():
        text = counted if isinstance(counted, str) else f"{counted['all']}, {counted['notReady']} of them not Ready"
        said.append(f"{OBJECTS[plural]:<24} {text}")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and give the exit code."""
    options = parser().parse_args(argv)
    try:
        cluster = Cluster.connect(options.kubeconfig, options.context)
        try:
            found = status(cluster, options.namespace)
        finally:
            cluster.close()
    except ClusterError as error:
        print(f"almoner status: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(json.dumps(found, indent=2) if options.output == "json" else "\n".join(lines(found)))
    return 0


def _counted(counts: dict[str, int]) -> str:
    many = f" (of the first {OBJECTS_MAX})" if sum(counts.values()) >= OBJECTS_MAX else ""
    return (", ".join(f"{count} {phase}" for phase, count in counts.items()) or "none") + many


def _asked(ask: Any) -> Any:
    try:
        return ask()
    except DeniedError:
        return NOT_ALLOWED
