"""What the two dialects share: a call as the meter sees it, and refusals.

Pure. A dialect turns a request into a `Call` (what to send, and the most that it can use). What it does not know it
refuses by name, because an unknown field may cost money.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from almoner_core.environment import DEFAULT_CONTEXT_WINDOW
from almoner_core.model_facts import default_output, image_tokens
from almoner_core.model_names import same_model
from almoner_core.pricing import (
    MIN_OUTPUT_TOKENS,
    SLOW_TIERS,
    TokenCounts,
    bound_nanos,
    cost_nanos,
    input_tokens_bound,
    output_tokens_within,
)
from almoner_runner.meter.body import Body
from almoner_runner.meter.config import Card, Model, Provider
from almoner_runner.meter.images import Images
from almoner_runner.meter.refusals import InvalidCallError, RefusedError
from almoner_runner.meter.told import TOKENS_MAX

CHOICES_MAX: Final = 128
NAMES_SHOWN: Final = 12
THINKING_LEAST: Final = 1024
"""The smallest budget of thoughts that Anthropic's API takes; it has to be below the output maximum."""

Count = Callable[[], Awaitable[int | None]]
"""Gives a bound on the tokens of input by the provider's own count; None where it gave none."""
UsageShape = Literal["openai", "embeddings", "responses", "anthropic"]


@dataclass(slots=True)
class Rules:
    """What a call is checked against, besides its dialect."""

    strict: bool  # money or tokens are limited: only known fields
    priced: bool  # money is limited: only priced models
    default_output: int | None = None  # output maximum where the request says none: the Agent's word
    learned: Mapping[str, int] = field(default_factory=dict)  # ... and the provider's own, by provider/model
    # Tokens of the responses that this meter saw, by provider/id.
    stored: Mapping[str, int] = field(default_factory=dict)
    window_least: int = 0  # of a model's context window, where the request's headers ask for a larger one


