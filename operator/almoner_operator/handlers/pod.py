"""Events of runner pods go into the cache."""

from __future__ import annotations

from typing import Any

import kopf

from almoner_core.contract import LABEL_COMPONENT, RUNNER_COMPONENT
from almoner_operator.handlers.common import cache_of
from almoner_operator.sync import take


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch this kind. The label is a filter of the watch itself too (settings.watching.label_selectors)."""
    kopf.on.event("", "v1", "pods", labels={LABEL_COMPONENT: RUNNER_COMPONENT}, registry=registry)(observe)


async def observe(event: kopf.RawEvent, memo: kopf.Memo, **_: Any) -> None:
    """Take one event in."""
    cache = cache_of(memo)
    take("Pod", cache.observe_pod, event["type"], event["object"])
