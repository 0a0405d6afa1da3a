"""Teach kopf's watches to read objects that nest deeper than Python's JSON decoder goes.

Role: the API server stores up to 10,000 levels in an open field; `json.loads` raises RecursionError after about a
thousand. In kopf that ends the watch of the whole kind, so one object would stop everybody's. kopf has no setting for
its decoder, so its module gets ours (`almoner_core.nesting.loads`).

Boundary: touches two names of kopf's client module; a test plants such an object and sees its neighbours served.
"""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from kopf._cogs.clients import api

from almoner_core.nesting import loads

_request: Final = api.request


def install() -> None:
    """Replace kopf's decoders. Again changes nothing."""
    replaced: Any = api
    replaced.json = SimpleNamespace(loads=loads, dumps=json.dumps)
    replaced.request = _tolerant_request


async def _tolerant_request(*arguments: Any, **options: Any) -> aiohttp.ClientResponse:
    response: Any = await _request(*arguments, **options)
    response.json = functools.partial(response.json, loads=loads)
    answer: aiohttp.ClientResponse = response
    return answer
