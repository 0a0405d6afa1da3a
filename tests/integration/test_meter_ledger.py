"""The real meter on the real ledger service: what one promises the other keeps, and the audit finds nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from almoner_core.contract import Dialect, MeterModel, MeterProvider
from almoner_dev.ledger_environment import ledger_environment
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import CARD, DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

MICRO = 1000
HI: Any = [{"role": "user", "content": "hi"}]
PODS = ["pod-uid-1", "pod-uid-2", "pod-uid-3"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerService]:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=PODS)
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture
def meter_for(tmp_path: Path, ledger: LedgerService) -> Iterator[Callable[..., Meter]]:
    """Opens and binds an allotment as the operator would, and starts the meter of its pod."""
    meters: list[Meter] = []

    def make(epoch: int, pod: str, provider: MeterProvider, need: dict[str, int], **more: Any) -> Meter:
        item = open_item(need, **more)
        (answer,) = ledger.open_items(epoch, [item])
        assert answer["error"] is None, answer
        ledger.bind(epoch, item["allotment"], pod)
        folder = tmp_path / pod
        folder.mkdir()
        uid = item["execution"]["uid"]
        meter = Meter(folder, meter_config(ledger.url, provider, allotment=item["allotment"], execution_uid=uid))
        (folder / "token").write_text(meter_token(pod))
        meters.append(meter)
        return meter.start()

    yield make
    for meter in meters:
        meter.discard()


def client(meter: Meter) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{meter.url}/openai/v1", api_key="x", max_retries=0)


def changes(ledger: LedgerService) -> Any:
    return ledger.ask("GET", "/v1/changes?after=0&timeout_seconds=0&limit=500")


def account(ledger: LedgerService, dimension: str = "usd") -> Any:
    return next(a for a in changes(ledger)["accounts"] if a["dimension"] == dimension and a["key"]["quota"] == "quota")


def audit(ledger: LedgerService) -> None:
    """Runs `almoner-ledger verify` as a person would: it must find nothing."""
    command = [sys.executable, "-m", "almoner_ledger", "verify"]
    environment = ledger_environment(ledger.database)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_from_allotment_to_closed_books(
    ledger: LedgerService, provider: ScriptedProvider, meter_for: Callable[..., Meter]
) -> None:
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": DOLLAR})
    need = {"usd": 1000 * MICRO, "tokens": 500}
    meter = meter_for(epoch, PODS[0], provider_config(provider.base_url), need)
    assert client(meter).chat.completions.create(model=MODEL, messages=HI).usage is not None
    claude = anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="x", max_retries=0)
    with claude.messages.stream(model=MODEL, max_tokens=50, messages=HI) as stream:
        assert "".join(stream.text_stream) == "one two three"
    (meter.folder / "output" / "output").write_text("the answer")
    meter.post("/progress", {"step": 3, "total": 4, "metrics": {"loss": "0.25"}})
    assert meter.stop() == 0, meter.log
    assert meter.last_word["final"] is True, meter.log
    (execution,) = changes(ledger)["executions"]
    assert execution["totals"]["cost_nanos"] == 2 * 20 * MICRO == meter.last_word["totals"]["cost_nanos"]
    assert execution["states"] == {"1": "closed"}
    assert execution["output"] == "the answer"
    assert execution["progress"]["step"] == 3
    assert (account(ledger)["spent"], account(ledger)["reserved"]) == (40 * MICRO, 0)
    audit(ledger)


def test_parallel_calls_of_several_meters_never_pass_one_budget(
    ledger: LedgerService, provider: ScriptedProvider, meter_for: Callable[..., Meter]
) -> None:
    budget = 40_000 * MICRO
    full = Reply(usage=Usage(input_tokens=60, output_tokens=500), latency_ms=10, match='"max_tokens":500[,}]')
    provider.load([full, Reply(usage=Usage(input_tokens=60, output_tokens=16), latency_ms=10)])
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": budget})
    meters = [meter_for(epoch, pod, provider_config(provider.base_url), {"usd": 1300 * MICRO}) for pod in PODS]

    def call(number: int) -> bool:
        try:
            client(meters[number % len(meters)]).chat.completions.create(model=MODEL, messages=HI, max_tokens=500)
        except openai.RateLimitError:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(call, range(90)))
    for meter in meters:
        assert meter.stop() == 0, meter.log
        assert meter.last_word["final"] is True, meter.log
    state = account(ledger)
    assert state["spent"] <= budget
    assert (state["reserved"], state["excess"]) == (0, 0)
    assert state["spent"] == sum(meter.last_word["totals"]["cost_nanos"] for meter in meters)
    assert len(provider.requests) == sum(answers) < 90
    # Worst-case holds starved nobody: a call of the largest bound would not fit any more.
    assert budget - state["spent"] < 1300 * MICRO
    audit(ledger)


def test_kill_9_in_mid_call_is_estimated_in_the_books(
    ledger: LedgerService, provider: ScriptedProvider, meter_for: Callable[..., Meter]
) -> None:
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": DOLLAR})
    meter = meter_for(epoch, PODS[0], provider_config(provider.base_url), {"usd": 1300 * MICRO})
    client(meter).chat.completions.create(model=MODEL, messages=HI)
    provider.load([Reply(hang=True)])

    def hang() -> None:
        with pytest.raises(openai.APIConnectionError):
            client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=77)

    thread = threading.Thread(target=hang, daemon=True)
    thread.start()
    until(lambda: len(provider.requests) == 2, 5, "the call at the provider")
    meter.kill()
    thread.join(5)
    meter.start()
    assert meter.stop() == 0
    state = account(ledger)
    assert state["spent"] == meter.last_word["totals"]["cost_nanos"] > (20 + 2 * 77) * MICRO
    assert state["reserved"] == 0
    audit(ledger)


def test_the_ledger_killed_and_started_again_in_mid_run(
    ledger: LedgerService, provider: ScriptedProvider, meter_for: Callable[..., Meter]
) -> None:
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": DOLLAR})
    meter = meter_for(epoch, PODS[0], provider_config(provider.base_url), {"usd": 100_000 * MICRO})
    for number in range(20):
        if number == 5:
            ledger.kill()
        if number == 15:
            ledger.start()
        client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=50)
    assert meter.stop() == 0
    assert meter.last_word["final"] is True, meter.log
    assert account(ledger)["spent"] == 20 * 20 * MICRO
    assert account(ledger)["reserved"] == 0
    audit(ledger)


def test_the_executions_own_limits_are_hard(
    ledger: LedgerService, provider: ScriptedProvider, meter_for: Callable[..., Meter]
) -> None:
    epoch = ledger.epoch()
    ledger.limit(epoch, {"usd": DOLLAR})
    limits = {"usd": DOLLAR, "tool_calls": 3, "tokens": 700}
    meter = meter_for(epoch, PODS[0], provider_config(provider.base_url), {"usd": 1300 * MICRO}, limits=limits)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: meter.post("/tools/calculator/calls", {})[0], range(12)))
    assert sorted(statuses) == [200] * 3 + [429] * 9
    limited = client(meter).chat.completions.with_raw_response.create(model=MODEL, messages=HI, max_tokens=690)
    assert 16 <= int(limited.headers["x-almoner-output-limited"]) < 690
    assert meter.stop() == 0
    (execution,) = changes(ledger)["executions"]
    assert execution["totals"]["tool_calls"] == 3
    audit(ledger)


def test_a_real_model_through_both_apis(ledger: LedgerService, meter_for: Callable[..., Meter]) -> None:
    from almoner_dev.model import MODEL_NAME, LocalModel, ModelUnavailableError
    from tests.conftest import missing

    try:
        local = LocalModel(context_tokens=1024, parallel=2).start()
    except ModelUnavailableError as error:
        missing(error)
    question: Any = [{"role": "user", "content": "Name the capital of France in one word."}]
    with local:
        epoch = ledger.epoch()
        ledger.limit(epoch, {"usd": DOLLAR})
        models = (MeterModel(name=MODEL_NAME, price=CARD, context_window=1024),)
        config = provider_config(local.base_url, models=models, dialects=(Dialect.OPENAI, Dialect.ANTHROPIC))
        meter = meter_for(epoch, PODS[0], config, {"usd": 1300 * MICRO})
        create = client(meter).chat.completions.create
        plain = create(model=MODEL_NAME, messages=question, max_tokens=12)
        assert plain.usage is not None
        assert plain.choices[0].message.content
        chunks = list(create(model=MODEL_NAME, messages=question, max_tokens=12, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == plain.choices[0].message.content
        claude = anthropic.Anthropic(base_url=f"{meter.url}/anthropic", api_key="x", max_retries=0)
        message = claude.messages.create(model=MODEL_NAME, max_tokens=12, messages=question)
        with claude.messages.stream(model=MODEL_NAME, max_tokens=12, messages=question) as stream:
            assert "".join(stream.text_stream) == message.content[0].text  # type: ignore[union-attr]
        assert meter.stop() == 0, meter.log
    totals = meter.last_word["totals"]
    (execution,) = changes(ledger)["executions"]
    assert execution["totals"]["cost_nanos"] == totals["cost_nanos"] > 0
    assert totals["requests"] == 4
    # The first call's usage is the model's own count, and the same question is the same input every time.
    assert totals["input_tokens"] == 4 * plain.usage.prompt_tokens
    assert "estimated" not in meter.log
    audit(ledger)
