"""A change that is marked while something is being judged is judged again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from almoner_operator import tool_providers
from almoner_operator.agents import SecretFacts
from almoner_operator.cache import Cache
from almoner_operator.observe import Observer
from almoner_operator.scheduling.model import Requests

Json = dict[str, Any]


def raw(name: str, version: int, spec: Json) -> Json:
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "generation": version}, "spec": spec}


def provider(version: int, secret: str | None) -> Json:
    credentials = {} if secret is None else {"credentials": {"name": secret, "key": "key"}}
    prices = [{"model": "small", "inputPerMillion": "1.00", "outputPerMillion": "2.00"}]
    base: Json = {"type": "OpenAICompatible", "baseURL": "http://models.example/v1", "prices": prices}
    return raw("local", version, {**base, **credentials})


def tool_provider(version: int, secret: str | None) -> Json:
    credentials = {} if secret is None else {"credentials": {"name": secret, "key": "key"}}
    return raw("tools", version, {"type": "Custom", "prices": [{"tool": "search", "perCall": "0.01"}], **credentials})


def agent(version: int, secret: str | None) -> Json:
    reference = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": secret, "key": "key"}}}
    runner = {} if secret is None else {"env": [reference]}
    return raw(
        "agent", version, {"type": "Simulation", "model": {"provider": "local", "name": "small"}, "runner": runner}
    )


class World:
    """A cache, an observer, and Secrets of which none is there; `meanwhile` happens while one is looked at."""

    def __init__(self) -> None:
        self.cache = Cache(meter=Requests(), wake=lambda: None)
        self.meanwhile: Callable[[], None] | None = None
        context = SimpleNamespace(
            cache=self.cache,
            secrets=SimpleNamespace(facts=self.facts),
            writer=SimpleNamespace(mark=lambda *_, **__: None),
            events=SimpleNamespace(tell=lambda *_, **__: None),
        )
        self.observer = Observer(cast("Any", context))

    async def facts(self, namespace: str, names: Sequence[str]) -> dict[str, SecretFacts]:
        await asyncio.sleep(0)
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None and names:
            happens()
        return {}


@pytest.mark.parametrize("kind", ["ModelProvider", "ToolProvider", "Agent"])
async def test_an_edit_that_comes_while_it_is_being_judged_is_judged(kind: str) -> None:
    world = World()
    cache, space = world.cache, world.cache.space("ns")

    def observe(version: int, secret: str | None) -> None:
        if kind == "ModelProvider":
            cache.observe_provider(None, provider(version, secret))
        elif kind == "ToolProvider":
            tool_providers.observe(cache, None, tool_provider(version, secret))
        else:
            cache.observe_agent(None, agent(version, secret))

    def record() -> Any:
        found: dict[str, Any] = {"ModelProvider": space.providers, "ToolProvider": space.tool_providers}
        return next(iter(found.get(kind, space.agents).values()))

    cache.observe_provider(None, provider(1, None))
    await world.observer.judge()
    observe(2, "missing")
    came = []

    def edit() -> None:
        came.append(True)
        observe(3, None)

    world.meanwhile = edit
    await world.observer.judge()
    assert came
    await world.observer.judge()
    status = record().status
    assert status.observed_generation == 3
    ready = next(each for each in status.conditions if each.type == "Ready")
    assert ready.reason == "Ready", ready.message
    marks = cache.providers_changed | cache.tool_providers_changed | cache.agents_changed
    assert not marks, "and then it rests"
