"""Case C01: one quota, provider or allotment that cannot be taken harms none of those handed over with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from almoner_core import wire
from almoner_core.wire import ErrorCode
from almoner_dev.controlplane import ControlPlane
from almoner_dev.stack import Stack
from almoner_ledger.store import Verb
from tests.support.books import USD, Books, key, new_id
from tests.support.cluster import Cluster
from tests.support.ledger_service import LedgerService, account_key, open_item

ZONES = ["Europe/Berlim", "US/Pacific-New", "GMT+1", "UTC+2", "europe/berlin"]


@pytest.fixture
def service(tmp_path: Path, ledger_url: str) -> Iterator[LedgerService]:
    running = LedgerService(tmp_path, ledger_url).start()
    yield running
    running.close()


def test_one_bad_time_zone_keeps_no_other_quota_back(bare_plane: ControlPlane, stack: Stack) -> None:
    clusters = [Cluster(bare_plane) for _ in range(9)]
    good, bad = clusters[: -len(ZONES)], clusters[-len(ZONES) :]
    try:
        for cluster, zone in zip(bad, ZONES, strict=True):
            cluster.create("ResourceQuota", "money", _daily(zone))
        for cluster in good:
            cluster.create("ResourceQuota", "money", _daily("Europe/Berlin"))
        # Rates of a provider are handed over after the quotas, whatever became of those.
        good[0].provider(rateLimits={"requestsPerMinute": 100})
        good[0].agent()
        good[0].execution("one", max_cost=None)
        good[0].wait_phase("one", "Succeeded")
        for cluster in good:
            cluster.wait_ready("ResourceQuota", "money")
        for cluster, zone in zip(bad, ZONES, strict=True):
            said = cluster.wait_ready("ResourceQuota", "money", "InvalidSpec")["message"]
            assert "spec.budget.timeZone" in said
            assert zone in said
        bad[0].world()
        bad[0].execution("one", max_cost=None)
        waits = bad[0].wait_reason("one", "QuotaNotReady")
        assert "Europe/Berlim" in waits["message"]
        bad[0].patch("ResourceQuota", "money", {"budget": {"timeZone": "Europe/Berlin"}})
        bad[0].wait_phase("one", "Succeeded")
    finally:
        for cluster in clusters:
            cluster.close()


def _daily(zone: str) -> dict[str, Any]:
    return {"budget": {"amount": "1.00", "period": "Daily", "timeZone": zone}}


def test_the_ledger_answers_limits_one_by_one(books: Books) -> None:
    updates = [
        wire.AccountLimits(key=key("one"), generation=1, limits={USD: 5}),
        wire.AccountLimits(key=key("two"), generation=1, limits={USD: 5}, time_zone="Europe/Berlim"),
        wire.AccountLimits(key=key("one"), generation=1, limits={USD: 6}),
        wire.AccountLimits(key=key("three"), generation=1, limits={USD: 7}),
    ]
    body = wire.UpdateAccounts(epoch=books.epoch, operation_id=new_id(), accounts=updates)
    answer = books.run(Verb.UPDATE_ACCOUNTS, body, epoch=books.epoch)
    assert [(state.key.quota, state.limit) for state in answer.accounts] == [("one", 5), ("three", 7)]
    assert [(each.index, each.error.code, each.error.field) for each in answer.refused] == [
        (1, ErrorCode.INVALID, "time_zone"),
        (2, ErrorCode.INVALID, "key"),
    ]
    assert "Europe/Berlim" in answer.refused[0].error.message


def test_malformed_items_of_a_batch_are_answered_in_their_place(service: LedgerService) -> None:
    epoch = service.epoch()
    accounts = [
        {"key": account_key("one"), "generation": 1, "limits": {"usd": 100}},
        {"key": account_key("two"), "generation": 1, "limits": {"usd": -1}},
        {"key": account_key("nul\0"), "generation": 1},
        {"key": account_key("three"), "generation": 1, "limits": {"usd": 100}, "time_zone": "Mars/Olympus"},
        {"key": account_key("four"), "generation": 1, "limits": {"usd": 100}},
        17,
    ]
    body = {"epoch": epoch, "operation_id": new_id(), "accounts": accounts}
    first = service.ask("POST", "/v1/accounts:update", body)
    assert [state["key"]["quota"] for state in first["accounts"]] == ["one", "four"]
    assert [each["index"] for each in first["refused"]] == [1, 2, 3, 5]
    assert service.ask("POST", "/v1/accounts:update", body) == first
    items = [
        open_item({"usd": 10}, accounts=[account_key("one")]),
        {**open_item({"usd": 10}, accounts=[account_key("one")]), "pod": ""},
        {"allotment": "nonsense"},
        open_item({"usd": 10}, accounts=[account_key("four")]),
    ]
    answers = service.ask("POST", "/v1/allotments:open", {"epoch": epoch, "items": items})["answers"]
    assert [each["error"] and each["error"]["code"] for each in answers] == [None, "invalid", "invalid", None]
    assert [each["allotment"] for each in answers[:2]] == [each["allotment"] for each in items[:2]]
    closing = [
        {"operation_id": new_id(), "allotment": items[0]["allotment"], "reason": "x" * 500},
        {"operation_id": new_id(), "allotment": items[3]["allotment"], "reason": "done"},
    ]
    answers = service.ask("POST", "/v1/allotments:void", {"epoch": epoch, "items": closing})["answers"]
    assert [each["state"] for each in answers] == [None, "void"]
    assert answers[0]["error"]["field"] == "reason"
    # What is wrong with the message around them is said of all.
    status, error = service.refusal("POST", "/v1/allotments:void", {"epoch": -1, "items": closing[1:]})
    assert (status, error["field"]) == (400, "epoch")
