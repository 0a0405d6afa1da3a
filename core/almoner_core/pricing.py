"""What a call costs, and the most that it can cost before it is made. Exact: integers all the way.

Pure and light (standard library at run time), because the meter does this on its hot path. Amounts are integer
nano-dollars, rates are nano-dollars per million tokens; the sum of a call is rounded up once, to the nano-dollar, so
that a thousand small calls are never billed at less than their price. Where a price comes from is `price_data`'s
business.

Subsets: `cached_input` and `cache_write` are part of `input`, `cache_write_long` (entries that live for an hour) is
part of `cache_write`, `reasoning` is part of `output`; none is billed twice.
The tier of a call is chosen by its total input and applies to all of its tokens, as the providers do it.

Batch: a call may ask for slow processing (flex, batch), and only the answer says whether it got it. So such a call is
bounded by the dearer of both prices, and settled by what the answer says; where that does not say, it is the dearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

TOKENS_PER_RATE: Final = 1_000_000
UNBOUNDED_TOKENS: Final = 1_000_000_000
# Service tiers, as answers name them, that are billed at the batch price of a card.
SLOW_TIERS: Final = frozenset({"flex", "batch"})
# In a record's metadata: how many tokens were written to the cache for an hour; and that a call asked for that.
LONG_CACHE_WRITES: Final = "cache_write_long"
LONG_CACHE_ASKED: Final = "long_cache"
# The smallest output maximum worth a call: what an admission needs, and where lowering an output maximum stops.
MIN_OUTPUT_TOKENS: Final = 16

# What a request costs in tokens beyond the bytes of its text, see `input_tokens_bound`.
MESSAGE_OVERHEAD_TOKENS: Final = 16
REQUEST_OVERHEAD_TOKENS: Final = 64
TOOLS_OVERHEAD_TOKENS: Final = 1024


class TierLike(Protocol):
    """A contract.PriceTier, or the meter's own light copy of one."""

    @property
    def input_tokens_min(self) -> int:
        """Tokens of input from which the tier applies."""

    @property
    def input(self) -> int:
        """Nano-dollars per million tokens of plain input."""

    @property
    def cached_input(self) -> int:
        """Nano-dollars per million tokens read from the cache."""

    @property
    def cache_write(self) -> int:
        """Nano-dollars per million tokens written to the cache."""

    @property
    def output(self) -> int:
        """Nano-dollars per million tokens of output."""

    @property
    def cache_write_long(self) -> int | None:
        """Nano-dollars per million tokens written to the cache for an hour; None: there is no such price."""


class CardLike(Protocol):
    """A contract.PriceCard, or the meter's own light copy of one."""

    @property
    def tiers(self) -> Sequence[TierLike]:
        """Ascending by input_tokens_min, the first from 0."""

    @property
    def per_request(self) -> int:
        """Nano-dollars per request."""

    @property
    def batch(self) -> Sequence[TierLike]:
        """Tiers of calls that are served slowly, as `tiers`; empty where there is no such price."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of one call by kind; the subsets are as the module says."""

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    cache_write_long: int = 0

    def __post_init__(self) -> None:
        counts = (self.input, self.cached_input, self.cache_write, self.output, self.reasoning, self.cache_write_long)
        if min(counts) < 0:
            raise ValueError(f"token counts must not be negative: {self}")

    @property
    def total(self) -> int:
        """Input and output together: what the dimension `tokens` counts."""
        return self.input + self.output


def tier_for(card: CardLike, input_tokens: int, *, batch: bool = False) -> TierLike:
    """Give the tier that a call with so many input tokens (cached ones included) falls into."""
    tiers = card.batch if batch and card.batch else card.tiers
    chosen = tiers[0]
    for tier in tiers:
        if tier.input_tokens_min > input_tokens:
            break
        chosen = tier
    return chosen


