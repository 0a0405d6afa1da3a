"""What machine time of a pod there is to charge: read from the pod, priced by almoner_core.

A pod is charged for what its containers request, the meter's included, from its start (status.startTime: the node has
accepted it and keeps the room for it) until the last of its containers has ended, in whole seconds, as its node's clock
has them.

Boundary: no I/O, no clock. When to charge is compute.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from almoner_core.compute import ComputePrices, Machine
from almoner_core.quantity import millicores, whole
from almoner_core.usage import Outcome, ResourceType, UsageRecord
from almoner_core.wire import MachineTerms

PROVIDER: Final = "cluster"
OPERATION: Final = "run"
MARGIN_SECONDS: Final = 15
"""Held ahead beyond a pod's grace period: to learn that there is no more money, and that the pod has ended."""
DEFAULT_GRACE_SECONDS: Final = 30
_NAMESPACE: Final = UUID("b2f3d1a8-52c6-4c0e-9a39-0d6f0b7c6e51")


PROBE_FAILURES: Final = 3
"""So often the probe of the agent container must fail: a meter that is started again in between ends nobody's pod."""
PROBE_TIMEOUT_SECONDS: Final = 2
LATE_SECONDS: Final = 10
"""So long after an interval the operator is late, and the ledger holds more machine time by itself."""


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """What machine time costs, and how often it is charged (seconds)."""

    prices: ComputePrices = field(default_factory=ComputePrices)
    interval_seconds: int = 60
    outage_seconds: int = 60
    """Operator and ledger may be away for so long before a pod is ended that they could not hold more for."""
    probe_seconds: int = 5
    """How often the kubelet asks a meter whether its pod's machine time is paid."""

    def end_seconds(self, grace_seconds: int) -> int:
        """Give for how long a pod must still be paid when its end begins, whoever ends it: operator or kubelet."""
        return self.probe_seconds * PROBE_FAILURES + 2 * PROBE_TIMEOUT_SECONDS + grace_seconds

    def ahead(self, grace_seconds: int) -> int:
        """Give for how many seconds a pod's machine time is held: an interval, an outage, and until it has ended."""
        return self.interval_seconds + self.outage_seconds + self.end_seconds(grace_seconds) + MARGIN_SECONDS

    def terms(self, machine: Machine, grace_seconds: int) -> MachineTerms | None:
        """Give what the ledger needs to know to hold more by itself; None where it costs nothing."""
        per_hour = self.prices.per_hour(machine)
        if not per_hour:
            return None
        ahead = self.ahead(grace_seconds)
        late = ahead - self.interval_seconds - LATE_SECONDS
        return MachineTerms(per_hour=per_hour, ahead_seconds=ahead, late_seconds=max(0, late))


@dataclass(frozen=True, slots=True)
class PodTime:
    """What a pod requests, and when it ran (Unix seconds); `end` None: its end is not known."""

    machine: Machine
    grace_seconds: int
    start: int | None
    end: int | None = None


def pod_time(pod: Mapping[str, Any]) -> PodTime:
    """Read a pod, in JSON form."""
    spec = pod.get("spec") or {}
    status = pod.get("status") or {}
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    grace = spec.get("terminationGracePeriodSeconds")
    return PodTime(
        machine=_sum(_requested(each) for each in containers),
        grace_seconds=DEFAULT_GRACE_SECONDS if grace is None else int(grace),
        start=unix_seconds(status.get("startTime")),
        end=_end(status, len(containers)),
    )


def _requested(container: Mapping[str, Any]) -> Machine:
    """What one container requests; of extended resources ours has GPUs alone. A limit stands for a missing request."""
    resources = container.get("resources") or {}
    amounts = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    try:
        return Machine(
            cpu=millicores(amounts.get("cpu", 0)),
            memory=whole(amounts.get("memory", 0)),
            gpu=sum(whole(amount) for name, amount in amounts.items() if "/" in name),
        )
    except ValueError:  # The API server lets no such quantity in.
        return Machine()


def _sum(machines: Iterable[Machine]) -> Machine:
    total = Machine()
    for each in machines:
        total = Machine(total.cpu + each.cpu, total.memory + each.memory, total.gpu + each.gpu)
    return total


def _end(status: Mapping[str, Any], wanted: int) -> int | None:
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    ends = []
    for each in containers:
        end = unix_seconds(((each.get("state") or {}).get("terminated") or {}).get("finishedAt"), up=True)
        if end is None:
            return None
        ends.append(end)
    return max(ends) if 0 < wanted <= len(ends) else None


def unix_seconds(value: Any, *, up: bool = False) -> int | None:
    """Give a Kubernetes time as Unix seconds, the part of a second cut off, or added (`up`); None for what is none."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        return None
    seconds = int(value.timestamp())
    return seconds + 1 if up and value.microsecond else seconds


def records_of(
    allotment: str, machine: Machine, start: int, end: int, *, after: int, prices: ComputePrices
) -> list[UsageRecord]:
    """Give the records of a stretch of time (Unix seconds), numbered from `after` + 1.

    Their ids say the allotment, the beginning and the resource, so that no second is ever charged twice.
    """
    return [
        UsageRecord(
            id=str(uuid5(_NAMESPACE, f"{allotment}/{start}/{used.resource.value}")),
            sequence=after + index,
            resource_type=ResourceType.COMPUTE,
            provider=PROVIDER,
            model=used.resource.value,
            operation=OPERATION,
            requests=0,
            units=used.units,
            cost_nanos=used.cost_nanos,
            price_version=used.price_version,
            started_unix_ms=start * 1000,
            duration_ms=(end - start) * 1000,
            outcome=Outcome.OK,
        )
        for index, used in enumerate(prices.use(machine, max(0, end - start)), start=1)
    ]
