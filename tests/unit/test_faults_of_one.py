"""A fault that nobody reckoned with costs one run some seconds: no loop without a pause, and nothing left for ever."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core.api.execution import AttemptOutcome, WaitReason
from almoner_operator import settle
from almoner_operator.admit import Admitter
from almoner_operator.attempts import AttemptEnd
from almoner_operator.cache import Cache
from almoner_operator.errors import LeadershipLostError, UnavailableError
from almoner_operator.lifecycle import Lifecycle, Orphan
from almoner_operator.records import Run
from almoner_operator.scheduling.model import EXECUTION, Requests
from almoner_operator.settle import LATCHES_MAX, Settler

NOTHING: Any = SimpleNamespace()
ATTEMPT = {"number": 1, "pod": "p", "podUID": "pod-uid", "allotment": "a"}


def cache_of_one(**status: Any) -> Cache:
    cache = Cache(meter=Requests(), wake=lambda: None)
    raw = {
        "metadata": {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1},
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
        "status": status,
    }
    cache.observe_run(EXECUTION, None, raw)
    return cache


class Spoilt(Admitter):
    """Its admissions fail in a way that nobody reckoned with."""

    error: Exception = KeyError("spec")

    async def _admit(self, run: Run, admission: Any) -> None:
        raise self.error


async def test_a_run_whose_admission_fails_oddly_waits_before_it_is_tried_again() -> None:
    cache = cache_of_one()
    run = cache.runs["u"]
    run.admitting = True
    context: Any = SimpleNamespace(cache=cache)
    await Spoilt(context, NOTHING).admit(run, NOTHING)
    assert not run.admitting
    assert run.hold is not None
    assert run.hold.reason is WaitReason.QUEUED
    assert "cannot be admitted: KeyError" in run.hold.message
    assert run.hold.until is not None
    assert run.hold.until > datetime.now(UTC), "no admission at once and again"


async def test_lost_leadership_in_an_admission_ends_the_process() -> None:
    cache = cache_of_one()
    context: Any = SimpleNamespace(cache=cache)
    admitter = Spoilt(context, NOTHING)
    admitter.error = LeadershipLostError("gone")
    with pytest.raises(LeadershipLostError):
        await admitter.admit(cache.runs["u"], NOTHING)
    assert cache.runs["u"].hold is None


async def test_an_end_that_fails_oddly_is_settled_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it is being settled: no review starts it anew."""
    cache = cache_of_one(phase="Running", attempts=[ATTEMPT])
    run = cache.runs["u"]
    run.end = AttemptEnd(AttemptOutcome.FAILED)
    waited: list[tuple[float, bool]] = []

    async def sleep(seconds: float) -> None:
        waited.append((seconds, run.settling))

    async def finish_run(_: Run) -> bool:
        raise KeyError("metadata")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    run.settling = True
    context: Any = SimpleNamespace(cache=cache)
    machines: Any = SimpleNamespace(finish_run=finish_run)
    with pytest.raises(KeyError):
        await Settler(context, machines)._settle(run)
    assert waited == [(settle.FAULT_RETRY_SECONDS, True)]
    assert not run.settling
    assert run.end is not None, "it is settled again"


async def test_money_of_what_was_left_behind_is_given_back_at_a_later_try(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[float, bool]] = []

    async def sleep(seconds: float) -> None:
        waited.append((seconds, orphan.closing))

    async def finish(*_: Any) -> bool:
        raise KeyError("metadata")

    context: Any = SimpleNamespace(cache=cache_of_one())
    machines: Any = SimpleNamespace(finish=finish)
    lifecycle = Lifecycle(context, NOTHING, NOTHING, machines)
    orphan = Orphan("a", "ns", "gone", 1, "p", None, 0.0, closing=True)
    lifecycle._orphans["a"] = orphan
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(KeyError):
        await lifecycle._close_orphan(orphan)
    assert lifecycle._orphans["a"] is orphan
    assert waited == [(settle.FAULT_RETRY_SECONDS, True)]
    assert not orphan.closing


async def test_an_end_that_could_not_be_written_again_is_written_at_the_next_tick() -> None:
    cache = cache_of_one(phase="Succeeded")
    done = cache.finished["u"]

    async def get(*_: Any) -> Any:
        raise UnavailableError(503, "ServiceUnavailable", "later")

    context: Any = SimpleNamespace(cache=cache, client=SimpleNamespace(get=get))
    settler = Settler(context, NOTHING)
    for _ in range(LATCHES_MAX + 1):
        await settler.latch(done)
        assert cache.overwritten == {"u"}
        cache.overwritten.clear()
    assert done.latched == 0, "only what was written counts"
