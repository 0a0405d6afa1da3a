"""What a legacy completion can cost at most."""

from __future__ import annotations

import json
from typing import Any

import pytest

from almoner_runner.meter.body import read_body
from almoner_runner.meter.completions import PROMPTS_MAX, completions
from almoner_runner.meter.config import Card, Model, Provider, Tier
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.refusals import InvalidCallError

CARD = Card(version="v", tiers=(Tier(input=1, cached_input=1, cache_write=1, output=1),))
STRICT = Rules(strict=True, priced=True)


def bound(kind: str = "OpenAICompatible", rules: Rules = STRICT, **fields: Any) -> Call:
    model = Model("m", CARD, context_window=50_000, max_output_tokens=1024)
    provider = Provider("p", kind, "http://x/v1", ("OpenAI",), {"m": model})
    return completions(provider, read_body(json.dumps({"model": "m"} | fields).encode()), rules)


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ({"prompt": "a", "max_tokens": 7}, 7),
        ({"prompt": [1, 2, 3], "max_tokens": 7}, 7),
        ({"prompt": ["a", "b"], "max_tokens": 7}, 14),
        ({"prompt": [[1, 2], [3]], "max_tokens": 7}, 14),
        ({"prompt": ["a", "b"], "max_tokens": 7, "n": 2}, 28),
        ({"prompt": "a", "max_tokens": 7, "n": 2, "best_of": 5}, 35),
        ({"prompt": "a", "max_tokens": 7, "n": None, "best_of": None}, 7),
        ({"prompt": "a", "max_tokens": 0}, 0),
        ({"prompt": "a"}, 1024),
    ],
)
def test_every_prompt_and_every_answer_counts(fields: dict[str, Any], output: int) -> None:
    call = bound(**fields)
    assert call.output_bound == output
    assert call.input_bound >= len(json.dumps(fields))
    assert call.bound()["tokens"] == call.input_bound + output


def test_where_openai_is_asked_for_no_maximum_it_is_that_of_the_api() -> None:
    call = bound("OpenAI", prompt="a")
    assert call.output_bound == 16
    assert json.loads(call.body())["max_tokens"] == 16


def test_what_is_echoed_may_count_as_output() -> None:
    call = bound(prompt="a", max_tokens=5, n=2, echo=True)
    assert call.output_bound == 2 * (5 + call.input_bound)


def test_a_stream_says_its_usage() -> None:
    call = bound(prompt="a", max_tokens=5, stream=True)
    assert call.hide_usage
    assert json.loads(call.body())["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": [{"image": "x"}]}, "prompt: under a budget"),
        ({"max_tokens": 3}, "prompt: under a budget"),
        ({"prompt": 7}, "prompt: under a budget"),
        ({"prompt": ["a", 1]}, "prompt: under a budget"),
        ({"prompt": "a", "service_tier": "priority"}, "service_tier"),
        ({"prompt": "a", "mystery": 1}, "mystery"),
        ({"prompt": "a", "n": 129}, "n: must be"),
        ({"prompt": ["a"] * (PROMPTS_MAX + 1)}, "at most 2048 prompts"),
    ],
)
def test_what_cannot_be_bounded_is_refused_by_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidCallError, match=says):
        bound(**fields)


def test_where_nothing_is_limited_it_goes_on_and_is_bounded_by_the_window() -> None:
    call = bound(rules=Rules(strict=False, priced=False), prompt=[{"image": "x"}, "b"], mystery=1)
    assert call.input_bound == 100_000
