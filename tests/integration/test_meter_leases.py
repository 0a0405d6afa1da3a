"""Leases between the real meter and the real ledger: kept while both live; what a meter meets that fell silent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa

from almoner_dev.scripted import ScriptedProvider
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

HI: Any = [{"role": "user", "content": "hi"}]
POD = "pod-uid-1"
LEASE = 2
SILENCE = 4


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerService]:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=[POD])
    service.arguments += ["--lease-seconds", str(LEASE), "--silence-seconds", str(SILENCE)]
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture
def meter(tmp_path: Path, ledger: LedgerService, provider: ScriptedProvider) -> Iterator[Meter]:
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": DOLLAR})
    item = open_item({"usd": DOLLAR // 10})
    (answer,) = ledger.open_items(epoch, [item])
    assert answer["error"] is None, answer
    ledger.bind(epoch, item["allotment"], POD)
    folder = tmp_path / POD
    folder.mkdir()
    uid = item["execution"]["uid"]
    config = meter_config(
        ledger.url, provider_config(provider.base_url), allotment=item["allotment"], execution_uid=uid
    )
    made = Meter(folder, config)
    (folder / "token").write_text(meter_token(POD))
    yield made.start()
    made.discard()


def call(meter: Meter) -> str | None:
    """Make a call; gives None, or why it was refused."""
    client = openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0, timeout=60)
    try:
        client.chat.completions.create(model=MODEL, messages=HI, max_tokens=50)
    except openai.APIStatusError as error:
        return str(error)
    return None


def state(ledger: LedgerService, meter: Meter) -> dict[str, Any]:
    """The allotment's row."""
    engine = sa.create_engine(ledger.database)
    with engine.connect() as connection:
        query = sa.text("SELECT * FROM allotments WHERE id = :id").bindparams(id=meter.config.allotment)
        row = dict(connection.execute(query).mappings().one())
    engine.dispose()
    return row


def test_a_meter_that_waits_keeps_its_lease_in_the_ledger_too(ledger: LedgerService, meter: Meter) -> None:
    activated = state(ledger, meter)["exchanged_ms"]
    until(lambda: state(ledger, meter)["exchanged_ms"] >= activated + 3 * SILENCE * 1000, 90, "some silences to pass")
    assert state(ledger, meter)["state"] == "active"
    assert call(meter) is None
    assert meter.stop() == 0, meter.log
    assert state(ledger, meter)["close_reason"] == "returned"


def test_a_meter_that_was_given_up_starts_no_call_and_reports_within_its_charge(
    ledger: LedgerService, meter: Meter, provider: ScriptedProvider
) -> None:
    assert call(meter) is None
    assert meter.child is not None
    until(lambda: state(ledger, meter)["contiguous"] == 1, 30, "the first record")
    pid = meter.child.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: state(ledger, meter)["state"] == "closed", 60, "the silent one to be given up")
    finally:
        os.kill(pid, signal.SIGCONT)
    row = state(ledger, meter)
    assert row["close_reason"] == "expired"
    made = len(provider.requests)
    for _ in range(3):
        assert call(meter) is not None
    assert len(provider.requests) == made, "not one call went out"
    # Its last word settles what was charged off.
    meter.stop()
    until(lambda: state(ledger, meter)["unaccounted_nanos"] == 0, 30, "the charge to be settled")
    after = state(ledger, meter)
    assert after["cost_nanos"] < row["cost_nanos"]
    accounts = ledger.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=500")["accounts"]
    (budget,) = [each for each in accounts if each["key"]["quota"] == "quota"]
    assert (budget["spent"], budget["reserved"], budget["excess"]) == (after["cost_nanos"], 0, 0), json.dumps(budget)
