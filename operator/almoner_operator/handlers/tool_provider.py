"""Events of ToolProvider objects (toolproviders.almoner.dev) go into the cache."""

from __future__ import annotations

from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator import tool_providers
from almoner_operator.handlers.common import cache_of


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "toolproviders", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    tool_providers.observe(cache_of(memo), event["type"], event["object"])
