"""The real meter when it is killed, cut off or ended."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import HI, MICRO, openai_client, refused, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter
from tests.support.polling import until

# --- faults -----------------------------------------------------------------------------------------------------------


def test_kill_9_and_restart_post_what_was_in_flight_as_estimated(
    start: Callable[..., Meter], provider: ScriptedProvider, tmp_path: Path
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 1)
        provider.load([Reply(hang=True)])
        thread = threading.Thread(target=_ignoring_errors(meter), daemon=True)
        thread.start()
        until(lambda: len(provider.requests) == 2, 5, "the call at the provider")
        meter.kill()
        thread.join(5)
        meter.start()
        settled(meter, ledger, 2)
        record = ledger.records[2]
        assert record.outcome == "estimated"
        assert record.tokens.output == 77
        # The hold in full: all input at its dearest rate, that of a cache write.
        assert record.cost_nanos == record.tokens.input * 1250 + 2 * 77 * MICRO
        provider.load([Reply()])
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        settled(meter, ledger, 3)
        meter.stop()
    assert meter.last_word["last_sequence"] == 3
    assert meter.last_word["totals"]["cost_nanos"] == ledger.used()["usd"]


def _ignoring_errors(meter: Meter) -> Callable[[], None]:
    def call() -> None:
        try:
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=77)
        except openai.APIConnectionError:
            return

    return call


def test_kill_9_before_the_records_are_posted_loses_none(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}, first={"usd": 100_000 * MICRO}) as ledger:
        meter = start(ledger)
        ledger.away = True
        for _ in range(5):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert not ledger.records
        meter.kill()
        ledger.away = False
        meter.start()
        settled(meter, ledger, 5)
    assert ledger.used()["usd"] == 5 * 20 * MICRO


def test_a_call_waits_for_a_ledger_that_is_started_anew(start: Callable[..., Meter]) -> None:
    """Seen in an upgrade: nothing was held yet, and the run failed within seconds."""
    with LedgerDouble({"usd": DOLLAR}) as ledger, ThreadPoolExecutor(2) as pool:
        meter = start(ledger)
        ledger.away = True
        client = openai_client(meter)
        asked = pool.submit(lambda: client.chat.completions.create(model=MODEL, messages=HI, max_tokens=16))
        until(lambda: ledger.asked_in_vain.count("extend") >= 3, 20, "the meter to ask again and again")
        assert not asked.done()
        ledger.away = False
        assert asked.result(20).choices
        settled(meter, ledger, 1)


def test_lost_answers_of_the_ledger_change_nothing(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.chunk = 0
        meter = start(ledger)
        for _ in range(6):
            ledger.lose_answers = 1
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        ledger.lose_answers = 0
        settled(meter, ledger, 6)
        until(lambda: ledger.held["usd"] == 0, 5, "everything back")
        meter.stop()
    assert ledger.used()["usd"] == 6 * 20 * MICRO


def test_without_its_lease_the_meter_starts_no_call(start: Callable[..., Meter], provider: ScriptedProvider) -> None:
    with LedgerDouble({"usd": DOLLAR}, first={"usd": 100_000 * MICRO}) as ledger:
        ledger.lease_seconds = 1
        meter = start(ledger)
        ledger.away = True

        def is_refused() -> bool:
            return refused(meter, openai.InternalServerError, "ledger")

        until(is_refused, 5, "calls to be refused without a lease")
        before = len(provider.requests)
        assert is_refused()
        assert len(provider.requests) == before
        ledger.away = False
        until(lambda: not is_refused(), 5, "calls once the ledger is back")


def test_the_probe_waits_for_the_allotment_and_the_input(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.bound = False
        meter = start(ledger, ready=False)
        meter.spawn()
        until(lambda: "activate" in ledger.calls, 10, "the first try")
        assert meter.get_health("/healthz")[0] == 503
        assert not (tmp_path / "input" / "input").exists()
        ledger.bound = True
        until(meter.healthy, 10, "health")
        assert (tmp_path / "input" / "input").read_text() == "the input"
        assert httpx.get(f"{meter.url}/input").text == "the input"


def test_a_superseded_meter_ends_and_says_why(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.state = "void"
        meter = start(ledger, ready=False)
        child = meter.spawn()
        until(lambda: not child.running(), 10, "the end of the meter")
        assert child.stop() == 69
        assert "wrong_state" in meter.last_word["error"]
        assert not (meter.folder / "input" / "input").exists()


def test_a_meter_that_is_ended_before_it_reached_the_ledger_says_so(start: Callable[..., Meter]) -> None:
    """As its start-up probe does it; in a service mesh whose sidecar starts after it, say."""
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger, ready=False)
    child = meter.spawn()
    until(lambda: "activate: POST activate" in meter.log, 10, "a try that fails")
    assert child.stop() == 0
    assert "could not reach the ledger" in meter.last_word["error"]
    assert meter.last_word["final"] is False


# --- machine time -----------------------------------------------------------------------------------------------------


def test_a_meter_whose_machine_time_is_not_paid_any_more_has_its_pod_ended(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.paid_seconds = 6
        meter = start(ledger, extra={"end_seconds": 3})
        assert meter.get_health("/paid") == (200, "ok\n")
        ledger.paid_seconds = 1000
        until(lambda: ledger.calls.count("signals") >= 2, 10, "the meter to ask again in time")
        assert meter.get_health("/paid")[0] == 200, "the ledger holds more"
        meter.kill()
        ledger.away = True
        meter.spawn()
        until(lambda: meter.get_health("/paid")[0] == 200, 10, "a meter that knows what an earlier one was told")
        ledger.away = False
        until(meter.healthy, 10, "the meter to have its allotment again")


def test_nothing_is_called_once_machine_time_is_not_paid(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        ledger.paid_seconds = 4
        meter = start(ledger, extra={"end_seconds": 3})
        ledger.away = True
        until(lambda: meter.get_health("/paid")[0] == 503, 10, "machine time to be over")
        assert "the ledger does not answer" in meter.get_health("/paid")[1]
        status, answer = meter.post("/openai/v1/chat/completions", {"model": MODEL, "messages": HI})
        assert (status, answer["error"]["code"]) == (429, "machine_time_unpaid")
        assert meter.healthy(), "the meter itself goes on"
        ledger.away = False
        meter.stop()
        assert "machine time is not paid for any longer" in meter.last_word["unpaid"]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_sigterm_settles_sends_the_output_and_returns_everything(
    start: Callable[..., Meter], provider: ScriptedProvider, tmp_path: Path
) -> None:
    provider.load([Reply(latency_ms=500, usage=Usage(input_tokens=10, output_tokens=5))])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        (tmp_path / "output" / "output").write_bytes("the answer: 42 \xff é".encode("latin-1"))
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(openai_client(meter).chat.completions.create, model=MODEL, messages=HI)
            until(lambda: len(provider.requests) == 1, 5, "the call at the provider")
            assert meter.stop() == 0
            assert call.result().usage is not None
    assert ledger.records[1].outcome == "ok"
    assert ledger.output == "the answer: 42 \ufffd \ufffd"
    assert ledger.final is not None
    assert ledger.final.last_sequence == 1
    assert ledger.state == "closed"


def test_an_output_that_is_a_link_is_not_read(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        (tmp_path / "output" / "output").symlink_to(tmp_path / "token")
        assert meter.stop() == 0
    assert ledger.output is None
    assert "output cannot be opened" in meter.log


def test_an_output_that_blocks_is_not_waited_for(start: Callable[..., Meter], tmp_path: Path) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        os.mkfifo(tmp_path / "output" / "output")
        assert meter.stop() == 0
    assert ledger.output is None
    assert "not a regular file" in meter.log


def test_after_prestop_calls_are_refused_only_when_time_is_short(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 1, "prestop_token": "abc"})
        assert meter.get_health("/prestop")[0] == 403
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert meter.get_health("/prestop", {"x-almoner-prestop": "abc"})[0] == 200
        with pytest.raises(openai.InternalServerError, match="ending"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)


def test_progress_is_forwarded_at_most_once_a_second_and_the_last_is_not_lost(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        for step in range(50):
            status, _ = meter.post("/progress", {"step": step, "total": 50, "metrics": {"loss": 0.5}})
            assert status == 202
        assert meter.post("/progress", {"step": -1})[0] == 400
        assert meter.post("/progress", {"steps": 1})[0] == 400
        until(lambda: bool(ledger.progress) and ledger.progress[-1].step == 49, 5, "the last report")
        assert len(ledger.progress) <= 4
        meter.post("/progress", {"step": 50, "message": "done"})
        meter.stop()
    assert ledger.progress[-1].step == 50
    assert ledger.progress[0].metrics == {"loss": "0.5"}
