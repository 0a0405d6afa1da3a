"""What providers document of their models beside prices: the longest answer, and the most tokens of an image.

Pure and light: the meter asks on its hot path. By families of names, so that dated names are known too. Sources, read
in November 2026: OpenAI's model pages and its guide "Images and vision" (tiles of 512 pixels, or patches of 32 with a
factor by model); Anthropic's model overview and its guide "Vision" (one token for 750 pixels, after scaling).

A longest answer is only ever a default: what a client asks for is not held to it, and a provider that knows better says
so (the meter learns from its refusal). A most of an image is a bound, so it is rounded up, and where a family is not
known the largest that the provider documents for any model counts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

OPENAI: Final = "OpenAI"
ANTHROPIC: Final = "Anthropic"
DEFAULT_OUTPUT_TOKENS: Final = 32_768
"""Where neither client, agent, provider nor this table say how long an answer may be."""
SMALL_ANSWER_TOKENS: Final = 4_096
"""What a default leaves for the answer where the input may fill the context window."""

_FAMILIES: Final[tuple[tuple[str, int], ...]] = (
    # The first that matches counts.
    (r"gpt-3\.5-turbo", 4_096),
    (r"gpt-4o-2024-05-13|gpt-4-(turbo|vision|1106|0125)", 4_096),
    (r"gpt-4(-0613|-0314)?$|gpt-4-32k", 8_192),
    (r"gpt-4o|chatgpt-4o|gpt-4\.5|gpt-5(\.\d+)?-chat", 16_384),
    (r"gpt-4\.1", 32_768),
    (r"o1-preview", 32_768),
    (r"o1-mini", 65_536),
    (r"o[134](-|$)|codex-mini", 100_000),
    (r"gpt-5-pro", 272_000),
    (r"gpt-[5-9]", 128_000),
    (r"claude-(2|v1|instant|3-(opus|sonnet|haiku))", 4_096),
    (r"claude-3-5", 8_192),
    (r"claude-opus-4-[01]|claude-opus-4-2025|claude-4-opus", 32_000),
    (r"claude-3-7|claude-(sonnet|opus|haiku)-4(-[05]|-2025|$)|claude-4-sonnet", 64_000),
    (r"claude-", 128_000),
)
_LONGEST: Final = tuple((re.compile(rf"(?:ft:)?(?:{pattern})"), tokens) for pattern, tokens in _FAMILIES)

ANTHROPIC_IMAGE_TOKENS: Final = 5_000
"""1,568 pixels a side, 1,600 tokens; models that see in high resolution take 2,576 pixels and 4,784 tokens."""
OPENAI_IMAGE_TOKENS: Final = 50_000
"""The dearest is gpt-4o-mini: 2,833 and 5,667 for each of up to eight tiles. Original detail has 10,000 patches."""
_SMALL_IMAGES: Final = (
    # Tiles: 85 + 8 x 170 at most; patches: 1,536 with a factor of up to 2.46.
    (re.compile(r"gpt-4\.1-(mini|nano)|o4-mini|gpt-5(\.[0-2])?(-mini|-nano)?(-\d{4}|$)"), 4_096),
    (re.compile(r"(gpt-4o|chatgpt-4o)(?!-mini)|gpt-4\.1|gpt-4\.5|gpt-4-(turbo|vision)|o[13](-pro|-\d{4}|$)"), 2_048),
)


@lru_cache(maxsize=256)
def longest_answer(model: str) -> int:
    """Give the most tokens of output, thoughts included, that the model is documented to give; else a default."""
    for pattern, tokens in _LONGEST:
        if pattern.match(model):
            return tokens
    return DEFAULT_OUTPUT_TOKENS


def default_output(model: str, input_bound: int, window: int | None) -> int:
    """Give the output maximum where nobody said one: the longest answer that surely finds room in the context window.

    Servers refuse a maximum that does not fit the window beside the input. How many tokens the input has is known only
    as an upper bound, of a byte each; text in use has two bytes a token and more, so half of the bound is believed.
    window: tokens of input and output together; None: not known.
    """
    longest = longest_answer(model)
    if window is None:
        return longest
    room = max(window - input_bound // 2, min(SMALL_ANSWER_TOKENS, window // 4), 1)
    return min(longest, room)


@lru_cache(maxsize=256)
def image_tokens(provider_type: str, model: str) -> int | None:
    """Give the most tokens that one image can cost; None where the provider's type documents none."""
    if provider_type == ANTHROPIC:
        return ANTHROPIC_IMAGE_TOKENS
    if provider_type != OPENAI:
        return None
    for pattern, tokens in _SMALL_IMAGES:
        if pattern.match(model):
            return tokens
    return OPENAI_IMAGE_TOKENS
