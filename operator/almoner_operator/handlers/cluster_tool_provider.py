"""Events of ClusterToolProvider objects (clustertoolproviders.almoner.dev) go into the cache."""

from __future__ import annotations

import functools
from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator import tool_providers
from almoner_operator.handlers.common import cache_of
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "clustertoolproviders", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("ClusterToolProvider", functools.partial(tool_providers.observe, cache), event["type"], event["object"])
