"""Events of Execution objects (executions.almoner.dev) go into the cache."""

from __future__ import annotations

import functools
from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator.handlers.common import cache_of
from almoner_operator.scheduling.model import EXECUTION
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "executions", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("Execution", functools.partial(cache.observe_run, EXECUTION), event["type"], event["object"])
