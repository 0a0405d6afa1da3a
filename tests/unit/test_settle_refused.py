"""An end that the API server refuses for good keeps nobody else from being written; any other is tried on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from almoner_operator.cache import Cache
from almoner_operator.errors import ApiError, InvalidError, UnavailableError
from almoner_operator.scheduling.model import EXECUTION, Requests
from almoner_operator.settle import Settler

TRIES = 12
REFUSED = InvalidError(422, "Invalid", "spec: no")
AWAY = UnavailableError(503, "", "away")


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (REFUSED, [4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 300.0, 300.0, 300.0, 300.0, 300.0]),
        (AWAY, [2.0] * TRIES),
    ],
    ids=["refused", "away"],
)
async def test_how_often_an_end_is_tried(monkeypatch: pytest.MonkeyPatch, error: ApiError, pauses: list[float]) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def flush(*_: Any) -> bool:
        if len(slept) < TRIES:
            raise error
        return False

    monkeypatch.setattr("almoner_operator.settle.asyncio.sleep", sleep)
    cache = Cache(meter=Requests(), wake=lambda: None)
    metadata = {"name": "it", "namespace": "team", "uid": "u", "resourceVersion": "1", "generation": 1}
    cache.observe_run(EXECUTION, "ADDED", {"metadata": metadata, "spec": {"agentRef": {"name": "a"}, "input": {}}})
    context: Any = SimpleNamespace(cache=cache, writer=SimpleNamespace(flush=flush), events=SimpleNamespace())
    monkeypatch.setattr("almoner_operator.settle.milestones.ended", lambda *_: None)
    machines: Any = SimpleNamespace()
    await Settler(context, machines).finish(cache.runs["u"])
    assert slept == pauses
