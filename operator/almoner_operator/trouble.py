"""Says in a run's status what keeps an attempt that is under way from going on.

Role: written once where it changes, and told as an event; whoever finds the trouble calls it: the admission (no pod),
the lifecycle (a pod that does not start or is gone), the settler (a lease that has to run out).
"""

from __future__ import annotations

from almoner_core.api.execution import ExecutionReason
from almoner_core.text import short
from almoner_operator import outcome
from almoner_operator.context import Context, now, run_target
from almoner_operator.limiter import Rank
from almoner_operator.records import Run
from almoner_operator.writer import COALESCE_SECONDS


def say_trouble(context: Context, run: Run, reason: ExecutionReason | None, message: str) -> None:
    """Bring the status of the attempt under way up to date; `reason` None: nothing keeps it any more."""
    if run.attempt is None:
        return
    said = outcome.trouble_said(run)
    wanted = None if reason is None else (str(reason), short(message, outcome.MESSAGE_CHARS_MAX))
    if said == wanted:
        return
    run.status = outcome.troubled(run, reason, message, now())
    context.writer.mark(run_target(run), Rank.STATUS, delay=COALESCE_SECONDS)
    if reason is not None and (said is None or said[0] != reason):
        context.events.tell(*run.key, reason=str(reason), note=message, warning=True)
