"""Recall on the real meter and the real ledger: what is idle here goes to whoever was refused it there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from almoner_core.contract import EXTRA_FIRST_NEED
from almoner_dev.scripted import Reply, ScriptedProvider, Usage
from tests.support.ledger_service import LedgerService, meter_token, open_item
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.polling import until

MICRO = 1000
HI: Any = [{"role": "user", "content": "hi"}]
NEED = {"usd": 2_000 * MICRO}
POD = "pod-uid-1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[LedgerService]:
    service = LedgerService(tmp_path, f"sqlite:///{tmp_path}/ledger.db", pods=[POD])
    try:
        yield service.start()
    finally:
        service.close()


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    replies = [Reply(hang=True, match="never"), Reply(text="one", usage=Usage(input_tokens=10, output_tokens=5))]
    with ScriptedProvider(replies) as scripted:
        yield scripted


class Rich:
    """A meter whose admission granted nine tenths of the budget, and what others see of it."""

    def __init__(self, folder: Path, ledger: LedgerService, provider: ScriptedProvider, extra: dict[str, Any]) -> None:
        self.ledger = ledger
        self.epoch = ledger.epoch()
        ledger.limit(self.epoch, {"usd": DOLLAR})
        item = open_item({"usd": DOLLAR * 9 // 10})
        (answer,) = ledger.open_items(self.epoch, [item])
        assert answer["error"] is None, answer
        self.allotment = item["allotment"]
        ledger.bind(self.epoch, self.allotment, POD)
        folder.mkdir()
        config = meter_config(
            ledger.url,
            provider_config(provider.base_url),
            allotment=self.allotment,
            execution_uid=item["execution"]["uid"],
            extra=extra,
        )
        self.meter = Meter(folder, config)
        (folder / "token").write_text(meter_token(POD))
        self.meter.start()

    @property
    def held(self) -> int:
        views = self.ledger.ask("GET", "/v1/allotments?state=open&limit=100")["allotments"]
        return int(next(each["held"]["usd"] for each in views if each["allotment"] == self.allotment))

    def another(self) -> Any:
        """Ask for half of the budget, as a run that is to be admitted does; gives the answer."""
        (answer,) = self.ledger.open_items(self.epoch, [open_item({"usd": DOLLAR // 2})])
        return answer

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.meter.url}/openai/v1", api_key="x", max_retries=0, timeout=60)


@pytest.fixture
def rich(tmp_path: Path, ledger: LedgerService, provider: ScriptedProvider) -> Iterator[Callable[..., Rich]]:
    made: list[Rich] = []

    def make(**extra: Any) -> Rich:
        made.append(Rich(tmp_path / POD, ledger, provider, extra))
        return made[-1]

    yield make
    for each in made:
        each.meter.discard()


def test_before_its_first_call_exactly_one_need_is_kept(rich: Callable[..., Rich]) -> None:
    one = rich(**{EXTRA_FIRST_NEED: NEED})
    first = one.another()
    assert first["error"]["refusal"]["may_free_up"], first
    assert one.held == DOLLAR * 9 // 10, "nothing goes back unasked before the first call"
    until(lambda: one.another()["error"] is None, 20, "the refused to get what was idle")
    assert one.held == NEED["usd"]
    # The promise is kept: the first call asks nobody.
    answer = one.openai().chat.completions.create(model=MODEL, messages=HI, max_tokens=50)
    assert answer.choices[0].message.content == "one"
    assert one.meter.stop() == 0, one.meter.log


def test_where_nobody_says_what_the_first_call_needs_all_is_kept(rich: Callable[..., Rich]) -> None:
    one = rich()
    assert one.another()["error"]["code"] == "insufficient"
    one.openai().chat.completions.create(model=MODEL, messages=HI, max_tokens=50)
    until(lambda: one.another()["error"] is None, 20, "what is idle after a call to come back")


def test_what_is_idle_beside_a_call_in_flight_goes_back_on_recall(
    rich: Callable[..., Rich], provider: ScriptedProvider
) -> None:
    one = rich()

    def hang() -> None:
        with pytest.raises(openai.OpenAIError):
            one.openai().chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "never"}], max_tokens=50
            )

    calling = threading.Thread(target=hang)
    calling.start()
    until(lambda: provider.requests, 20, "the call to be in flight")
    assert one.another()["error"]["code"] == "insufficient"
    until(lambda: one.another()["error"] is None, 20, "the refused to get what was idle")
    assert 0 < one.held < DOLLAR // 100, "the call in flight keeps its bound"
    one.meter.kill()
    calling.join(30)
    assert not calling.is_alive()
