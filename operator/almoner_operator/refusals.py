"""What the ledger refused, in words for people: which limit, with its numbers, and when that can next change.

PURE: no I/O and no clock. The words are those of the scheduler, which usually sees the same before it asks.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from almoner_core.api.execution import WaitReason
from almoner_core.contract import AGENT_CONTAINER, METER_CONTAINER
from almoner_core.money import Money
from almoner_core.wire import Dimension, Refusal

FULL_SECONDS: Final = 15.0
SHAPE_SECONDS: Final = 300.0
"""Somebody has to change something first."""
_METER_SETTINGS: Final = {
    "limits.cpu": "--meter-cpu-limit (ALMONER_METER_CPU_LIMIT)",
    "limits.memory": "--meter-memory-limit (ALMONER_METER_MEMORY_LIMIT)",
}
# "must specify limits.cpu for: meter,agent; limits.memory for: agent"
_LACKING: Final = re.compile(r"((?:limits|requests)\.(?:cpu|memory)) for: ([a-z0-9.,-]+)")


def pod_refusal(message: str) -> tuple[WaitReason, str, float]:
    """Say what it waits for whose pod the API server forbids, in words, and how many seconds until it is tried again.

    A core ResourceQuota that is used up has room again some day. Any other refusal is of what the pod is.
    """
    text = f"the cluster refuses the pod: {message}"
    if "exceeded quota" in message:
        return WaitReason.WAITING_FOR_QUOTA, text, FULL_SECONDS
    fixes = []
    for resource, containers in _LACKING.findall(message):
        for container in containers.split(","):
            if container == METER_CONTAINER and resource in _METER_SETTINGS:
                fixes.append(f"set the operator's {_METER_SETTINGS[resource]}")
            elif container == AGENT_CONTAINER:
                fixes.append(f"set runner.resources.{resource} of the Agent")
    if fixes:
        text += f": {', and '.join(fixes)}"
    return WaitReason.POD_REFUSED, text, SHAPE_SECONDS


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
