"""The real meter's end while the ledger is away: it waits, and leaves a last word."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from almoner_core.environment import OutputProblem
from almoner_core.last_word import read_word
from almoner_core.refusals import read_refused
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.calls import HI, MICRO, openai_client
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter
from tests.support.polling import until

USAGE = Usage(input_tokens=10, output_tokens=5)
FIRST = {"usd": 100_000 * MICRO}


def call(meter: Meter, times: int) -> None:
    """Makes calls of 20 micro-dollars each."""
    for _ in range(times):
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)


def put_output(meter: Meter, content: bytes) -> None:
    """Leaves an output, as the agent would."""
    (meter.folder / "output" / "output").write_bytes(content)


def test_without_a_ledger_the_last_word_has_the_totals_and_a_small_output(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}, first=FIRST) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 5, "ledger_wait_seconds": 1})
        ledger.away = True
        call(meter, 3)
        put_output(meter, "the answer: 42 é".encode())
        assert meter.stop() == 0
        assert not ledger.records
    word = meter.last_word
    assert read_word((meter.folder / "last-word").read_text(), meter.config.allotment) is not None
    assert (word["last_sequence"], word["posted"], word["final"], word["complete"]) == (3, 0, False, True)
    assert word["totals"]["cost_nanos"] == 3 * 20 * MICRO
    assert word["totals"]["requests"] == 3
    output = word["output"]
    assert (output["content"], output["truncated"], output["stored"]) == ("the answer: 42 é", False, False)
    assert "not reached" in output["detail"]


def test_f5_it_says_what_was_refused(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": 100 * MICRO}) as ledger:
        meter = start(ledger)
        client = openai_client(meter)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=HI)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="another", messages=HI)
        assert meter.stop() == 0
    refused = read_refused(meter.last_word)
    assert refused is not None
    # The model was asked for in want of room.
    assert (refused.count, refused.code, refused.last) == (2, "insufficient_quota", True)


def test_f5_a_call_that_was_under_way_does_not_take_a_refusal_back(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    """A pool of threads dies of the one call that is refused, and waits for the others first."""
    provider.load([Reply(text="slow", usage=USAGE, latency_ms=600)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        under_way = threading.Thread(target=call, args=(meter, 1))
        under_way.start()
        until(lambda: provider.requests, 5, "the call at the provider")
        with pytest.raises(openai.NotFoundError):
            openai_client(meter).chat.completions.create(model="another", messages=HI)
        under_way.join(10)
        assert meter.stop() == 0
    refused = read_refused(meter.last_word)
    assert refused is not None
    assert (refused.count, refused.last) == (1, True)
    assert meter.last_word["totals"]["requests"] == 1


def test_it_says_that_the_provider_refused_the_last_call(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    provider.load([Reply(status=401, message="who are you?"), Reply(status=401), Reply(usage=USAGE)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        for _ in range(2):
            with pytest.raises(openai.AuthenticationError):
                openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert meter.stop() == 0
        assert meter.last_word["provider_refused"] == {"provider": "scripted", "status": 401}
        assert "refused" not in meter.last_word


def test_a_provider_that_answers_after_all_refused_nothing(
    start: Callable[..., Meter], provider: ScriptedProvider
) -> None:
    provider.load([Reply(status=404), Reply(usage=USAGE)])
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        with pytest.raises(openai.NotFoundError):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        call(meter, 1)
        assert meter.stop() == 0
        assert "provider_refused" not in meter.last_word


def test_f5_a_call_that_came_through_after_a_refusal_is_told(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        with pytest.raises(openai.NotFoundError):
            openai_client(meter).chat.completions.create(model="another", messages=HI)
        call(meter, 1)
        assert meter.stop() == 0
    refused = read_refused(meter.last_word)
    assert refused is not None
    assert (refused.count, refused.last) == (1, False)


def test_a_large_output_leaves_its_beginning_in_a_last_word_that_kubernetes_keeps_whole(
    start: Callable[..., Meter],
) -> None:
    with LedgerDouble({"usd": DOLLAR}, first=FIRST) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 5, "ledger_wait_seconds": 1})
        ledger.away = True
        text = 'a "line" of it\n' * 1000
        put_output(meter, text.encode())
        assert meter.stop() == 0
    output = meter.last_word["output"]
    assert (meter.folder / "last-word").stat().st_size <= 4096
    assert len(output["content"]) > 2000
    assert text.startswith(output["content"])
    assert (output["bytes"], output["truncated"], output["stored"]) == (len(text), True, False)


def test_the_meter_waits_for_a_ledger_that_comes_back_in_time(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}, first=FIRST) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 30, "ledger_wait_seconds": 25})
        ledger.away = True
        call(meter, 2)
        put_output(meter, b"late, but here")
        stopping = threading.Thread(target=meter.stop)
        stopping.start()
        until((meter.folder / "last-word").exists, 10, "a last word before the ledger is there")
        assert meter.last_word["totals"]["requests"] == 2
        assert meter.last_word["output"]["content"] == "late, but here"
        ledger.away = False
        stopping.join(20)
        assert not stopping.is_alive()
        assert ledger.used()["usd"] == 2 * 20 * MICRO
        assert ledger.state == "closed"
        assert ledger.output == "late, but here"
    assert meter.last_word["final"] is True
    assert meter.last_word["output"] == {"bytes": 14, "stored": True}


def test_a_meter_that_is_killed_while_it_waits_has_said_its_last_word(start: Callable[..., Meter]) -> None:
    with LedgerDouble({"usd": DOLLAR}, first=FIRST) as ledger:
        meter = start(ledger, extra={"grace_period_seconds": 60, "ledger_wait_seconds": 50})
        ledger.away = True
        call(meter, 2)
        assert meter.child is not None
        meter.child.process.terminate()
        until((meter.folder / "last-word").exists, 10, "the last word")
        until(lambda: (meter.folder / "last-word").stat().st_size > 0, 5, "the last word's content")
        meter.kill()
    word = meter.last_word
    assert (word["complete"], word["final"], word["last_sequence"]) == (True, False, 2)
    assert word["totals"]["cost_nanos"] == 2 * 20 * MICRO


def _link(place: Path) -> None:
    place.symlink_to(place.parent.parent / "token")


def _second_name(place: Path) -> None:
    place.write_text("x")
    os.link(place, place.with_name("another"))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        pytest.param(_link, OutputProblem.NOT_REGULAR, id="a link"),
        pytest.param(os.mkfifo, OutputProblem.NOT_REGULAR, id="a pipe"),
        pytest.param(Path.mkdir, OutputProblem.NOT_REGULAR, id="a folder"),
        pytest.param(_second_name, OutputProblem.NOT_REGULAR, id="a second name"),
        pytest.param(lambda place: place.write_bytes(b"\xff\xfe"), OutputProblem.NOT_UTF8, id="not UTF-8"),
        pytest.param(lambda place: place.write_bytes(b"x" * 1_048_577), OutputProblem.TOO_LARGE, id="too large"),
        pytest.param(lambda place: place.write_bytes(b"\x01" * 900_000), OutputProblem.TOO_LARGE, id="grows in JSON"),
    ],
)
def test_what_is_wrong_with_an_output_is_said_by_name(
    start: Callable[..., Meter], make: Callable[[Path], None], problem: OutputProblem
) -> None:
    with LedgerDouble({"usd": DOLLAR}) as ledger:
        meter = start(ledger)
        make(meter.folder / "output" / "output")
        assert meter.stop() == 0
        kept = ledger.output
    read = read_word((meter.folder / "last-word").read_text(), meter.config.allotment)
    assert read is not None
    assert read.output is not None
    assert read.output.problem is problem
    output = meter.last_word["output"]
    assert output["problem"] == problem.value
    assert output["detail"] in meter.log
    assert output["stored"] is (kept is not None)
    assert (kept is None) is (problem is OutputProblem.NOT_REGULAR)
