"""Named points at which the process kills itself, so that tests can crash it between any two steps.

Role: `hit("after-open")` does nothing unless ALMONER_FAILPOINT names that point; then the process gets SIGKILL, as if
its machine had lost power: no handler runs, nothing is flushed. Recovery is tested by what the next process does.

Boundary: only tests set the variable. A point kills once: the next process is started without the variable.
"""

from __future__ import annotations

import os
import signal
from typing import Final

ENV_FAILPOINT: Final = "ALMONER_FAILPOINT"

AFTER_OPEN: Final = "after-open"
"""The allotment is open in the ledger; nothing else is written."""
AFTER_STATUS: Final = "after-status"
"""The attempt is in the status; there is no pod."""
AFTER_POD: Final = "after-pod"
"""The pod exists; the ledger does not know its uid."""
AFTER_BIND: Final = "after-bind"
"""The pod is bound; the operator has not gone on."""
BEFORE_CLOSE: Final = "before-close"
"""The pod has ended; the allotment is still open."""
AFTER_CLOSE: Final = "after-close"
"""The allotment is closed; the status does not say so."""
AFTER_ACCRUE: Final = "after-accrue"
"""Machine time is charged in the ledger; nobody here knows that."""
BEFORE_STATUS_FINAL: Final = "before-status-final"
"""All is known; the final status is not written."""
AFTER_STATUS_FINAL: Final = "after-status-final"
"""The final status is written."""

ALL: Final = (
    AFTER_OPEN,
    AFTER_STATUS,
    AFTER_POD,
    AFTER_BIND,
    BEFORE_CLOSE,
    AFTER_CLOSE,
    AFTER_ACCRUE,
    BEFORE_STATUS_FINAL,
    AFTER_STATUS_FINAL,
)

_armed = os.environ.get(ENV_FAILPOINT)


def hit(name: str) -> None:
    """Kill this process if `name` is the point that the environment arms."""
    if _armed is not None and _armed == name:
        os.kill(os.getpid(), signal.SIGKILL)
