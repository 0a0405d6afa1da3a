"""The environment of a ledger's command, with the URL of its database: on the command line everybody could read it."""

from __future__ import annotations

import os


def ledger_environment(url: str) -> dict[str, str]:
    """Give this process's environment with a ledger's database in it."""
    return {**os.environ, "ALMONER_LEDGER_DATABASE": url}
