"""What was used, for Prometheus: money, tokens, calls, and how providers answered.

Role: counts entries of the books once each, after COMMIT, in the replica that wrote them: sums over replicas are right.
A counter begins at 0 with its process, as Prometheus expects; the books are where totals are asked for. A cost that is
not known is no cost of 0: it is counted as a record of its own. Labels are bounded, since users make up names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client import Counter, Histogram

from almoner_core.bounded import Bounded

log = logging.getLogger(__name__)

NAMES_MAX: Final = 500
"""Different namespaces, agents, and provider's models that have series of their own; later ones share `other`."""
SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_DOLLAR: Final = 1_000_000_000
_USAGE: Final = "usage"
_NO_PROVIDER: Final = frozenset({"", "compute"})

namespaces, agents, models = Bounded(NAMES_MAX), Bounded(NAMES_MAX), Bounded(NAMES_MAX)

_WHOSE: Final = ["namespace", "agent", "provider", "model", "type"]
COST: Final = Counter("almoner_cost_usd", "US dollars that entries of the books cost, machine time included.", _WHOSE)
TAKEN_BACK: Final = Counter(
    "almoner_cost_taken_back_usd", "US dollars that later entries took back: corrections, charges explained.", _WHOSE
)
UNPRICED: Final = Counter("almoner_unpriced_records", "Records whose cost is not known; in no sum of money.", _WHOSE)
TOKENS: Final = Counter("almoner_tokens", "Tokens of records, by kind.", ["namespace", "agent", "model", "kind"])
CALLS: Final = Counter("almoner_calls", "Calls of models and tools.", ["namespace", "agent", "provider", "type"])
PROVIDER_CALLS: Final = Counter(
    "almoner_provider_calls", "Tries at providers, by how they ended.", ["provider", "outcome"]
)
PROVIDER_SECONDS: Final = Histogram(
    "almoner_provider_call_duration_seconds", "Seconds from a try's start to its end.", ["provider"], buckets=SECONDS
)


class Posted(NamedTuple):
    """One entry that was written: whose it is, and its row."""

    namespace: str
    agent: str
    row: Mapping[str, Any]


def count(entries: Iterable[Posted]) -> None:
    """Count entries that are committed. Never raises: what is committed has to be answered."""
    for entry in entries:
        try:
            _count(namespaces(entry.namespace), agents(entry.agent), entry.row)
        except Exception:
            log.exception("an entry is not in the metrics")


def _count(namespace: str, agent: str, row: Mapping[str, Any]) -> None:
    provider, model = models(row["provider"]), models(row["model"])
    kind = row["resource_type"]
    whose = (namespace, agent, provider, model, kind)
    nanos = row["cost_nanos"]
    if nanos is None:
        UNPRICED.labels(*whose).inc()
    elif nanos:
        (COST if nanos > 0 else TAKEN_BACK).labels(*whose).inc(abs(nanos) / _DOLLAR)
    if row["kind"] != _USAGE:
        return
    for name, tokens in (
        ("input", row["input_tokens"]),
        ("cached_input", row["cached_input_tokens"]),
        ("output", row["output_tokens"]),
    ):
        if tokens:
            TOKENS.labels(namespace, agent, model, name).inc(tokens)
    calls = row["requests"] + row["tool_calls"]
    if calls:
        CALLS.labels(namespace, agent, provider, kind).inc(calls)
    if row["requests"] and row["provider"] not in _NO_PROVIDER:
        PROVIDER_CALLS.labels(provider, row["outcome"]).inc()
        PROVIDER_SECONDS.labels(provider).observe(row["duration_ms"] / 1000)
