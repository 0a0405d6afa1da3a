"""What the ledger refused, in words for people: which limit, with its numbers, and when that can next change.

PURE: no I/O and no clock. The words are those of the scheduler, which usually sees the same before it asks.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from almoner_core.money import Money
from almoner_core.wire import Dimension, Refusal


def explain(refusal: Refusal, now: datetime) -> str:
    """Say why there was no room."""
    whose = _whose(refusal.account)
    if refusal.dimension is Dimension.USD:
        spent, reserved, limit = Money(refusal.spent), Money(refusal.reserved), Money(refusal.limit)
        text = (
            f"budget of {whose} has no room: {spent} spent and {reserved} reserved of {limit} USD, "
            f"{Money(refusal.needed)} needed"
        )
    else:
        text = (
            f"{whose} has no room: {refusal.spent} used and {refusal.reserved} reserved of {refusal.limit} "
            f"{refusal.dimension}, {refusal.needed} needed"
        )
    if refusal.may_free_up:
        text += "; others hold some of it and are asked to return what is idle"
    if refusal.retry_after_seconds is not None:
        resets = (now + timedelta(seconds=refusal.retry_after_seconds)).astimezone(UTC)
        text += f"; resets at {resets:%Y-%m-%dT%H:%M:%SZ}"
    return text


def _whose(account: str) -> str:
    if account == "execution":
        return "the execution itself (its own limits, or a quota's maxPerExecution)"
    parts = account.split("/", 2)
    if len(parts) < 2:
        return account
    return f"ResourceQuota {parts[1]} (owner {parts[2]})" if len(parts) == 3 else f"ResourceQuota {parts[1]}"
