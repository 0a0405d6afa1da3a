"""When a pod's containers are known to have ended, and when a budget's window is asked about again. Pure parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from almoner_core.wire import AccountKey, AccountState, Dimension
from almoner_operator import windows
from almoner_operator.attempts import seen_to_end
from almoner_operator.cache import Cache
from almoner_operator.records import parse_quota
from almoner_operator.scheduling.model import Requests

NOW = datetime(2026, 3, 4, 12, tzinfo=UTC)
RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-03-04T11:00:00Z"}}
ENDED: dict[str, Any] = {"terminated": {"exitCode": 0}}
WAITING: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
LOST = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]
EVICTED = [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}]


def pod(phase: str, *states: dict[str, Any], node: str | None = "node", **more: Any) -> dict[str, Any]:
    """A pod of a meter and an agent; `states` are theirs, none: the kubelet has said nothing."""
    spec: dict[str, Any] = {"initContainers": [{"name": "meter"}], "containers": [{"name": "agent"}]}
    if node is not None:
        spec["nodeName"] = node
    status: dict[str, Any] = {"phase": phase, **more.pop("status", {})}
    if states:
        status["initContainerStatuses"] = [{"name": "meter", "state": states[0]}]
        status["containerStatuses"] = [{"name": "agent", "state": each} for each in states[1:]]
    return {"spec": spec, "status": status, **more}


@pytest.mark.parametrize(
    ("given", "ended"),
    [
        (pod("Succeeded", ENDED, ENDED), True),
        (pod("Running", ENDED, ENDED), True),
        (pod("Running", RUNNING, ENDED), False),
        (pod("Running", ENDED), False),
        (pod("Pending"), False),
        (pod("Pending", WAITING, WAITING), False),
        # Deleted before it got to a node, and deleted there without a last word.
        (pod("Pending", node=None, gone=True), True),
        (pod("Pending", node=None), False),
        (pod("Running", RUNNING, RUNNING, gone=True), False),
        # Evicted by the kubelet before anything started; given up by the control plane.
        (pod("Failed", status={"conditions": EVICTED}), True),
        (pod("Failed", status={"conditions": LOST}), False),
        (pod("Failed", RUNNING, RUNNING, status={"conditions": LOST}), False),
        (pod("Failed", ENDED, ENDED, status={"conditions": LOST}), True),
        (pod("Failed", status={"reason": "NodeLost"}), False),
    ],
)
def test_only_the_kubelets_word_is_taken_for_the_end(given: dict[str, Any], ended: bool) -> None:
    assert seen_to_end(given) is ended


def budget(cache: Cache, spent: int, resets_in_seconds: int | None) -> None:
    state = AccountState(
        key=AccountKey(namespace="ns", quota="quota"),
        dimension=Dimension.USD,
        generation=1,
        enforced=True,
        limit=1000,
        spent=spent,
        reserved=0,
        resets_in_seconds=resets_in_seconds,
    )
    cache.take_account(state, NOW)


def test_a_window_that_ended_is_asked_about_once_and_frees_nothing_by_itself() -> None:
    cache = Cache(meter=Requests(0, 0, 0), wake=lambda: None)
    quota = {
        "metadata": {
            "name": "quota",
            "namespace": "ns",
            "uid": "uid",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": "2026-03-04T00:00:00Z",
        },
        "spec": {"budget": {"amount": "1.00", "period": "Daily"}},
    }
    record = parse_quota(quota)
    cache.space("ns").quotas["quota"] = record
    record.subjects.add("")
    budget(cache, 1000, 60)
    cache.quotas_changed.clear()
    windows.ask_again(cache, NOW + timedelta(seconds=59))
    assert (record.subjects, cache.quotas_changed) == ({""}, set())
    for seconds in (60, 61):
        windows.ask_again(cache, NOW + timedelta(seconds=seconds))
        assert record.subjects == set()
        account = cache.space("ns").accounts["quota", "", Dimension.USD]
        assert (account.remaining, account.resets_at) == (0, None), "the ledger's clock decides, not this one"
        assert cache.quotas_changed == ({("ns", "quota")} if seconds == 60 else set())
        cache.quotas_changed.clear()
    budget(cache, 0, 86_400)
    assert cache.space("ns").accounts["quota", "", Dimension.USD].remaining == 1000
