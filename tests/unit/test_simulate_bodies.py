"""Generated bodies through the real meter to a provider that counts: nothing is overspent, planted bugs are found."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from almoner_core import pricing
from almoner_dev.simulate import bounding
from almoner_dev.simulate.bodies import Drawer
from almoner_runner.meter import anthropic, app, body, inline, openai
from almoner_runner.meter.body import Body, read_body
from almoner_runner.meter.dialect import Call, Rules
from almoner_runner.meter.refusals import InvalidCallError, RefusedError

SCHEDULES = 60
# Each bug shows in one of ten seeds or more: so many never miss it.
MUTANTS_SEEDS = range(1, 101)


def test_generated_bodies_overspend_nothing() -> None:
    first = int(os.environ.get("ALMONER_TEST_SEED") or random.randrange(2**31))
    print(f"ALMONER_TEST_SEED={first}")  # noqa: T201 - shown where the test fails
    answers: dict[str, int] = {}
    for seed in range(first, first + SCHEDULES):
        result = bounding.run(seed)
        assert result.ok, "\n".join([result.verdict, *result.violations])
        for name, count in result.faults.items():
            answers[name] = answers.get(name, 0) + count
    seen = [answers.get(f"answered_{status}", 0) for status in (200, 400, 429)]
    assert min(seen) > SCHEDULES // 6, answers


def test_a_seed_replays_the_same_bodies() -> None:
    first, second = bounding.run(7), bounding.run(7)
    assert (first.trace, first.calls, first.faults) == (second.trace, second.calls, second.faults)
    assert first.trace != bounding.run(8).trace


# -- that it can fail ------------------------------------------------------------------------------------------------


def bounds_what_was_received(patch: pytest.MonkeyPatch) -> None:
    """As it was: the bytes that came are counted, and what was read is written anew."""

    def written(each: Body) -> bytes:
        return json.dumps(each.fields, ensure_ascii=False).encode("utf-8", "replace")

    patch.setattr(Body, "content", written)
    patch.setattr(Body, "text_bytes", lambda each: len(each._text.encode()))


def bounds_references_by_their_bytes(patch: pytest.MonkeyPatch) -> None:
    for name in ("chat_message", "response_item", "message"):
        patch.setattr(inline, name, lambda _: True)


def bounds_reasoning_by_its_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inline, "_reasoning", inline._ITEM_REASONING)
    known = inline.response_item
    patch.setattr(inline, "response_item", lambda item: known(item) or inline._ITEM_REASONING(item))


def forgets_what_an_earlier_response_held(patch: pytest.MonkeyPatch) -> None:
    get = Body.get
    patch.setattr(Body, "get", lambda each, name: None if name == "previous_response_id" else get(each, name))


def overlooks_a_larger_window(patch: pytest.MonkeyPatch) -> None:
    """A header asks for it, and goes on."""
    patch.setattr(anthropic, "window_asked", lambda _betas: 0)


def counts_tools_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Body, "schema_bytes", lambda _each, *_names: 0)
    patch.setattr(pricing, "TOOLS_OVERHEAD_TOKENS", 0)


def takes_a_key_twice(patch: pytest.MonkeyPatch) -> None:
    class Careless(body._Reader):
        def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            return dict(pairs)

    patch.setattr(body, "_reader", Careless())


def passes_half_an_emoji_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(body, "_HALF_PAIRS", re.compile("(?!)"))


def fails_after_the_hold(patch: pytest.MonkeyPatch) -> None:
    """As it was with half an emoji: held, never sent, and charged in full."""

    def failing(call: Call) -> bytes:
        content = call.payload.content()
        if b"1E400" in content:
            raise InvalidCallError("cannot be written")
        return content

    patch.setattr(Call, "body", failing)


def sends_another_maximum(patch: pytest.MonkeyPatch) -> None:
    """A lower maximum is held, and the one that was asked for is sent."""

    def lower(call: Call, output_max: int) -> None:
        call.output_max = output_max

    patch.setattr(Call, "lower_output", lower)


def refuses_the_innocent(patch: pytest.MonkeyPatch) -> None:
    def strict(content: bytes) -> Body:
        if b"\\u" in content:
            raise InvalidCallError("escapes are suspicious")
        return read_body(content)

    patch.setattr(app, "read_body", strict)


MUTANTS: list[Callable[[pytest.MonkeyPatch], None]] = [
    bounds_what_was_received,
    bounds_references_by_their_bytes,
    bounds_reasoning_by_its_bytes,
    forgets_what_an_earlier_response_held,
    overlooks_a_larger_window,
    counts_tools_once,
    takes_a_key_twice,
    passes_half_an_emoji_on,
    fails_after_the_hold,
    sends_another_maximum,
    refuses_the_innocent,
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_planted_bug_is_found(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    assert any(not bounding.run(seed).ok for seed in MUTANTS_SEEDS), "the simulation cannot see it"


# -- each body by itself -----------------------------------------------------------------------------------------------

BOUNDERS = {
    "chat": openai.chat,
    "responses": openai.responses,
    "embeddings": openai.embeddings,
    "messages": anthropic.messages,
}


@given(st.randoms(use_true_random=False), st.booleans(), st.booleans(), st.floats(0, 1))
@settings(max_examples=200)
def test_no_body_sent_has_more_bytes_than_were_bounded(
    chance: random.Random, strict: bool, official: bool, lowered: float
) -> None:
    """A token a byte of what goes out, after all that the meter changes, whatever it has to lower or to restore."""
    drawn = Drawer(chance, 0.05).draw()
    provider = bounding.PROVIDER
    if official:
        provider = dataclasses.replace(provider, type="OpenAI")
    try:
        call = BOUNDERS[drawn.route](provider, read_body(drawn.content), Rules(strict, strict, 1024))
    except RefusedError:
        assert not drawn.sound
        return
    asked = call.output_max
    bound, sent = call.input_bound, call.body()
    assert len(sent) <= bound
    if call.output_fields:
        call.lower_output(max(1, int(asked * lowered)))
        assert len(call.body()) <= bound
        assert {json.loads(call.body())[name] for name in call.output_fields} == {call.output_max}
        call.restore_output(asked)
        assert json.loads(call.body()) == json.loads(sent)
    assert json.loads(sent) == json.loads(json.dumps(call.payload.fields)), "what was judged is what is sent"
