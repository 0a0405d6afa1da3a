"""`almoner check`: the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from almoner_cli.check import certificate, installation, objects, rights
from almoner_cli.check.cluster import Cluster, ClusterError
from almoner_cli.check.findings import Finding, Level, Look, Place, look_at

LOOKS: Final[Sequence[tuple[str, Look]]] = (
    ("Kubernetes", installation.kubernetes),
    ("definitions", installation.definitions),
    ("operator", installation.operator),
    ("ledger", installation.ledger),
    ("database", installation.database),
    (certificate.ABOUT, certificate.certificate),
    ("versions", installation.versions),
    ("rights", rights.rights),
    ("providers", objects.provider_secrets),
    ("objects", objects.not_ready),
    ("policies", objects.policies),
)
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNKNOWN: Final = 3


def parser() -> argparse.ArgumentParser:
    """Give the command line's parser."""
    made = argparse.ArgumentParser(
        prog="almoner check",
        description="Looks whether Almoner is installed and in order: a line for each thing, with the fix for each "
        "that is not. Needs a kubeconfig and nothing else, and changes nothing.",
        epilog="Example: almoner check --context staging -o json. Exit code: 0 all is well (warnings are hints), "
        "1 something has failed, 2 the cluster cannot be asked, 3 not everything may be looked at.",
    )
    made.add_argument("--kubeconfig", type=Path, help="kubeconfig file; $KUBECONFIG or the usual one where not given")
    made.add_argument("--context", help="context of the kubeconfig; its current one where not given")
    made.add_argument(
        "-n", "--namespace", default="almoner-system", help="where operator and ledger run (default: %(default)s)"
    )
    made.add_argument("-o", "--output", choices=["text", "json"], default="text", help="default: %(default)s")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Look, print, and give the exit code."""
    options = parser().parse_args(argv)
    found: list[Finding] = []
    try:
        cluster = Cluster.connect(options.kubeconfig, options.context)
        try:
            place = Place(cluster, options.namespace, version("almoner"))
            for finding in look_at(place, LOOKS):
                found.append(finding)
                if options.output == "text":
                    print("\n".join(finding.lines()), flush=True)
        finally:
            cluster.close()
    except ClusterError as error:
        print(f"almoner check: {error}", file=sys.stderr)
        return EXIT_USAGE
    bad, unknown = (sum(each.level is level for each in found) for level in (Level.FAILED, Level.UNKNOWN))
    if options.output == "json":
        document = {"ok": not bad and not unknown, "findings": [each.as_json() for each in found]}
        print(json.dumps(document, indent=2))
    elif bad:
        print(f"{bad} of {len(found)} have to be corrected")
    else:
        print(f"{unknown} of {len(found)} could not be looked at" if unknown else "all is well")
    return EXIT_FAILED if bad else EXIT_UNKNOWN if unknown else 0
