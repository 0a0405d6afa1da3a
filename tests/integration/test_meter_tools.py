"""Tools with a price through the real meter: held before the call, recorded with its price, refused where unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from almoner_core.contract import MeterTool, ToolPriceCard
from tests.support.ledger_double import LedgerDouble
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import DOLLAR, Meter, meter_config
from tests.support.polling import until

CENT = DOLLAR // 100
TOOLS = (
    MeterTool(
        name="web_search",
        provider="serper",
        resource_type="web_search",
        price=ToolPriceCard(version="override team/serper generation 2", per_call=CENT),
    ),
    MeterTool(
        name="vector_upsert",
        provider="vectors",
        resource_type="vector_db",
        price=ToolPriceCard(version="override team/vectors generation 1", per_call=100, per_unit=7),
    ),
    MeterTool(name="send_email", provider="mail", resource_type="email"),
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Meter]]:
    meters: list[Meter] = []

    def make(ledger: LedgerDouble, **changes: Any) -> Meter:
        meter = Meter(tmp_path, meter_config(ledger.url, tools=TOOLS, **changes))
        meters.append(meter)
        return meter.start()

    yield make
    for meter in meters:
        meter.discard()


def call(meter: Meter, tool: str, **body: Any) -> tuple[int, Any]:
    return meter.post(f"/tools/{tool}/calls", body)


def test_a_call_is_recorded_with_its_price(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR, "tool_calls": 10}) as ledger:
        meter = start(ledger)
        assert call(meter, "web_search") == (200, {"granted": True})
        assert call(meter, "vector_upsert", units=12) == (200, {"granted": True})
        assert call(meter, "calculator") == (200, {"granted": True})
        until(lambda: len(ledger.records) == 3, 10, "three records")
        search, upsert, free = (ledger.records[n] for n in (1, 2, 3))
    assert (search.resource_type, search.provider, search.operation) == ("web_search", "serper", "web_search")
    assert (search.cost_nanos, search.units) == (CENT, 0)
    assert search.price_version == "override team/serper generation 2"
    assert (upsert.resource_type, upsert.cost_nanos, upsert.units) == ("vector_db", 100 + 12 * 7, 12)
    assert (free.cost_nanos, free.price_version) == (0, None)
    assert ledger.used() == {"usd": CENT + 184, "tokens": 0, "tool_calls": 3, "requests": 0}


def test_a_tool_without_a_price_is_refused_under_a_money_limit(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        status, answer = call(meter, "send_email", units=1)
        assert (status, answer["error"]["code"]) == (404, "tool_unpriced")
        assert "spec.prices" in answer["error"]["message"]
        assert not ledger.records


def test_without_a_money_limit_its_cost_is_unknown(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"tool_calls": 5}) as ledger:
        meter = start(ledger)
        assert call(meter, "send_email")[0] == 200
        until(lambda: len(ledger.records) == 1, 10, "a record")
    assert ledger.records[1].cost_nanos is None, "unknown is not zero"


def test_parallel_calls_never_pass_the_budget(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": 10 * CENT + CENT // 2}) as ledger:
        ledger.chunk = 3 * CENT
        meter = start(ledger)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: call(meter, "web_search"), range(40)))
        assert sum(status == 200 for status, _ in answers) == 10
        refused = [body for status, body in answers if status == 429]
        assert len(refused) == 30
        assert refused[0]["error"]["code"] == "insufficient_quota"
        # What is left is enough for something smaller.
        assert call(meter, "vector_upsert", units=3)[0] == 200
        until(lambda: len(ledger.records) == 11, 10, "the records")
    assert ledger.used()["usd"] == 10 * CENT + 121


def test_parallel_calls_never_pass_the_tool_limit(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR, "tool_calls": 7}) as ledger:
        ledger.chunk = 3
        meter = start(ledger)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda n: call(meter, ("web_search", "calculator")[n % 2]), range(40)))
        assert sum(status == 200 for status, _ in answers) == 7
        until(lambda: len(ledger.records) == 7, 10, "the records")
    assert ledger.used()["tool_calls"] == 7


@pytest.mark.parametrize(
    ("tool", "body"), [("vector_upsert", {}), ("vector_upsert", {"units": -1}), ("web_search", {"calls": 3})]
)
def test_a_call_that_says_too_little_is_refused(start: Callable[..., Meter], tool: str, body: dict[str, Any]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        status, answer = meter.post(f"/tools/{tool}/calls", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert not ledger.records


def test_a_meter_that_dies_has_recorded_what_it_granted(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        for _ in range(5):
            assert call(meter, "web_search")[0] == 200
        meter.kill()
        meter.start()
        until(lambda: len(ledger.records) == 5, 10, "what was in the spool")
    assert ledger.used()["usd"] == 5 * CENT


def test_the_ledger_counts_tools_by_their_kind(tmp_path: Path) -> None:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=["pod-uid-1"])
    try:
        service.start()
        epoch = service.epoch()
        service.limit(epoch, {"usd": 3 * CENT})
        item = open_item({"usd": CENT})
        service.open_items(epoch, [item])
        service.bind(epoch, item["allotment"], "pod-uid-1")
        uid = item["execution"]["uid"]
        folder = tmp_path / "pod"
        folder.mkdir()
        config = meter_config(service.url, tools=TOOLS, allotment=item["allotment"], execution_uid=uid)
        meter = Meter(folder, config)
        (folder / "token").write_text(meter_token("pod-uid-1"))
        with meter:
            assert [call(meter, "web_search")[0] for _ in range(4)] == [200, 200, 200, 429]
            assert meter.stop() == 0, meter.log
        changes = service.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=500")
        (execution,) = changes["executions"]
        assert execution["totals"]["cost_nanos"] == 3 * CENT
        assert execution["totals"]["tool_calls"] == 3
        assert execution["states"] == {"1": "closed"}
    finally:
        service.close()
