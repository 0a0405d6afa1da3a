"""What broke elsewhere about quotas and admission (docs/peer-failures.md), each named after what must hold instead.

A real operator and ledger on a real API server; the nodes are simulated. Pods that no node takes, and preemption, have
their tests beside those of admission: the table in the documents leads there.
"""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.client import ApiException

from almoner_dev.stack import Stack
from tests.support.cluster import Cluster, verify_ledger

EMPTY: dict[str, dict[str, Any]] = {
    "nothing-at-all": {},
    "no-counts": {"hard": {}},
    "no-rates": {"rates": {}},
    "no-action": {"onLimit": {}},
    "nothing-but-defaults": {"hard": {}, "rates": {}, "onLimit": {}, "enforcement": "Enforce", "stopPolicy": "None"},
}


# kelos 1329
def test_an_empty_budget_blocks_nobody_or_is_refused_by_name(cluster: Cluster, stack: Stack) -> None:
    cluster.world()
    with pytest.raises(ApiException, match=r"spec\.budget\.amount") as refused:
        cluster.create("ResourceQuota", "empty-budget", {"budget": {}})
    assert refused.value.status == 422
    for name, spec in EMPTY.items():
        cluster.quota(name, **spec)
    for name in ("one", "two"):
        cluster.execution(name)
    for name in ("one", "two"):
        cluster.wait_phase(name, "Succeeded")
    # Empty is not unlimited either: who has no limit of money at all is told so, by the reason for it.
    cluster.execution("without-money", max_cost=None)
    assert "limits.maxCost" in cluster.wait_reason("without-money", "NoBudget")["message"]
    verify_ledger(stack)
