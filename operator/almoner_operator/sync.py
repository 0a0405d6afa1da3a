"""Fills the cache at the start, and finds what the watches missed.

Role: kopf's watches begin with a list too, but do not say when it is over, and after a gap in a watch kopf lists anew
without telling what is no longer there. So this lists everything itself once before the first decision, and sweeps the
names of what exists every few minutes to forget the rest.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from almoner_core.contract import LABEL_COMPONENT, RUNNER_COMPONENT
from almoner_operator import apart, metrics, tool_providers
from almoner_operator.cache import Cache, Space
from almoner_operator.context import Context
from almoner_operator.errors import ApiError
from almoner_operator.kubernetes import (
    AGENTS,
    CLUSTER_PROVIDERS,
    CLUSTER_TOOL_PROVIDERS,
    EXECUTIONS,
    OURS,
    PODS,
    PROVIDERS,
    QUOTAS,
    TOOL_PROVIDERS,
    TRAINING_JOBS,
    KubernetesClient,
    Resource,
)
from almoner_operator.news import DELETED
from almoner_operator.records import AgentRecord, ProviderRecord, QuotaRecord
from almoner_operator.scheduling.model import EXECUTION, TRAINING_JOB
from almoner_operator.tool_records import ToolProviderRecord

log = logging.getLogger(__name__)

SERVED_SECONDS: Final = 0.5
SWEEP_FIRST_SECONDS: Final = 10.0
SWEEP_SECONDS: Final = 300.0
POD_SELECTOR: Final = f"{LABEL_COMPONENT}={RUNNER_COMPONENT}"

Observe = Callable[[str | None, Mapping[str, Any]], None]


def observers(cache: Cache) -> list[tuple[Resource, str | None, Observe]]:
    """Give every watched resource with its label selector and who takes its events in; what others name comes first."""
    return [
        (CLUSTER_PROVIDERS, None, cache.observe_provider),
        (CLUSTER_TOOL_PROVIDERS, None, lambda event, raw: tool_providers.observe(cache, event, raw)),
        (PROVIDERS, None, cache.observe_provider),
        (TOOL_PROVIDERS, None, lambda event, raw: tool_providers.observe(cache, event, raw)),
        (QUOTAS, None, cache.observe_quota),
        (AGENTS, None, cache.observe_agent),
        (EXECUTIONS, None, lambda event, raw: cache.observe_run(EXECUTION, event, raw)),
        (TRAINING_JOBS, None, lambda event, raw: cache.observe_run(TRAINING_JOB, event, raw)),
        (PODS, POD_SELECTOR, cache.observe_pod),
    ]


def take(kind: str, observe: Observe, event: str | None, raw: Mapping[str, Any]) -> None:
    """Take one object in: whatever it holds, the others are taken in too."""
    metadata = raw.get("metadata") or {}
    apart.each("taking in", f"{kind} {metadata.get('namespace')}/{metadata.get('name')}", observe, event, raw)


def count_live(cache: Cache) -> None:
    """Have the metric of known objects tell what the cache has whenever it is asked."""
    for resource, _, _ in observers(cache):
        metrics.KNOWN.labels(resource.kind).set_function(functools.partial(_count, cache, resource))


def _count(cache: Cache, resource: Resource) -> float:
    if resource is PODS:
        return sum(1 for _ in cache.pods.present())
    if resource in (EXECUTIONS, TRAINING_JOBS):
        running = sum(run.key.kind == resource.kind for run in cache.runs.values())
        return running + sum(done.key.kind == resource.kind for done in cache.finished.values())
    return sum(len(_groups(space)[resource]) for space in _spaces(cache, resource))


def _spaces(cache: Cache, resource: Resource) -> Iterable[Space]:
    return cache.spaces.values() if resource.namespaced else (cache.cluster,)


def _places(context: Context, resource: Resource) -> tuple[str | None, ...]:
    """Where to list a resource; None: everywhere. Objects of the cluster are listed whatever namespaces are served."""
    return (context.settings.namespaces if resource.namespaced else ()) or (None,)


async def wait_served(client: KubernetesClient) -> None:
    """Wait until discovery lists every kind of ours: kopf never watches one that it does not find. Raises ApiError."""
    wanted = {each.plural for each in OURS}
    said = False
    while missing := wanted - await client.served(AGENTS.api):
        if not said:
            log.warning("the API server does not serve %s yet: install the CRDs", ", ".join(sorted(missing)))
            said = True
        await asyncio.sleep(SERVED_SECONDS)


async def fill(context: Context) -> None:
    """List everything into the cache. Raises ApiError."""
    started = time.monotonic()
    for resource, selector, observe in observers(context.cache):
        count = 0
        for namespace in _places(context, resource):
            async for page in context.client.pages(resource, namespace=namespace, label_selector=selector):
                for raw in page:
                    # Items of a list do not repeat what they are.
                    take(resource.kind, observe, None, raw)
                count += len(page)
                await asyncio.sleep(0)
        log.info("%d %s known", count, resource.plural)
    log.info("the cache is filled", extra={"seconds": round(time.monotonic() - started, 3)})


async def sweep(context: Context) -> None:
    """Forget what is no longer there, now and then, for ever."""
    await asyncio.sleep(SWEEP_FIRST_SECONDS)
    while True:
        try:
            await sweep_once(context)
        except ApiError as error:
            log.warning("sweeping failed: %s", error)
        await asyncio.sleep(SWEEP_SECONDS)


async def sweep_once(context: Context) -> None:
    """List the metadata of everything, and forget what was known before and is not listed."""
    cache = context.cache
    for resource, selector, observe in observers(cache):
        known = _known(cache, resource)
        for namespace in _places(context, resource):
            pages = context.client.pages(resource, namespace=namespace, label_selector=selector, metadata_only=True)
            async for page in pages:
                for item in page:
                    known.pop(item["metadata"]["uid"], None)
        for raw in known.values():
            log.info("%s %s was deleted unseen", resource.kind, raw["metadata"]["name"])
            take(resource.kind, observe, DELETED, raw)


def _known(cache: Cache, resource: Resource) -> dict[str, dict[str, Any]]:
    """Give what is known of a resource, in the little of an object's form that its deletion needs."""
    if resource is PODS:
        return {
            pod.uid: {**pod.raw, "metadata": {**pod.raw["metadata"], "labels": pod.labels}}
            for pod in cache.pods.present()
        }
    if resource in (EXECUTIONS, TRAINING_JOBS):
        keys = [run.key for run in cache.runs.values()] + [done.key for done in cache.finished.values()]
        return {key.uid: _named(key.namespace, key.name, key.uid) for key in keys if key.kind == resource.kind}
    found: dict[str, dict[str, Any]] = {}
    for space in _spaces(cache, resource):
        for record in _groups(space)[resource].values():
            found[record.uid] = _named(record.namespace, record.name, record.uid)
    return found


def _groups(
    space: Space,
) -> dict[Resource, Mapping[str, AgentRecord | QuotaRecord | ProviderRecord | ToolProviderRecord]]:
    return {
        AGENTS: space.agents,
        QUOTAS: space.quotas,
        PROVIDERS: space.providers,
        TOOL_PROVIDERS: space.tool_providers,
        CLUSTER_PROVIDERS: space.providers,
        CLUSTER_TOOL_PROVIDERS: space.tool_providers,
    }


def _named(namespace: str, name: str, uid: str) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace, "name": name, "uid": uid}}
