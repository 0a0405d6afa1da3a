"""What the meter reads of answers and streams: usage in every shape that providers were seen to say it in."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.pricing import TokenCounts
from almoner_runner.meter.answers import Seen
from almoner_runner.meter.dialect import UsageShape
from almoner_runner.meter.sse import EVENT_BYTES_MAX, Splitter


def read(shape: UsageShape, usage: Any) -> TokenCounts | None:
    seen = Seen(shape)
    seen.read({"usage": usage, "choices": [{}]})
    return seen.tokens()


def watched(shape: UsageShape, *events: dict[str, Any] | bytes) -> Seen:
    seen = Seen(shape)
    for event in events:
        seen.watch(event if isinstance(event, bytes) else sse(event))
    return seen


def sse(data: dict[str, Any], space: str = " ") -> bytes:
    return f"event: {data.get('type', 'x')}\ndata:{space}{json.dumps(data)}\n\n".encode()


ODD_COUNTS: list[Any] = [None, 100.0, "100", -1, "many", True, []]


# --- OpenAI -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, TokenCounts(input=10, output=5)),
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 80, "cache_write_tokens": 7},
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            TokenCounts(input=100, cached_input=80, cache_write=7, output=50, reasoning=40),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4},
            TokenCounts(input=9, cached_input=4, output=1),
        ),
        # Case C02: reasoning outside the completion.
        (
            {
                "prompt_tokens": 32,
                "completion_tokens": 9,
                "total_tokens": 135,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            TokenCounts(input=32, output=103, reasoning=94),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 530}, TokenCounts(input=10, output=520)),
        (
            {
                "prompt_tokens": 21,
                "completion_tokens": 0,
                "total_tokens": 81,
                "completion_tokens_details": {"reasoning_tokens": 60},
            },
            TokenCounts(input=21, output=60, reasoning=60),
        ),
        (
            {
                "prompt_tokens": 500,
                "completion_tokens": 500,
                "total_tokens": 1000,
                "completion_tokens_details": {"reasoning_tokens": 200},
            },
            TokenCounts(input=500, output=500, reasoning=200),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 94}},
            TokenCounts(input=5, output=103, reasoning=94),
        ),
        # The total leaves the reasoning out: it is believed all the same.
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 9,
                "total_tokens": 14,
                "completion_tokens_details": {"reasoning_tokens": 94},
            },
            TokenCounts(input=5, output=103, reasoning=94),
        ),
        # Case C08: the total helps where the output is no count.
        *(
            ({"prompt_tokens": 32, "completion_tokens": odd, "total_tokens": 132}, TokenCounts(input=32, output=100))
            for odd in ODD_COUNTS
        ),
        ({"prompt_tokens": 32, "total_tokens": 132}, TokenCounts(input=32, output=100)),
        ({"completion_tokens": 100, "total_tokens": 132}, TokenCounts(input=32, output=100)),
        # A total that is too small contradicts the rest.
        ({"prompt_tokens": 32, "completion_tokens": 5, "total_tokens": 3}, TokenCounts(input=32, output=5)),
        # In a chat what is missing is never zero.
        ({"prompt_tokens": 10, "prompt_tokens_details": None}, None),
        ({"prompt_tokens": 10, "completion_tokens": "many"}, None),
        ({"total_tokens": 12}, None),
        (None, None),
        ({}, None),
        ([], None),
        ({"prompt_tokens": -1, "completion_tokens": 1}, None),
        ({"prompt_tokens": True, "completion_tokens": 1}, None),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 1}, None),
        ({"prompt_tokens": "9" * 5000, "completion_tokens": 1}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, None),
    ],
)
def test_usage_of_chat_completions(usage: Any, tokens: TokenCounts | None) -> None:
    assert read("openai", usage) == tokens


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "total_tokens": 10}, TokenCounts(input=10)),
        ({"prompt_tokens": 10}, TokenCounts(input=10)),
        ({"total_tokens": 12}, TokenCounts(input=12)),
        ({}, None),
    ],
)
def test_usage_of_embeddings(usage: Any, tokens: TokenCounts | None) -> None:
    assert read("embeddings", usage) == tokens


def test_usage_of_responses() -> None:
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 30},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 10},
    }
    expected = TokenCounts(input=100, cached_input=30, output=20, reasoning=10)
    assert read("responses", usage) == expected
    assert read("responses", {**usage, "total_tokens": 220}) == TokenCounts(100, 30, 0, 120, 10)
    seen = watched("responses", {"type": "response.completed", "response": {"usage": usage}})
    assert (seen.tokens(), seen.complete) == (expected, True)
    assert watched("responses", {"type": "error", "code": "x"}).error


COUNTS = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
WHOLE = TokenCounts(input=1000, output=500)


@pytest.mark.parametrize(
    "events",
    [
        [{"choices": [], "usage": COUNTS}],
        # The last one says less.
        [{"choices": [{}], "usage": COUNTS}, {"choices": [], "usage": dict.fromkeys(COUNTS, 0)}],
        [{"choices": [{}], "usage": dict.fromkeys(COUNTS, 0)}, {"choices": [], "usage": COUNTS}],
        # In a choice; beside a choice that has none.
        [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": COUNTS}]}],
        [{"choices": [{"index": 0, "delta": {"content": "x"}, "usage": None}], "usage": COUNTS}],
        [{"choices": None, "usage": COUNTS}],
    ],
)
def test_usage_of_chat_streams_wherever_it_is(events: list[dict[str, Any]]) -> None:
    """Cases C03 and C08."""
    seen = watched("openai", {"choices": [{"delta": {"content": 'a "usage" of'}}], "usage": None}, *events)
    assert (seen.tokens(), seen.complete) == (WHOLE, False)
    seen.watch(b"data: [DONE]\n\n")
    assert seen.complete


def test_the_event_that_holds_nothing_but_usage_is_marked() -> None:
    seen = Seen("openai")
    assert seen.watch(sse({"choices": [{"delta": {}}], "usage": COUNTS})) is False
    assert seen.watch(sse({"choices": [], "usage": COUNTS})) is True
    assert seen.watch(sse({"choices": [], "usage": None, "prompt_filter_results": []})) is False
    assert seen.watch(b"data: [DONE]\n\n") is False


@pytest.mark.parametrize("done", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b": bye\nevent: end\ndata: [DONE]\n\n"])
def test_the_end_of_a_chat_stream(done: bytes) -> None:
    assert watched("openai", done).complete
    assert not watched("openai", sse({"choices": [{"delta": {"content": "[DONE]"}}]})).complete


def test_a_byte_order_mark_and_comments_hide_nothing() -> None:
    event = b"\xef\xbb\xbf: hello\r\n" + sse({"choices": [], "usage": COUNTS}, space="")
    assert watched("openai", event).tokens() == WHOLE


# --- Anthropic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"input_tokens": 10, "output_tokens": 5}, TokenCounts(input=10, output=5)),
        # Anthropic leaves what was cached out of input_tokens.
        (
            {
                "input_tokens": 10,
                "cache_read_input_tokens": 900,
                "cache_creation_input_tokens": 90,
                "output_tokens": 5,
                "output_tokens_details": {"thinking_tokens": 3},
            },
            TokenCounts(input=1000, cached_input=900, cache_write=90, output=5, reasoning=3),
        ),
        ({"input_tokens": 10, "cache_read_input_tokens": None, "output_tokens": 5}, TokenCounts(input=10, output=5)),
        ({"input_tokens": 10}, None),
        ({"output_tokens": 10}, None),
        (None, None),
    ],
)
def test_usage_of_messages(usage: Any, tokens: TokenCounts | None) -> None:
    assert read("anthropic", usage) == tokens


CACHED = {
    "input_tokens": 4,
    "cache_read_input_tokens": 50_000,
    "cache_creation_input_tokens": 2000,
    "output_tokens": 1,
}


@pytest.mark.parametrize(
    ("start", "deltas", "tokens"),
    [
        (CACHED, [{"input_tokens": 4, "output_tokens": 57}], TokenCounts(52_004, 50_000, 2000, 57)),
        (
            {"input_tokens": 52_004, "output_tokens": 1},
            [{"input_tokens": 0, "output_tokens": 57}],
            TokenCounts(52_004, output=57),
        ),
        (
            {"input_tokens": 52_004, "output_tokens": 1},
            [{"output_tokens": 300}, {"output_tokens": 0}],
            TokenCounts(52_004, output=300),
        ),
        (
            {"input_tokens": 9, "output_tokens": 1},
            [{"output_tokens": 7}, {"output_tokens": 12}],
            TokenCounts(9, output=12),
        ),
        # Some servers know the input at the end alone.
        ({"output_tokens": 0}, [{"input_tokens": 9, "output_tokens": 2}], TokenCounts(9, output=2)),
        ({"input_tokens": 9, "output_tokens": 1}, [], None),
    ],
)
def test_usage_of_message_streams(
    start: dict[str, Any], deltas: list[dict[str, Any]], tokens: TokenCounts | None
) -> None:
    """Case C03: counts are cumulative, and the largest of each kind counts."""
    seen = watched("anthropic", {"type": "message_start", "message": {"usage": start}})
    assert seen.tokens() is None
    seen.watch(sse({"type": "content_block_delta", "delta": {"text": "message_stop message_delta"}}))
    assert not seen.complete, "words in a text are no events"
    for usage in deltas:
        seen.watch(sse({"type": "message_delta", "usage": usage}))
    seen.watch(sse({"type": "message_stop"}))
    assert (seen.tokens(), seen.complete) == (tokens, True)


def test_the_input_is_known_before_the_output() -> None:
    seen = watched("anthropic", {"type": "message_start", "message": {"usage": CACHED}})
    assert seen.input_tokens() == TokenCounts(52_004, 50_000, 2000)


def test_an_error_in_a_message_stream_is_noted() -> None:
    assert watched("anthropic", {"type": "error", "error": {"type": "overloaded_error"}}).error


# --- what is no answer, and what no card has a price for --------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "upstream error", "code": 502}},
        {"error": "upstream error", "choices": None},
        {"error": {"message": "upstream error"}, "choices": [], "usage": COUNTS},
    ],
)
def test_an_answer_that_is_an_error(data: dict[str, Any]) -> None:
    """Case C21."""
    seen = Seen("openai")
    seen.read(data)
    assert seen.error == "the provider answered with an error: upstream error"
    assert seen.tokens() == (WHOLE if "usage" in data else None)


def test_an_answer_that_has_an_empty_error_is_one() -> None:
    seen = Seen("openai")
    seen.read({"error": None, "choices": [{}], "usage": COUNTS})
    assert (seen.error, seen.tokens()) == (None, WHOLE)


def test_an_error_in_a_chat_stream_is_noted() -> None:
    assert watched("openai", {"error": {"message": "upstream error"}}).error
    assert watched("openai", {"choices": [{"delta": {"content": 'an "error"'}}]}).error is None


@pytest.mark.parametrize(
    ("shape", "data", "beyond"),
    [
        ("openai", {"usage": {**COUNTS, "prompt_tokens_details": {"audio_tokens": 1000}}}, "audio tokens"),
        ("openai", {"usage": {**COUNTS, "completion_tokens_details": {"audio_tokens": 5}}}, "audio tokens"),
        ("openai", {"usage": {**COUNTS, "completion_tokens_details": {"audio_tokens": 0}}}, None),
        ("openai", {"usage": COUNTS, "service_tier": "priority"}, "service tier priority"),
        ("openai", {"usage": COUNTS, "service_tier": "on_demand"}, None),
        (
            "anthropic",
            {
                "usage": {
                    "input_tokens": 10,
                    "output_tokens": 5,
                    "cache_creation_input_tokens": 2000,
                    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 2000},
                    "server_tool_use": {"web_search_requests": 3},
                }
            },
            "cache writes of an hour, web searches",
        ),
        ("anthropic", {"usage": {"input_tokens": 10, "output_tokens": 5, "server_tool_use": None}}, None),
    ],
)
def test_what_no_price_card_has_a_price_for_is_named(
    shape: UsageShape, data: dict[str, Any], beyond: str | None
) -> None:
    """Case C22."""
    seen = Seen(shape)
    seen.read({"choices": [{}], **data})
    assert seen.beyond(None) == beyond


# --- whatever comes ---------------------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(), max_size=2)
)
NAMES = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "prompt_tokens_details",
    "completion_tokens_details",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
]
USAGES = st.recursive(ODD, lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6), max_leaves=12)


@given(st.sampled_from(("openai", "embeddings", "responses", "anthropic")), st.lists(USAGES, max_size=4))
def test_nothing_that_is_said_is_too_odd_and_no_count_falls(shape: UsageShape, usages: list[Any]) -> None:
    seen = Seen(shape)
    before: TokenCounts | None = None
    for usage in usages:
        seen.read({"usage": usage, "choices": [{}]})
        tokens = seen.tokens()
        if before is not None:
            assert tokens is not None
            # A later total or output may show that the input was guessed too high, never that less was used in all.
            assert tokens.total >= before.total or seen.told.get("input") is None
        if tokens is not None:
            assert tokens.reasoning <= tokens.output
        before = tokens


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n"])
def test_events_are_cut_wherever_the_chunks_end(size: int, end: bytes) -> None:
    events = [b"data: one" + end, b"event: x\ndata: two" + end, b": comment" + end]
    stream = b"".join(events) + b"data: torn"
    splitter = Splitter()
    found = [event for at in range(0, len(stream), size) for event in splitter.feed(stream[at : at + size])]
    assert found == events
    assert splitter.rest() == b"data: torn"


@given(
    st.lists(st.tuples(st.binary(max_size=9), st.sampled_from((b"\n", b"\r\n", b"\r"))), max_size=12),
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
)
def test_not_a_byte_of_a_stream_is_lost(lines: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    stream = b"".join(itertools.chain.from_iterable(lines))
    splitter, found, at = Splitter(), b"", 0
    for size in itertools.cycle(sizes):
        if at >= len(stream):
            break
        found += b"".join(splitter.feed(stream[at : at + size]))
        at += size
    assert found + splitter.rest() == stream


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    splitter = Splitter()
    found = list(splitter.feed(b"x" * (EVENT_BYTES_MAX + 1)))
    assert found == [b"x" * (EVENT_BYTES_MAX + 1)]
    assert splitter.rest() == b""
