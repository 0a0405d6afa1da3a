"""`almoner certificates ensure`: makes or renews the ledger's self-signed certificate, as the operator does."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from almoner_core import log_lines
from almoner_operator import credentials
from almoner_operator.certificate_keeper import CertificateKeeper
from almoner_operator.errors import ApiError
from almoner_operator.kubernetes import KubernetesClient

EXIT_FAILED = 1
EXIT_USAGE = 2


def parser() -> argparse.ArgumentParser:
    """Give the command line's parser."""
    made = argparse.ArgumentParser(prog="almoner certificates", description="The certificate that the ledger serves.")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ensure = commands.add_parser(
        "ensure",
        help="make the Secret with the ledger's self-signed certificate, or renew it where that is due",
        description="Makes the Secret with the ledger's self-signed certificate, or renews it where that is due. The "
        "operator does this by itself every five minutes; a Secret without Almoner's label is left as it is. "
        "Example: almoner certificates ensure --namespace almoner-system",
    )
    ensure.add_argument("--kubeconfig", type=Path, help="kubeconfig file; in a pod: its own service account")
    ensure.add_argument("--namespace", default="almoner-system", help="the ledger's (default: almoner-system)")
    ensure.add_argument("--secret", default="almoner-ledger-tls", help="its name (default: almoner-ledger-tls)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    arguments = parser().parse_args(argv)
    log_lines.configure("info", "text")
    try:
        asyncio.run(_ensure(arguments))
    except credentials.CredentialsError as error:
        print(f"almoner certificates: {error}", file=sys.stderr)  # noqa: T201 - what a command does
        return EXIT_USAGE
    except ApiError as error:
        print(f"almoner certificates: the API server says: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    return 0


async def _ensure(arguments: argparse.Namespace) -> None:
    async with KubernetesClient(credentials.load(arguments.kubeconfig)) as client:
        await CertificateKeeper(client, arguments.namespace, arguments.secret).ensure()
        print(f"the Secret {arguments.namespace}/{arguments.secret} is in order")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