def cost_nanos(card: CardLike, tokens: TokenCounts, *, batch: bool = False) -> int:
    """Give a call's cost in nano-dollars, rounded up once. `batch`: it was served slowly.

    Where a provider reports more cached and written tokens than input tokens, the subsets are believed and plain input
    counts as zero: the call is never cheaper than its parts.
    """
    tier = tier_for(card, max(tokens.input, tokens.cached_input + tokens.cache_write), batch=batch)
    plain = max(0, tokens.input - tokens.cached_input - tokens.cache_write)
    long = min(tokens.cache_write_long, tokens.cache_write)
    scaled = (
        plain * tier.input
        + tokens.cached_input * tier.cached_input
        + (tokens.cache_write - long) * tier.cache_write
        + long * max(tier.cache_write, tier.cache_write_long or 0)
        + tokens.output * tier.output
    )
    return -(-scaled // TOKENS_PER_RATE) + card.per_request


def prices_long_writes(card: CardLike) -> bool:
    """Say whether cache entries that live for an hour have a price, whatever the tier."""
    return all(tier.cache_write_long is not None for tiers in (card.tiers, card.batch) for tier in tiers)


def bound_nanos(
    card: CardLike, input_tokens: int, output_tokens: int, *, batch: bool = False, long: bool = False
) -> int:
    """Give the most that a call can cost: at most so much input of the dearest kind, so much output (all choices).

    Every tier that the input may reach counts, with the dearest rate of each kind among them: a tier for larger
    inputs need not be the dearer one. `batch`: it may be served slowly or not. `long`: it may write to the cache for an
    hour.
    """
    input_rate, output_rate = _dearest_rates(card, input_tokens, batch, long)
    scaled = input_tokens * input_rate + output_tokens * output_rate
    return -(-scaled // TOKENS_PER_RATE) + card.per_request


def _dearest_rates(card: CardLike, input_tokens: int, batch: bool, long: bool) -> tuple[int, int]:
    """Give the dearest input and output rates among the tiers that so much input may reach."""
    input_rate = output_rate = 0
    for tiers in (card.tiers, card.batch) if batch else (card.tiers,):
        for tier in tiers:
            if tier.input_tokens_min > input_tokens:
                break
            input_rate = max(input_rate, tier.input, tier.cached_input, tier.cache_write)
            if long:
                input_rate = max(input_rate, tier.cache_write_long or 0)
            output_rate = max(output_rate, tier.output)
    return input_rate, output_rate


def output_tokens_within(
    card: CardLike, input_tokens: int, nanos: int, *, batch: bool = False, long: bool = False
) -> int:
    """Give the largest output bound whose call stays within `nanos`; -1 where even no output does not fit.

    Where output costs nothing it is UNBOUNDED_TOKENS: callers take the smaller of this and their own maximum.
    """
    input_rate, output_rate = _dearest_rates(card, input_tokens, batch, long)
    left = (nanos - card.per_request) * TOKENS_PER_RATE - input_tokens * input_rate
    if left < 0:
        return -1
    return UNBOUNDED_TOKENS if output_rate == 0 else min(left // output_rate, UNBOUNDED_TOKENS)


def input_tokens_bound(text_bytes: int, messages: int, *, tool_bytes: int = 0, schema: bool = False) -> int:
    """Give the most tokens that a request of inline text can have.

    text_bytes: bytes of the request's JSON. A token of any tokenizer in use (byte-level BPE, SentencePiece with byte
    fallback, Unigram) stands for at least one byte of text, and JSON never writes text in fewer bytes than it has; what
    a tokenizer's normalization adds is the caller's to add. What a model's chat template adds is bounded by constants:
    the markers and role of a message are 5 to 10 tokens in the known templates (16 here), a system prompt that a
    template puts in by itself and the turn that it opens are up to about 40 (64 here); tools and output schemas bring
    instructions of up to 700 tokens (1,024 here) and are written out again, indented, in
    some templates, so their bytes count twice.
    """
    tokens = text_bytes + messages * MESSAGE_OVERHEAD_TOKENS + REQUEST_OVERHEAD_TOKENS
    if tool_bytes or schema:
        tokens += tool_bytes + TOOLS_OVERHEAD_TOKENS
    return tokens


def call_bound(card: CardLike | None, input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Give the amounts that a call can use at most, by dimension. `usd` is absent where the price is unknown."""
    amounts = {"tokens": input_tokens + output_tokens, "requests": 1}
    if card is not None:
        amounts["usd"] = bound_nanos(card, input_tokens, output_tokens)
    return amounts


class ToolCardLike(Protocol):
    """A contract.ToolPriceCard, or the meter's own light copy of one."""

    @property
    def per_call(self) -> int:
        """Nano-dollars per call."""

    @property
    def per_unit(self) -> int:
        """Nano-dollars per unit."""


def tool_nanos(card: ToolCardLike, units: int) -> int:
    """Give what a call of a tool costs, in nano-dollars: known before it is made, so it is its own bound."""
    if units < 0:
        raise ValueError(f"units must not be negative, got {units}")
    return card.per_call + card.per_unit * units


@dataclass(frozen=True, slots=True)
class FirstCall:
    """Amounts by dimension for an allotment's opening: without `need` no call fits; `want` is to start well."""

    need: dict[str, int]
    want: dict[str, int]


def first_call_bound(
    card: CardLike | None,
    *,
    text_bytes: int,
    max_output_tokens: int,
    tool_bytes: int = 0,
    schema: bool = False,
) -> FirstCall:
    """Bound a run's first call before there is a request: instructions and input as one system and one user message.

    text_bytes: UTF-8 bytes of instructions and input as JSON; a margin for the request around them is added here.
    need: the input and 16 tokens of output. want: the input and `max_output_tokens`. The meter bounds the real request
    again; where that is more, it asks for more.
    """
    envelope_bytes = 512
    tokens = input_tokens_bound(text_bytes + envelope_bytes, 2, tool_bytes=tool_bytes, schema=schema)
    return FirstCall(
        need=call_bound(card, tokens, min(MIN_OUTPUT_TOKENS, max_output_tokens)),
        want=call_bound(card, tokens, max_output_tokens),
    )