@dataclass(slots=True)
class Call:
    """One call, bounded: what is sent, and the most that it can use."""

    operation: str
    resource_type: str
    provider: Provider
    model: Model
    payload: Body
    usage_shape: UsageShape
    input_bound: int
    files: tuple[dict[str, Any], ...] = ()  # what of a chat completion no byte bounds, and its provider can count
    beside_files: int = 0  # tokens of input beside those
    output_max: int = 0  # tokens of output a choice
    output_fields: tuple[str, ...] = ()  # where the payload says so
    output_chosen: bool = False  # the meter chose what is sent: the request says none
    output_least: int = MIN_OUTPUT_TOKENS  # below this a lower maximum makes no sense
    thinking: int = 0  # of it may be thoughts: a budget that the request says, and that is lowered with the maximum
    output_extra: int = 0  # output that the maximum does not bound
    choices: int = 1
    stream: bool = False
    hide_usage: bool = False  # the client did not ask for usage in its stream
    limited_from: int | None = None  # the output maximum before the meter lowered it
    long_cache: bool = False  # may write to the cache for an hour
    batch: bool = False  # asks for slow processing, which has a price of its own
    served: str | None = None  # the service tier that the answer says; None: it did not say
    count: Count | None = None  # has the provider count the input, where it does so for nothing
    beyond: str | None = None  # what the answer says was used that no price card has a price for

    @property
    def price(self) -> Card | None:
        """The model's price."""
        return self.model.price

    @property
    def output_bound(self) -> int:
        """Most tokens of output, over all choices."""
        return (self.output_max + self.output_extra) * self.choices

    def bound(self, output_max: int | None = None) -> dict[str, int]:
        """Give the most that the call can use, by dimension, with another output maximum where one is given."""
        maximum = self.output_max if output_max is None else output_max
        output = (maximum + self.output_extra) * self.choices
        amounts = {"tokens": self.input_bound + output, "requests": 1}
        if self.model.price is not None:
            amounts["usd"] = bound_nanos(
                self.model.price, self.input_bound, output, batch=self.batch, long=self.long_cache
            )
        return amounts

    def cost(self, tokens: TokenCounts) -> int | None:
        """Give what so many tokens cost, in nano-dollars; None where the price is unknown.

        A call that asked for slow processing costs what it was served as; the dearer of both where nobody said.
        """
        price = self.model.price
        if price is None:
            return None
        plain = cost_nanos(price, tokens)
        if not self.batch:
            return plain
        slow = cost_nanos(price, tokens, batch=True)
        if self.served is None:
            return max(plain, slow)
        return slow if self.served in SLOW_TIERS else plain

    def output_max_within(self, dimension: str, room: int) -> int:
        """Give the largest output maximum whose bound stays within `room`; -1 where none does."""
        if dimension == "tokens":
            output = room - self.input_bound
        elif dimension == "usd" and self.model.price is not None:
            output = output_tokens_within(
                self.model.price, self.input_bound, room, batch=self.batch, long=self.long_cache
            )
        else:
            return -1
        return output // self.choices - self.output_extra if output >= 0 else -1

    def lower_output(self, output_max: int) -> None:
        """Send a lower output maximum than the request had."""
        if self.limited_from is None:
            self.limited_from = self.output_max
        self.output_max = output_max
        for name in self.output_fields:
            self.payload.set(name, output_max)
        if self.thinking:
            budget = self.thinking if self.thinking < output_max else max(THINKING_LEAST, output_max * 3 // 4)
            self.payload.set("thinking", {**self.payload.get("thinking"), "budget_tokens": budget})

    def restore_output(self, output_max: int) -> None:
        """Take a lowering back that did not help."""
        self.lower_output(output_max)
        if self.limited_from == output_max:
            self.limited_from = None

    def choose_output(self, output_max: int, name: str | None = None) -> None:
        """Send another output maximum than the meter chose, in another field where one is named."""
        if name is not None:
            for used in self.output_fields:
                self.payload.drop(used)
            self.output_fields = (name,)
        self.output_max = output_max
        for used in self.output_fields:
            self.payload.set(used, output_max)

    def body(self) -> bytes:
        """Give what is sent: never more bytes than were bounded, since a maximum is only ever lowered afterwards."""
        return self.payload.content()


def words(text: str) -> frozenset[str]:
    """Give the words of a text as a set."""
    return frozenset(text.split())


def number(payload: Body | dict[str, Any], name: str, *, least: int = 0, most: int = TOKENS_MAX) -> int | None:
    """Read a whole number; None where absent or null."""
    value = payload.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidCallError(f"{name}: must be a whole number from {least} to {most}", param=name)
    return value


def flag(payload: Body, name: str) -> bool:
    """Read a boolean; False where absent or null."""
    value = payload.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidCallError(f"{name}: must be true or false", param=name)
    return value


def sequence(payload: Body, name: str) -> list[Any]:
    """Read a list; empty where absent or null."""
    value = payload.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidCallError(f"{name}: must be a list", param=name)
    return value


def find_model(provider: Provider, payload: Body, rules: Rules) -> Model:
    """Give the model that a request names. Under a money limit it must be one with a price."""
    name = payload.get("model")
    # It goes into the record: one that the ledger could not store would be lost, and what was spent with it.
    if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.isprintable():
        raise InvalidCallError("model: must name a model, in at most 128 printable characters", param="model")
    model = provider.models.get(name)
    if model is None and provider.first_party:
        known = next((provider.models[other] for other in same_model(name) if other in provider.models), None)
        model = None if known is None else replace(known, name=name)
    if rules.priced and (model is None or model.price is None):
        raise _unpriced(name, model, provider)
    return model if model is not None else Model(name)


def _unpriced(name: str, model: Model | None, provider: Provider) -> RefusedError:
    priced = sorted(each.name for each in provider.models.values() if each.price is not None)
    shown = ", ".join(priced[:NAMES_SHOWN]) + (f" and {len(priced) - NAMES_SHOWN} more" if priced[NAMES_SHOWN:] else "")
    list_it = f"list it in spec.models of ModelProvider {provider.name!r}"
    if model is None and provider.listed:
        why = f"is not listed: to let it be called, {list_it}"
    elif model is None and provider.left_out:
        why = f"is not told to this pod, which has no room for all models of provider {provider.name!r}: {list_it}"
    elif model is None and provider.listed is None:
        why = f"is not listed, or has no known price, at provider {provider.name!r}: {list_it}, and give it a price"
    else:
        why = (
            f"has no known price at provider {provider.name!r}, so no budget can bound it: give it one in spec.prices "
            "of its ModelProvider"
        )
    return RefusedError(
        404, "model_not_found", f"model {name!r} {why}; priced models here: {shown or 'none'}", param="model"
    )


def set_output_maximum(call: Call, asked: Iterable[int | None], rules: Rules) -> None:
    """Set the output maximum: the largest that the request says (a server may heed any), else the longest answer.

    Never more than the ModelProvider says that the model can give: a larger one would only hold money that cannot be
    spent. Where nothing is limited and nobody said a maximum, the request goes on without one.
    """
    model = call.model
    maximum = max((value for value in asked if value is not None), default=None)
    said = maximum is not None
    if maximum is None:
        maximum = rules.default_output or model.max_output_tokens
    if maximum is None:
        maximum = default_output(model.name, call.input_bound, model.context_window)
        maximum = min(maximum, rules.learned.get(f"{call.provider.name}/{model.name}", maximum))
    call.output_max = maximum if model.max_output_tokens is None else min(maximum, model.max_output_tokens)
    call.output_chosen = not said and (rules.strict or rules.default_output is not None)
    if said or call.output_chosen:
        for name in call.output_fields:
            call.payload.set(name, call.output_max)


def tool_bytes(provider: Provider, payload: Body, *names: str) -> int:
    """Give the bytes to count once more for tools and output schemas, which servers write anew in a prompt.

    OpenAI's and Anthropic's own models are shown them in a form that is no longer than the JSON, and far fewer tokens.
    So plain text counts once there. What other characters become when they are escaped anew is not known anywhere.
    Fields that the ModelProvider alone knows count likewise, at any server: its template may write them out.
    """
    more = payload.schema_bytes(*sorted(provider.allow_fields & payload.fields.keys()))
    if provider.first_party and all(payload.is_ascii(name) for name in names):
        return more
    return more + payload.schema_bytes(*names)


def text_bound(
    provider: Provider, payload: Body, model: Model, seen: Images, messages: int, *schemas: str
) -> tuple[int, bool]:
    """Give the most tokens of a request's text and images, and whether that covers the images.

    schemas: fields that servers may write anew.
    """
    each = image_tokens(provider.type, model.name)
    text = payload.text_bytes() - (seen.size if each is not None else 0)
    more = tool_bytes(provider, payload, *schemas)
    bound = input_tokens_bound(text, messages, tool_bytes=more, schema=any(payload.get(name) for name in schemas))
    return bound + seen.count * (each or 0), not seen.count or each is not None


def input_bound(bound: int, *, whole: bool, name: str, provider: Provider, model: Model, rules: Rules) -> int:
    """Give the most tokens of input: `bound`, which its bytes say, where the request is `whole`, else the window.

    `name` is the field where what its bytes do not bound is. Raises InvalidCallError: the window is not known.
    """
    window = None if model.context_window is None else max(model.context_window, rules.window_least)
    # There windows are documented and enforced. Elsewhere a stated one may be too small.
    enforced = window if provider.first_party else None
    if whole:
        return bound if enforced is None else min(bound, enforced)
    if window is None and rules.strict:
        raise InvalidCallError(
            f"{name}: holds what its bytes do not bound (an image, a file, something stored, or a field that the meter "
            f"does not know), and the context window of model {model.name!r} is not known, so no budget can bound it: "
            f"send it as text, or state contextWindow for the model in spec.models of ModelProvider {provider.name!r}",
            code="unbounded_input",
            param=name,
        )
    if enforced is not None:
        return enforced
    return max(bound, window or DEFAULT_CONTEXT_WINDOW, rules.window_least)
