"""Events of ResourceQuota objects (resourcequotas.almoner.dev) go into the cache.

The kind shares its name with core v1: the group is named, always.
"""

from __future__ import annotations

from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator.handlers.common import cache_of
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "resourcequotas", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("ResourceQuota", cache.observe_quota, event["type"], event["object"])
