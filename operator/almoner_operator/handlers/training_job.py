"""Events of TrainingJob objects (trainingjobs.almoner.dev) go into the cache."""

from __future__ import annotations

import functools
from typing import Any

import kopf

from almoner_core.api.base import GROUP, VERSION
from almoner_operator.handlers.common import cache_of
from almoner_operator.scheduling.model import TRAINING_JOB
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind."""
    kopf.on.event(GROUP, VERSION, "trainingjobs", registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("TrainingJob", functools.partial(cache.observe_run, TRAINING_JOB), event["type"], event["object"])
