"""The Grafana dashboard of the chart, made from a table of panels, so that it can be read and tested."""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple


class Panel(NamedTuple):
    """One panel: its title, unit as Grafana names it, and queries with their legends."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


_MONEY: Final = '{dimension="budget"}'
_COST: Final = "almoner_cost_usd_total"
_TAKEN_BACK: Final = "almoner_cost_taken_back_usd_total"


def _cost_an_hour(label: str) -> str:
    """Give the query for what is spent an hour, less what corrections took back; all of it where nothing was."""
    spent, back = (f"sum by ({label}) (rate({name}[5m]))" for name in (_COST, _TAKEN_BACK))
    return f"({spent} - ({back} or {spent} * 0)) * 3600"


_CALLS: Final = "almoner_provider_call_duration_seconds"
PANELS: Final = (
    Panel(
        "Spent in the last 24 hours",
        "currencyUSD",
        ((f"sum(increase({_COST}[24h])) - (sum(increase({_TAKEN_BACK}[24h])) or vector(0))", ""),),
        "stat",
    ),
    Panel("Running", "short", (("sum(almoner_admitted_active_workloads)", ""),), "stat"),
    Panel("Waiting", "short", (("sum(almoner_pending_workloads)", ""),), "stat"),
    Panel("Operators that lead", "short", (("sum(almoner_leader)", ""),), "stat"),
    Panel(
        "Cost an hour by namespace",
        "currencyUSD",
        ((_cost_an_hour("namespace"), "{{namespace}}"),),
    ),
    Panel(
        "Cost an hour by model",
        "currencyUSD",
        ((_cost_an_hour("model"), "{{model}}"),),
    ),
    Panel(
        "Budgets: share that is spent or reserved",
        "percentunit",
        (
            (
                f"(almoner_quota_spent{_MONEY} + almoner_quota_reserved{_MONEY}) / almoner_quota_limit{_MONEY}",
                "{{namespace}}/{{quota}} {{subject}}",
            ),
        ),
    ),
    Panel("What waits, by reason", "short", (("sum by (reason) (almoner_pending_workloads)", "{{reason}}"),)),
    Panel(
        "Time until admission",
        "s",
        tuple(
            (f"histogram_quantile({share}, sum by (le) (rate(almoner_admission_wait_time_seconds_bucket[10m])))", name)
            for share, name in ((0.5, "median"), (0.95, "19 in 20"))
        ),
    ),
    Panel(
        "Ends a minute, by phase and reason",
        "short",
        (("sum by (phase, reason) (rate(almoner_finished_workloads_total[5m])) * 60", "{{phase}} {{reason}}"),),
    ),
    Panel("Tokens a second, by kind", "short", (("sum by (kind) (rate(almoner_tokens_total[5m]))", "{{kind}}"),)),
    Panel(
        "Providers: calls a second, by how they ended",
        "short",
        (("sum by (provider, outcome) (rate(almoner_provider_calls_total[5m]))", "{{provider}} {{outcome}}"),),
    ),
    Panel(
        "Providers: time of a call",
        "s",
        (
            (
                f"histogram_quantile(0.95, sum by (provider, le) (rate({_CALLS}_bucket[10m])))",
                "{{provider}}",
            ),
        ),
    ),
    Panel(
        "Ledger: time of a transaction",
        "s",
        tuple(
            (f"histogram_quantile({share}, sum by (le) (rate(almoner_ledger_transaction_seconds_bucket[5m])))", name)
            for share, name in ((0.5, "median"), (0.99, "99 in 100"))
        ),
    ),
    Panel(
        "Ledger: answers a second, by code",
        "short",
        (("sum by (code) (rate(almoner_ledger_requests_total[5m]))", "{{code}}"),),
    ),
    Panel(
        "Operator: time of a scheduling round",
        "s",
        (("histogram_quantile(0.99, sum by (le) (rate(almoner_round_seconds_bucket[5m])))", "99 in 100"),),
    ),
)
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> str:
    """Give the dashboard as JSON: four figures above, two panels a row below."""
    panels: list[dict[str, Any]] = []
    figures = sum(panel.kind == "stat" for panel in PANELS)
    for number, panel in enumerate(PANELS):
        if panel.kind == "stat":
            place = {"x": number * 6, "y": 0, "w": 6, "h": 4}
        else:
            place = {"x": (number - figures) % 2 * 12, "y": 4 + (number - figures) // 2 * 8, "w": 12, "h": 8}
        panels.append(
            {
                "id": number + 1,
                "type": panel.kind,
                "title": panel.title,
                "datasource": _SOURCE,
                "gridPos": place,
                # What was taken back may be more than what was spent meanwhile.
                "fieldConfig": {
                    "defaults": {"unit": panel.unit, **({} if panel.unit == "currencyUSD" else {"min": 0})},
                    "overrides": [],
                },
                "targets": [
                    {
                        "refId": "ABCDEFGH"[index],
                        "datasource": _SOURCE,
                        "expr": query,
                        "legendFormat": legend or "__auto",
                    }
                    for index, (query, legend) in enumerate(panel.queries)
                ],
            }
        )
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    document = {
        "title": "Almoner",
        "uid": "almoner",
        "tags": ["almoner"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": panels,
    }
    return json.dumps(document, indent=2) + "\n"
