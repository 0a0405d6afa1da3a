"""How the suite is shared out among pytest-xdist's workers: by what a test starts, not by the test.

Role: a file's tests stay together, since they share a service or a database; the end-to-end tests make two shares,
since those of a share have a node in common. What takes longest begins first, so that nobody waits for it at the end.
"""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ALONE = frozenset({"tests/e2e/test_demo.py"})
"""Files of the end-to-end tests that use nothing of the common site."""
FAULTS = frozenset(f"tests/e2e/test_{name}.py" for name in ("compute", "faults", "last_words", "logs"))
"""Those that take half of their time, on a site of their own: so no worker has all of them."""
EACH = "tests/frameworks/test_all.py"
"""Whose tests share nothing but a ledger, which each worker has."""
LONG = (
    "tests/e2e",
    "tests/integration/test_operator",
    "tests/integration/test_admission",
    "tests/integration/test_simulation",
    "tests/integration/test_meter_leases",
    "tests/integration",
    "tests/frameworks",
)
"""What begins first, as beginnings of a share's name."""


def share_of(nodeid: str) -> str:
    """Give the name of the share that a test belongs to."""
    path = nodeid.split("::", 1)[0]
    if path == EACH:
        return nodeid
    if PurePosixPath(path).is_relative_to("tests/e2e") and path not in ALONE:
        return "tests/e2e of faults" if path in FAULTS else "tests/e2e"
    return path


def rank(share: str) -> tuple[int, str]:
    """Order shares: the long ones first, the quick ones of tests/unit last, to fill the gaps."""
    return next((place for place, beginning in enumerate(LONG) if share.startswith(beginning)), len(LONG)), share


class Shares(LoadScopeScheduling):  # type: ignore[misc] # untyped
    """Hands out whole shares, the longest first."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        # The order is that of the items: `in_order` has made it.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return share_of(nodeid)


def in_order(items: list[pytest.Item]) -> None:
    """Sort tests by their share, and leave their order within it."""
    items.sort(key=lambda item: rank(share_of(item.nodeid)))
