"""The real meter where a client names no output maximum: it chooses one, says so, and heeds the provider's word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.support.calls import HI, openai_client, settled
from tests.support.ledger_double import LedgerDouble
from tests.support.meter import DOLLAR, MODEL, Meter, meter_config, provider_config
from tests.support.odd_provider import OddProvider

ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
).encode()
TOO_LARGE = {"message": "max_tokens is too large: 7. This model supports at most 4096 completion tokens", "code": None}
WRONG_FIELD = {"message": "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."}


@pytest.fixture
def odd() -> Iterator[OddProvider]:
    with OddProvider() as provider:
        provider.say(ANSWER)
        yield provider


def test_the_maximum_is_the_models_and_the_answer_and_the_record_say_so(tmp_path: Path, odd: OddProvider) -> None:
    """Case C12."""
    config = provider_config(odd.url)
    with LedgerDouble({"usd": 100 * DOLLAR}) as ledger, Meter(tmp_path, meter_config(ledger.url, config)) as meter:
        answer = openai_client(meter).chat.completions.with_raw_response.create(model=MODEL, messages=HI)
        sent = json.loads(odd.bodies[0])["max_tokens"]
        assert 7_000 < sent < 8_000  # the window has 8,000
        assert answer.headers["x-almoner-output-max"] == str(sent)
        assert "x-almoner-output-limited" not in answer.headers
        settled(meter, ledger, 1)
        assert ledger.records[1].metadata["output_max_chosen"] == sent


def test_a_refused_maximum_is_corrected_once_unbilled_and_remembered(tmp_path: Path, odd: OddProvider) -> None:
    """Case C06 (c): no setting is needed, whichever field and maximum a model takes."""
    config = provider_config(odd.url)
    with LedgerDouble({"usd": 100 * DOLLAR}) as ledger, Meter(tmp_path, meter_config(ledger.url, config)) as meter:
        odd.say_once(json.dumps({"error": TOO_LARGE}).encode(), status="400 Bad Request")
        for _ in range(2):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert [json.loads(body)["max_tokens"] for body in odd.bodies[1:]] == [4096, 4096]
        odd.say_once(json.dumps({"error": WRONG_FIELD}).encode(), status="400 Bad Request")
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert "max_tokens" not in json.loads(odd.bodies[-1])
        assert json.loads(odd.bodies[-1])["max_completion_tokens"] == 4096
        settled(meter, ledger, 5)
        assert [record.cost_nanos == 0 for record in ledger.records.values()] == [True, False, False, True, False]


def test_a_refusal_of_something_else_is_passed_on(tmp_path: Path, odd: OddProvider) -> None:
    config = provider_config(odd.url)
    with LedgerDouble({"usd": 100 * DOLLAR}) as ledger, Meter(tmp_path, meter_config(ledger.url, config)) as meter:
        odd.say(json.dumps({"error": {"message": "no such tool"}}).encode(), status="400 Bad Request")
        with pytest.raises(openai.BadRequestError, match="no such tool"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        # The same where the client named the maximum itself: it asked for that one.
        odd.say(json.dumps({"error": TOO_LARGE}).encode(), status="400 Bad Request")
        with pytest.raises(openai.BadRequestError, match="4096"):
            openai_client(meter).chat.completions.create(model=MODEL, messages=HI, max_tokens=5_000)
        assert len(odd.bodies) == 2


def test_where_nothing_is_limited_no_maximum_is_added(tmp_path: Path, odd: OddProvider) -> None:
    with LedgerDouble({}) as ledger, Meter(tmp_path, meter_config(ledger.url, provider_config(odd.url))) as meter:
        openai_client(meter).chat.completions.create(model=MODEL, messages=HI)
        assert not {"max_tokens", "max_completion_tokens"} & set(json.loads(odd.bodies[0]))
