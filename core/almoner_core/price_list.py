"""Prices of many models in few bytes: what the operator tells a meter of models beside those that an Agent names.

Pure and light; both sides of it, so that one test holds them together. Providers sell hundreds of models, many at the
same price, and all of it goes into one environment variable. So a price is written once, as a list of numbers:

    {"versions": [text, ...],
     "cards": [[version, per request, [tier, ...], [tier of slow processing, ...]], ...],
     "models": [[name, card, context window, most output], ...]}

`version` and `card` are places in the lists before, null: unknown. A tier is [from so many tokens, input, cached input,
cache write, output, cache write for an hour or null].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from almoner_core.pricing import CardLike, TierLike

VERSIONS_MAX: Final = 1024
CARDS_MAX: Final = 2048
MODELS_MAX: Final = 2048
TIERS_MAX: Final = 8
NAME_CHARS_MAX: Final = 256
AMOUNT_MAX: Final = 10**18
_CARD_FIELDS: Final = 4
_MODEL_FIELDS: Final = 4
_TIER_FIELDS: Final = 6

CardT = TypeVar("CardT")
TierT = TypeVar("TierT")


class Versioned(CardLike, Protocol):
    """A card that says where it comes from."""

    @property
    def version(self) -> str:
        """Where the prices come from."""


class Priced(Protocol):
    """A contract.MeterModel, or the meter's own light copy of one."""

    @property
    def name(self) -> str:
        """As calls name it."""

    @property
    def price(self) -> Versioned | None:
        """What it costs; None: unknown."""

    @property
    def context_window(self) -> int | None:
        """Most tokens of input and output; None: unknown."""

    @property
    def max_output_tokens(self) -> int | None:
        """Most tokens of output; None: unknown."""


def pack(models: Iterable[Priced]) -> dict[str, Any]:
    """Write models down, the first MODELS_MAX of them."""
    versions: dict[str, int] = {}
    cards: dict[str, int] = {}
    written: list[Any] = []
    rows: list[Any] = []
    for model in models:
        if len(rows) >= MODELS_MAX:
            break
        place = None
        if (price := model.price) is not None:
            version = versions.setdefault(price.version, len(versions))
            card = [version, price.per_request, [*map(_row, price.tiers)], [*map(_row, price.batch)]]
            place = cards.setdefault(repr(card), len(cards))
            if place == len(written):
                written.append(card)
        rows.append([model.name, place, model.context_window, model.max_output_tokens])
    return {"versions": list(versions), "cards": written, "models": rows}


def _row(tier: TierLike) -> list[int | None]:
    return [
        tier.input_tokens_min,
        tier.input,
        tier.cached_input,
        tier.cache_write,
        tier.output,
        tier.cache_write_long,
    ]


def unpack(
    given: Any,
    make_tier: Callable[[Sequence[Any]], TierT],
    make_card: Callable[[str, int, tuple[TierT, ...], tuple[TierT, ...]], CardT],
) -> list[tuple[str, CardT | None, int | None, int | None]]:
    """Read what `pack` wrote: name, price, context window and most output of each model.

    make_tier: of the six numbers of a tier; make_card: of version, price per request, tiers and tiers of slow
    processing. Raises ValueError: it does not fit.
    """
    if not isinstance(given, Mapping):
        raise ValueError("expected an object")  # noqa: TRY004 - whatever does not fit
    versions = [_text(each) for each in _list(given.get("versions"), VERSIONS_MAX)]
    cards: list[CardT] = []
    for card in _list(given.get("cards"), CARDS_MAX):
        version, per_request, tiers, batch = _list(card, _CARD_FIELDS, least=_CARD_FIELDS)
        plain, slow = _tiers(tiers, make_tier), _tiers(batch, make_tier)
        if not plain:
            raise ValueError("a card without tiers")
        cards.append(make_card(_at(versions, version), _amount(per_request), plain, slow))
    found = []
    for row in _list(given.get("models"), MODELS_MAX):
        name, place, window, most = _list(row, _MODEL_FIELDS, least=_MODEL_FIELDS)
        price = None if place is None else _at(cards, place)
        found.append((_text(name), price, _optional(window), _optional(most)))
    return found


def _tiers(given: Any, make_tier: Callable[[Sequence[Any]], TierT]) -> tuple[TierT, ...]:
    rows = [_list(row, _TIER_FIELDS, least=_TIER_FIELDS) for row in _list(given, TIERS_MAX)]
    for row in rows:
        for amount in row[:-1]:
            _amount(amount)
        if row[-1] is not None:
            _amount(row[-1])
    starts = [row[0] for row in rows]
    if rows and (starts[0] != 0 or starts != sorted(set(starts))):
        raise ValueError(f"tiers must begin at 0 and ascend, got {starts}")
    return tuple(map(make_tier, rows))


def _list(value: Any, most: int, *, least: int = 0) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(f"expected a list of {least} to {most} entries")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS_MAX:
        raise ValueError(f"expected a text of at most {NAME_CHARS_MAX} characters")
    return value


def _amount(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= AMOUNT_MAX:
        raise ValueError("expected a whole number, 0 or more")
    return value


def _optional(value: Any) -> int | None:
    return None if value is None else max(1, _amount(value))


def _at(values: list[CardT], place: Any) -> CardT:
    if type(place) is not int or not 0 <= place < len(values):
        raise ValueError("expected a place in the list")
    return values[place]
