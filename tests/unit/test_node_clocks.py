"""A node's clock is believed within a bound: the times of its pods as the operator takes them in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.identity import pod_name
from almoner_operator.attempts import agent_ended_at, started_at
from almoner_operator.cache import Cache
from almoner_operator.clocks import LATENCY_SECONDS, correct
from almoner_operator.machines import pod_time
from almoner_operator.scheduling.model import Requests

CREATED = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
UID = "8c7e1a52-1111-4222-8333-444455556666"
Json = dict[str, Any]


def stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def raw(version: int, started: datetime | None = None, finished: datetime | None = None) -> Json:
    """A pod of one container; its node says that it started, and ended."""
    status: Json = {"phase": "Pending"}
    if started is not None:
        state: Json = {"running": {"startedAt": stamp(started)}}
        if finished is not None:
            state = {"terminated": {"exitCode": 0, "startedAt": stamp(started), "finishedAt": stamp(finished)}}
        container = {"name": "agent", "state": state, "lastState": {}}
        status = {"phase": "Running", "startTime": stamp(started), "containerStatuses": [container]}
    return {
        "metadata": {
            "name": pod_name("run", UID, 1),
            "namespace": "team",
            "uid": "pod-uid",
            "ownerReferences": [{"kind": "Execution", "name": "run", "uid": UID, "controller": True}],
            "resourceVersion": str(version),
            "creationTimestamp": stamp(CREATED),
            "labels": {"almoner.dev/execution-uid": UID, "almoner.dev/attempt": "1"},
        },
        "spec": {"containers": [{"name": "agent"}]},
        "status": status,
    }


def seconds(value: datetime | None) -> float:
    assert value is not None
    return (value - CREATED).total_seconds()


@pytest.mark.parametrize("skew", [-300, -60, -3, 0, 3, 60, 600], ids=lambda s: f"{s:+} s")
def test_a_pod_that_was_seen_to_start_and_to_end_has_the_operators_times(skew: int) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    off = timedelta(seconds=skew)
    began, ended = CREATED + timedelta(seconds=120), CREATED + timedelta(seconds=180)
    second = timedelta(seconds=1)
    cache.observe_pod("ADDED", raw(1), CREATED)
    cache.observe_pod("MODIFIED", raw(2, began + off), began + second)
    cache.observe_pod("MODIFIED", raw(3, began + off), began + 30 * second)
    cache.observe_pod("MODIFIED", raw(4, began + off, ended + off), ended + second)
    pod = cache.pods.left_by(UID)[0].raw
    assert 120 - LATENCY_SECONDS <= seconds(started_at(pod)) <= 121, "within the bound"
    assert 180 - LATENCY_SECONDS <= seconds(agent_ended_at(pod)) <= 181, "within the bound"
    time = pod_time(pod)
    assert time.start is not None
    assert time.end is not None
    assert abs(time.end - time.start - 60) <= 1
    if skew == 0:
        assert pod["status"] == raw(4, began, ended)["status"], "a clock that is right is not touched"


@pytest.mark.parametrize(("skew", "believed"), [(-300, 0), (-30, 90), (0, 120), (30, 150), (600, 170)])
def test_one_that_ran_before_the_operator_looked_started_after_it_was_created_and_before_now(
    skew: int, believed: int
) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    cache.observe_pod(None, raw(1, CREATED + timedelta(seconds=120 + skew)), CREATED + timedelta(seconds=170))
    assert seconds(started_at(cache.pods.left_by(UID)[0].raw)) == believed


@given(
    times=st.lists(st.integers(-10_000, 10_000), min_size=1, max_size=6),
    looks=st.lists(st.integers(0, 5_000), min_size=6, max_size=6),
)
def test_what_was_corrected_once_stays_so_and_is_never_in_the_future(times: list[int], looks: list[int]) -> None:
    known: dict[str, str] | None = None
    for index, (time, look) in enumerate(zip(times, sorted(looks), strict=False)):
        moment = CREATED + timedelta(seconds=look)
        given_ = raw(index, CREATED + timedelta(seconds=time))
        status, known = correct(given_, known, moment)
        again, same = correct(given_, known, moment + timedelta(hours=1))
        assert (again, same) == (status, known)
        started = started_at({"status": status})
        assert started is not None
        assert CREATED - timedelta(seconds=LATENCY_SECONDS) <= started <= moment


@pytest.mark.parametrize("value", [None, "soon", 7, "2026-06-01T12:00:00"])
def test_what_is_no_time_is_left_for_others_to_judge(value: Any) -> None:
    broken = raw(1, CREATED)
    broken["status"]["startTime"] = value
    status, _ = correct(broken, None, CREATED)
    assert status["startTime"] == value
