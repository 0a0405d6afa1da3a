"""What a provider told of a call's usage: the largest count of each kind, over all that it said.

Pure. Counts of a stream are cumulative and some servers say less at its end than before; others leave kinds out, say
numbers as texts, or count reasoning outside the output. So every kind is read by itself, the largest of each counts,
and what is missing or contradicts itself is never taken for zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Final

from almoner_core.pricing import TokenCounts

TOKENS_MAX: Final = 10**9
DIGITS_MAX: Final = 10
DEARER_TIERS: Final = frozenset({"priority"})
"""Service tiers that are billed above the list price, which is all that a price card has."""


@dataclass(slots=True)
class Told:
    """The largest counts so far, by kind. What was never told is absent."""

    counts: dict[str, int] = field(default_factory=dict)
    beyond: set[str] = field(default_factory=set)
    """What was used that no price card has a price for."""

    def note(self, kind: str, value: int | None) -> None:
        """Keep the larger of what is known and `value`."""
        if value is not None and value >= self.counts.get(kind, 0):
            self.counts[kind] = value

    def use(self, what: str, amount: int | None) -> None:
        """Note that something was used that has a price of its own; nothing where the amount is none or zero."""
        if amount:
            self.beyond.add(what)

    def get(self, kind: str) -> int | None:
        """Give a count; None where it was never told."""
        return self.counts.get(kind)


def count(usage: dict[str, Any], *names: str) -> int | None:
    """Read a token count under the first of the names that has one: 100, 100.0 and "100" are the same.

    None where none is there or none is a count.
    """
    for name in names:
        value = usage.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= DIGITS_MAX:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= TOKENS_MAX:
            return value
    return None


def details(usage: dict[str, Any], name: str) -> dict[str, Any]:
    """Read an object of details; empty where there is none."""
    value = usage.get(name)
    return value if isinstance(value, dict) else {}


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def note_openai(value: Any, told: Told) -> bool:
    """Read `usage` of chat completions, embeddings and responses; False where it is none.

    By OpenAI's API reference: `prompt_tokens` (cached and written ones included) and `completion_tokens` (reasoning
    included); responses call them `input_tokens` and `output_tokens`.
    """
    if not isinstance(value, dict):
        return False
    found = {
        "input": count(value, "prompt_tokens", "input_tokens"),
        "output": count(value, "completion_tokens", "output_tokens"),
        "total": count(value, "total_tokens"),
    }
    for kind, amount in found.items():
        told.note(kind, amount)
    inner = details(value, "prompt_tokens_details") or details(value, "input_tokens_details")
    outer = details(value, "completion_tokens_details") or details(value, "output_tokens_details")
    # DeepSeek's name for it where OpenAI's is absent.
    cached = count(inner, "cached_tokens")
    told.note("cached", cached if cached is not None else count(value, "prompt_cache_hit_tokens"))
    told.note("written", count(inner, "cache_write_tokens"))
    told.note("reasoning", count(outer, "reasoning_tokens"))
    for some in (inner, outer):
        told.use("audio tokens", count(some, "audio_tokens"))
    return any(amount is not None for amount in found.values())


def openai_input(told: Told, *, embedding: bool = False) -> TokenCounts | None:
    """Give the input alone; None where it was not told."""
    whole, total, output = told.get("input"), told.get("total"), told.get("output")
    if whole is None and total is not None:
        if embedding:
            whole = total
        elif output is not None:
            whole = max(0, total - output)
    if whole is None:
        return None
    return TokenCounts(input=whole, cached_input=told.get("cached") or 0, cache_write=told.get("written") or 0)


def openai_tokens(told: Told, *, embedding: bool = False) -> TokenCounts | None:
    """Give all tokens; None where input or output was not told. Embeddings have no output.

    The output is the largest that the counts allow: what the total leaves beside the input, or reasoning beside an
    output that is too small to hold it.
    """
    known = openai_input(told, embedding=embedding)
    if known is None:
        return None
    output, total, reasoning = told.get("output"), told.get("total"), told.get("reasoning") or 0
    readings = [] if output is None else [output if reasoning <= output else output + reasoning]
    if total is not None and total >= known.input:
        readings.append(total - known.input)
    if not readings and not embedding:
        return None
    largest = max(readings, default=0)
    return TokenCounts(known.input, known.cached_input, known.cache_write, largest, min(reasoning, largest))


# --- Anthropic --------------------------------------------------------------------------------------------------------


def note_anthropic(value: Any, told: Told, *, output: bool = True) -> bool:
    """Read `usage` of a message, of its start (`output` False: one token of it is a placeholder) or of a delta."""
    if not isinstance(value, dict):
        return False
    told.note("input", count(value, "input_tokens"))
    told.note("cached", count(value, "cache_read_input_tokens"))
    told.note("written", count(value, "cache_creation_input_tokens"))
    if output:
        told.note("output", count(value, "output_tokens"))
        told.note("reasoning", count(details(value, "output_tokens_details"), "thinking_tokens"))
    told.note("written_long", count(details(value, "cache_creation"), "ephemeral_1h_input_tokens"))
    told.use("web searches", count(details(value, "server_tool_use"), "web_search_requests"))
    return True


def anthropic_input(told: Told) -> TokenCounts | None:
    """Give the input alone: `input_tokens` leaves out what was read from and written to the cache."""
    plain = told.get("input")
    if plain is None:
        return None
    cached, long = told.get("cached") or 0, told.get("written_long") or 0
    written = max(told.get("written") or 0, long)
    return TokenCounts(input=plain + cached + written, cached_input=cached, cache_write=written, cache_write_long=long)


def anthropic_tokens(told: Told) -> TokenCounts | None:
    """Give all tokens; None where input or output was not told."""
    known, output = anthropic_input(told), told.get("output")
    if known is None or output is None:
        return None
    reasoning = min(told.get("reasoning") or 0, output)
    return replace(known, output=output, reasoning=reasoning)
