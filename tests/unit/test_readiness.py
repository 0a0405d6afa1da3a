"""What the probe of the operator says of a process that stands by, leads, or has lost the API server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from almoner_operator import leader
from almoner_operator.errors import UnavailableError
from almoner_operator.health import Health


@pytest.mark.parametrize(
    ("health", "problem"),
    [
        (Health(), ""),
        (Health(heard=lambda: "no answer"), "no answer"),
        (Health(leader=True), "leads, and is not ready yet: the election"),
        (Health(leader=True, waiting_for="filling the cache"), "leads, and is not ready yet: filling the cache"),
        (Health(leader=True, synced=True), ""),
        (Health(leader=True, synced=True, alive=lambda: "it stands still"), "it stands still"),
        (Health(leader=True, synced=True, heard=lambda: "no answer"), ""),
    ],
)
def test_ready_means_ready(health: Health, problem: str) -> None:
    assert health.problem() == problem


async def test_a_process_that_stands_by_is_ready_while_it_hears_the_api_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=1000.0)
    answers: list[Any] = [UnavailableError(503, "Unavailable", "no route"), {"spec": {"holderIdentity": "other"}}]

    class Server:
        async def get(self, *_: Any, **__: Any) -> dict[str, Any]:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return {"metadata": {"resourceVersion": "1"}, **answer}

    async def pause(_: float) -> None:
        if not answers:
            raise EndError

    monkeypatch.setattr("almoner_operator.leader.time.monotonic", lambda: clock.now)
    monkeypatch.setattr("almoner_operator.leader.asyncio.sleep", pause)
    candidate = leader.Leader(Server(), namespace="ns", name="lease", identity="me", seconds=10)  # type: ignore[arg-type]
    assert "has not answered yet" in candidate.unheard()
    with pytest.raises(EndError):
        await candidate.acquire()
    assert candidate.unheard() == ""
    clock.now += 21
    assert "no route" in candidate.unheard()


class EndError(Exception):
    """Ends the election of a test."""
