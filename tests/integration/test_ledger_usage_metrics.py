"""What the ledger tells Prometheus of usage: once for each entry, with bounded labels, on a port of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.samples import Sample

from almoner_core.bounded import Bounded
from almoner_core.usage import Outcome
from almoner_core.wire import Dimension
from almoner_dev import processes
from almoner_ledger import usage_metrics
from tests.support.books import DOLLAR, NAMESPACE, Books, new_id, record, refused, tokens
from tests.support.ledger_service import OPERATOR, LedgerService

AGENT = {"namespace": NAMESPACE, "agent": "metered"}
MODEL = {**AGENT, "provider": "provider", "model": "model", "type": "llm"}


class Since:
    """How much a counter grew since this was made: other tests of the process count too."""

    def __init__(self) -> None:
        self._before = {(each.name, *sorted(each.labels.items())): each.value for each in _samples()}

    def __call__(self, name: str, **labels: str) -> float:
        key = (name, *sorted(labels.items()))
        now = {(each.name, *sorted(each.labels.items())): each.value for each in _samples()}
        return round(now.get(key, 0.0) - self._before.get(key, 0.0), 9)


def _samples() -> list[Sample]:
    return [sample for family in REGISTRY.collect() for sample in family.samples]


def test_each_entry_is_counted_once(books: Books) -> None:
    books.limits(limits={Dimension.USD: 10 * DOLLAR})
    grown = Since()
    allotment = books.active(agent="metered", need={Dimension.USD: DOLLAR})
    paid = record(1, DOLLAR // 4, tokens=tokens(100, 20), duration_ms=1500)
    unknown = record(2, None, tokens=tokens(7), outcome=Outcome.ERROR)
    operation = new_id()
    for _ in range(2):  # What is posted again is not counted again, under its operation or another.
        books.post(allotment, [paid, unknown], operation_id=operation)
        books.post(allotment, [paid])
    assert grown("almoner_cost_usd_total", **MODEL) == 0.25
    assert grown("almoner_unpriced_records_total", **MODEL) == 1
    assert grown("almoner_tokens_total", **AGENT, model="model", kind="input") == 107
    assert grown("almoner_tokens_total", **AGENT, model="model", kind="output") == 20
    assert grown("almoner_calls_total", **AGENT, provider="provider", type="llm") == 2
    assert grown("almoner_provider_calls_total", provider="provider", outcome="error") == 1
    assert grown("almoner_provider_call_duration_seconds_sum", provider="provider") == 1.501
    conflict = paid.model_copy(update={"id": new_id()})
    refused(books.post(allotment, [conflict]))
    assert grown("almoner_cost_usd_total", **MODEL) == 0.25


def test_made_up_names_make_no_series_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_metrics, "agents", Bounded(3))
    grown = Since()
    row = {
        **dict.fromkeys(("input_tokens", "cached_input_tokens", "output_tokens", "requests", "duration_ms"), 0),
        "kind": "usage",
        "provider": "p",
        "model": "m",
        "resource_type": "tool",
        "cost_nanos": None,
        "tool_calls": 1,
        "outcome": "ok",
    }
    usage_metrics.count(usage_metrics.Posted("bounded", f"agent-{number}", row) for number in range(10))
    calls = {"namespace": "bounded", "provider": "p", "type": "tool"}
    assert grown("almoner_calls_total", **calls, agent="agent-2") == 1
    assert grown("almoner_calls_total", **calls, agent="other") == 7
    assert grown("almoner_calls_total", **calls, agent="agent-3") == 0


def test_metrics_have_a_port_of_their_own_where_asked(tmp_path: Path) -> None:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db")
    port = processes.free_port("127.0.0.1")
    service.arguments += ["--metrics-listen", f"127.0.0.1:{port}"]
    try:
        service.start()
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
        assert "# TYPE almoner_cost_usd_total counter" in text
        assert httpx.get(f"http://127.0.0.1:{port}/v1/costs", timeout=30).status_code == 404
        assert service.request("GET", "/metrics", OPERATOR).status_code == 404
        assert service.stop() == 0
    finally:
        service.close()
