"""Metrics that are read from the cache when Prometheus asks: what waits, what runs, what quotas have left.

Role: nothing is counted twice and nothing goes stale, since there is no copy. A process that stands by has an empty
cache, so it tells of none of it: sums over all processes are right. Series are bounded: so many namespaces have their
own, the others share `other`; so many limits of quotas are told, and how many were left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from almoner_core.api.base import Condition
from almoner_core.api.execution import TERMINAL_PHASES
from almoner_core.api.resource_quota import LimitStatus
from almoner_core.quantity import parse_quantity
from almoner_operator import metrics
from almoner_operator.cache import Cache
from almoner_operator.records import Run

LIMITS_MAX: Final = 5000
"""Limits of quotas that are told, each as three series."""
_NOT_SAID: Final = "Queued"


_KINDS: Final = (
    "Agent",
    "ResourceQuota",
    "ModelProvider",
    "ToolProvider",
    "ClusterModelProvider",
    "ClusterToolProvider",
)


class CacheCollector(Collector):
    """Tells what a cache has now."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def describe(self) -> Iterator[Metric]:
        """Give the families without samples, so that registering asks for nothing."""
        return iter(families().values())

    def collect(self) -> Iterator[Metric]:
        """Give every family with its samples."""
        # A counter that begins at 0 loses no increase: a namespace's counters begin before its first run does.
        for name in list(self._cache.spaces):
            metrics.begin(name)
        found = families()
        self._workloads(found)
        self._quotas(found)
        not_ready = Counter(
            kind
            for space in (self._cache.cluster, *self._cache.spaces.values())
            for kind, records in (
                ("Agent", space.agents),
                ("ResourceQuota", space.quotas),
                ("ModelProvider" if space.name else "ClusterModelProvider", space.providers),
                ("ToolProvider" if space.name else "ClusterToolProvider", space.tool_providers),
            )
            for record in records.values()
            if _is_not_ready(record.status.conditions)
        )
        for kind in _KINDS:
            found["almoner_not_ready_objects"].add_metric([kind], not_ready[kind])
        found["almoner_ledger_up"].add_metric([], float(self._cache.ledger_ready))
        return iter(found.values())

    def _workloads(self, found: dict[str, GaugeMetricFamily]) -> None:
        waiting: Counter[tuple[str, str]] = Counter()
        active: Counter[str] = Counter()
        for run in list(self._cache.runs.values()):
            namespace = metrics.bounded(run.key.namespace)
            if run.status.phase in TERMINAL_PHASES:
                continue  # It has ended; that only has to be written yet.
            if run.attempt is not None:
                active[namespace] += 1
            else:
                waiting[namespace, _why(run)] += 1
        for where, count in waiting.items():
            found["almoner_pending_workloads"].add_metric(list(where), count)
        for namespace, count in active.items():
            found["almoner_admitted_active_workloads"].add_metric([namespace], count)

    def _quotas(self, found: dict[str, GaugeMetricFamily]) -> None:
        told = left_out = 0
        for space in list(self._cache.spaces.values()):
            for quota in list(space.quotas.values()):
                for limit in quota.status.limits:
                    if told >= LIMITS_MAX:
                        left_out += 1
                    elif (amounts := _amounts(limit)) is not None:
                        told += 1
                        labels = [space.name, quota.name, limit.name, limit.subject or ""]
                        for name, amount in zip(_OF_LIMITS, amounts, strict=True):
                            found[name].add_metric(labels, amount)
        found["almoner_quota_limits_left_out"].add_metric([], left_out)


_OF_LIMITS: Final = ("almoner_quota_limit", "almoner_quota_spent", "almoner_quota_reserved")


def families() -> dict[str, GaugeMetricFamily]:
    """Give every family without samples, by its name."""
    limit = ["namespace", "quota", "dimension", "subject"]
    return {
        name: GaugeMetricFamily(name, text, labels=labels)
        for name, text, labels in (
            (
                "almoner_pending_workloads",
                "Executions and jobs that wait, by the reason in their condition Admitted.",
                ["namespace", "reason"],
            ),
            (
                "almoner_admitted_active_workloads",
                "Executions and jobs that are admitted and have not ended.",
                ["namespace"],
            ),
            (
                "almoner_quota_limit",
                "What a ResourceQuota allows: money in US dollars, the others in the limit's own unit.",
                limit,
            ),
            ("almoner_quota_spent", "What is used of it (money: spent in the window).", limit),
            ("almoner_quota_reserved", "What is held of it for running work, and not used yet.", limit),
            ("almoner_quota_limits_left_out", "Limits of quotas that are not told, since there are too many.", []),
            ("almoner_not_ready_objects", "Objects whose condition Ready is False.", ["kind"]),
            ("almoner_ledger_up", "1 where the ledger answered last.", []),
        )
    }


def _why(run: Run) -> str:
    admitted = (each for each in run.status.conditions if each.type == "Admitted" and each.status != "True")
    return next((each.reason for each in admitted), _NOT_SAID)


def _is_not_ready(conditions: list[Condition]) -> bool:
    return any(each.type == "Ready" and each.status == "False" for each in conditions)


def _amounts(limit: LimitStatus) -> tuple[float, float, float] | None:
    """Give limit, use and what is held as numbers; None where one of them is not a quantity."""
    try:
        return (
            float(parse_quantity(limit.limit)),
            float(parse_quantity(limit.used)),
            float(parse_quantity(limit.reserved)),
        )
    except ValueError:
        return None


def register(cache: Cache) -> None:
    """Have Prometheus' registry of this process ask a cache, in place of the one it asked before."""
    global _registered  # noqa: PLW0603 - there is one registry in a process
    if _registered is not None:
        REGISTRY.unregister(_registered)
    _registered = CacheCollector(cache)
    REGISTRY.register(_registered)


_registered: CacheCollector | None = None
