"""Events of ClusterModelProvider objects (clustermodelproviders.almoner.dev) go into the cache."""

from __future__ import annotations

from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator.handlers.common import cache_of
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "clustermodelproviders", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("ClusterModelProvider", cache.observe_provider, event["type"], event["object"])
