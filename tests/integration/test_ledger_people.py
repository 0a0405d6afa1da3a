"""What people ask over HTTP: who may, what is refused by name, pages, and that meters do not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from almoner_core import wire
from tests.support.books import DOLLAR, new_id
from tests.support.ledger_service import READER, LedgerService, meter_token, record_body

POD = "pod"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerService]:
    directory = tmp_path_factory.mktemp("people")
    running = LedgerService(directory, f"sqlite:///{directory}/ledger.db", pods=[POD]).start()
    _fill(running)
    yield running
    running.close()


def _fill(service: LedgerService) -> None:
    epoch = service.epoch()
    service.limit(epoch, {"usd": 100 * DOLLAR})
    for number in range(6):
        allotment = service.active(epoch, POD, {"usd": 1000}, uid=f"uid-{number}")
        sent = [
            record_body(1, 10 + number, model="small"),
            record_body(2, 20, model="large", outcome="error"),
            record_body(3, None, model="new", operation="embeddings"),
        ]
        body = {"operation_id": new_id(), "records": sent}
        service.ask("POST", f"/v1/allotments/{allotment}/records", body, meter_token(POD))


def ask(service: LedgerService, path: str) -> Any:
    return service.ask("GET", path, token=READER)


def pages(service: LedgerService, path: str, items: str) -> list[Any]:
    found: list[Any] = []
    after = ""
    while True:
        page = ask(service, f"{path}&limit=2{after}")
        assert len(page[items]) <= 2
        found += page[items]
        if page["next"] is None:
            return found
        after = f"&after={quote(page['next'])}"


def test_usage_by_any_dimension(service: LedgerService) -> None:
    found = ask(service, "/v1/usage?by=model,outcome&order=key&model=small&model=large")
    assert found["columns"] == ["provider", "model", "outcome"]
    assert found["source"] == "rollups"
    assert [(row["key"], row["totals"]["cost_nanos"]) for row in found["rows"]] == [
        (["provider", "large", "error"], 120),
        (["provider", "small", "ok"], 75),
    ]
    unknown = ask(service, "/v1/usage?by=operation&operation=embeddings")["rows"]
    assert [(row["totals"]["cost_nanos"], row["totals"]["unpriced"]) for row in unknown] == [(0, 6)]


def test_pages_of_everything(service: LedgerService) -> None:
    executions = pages(service, "/v1/executions?agent=agent", "executions")
    assert sorted(each["uid"] for each in executions) == [f"uid-{number}" for number in range(6)]
    records = pages(service, "/v1/records?outcome=error", "records")
    assert len(records) == 6
    assert {each["model"] for each in records} == {"large"}
    groups = pages(service, "/v1/usage?by=execution,model", "rows")
    assert len({tuple(row["key"]) for row in groups}) == len(groups) == 18


def test_an_unknown_cost_is_null_and_nothing_of_content_is_told(service: LedgerService) -> None:
    (first, *_) = ask(service, "/v1/records?model=new")["records"]
    assert first["cost_nanos"] is None
    assert first.keys() == wire.Entry.model_fields.keys()
    assert not first.keys() & {"metadata", "content", "digest"}


def test_costs_are_a_short_word_for_usage(service: LedgerService) -> None:
    costs = ask(service, "/v1/costs?by=model")
    usage = ask(service, "/v1/usage?by=model")
    assert (costs["columns"], costs["rows"]) == (usage["columns"], usage["rows"])
    assert ask(service, "/v1/costs?by=model&limit=1")["truncated"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/usage?by=colour", "by"),
        ("/v1/usage?by=day,agent,owner,model", "by"),
        ("/v1/usage?by=day&by=agent", "by"),
        ("/v1/usage?order=colour", "order"),
        ("/v1/usage?outcome=fine", "outcome"),
        ("/v1/usage?colour=red", "colour"),
        ("/v1/usage?state=closed", "state"),
        ("/v1/usage?agent=a/b/c", "agent"),
        ("/v1/usage?owner=%00", "owner"),
        ("/v1/usage?from=2026-01-01T00:00:00", "from"),
        ("/v1/usage?from=2026-02-01&to=2026-01-01", "to"),
        ("/v1/usage?limit=1001", "limit"),
        ("/v1/usage?limit=1&limit=2", "limit"),
        ("/v1/usage?after=x", "after"),
        ("/v1/executions?state=open", "state"),
        ("/v1/executions?model=small", "model"),
        ("/v1/executions?after=WzFd", "after"),
        ("/v1/records?resource_type=gold", "resource_type"),
        ("/v1/records?after=WyJ4Il0", "after"),
        ("/v1/costs?by=hour", "by"),
        ("/v1/costs?by=execution&agent=a", "agent"),
    ],
)
def test_bad_questions_are_refused_by_name(service: LedgerService, path: str, field: str) -> None:
    status, error = service.refusal("GET", path, token=READER)
    assert (status, error["code"], error["field"]) == (400, "invalid", field)


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/executions", "/v1/records", "/v1/costs"])
def test_meters_may_not_ask_and_strangers_neither(service: LedgerService, path: str) -> None:
    assert service.refusal("GET", path, token=meter_token(POD))[0] == 403
    assert service.refusal("GET", path, token="nobody")[0] == 401
    assert service.refusal("GET", path, token=None)[0] == 401


def test_the_document_tells_of_every_parameter(service: LedgerService) -> None:
    document = ask(service, "/openapi.json")
    for path, names in (
        ("/v1/usage", {"by", "from", "to", "agent", "outcome", "order", "limit", "after"}),
        ("/v1/executions", {"kind", "state", "uid", "limit", "after"}),
        ("/v1/records", {"execution", "model", "limit", "after"}),
    ):
        call = document["paths"][path]["get"]
        assert names <= {each["name"] for each in call["parameters"]}
        reference = call["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.rsplit("/", 1)[1] in document["components"]["schemas"]
