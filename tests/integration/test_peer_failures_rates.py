"""What broke elsewhere about rates, tools and limits that bound nothing (docs/peer-failures.md): what must hold.

Real meters on a real ledger service over either database; what they let through is what the scripted provider saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from almoner_core.wire import Dimension
from almoner_dev.scripted import Reply, Usage
from tests.support.meter import DOLLAR, Meter
from tests.support.metered import Team, chat, message, refused, together, tried

MINUTE, HOUR = 60, 3600
PROVIDER_KEY = {"kind": "provider", "namespace": "team", "quota": "scripted"}


def rate(dimension: str, amount: int, per_seconds: int) -> dict[str, Any]:
    return {"dimension": dimension, "amount": amount, "per_seconds": per_seconds, "capacity": amount}


# BerriAI/litellm 18730
@pytest.mark.parametrize(("runs", "seconds"), [(1, MINUTE), (3, HOUR)])
def test_parallel_calls_never_pass_the_tokens_of_a_minute_or_an_hour(team: Team, runs: int, seconds: int) -> None:
    team.provider.load([Reply(usage=Usage(input_tokens=150, output_tokens=40), latency_ms=100)])
    team.limit(rates=[rate("tokens", 300, seconds)])
    meters = team.runs(runs)
    began = time.monotonic()
    answers = together([partial((chat, message)[n % 2], meters[n % runs], 30, stream=n % 3 == 0) for n in range(9)], 9)
    team.finish()
    used = sum(row.total_tokens for row in team.records())
    assert used == 190 * team.asked()
    # What a full bucket holds, and what came in since: nine calls at once would have used 1,710.
    assert 190 <= used <= 300 + 300 * (time.monotonic() - began) / seconds
    turned_away = refused(answers)
    assert len(turned_away) == 9 - team.asked()
    for error in turned_away:
        assert error.status_code == 429, error
        # Rounded up to a whole second.
        assert 1 <= int(error.response.headers["retry-after"]) <= seconds + 1, error


# pydantic/pydantic-ai 2978
def test_parallel_tool_calls_never_pass_the_tool_limit(team: Team) -> None:
    team.limit({"usd": DOLLAR, "tool_calls": 20})
    meters = team.runs(3, limits={"tool_calls": 12})
    answers = together([partial(_tool, meters[n % 3]) for n in range(90)], 30)
    assert [answers.count(status) for status in (200, 429)] == [20, 70]
    team.finish()
    assert team.account("tool_calls").spent == 20
    for meter in team.meters:
        assert sum(row.tool_calls for row in team.records(meter)) <= 12


def _tool(meter: Meter) -> int:
    return meter.post("/tools/calculator/calls", {})[0]


# --- every limit that can be set is one that binds ------------------------------------------------------------------


# Each puts a limit in force that has room for no call, or where that cannot be said for one; it gives what the run is
# opened with.


def _quota(team: Team, dimension: str) -> dict[str, Any]:
    team.limit({dimension: 0})
    return {}


def _execution(team: Team, dimension: str) -> dict[str, Any]:
    team.limit()
    return {"limits": {dimension: 0}}


def _one_execution_of_a_quota(team: Team, dimension: str) -> dict[str, Any]:
    team.limit(max_per_execution={dimension: 0}, limits={"usd": DOLLAR})
    return {}


def _one_request(team: Team, dimension: str) -> dict[str, Any]:
    team.limit(max_per_request={dimension: 0}, limits={"usd": DOLLAR})
    return {}


def _rate(team: Team, dimension: str) -> dict[str, Any]:
    team.limit({"usd": DOLLAR}, rates=[rate(dimension, 1, HOUR)])
    return {}


def _providers_rate(team: Team, dimension: str) -> dict[str, Any]:
    team.limit()
    key = {**PROVIDER_KEY, "namespace": team.quota}
    team.limit({}, key=key, rates=[rate(dimension, 1, HOUR)])
    return {"accounts": [team.key(), key]}


BINDING: dict[str, tuple[Callable[[Team, str], dict[str, Any]], tuple[Dimension, ...]]] = {
    "budget": (_quota, tuple(Dimension)),
    "execution": (_execution, tuple(Dimension)),
    "max-per-execution": (_one_execution_of_a_quota, tuple(Dimension)),
    "max-per-request": (_one_request, (Dimension.USD, Dimension.TOKENS)),
    "rate": (_rate, (Dimension.TOKENS, Dimension.REQUESTS, Dimension.TOOL_CALLS)),
    "provider-rate": (_providers_rate, (Dimension.TOKENS, Dimension.REQUESTS)),
}


# BerriAI/litellm 27381
@pytest.mark.parametrize("where", BINDING)
def test_every_limit_that_can_be_set_stops_a_call(team: Team, where: str) -> None:
    put, dimensions = BINDING[where]
    for dimension in dimensions:
        for stale in team.meters:
            stale.kill()
        team.meters.clear()
        meter = team.run(**put(team, dimension.value))
        before = team.asked()
        if dimension is Dimension.TOOL_CALLS:
            statuses = [_tool(meter) for _ in range(3)]
            # A rate's smallest bucket holds one.
            assert statuses == ([200, 429, 429] if where == "rate" else [429] * 3), (where, dimension)
            continue
        calls = [partial(chat, meter), partial(message, meter), partial(chat, meter, stream=True)]
        answers = [tried(call) for call in calls]
        free = 1 if "rate" in where and dimension is Dimension.REQUESTS else 0
        assert len(refused(answers)) == 3 - free, (where, dimension, answers)
        # Anthropic's clients are told 402 where waiting is vain; a rate's refusal passes.
        assert {error.status_code for error in refused(answers)} == ({429} if "rate" in where else {402, 429})
        assert team.asked() == before + free
