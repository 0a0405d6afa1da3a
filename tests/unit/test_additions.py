"""What a cluster adds to runner pods is learned, counted and forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from almoner_operator.additions import FORGET_SECONDS, Additions, passed
from almoner_operator.admitted import Admitted
from almoner_operator.records import Run, parse_run
from almoner_operator.scheduling.model import EXECUTION, NO_REQUESTS, Hard, Quota, Requests

PLAIN, ADDED = Requests(50, 96, 0), Requests(1000, 1024, 0)
ACTUAL = Requests(1050, 1120, 0)


def run(name: str = "one", agent: str = "agent", owner: str = "") -> Run:
    raw = {
        "metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1", "generation": 1},
        "spec": {"agentRef": {"name": agent}, "input": {"text": "hi"}, **({"owner": owner} if owner else {})},
    }
    parsed = parse_run(EXECUTION, raw)
    assert isinstance(parsed, Run)
    return parsed


def admitted(requests: Requests, name: str = "one", **more: Any) -> Run:
    made = run(name, **more)
    made.admitted = Admitted(requests=requests, quotas=("quota",))
    return made


def test_the_next_of_its_kind_is_counted_with_what_the_cluster_added() -> None:
    additions = Additions()
    assert additions.of(run()) == NO_REQUESTS
    assert additions.learn(run(), PLAIN, ACTUAL, 0.0)
    assert additions.of(run("two")) == ADDED
    assert additions.of(run("three", agent="another")) == NO_REQUESTS
    assert not additions.learn(run("two"), PLAIN, ACTUAL, 1.0), "it is known, however it was admitted"


def test_what_the_cluster_adds_no_more_is_forgotten() -> None:
    additions = Additions()
    additions.learn(run(), PLAIN, ACTUAL, 0.0)
    assert additions.learn(run(), PLAIN, PLAIN, 1.0)
    assert additions.of(run()) == NO_REQUESTS
    additions.learn(run(), PLAIN, ACTUAL, 2.0)
    assert additions.forget(2.0 + FORGET_SECONDS - 1) == set()
    assert additions.forget(2.0 + FORGET_SECONDS) == {"team"}
    assert additions.of(run()) == NO_REQUESTS, "or nobody would try again who waits because of it"


@pytest.mark.parametrize(
    ("hard", "others", "fits"),
    [
        ({"cpu": 2000}, [], True),
        ({"cpu": 2000}, [PLAIN] * 9, True),
        ({"cpu": 2000}, [ACTUAL], False),
        ({"memory": 2240}, [ACTUAL], True),
        ({"memory": 2239}, [ACTUAL], False),
        ({"cpu": 1049}, [], False),
        ({"executions": 1}, [ACTUAL], True),
    ],
)
def test_a_pod_passes_a_quota_by_what_was_added(hard: dict[str, int], others: list[Requests], fits: bool) -> None:
    quota = Quota("quota", hard=Hard(**hard))
    beside = [(admitted(asked, f"other-{index}"), asked) for index, asked in enumerate(others)]
    found = passed(admitted(ACTUAL), [quota], beside)
    assert (found is None) is fits
    assert fits or "ResourceQuota quota" in str(found)
    assert passed(admitted(ACTUAL), [replace(quota, enforced=False)], beside) is None
    assert passed(admitted(ACTUAL), [replace(quota, name="of others")], beside) is None
