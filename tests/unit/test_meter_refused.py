"""What the meter tells of refused calls in its last word: which of them still says why the agent failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from almoner_core.refusals import ProviderRefused, Refused, read_provider_refused, read_refused
from almoner_runner.meter.lastword import LastOutput, compose
from almoner_runner.meter.refusals import RefusedError
from almoner_runner.meter.refused import RefusedCalls
from almoner_runner.meter.spool import Spool

# A step: what happened, and when. A call that came through says when it began.
Step = tuple[str, Any, float]


def after(*steps: Step) -> RefusedCalls:
    calls = RefusedCalls()
    for kind, what, moment in steps:
        if kind == "refused":
            calls.refuse(RefusedError(429, what, f"no: {what}"), moment)
        elif kind == "began, and succeeded":
            calls.succeed(moment)
        else:
            calls.fail("main", what, moment)
    return calls


OK = "began, and succeeded"
METERS: dict[str, tuple[list[Step], tuple[int, str, bool] | None]] = {
    "nothing was refused": ([(OK, None, 1)], None),
    "a call was refused": ([("refused", "insufficient_quota", 1)], (1, "insufficient_quota", True)),
    "the agent went on": ([("refused", "insufficient_quota", 1), (OK, None, 2)], (1, "insufficient_quota", False)),
    "one of several at once": ([("refused", "insufficient_quota", 2), (OK, None, 1)], (1, "insufficient_quota", True)),
    "again": (
        [("refused", "insufficient_quota", 1), (OK, None, 2), ("refused", "rate_limit_exceeded", 3)],
        (2, "rate_limit_exceeded", True),
    ),
    "no room, and the agent tries something odd": (
        [("refused", "insufficient_quota", 1), ("refused", "model_not_found", 2), ("refused", "draining", 3)],
        (3, "insufficient_quota", True),
    ),
    "no room, then a rate": (
        [("refused", "insufficient_quota", 1), ("refused", "rate_limit_exceeded", 2)],
        (2, "rate_limit_exceeded", True),
    ),
    "odd, then no room": (
        [("refused", "model_not_found", 1), ("refused", "insufficient_quota", 2)],
        (2, "insufficient_quota", True),
    ),
    "no room once, and something odd later": (
        [("refused", "insufficient_quota", 1), (OK, None, 2), ("refused", "model_not_found", 3)],
        (2, "model_not_found", True),
    ),
    "no room, something odd, and one that came through": (
        [("refused", "insufficient_quota", 1), ("refused", "model_not_found", 2), (OK, None, 3)],
        (2, "insufficient_quota", False),
    ),
}


@pytest.mark.parametrize("name", METERS)
def test_f5_the_last_refusal_is_told_and_whether_a_call_came_through_after_it(name: str) -> None:
    steps, expected = METERS[name]
    told = after(*steps).by_meter
    assert (None if told is None else (told.count, told.code, told.last)) == expected


PROVIDERS: dict[str, tuple[list[Step], int | None]] = {
    "it refuses the key": ([("failed", 401, 1)], 401),
    "it answers later": ([("failed", 401, 1), (OK, None, 2)], None),
    "one of several at once": ([("failed", 400, 2), (OK, None, 1)], 400),
    "it is busy at last": ([("failed", 404, 1), ("failed", 503, 2)], None),
    "it is gone at last": ([("failed", 404, 1), ("failed", None, 2)], None),
    "it was busy before": ([("failed", 529, 1), ("failed", 403, 2)], 403),
    "too many calls": ([("failed", 429, 1)], None),
}


@pytest.mark.parametrize("name", PROVIDERS)
def test_what_the_provider_refused_last_is_told_where_it_would_again(name: str) -> None:
    steps, status = PROVIDERS[name]
    assert after(*steps).by_provider == (None if status is None else ProviderRefused("main", status))


def test_the_operator_reads_what_the_meter_writes() -> None:
    calls = after(("refused", "insufficient_quota", 1), ("failed", 404, 2))
    spool = Spool(Path("nowhere"), "a" * 36)
    message = compose(
        "a" * 36,
        1,
        spool,
        LastOutput(),
        final=True,
        complete=True,
        refused=calls.by_meter,
        provider_refused=calls.by_provider,
    )
    word = json.loads(message)
    assert read_refused(word) == Refused(1, "insufficient_quota", "no: insufficient_quota", last=True)
    assert read_provider_refused(word) == ProviderRefused("main", 404)


@pytest.mark.parametrize(
    "given",
    [None, 1, [], {}, {"provider": 1, "status": 401}, {"provider": "a"}, {"provider": "a", "status": True}]
    + [{"provider": "a", "status": status} for status in ("401", 500, 429, 401.0)],
)
def test_what_does_not_fit_is_no_refusal(given: Any) -> None:
    assert read_provider_refused({"provider_refused": given}) is None
