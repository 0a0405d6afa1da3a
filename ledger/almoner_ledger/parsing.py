"""Reads bodies and query parameters strictly, and names the field that is wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from aiohttp import web
from pydantic import ValidationError

from almoner_core.wire import BATCH_ITEMS_MAX, ErrorCode, WireModel
from almoner_ledger.errors import LedgerError, invalid

M = TypeVar("M", bound=WireModel)
BODY_SECONDS: Final = 20.0
"""A body comes within so long, or the caller is sent away: it holds a connection meanwhile."""
_ID: Final = re.compile(r"[0-9a-f-]{36}")
_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")  # an escape, and not an escaped backslash before a "u"


async def read_body(request: web.Request, limit: int) -> bytes:
    """Read a body of at most `limit` bytes within BODY_SECONDS.

    Raises LedgerError `too_large` as soon as it is known to be longer, or when the time is over.
    """
    error = LedgerError(ErrorCode.TOO_LARGE, f"the body may have at most {limit} bytes; send less at once")
    if (request.content_length or 0) > limit:
        raise error
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_chunked(65_536):
                body += chunk
                if len(body) > limit:
                    raise error
    except TimeoutError:
        raise LedgerError(
            ErrorCode.TOO_LARGE, f"the body did not come within {BODY_SECONDS:g} s; send less at once"
        ) from None
    return bytes(body)


def without_nul(body: bytes) -> bytes:
    """Give a JSON body with every escape of NUL replaced by that of U+FFFD."""
    return _NUL.sub(rb"\1\\ufffd", body)


def parse_body(body: bytes, model: type[M]) -> M:
    """Read a message. Strict: no number from a string, no unknown field. Raises LedgerError `invalid`.

    The character NUL, which PostgreSQL's text cannot hold, is refused.
    """
    if b"\\u0000" in body:
        _refuse_nul(body)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(*_first(error)) from None


@dataclass(frozen=True, slots=True)
class Batch(Generic[M]):
    """A message with many items, those that are malformed left out.

    `message` None: none is left. `places` are the places of the message's items as they came, `errors` and `allotments`
    (where an item names one) go by place too.
    """

    message: M | None
    places: list[int]
    errors: dict[int, LedgerError]
    allotments: dict[int, str]


def parse_batch(body: bytes, model: type[M], field: str, item: type[WireModel]) -> Batch[M]:
    """Read a message whose `field` lists items of type `item`: one that is malformed does not keep the others back.

    Raises LedgerError `invalid` where the message around them is malformed.
    """
    try:
        message = parse_body(body, model)
        return Batch(message, list(range(len(getattr(message, field)))), {}, {})
    except LedgerError as error:
        whole = error
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise whole from None
    listed = document.get(field) if isinstance(document, dict) else None
    if not isinstance(listed, list) or not 0 < len(listed) <= BATCH_ITEMS_MAX:
        raise whole
    errors: dict[int, LedgerError] = {}
    for place, each in enumerate(listed):
        try:
            parse_body(json.dumps(each).encode(), item)
        except LedgerError as error:
            errors[place] = error
    if not errors:
        raise whole
    places = [place for place in range(len(listed)) if place not in errors]
    fit = {**document, field: [listed[place] for place in places]}
    named = {place: each["allotment"] for place, each in enumerate(listed) if _names_allotment(each)}
    return Batch(parse_body(json.dumps(fit).encode(), model) if places else None, places, errors, named)


def _names_allotment(item: Any) -> bool:
    named = item.get("allotment") if isinstance(item, dict) else None
    return isinstance(named, str) and _ID.fullmatch(named) is not None


def _first(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:256] or "body"
    return place, str(first["msg"])[:512]


def _refuse_nul(body: bytes) -> None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return  # The model's validation says what is wrong.
    stack: list[tuple[str, Any]] = [("", document)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, str) and "\0" in value:
            raise invalid(place or "body", "the character NUL is not allowed")
        children: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            if any("\0" in key for key in value):
                raise invalid(place or "body", "the character NUL is not allowed in a name")
            children = list(value.items())
        elif isinstance(value, list):
            children = list(enumerate(value))
        stack.extend((f"{place}.{name}" if place else str(name), child) for name, child in children)


def integer(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Read an integer parameter from 0 to `most`."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= most):
        raise invalid(name, f"write an integer from 0 to {most}")
    return int(text)


def known_only(query: Mapping[str, str], names: set[str]) -> None:
    """Refuse parameters that are not known: a misspelt one is not a silent default."""
    for name in query:
        if name not in names:
            raise invalid(name[:64], f"unknown parameter; known are {', '.join(sorted(names)) or 'none'}")
