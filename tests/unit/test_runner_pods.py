"""Whose pod it is: namespace, name, owner and uid decide, or the nonce while the uid is not known; labels never."""

from __future__ import annotations

from typing import Any

import pytest

from almoner_core.identity import pod_name, pod_proof
from almoner_operator.cache import Cache
from almoner_operator.news import DELETED
from almoner_operator.records import Run
from almoner_operator.runner_pods import SAME_PLACE_MAX
from almoner_operator.scheduling.model import EXECUTION, Requests

Json = dict[str, Any]
UID = "8c7e1a52-1111-4222-8333-444455556666"
NAME = pod_name("run", UID, 1)
NONCE = "n" * 32


def world(**attempt: Any) -> tuple[Cache, Run]:
    """A run whose first attempt is under way."""
    cache = Cache(meter=Requests(), wake=lambda: None)
    under_way = {"number": 1, "pod": NAME, "allotment": "a", "outcome": "Running", **attempt}
    cache.observe_run(
        EXECUTION,
        None,
        {
            "metadata": {"name": "run", "namespace": "team", "uid": UID, "resourceVersion": "1", "generation": 1},
            "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
            "status": {"phase": "Admitted", "attempts": [under_way]},
        },
    )
    cache.review.clear()
    return cache, cache.runs[UID]


def pod(uid: str = "own", *, version: int = 5, nonce: str = NONCE, attempt: int = 1, **metadata: Any) -> Json:
    return {
        "metadata": {
            "name": pod_name("run", UID, attempt),
            "namespace": "team",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {"almoner.dev/execution-uid": UID, "almoner.dev/attempt": str(attempt)},
            "annotations": {"almoner.dev/nonce": nonce},
            "ownerReferences": [{"kind": "Execution", "name": "run", "uid": UID, "controller": True}],
            **metadata,
        },
        "spec": {"nodeName": "node", "containers": [{"name": "agent"}]},
        "status": {"phase": "Succeeded"},
    }


OWNER = {"kind": "Execution", "name": "run", "uid": UID, "controller": True}
STRANGERS = {
    "in another namespace": pod(namespace="elsewhere"),
    "under another name": pod(name="helper"),
    "without an owner": pod(ownerReferences=[]),
    "owned by another run": pod(ownerReferences=[{**OWNER, "uid": "other"}]),
    "owned, not controlled": pod(ownerReferences=[{**OWNER, "controller": False}]),
    "another name of the owner": pod(name=pod_name("x", UID, 1), ownerReferences=[{**OWNER, "name": "x"}]),
    "labelled with another attempt": pod(labels={"almoner.dev/execution-uid": UID, "almoner.dev/attempt": "2"}),
    "of an attempt to come": pod(attempt=2),
    "with another nonce": pod(nonce="guessed"),
    "without a nonce": pod(annotations={}),
}


@pytest.mark.parametrize("raw", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_pod_that_only_says_that_it_is_a_runs_counts_for_nothing_and_is_told_of_once(raw: Json) -> None:
    cache, run = world(podProof=pod_proof(NAME, NONCE))
    cache.observe_pod("ADDED", raw)
    assert cache.pods.of(run) is None
    again = {**raw, "metadata": {**raw["metadata"], "uid": "another", "resourceVersion": "6"}}
    cache.observe_pod("ADDED", again)
    assert [(each.key.uid, stranger.uid) for each, stranger in cache.strangers] == [(UID, "own")], "one for a run"


def test_the_pod_with_the_nonce_is_the_attempts_until_the_uid_is_known_and_then_the_uid_decides() -> None:
    cache, run = world(podProof=pod_proof(NAME, NONCE))
    cache.observe_pod("ADDED", pod())
    found = cache.pods.of(run)
    assert found is not None
    assert found.uid == "own"
    run.made = (1, "made")
    assert cache.pods.of(run) is None, "the one that was created has another uid"
    cache.observe_pod("ADDED", pod("made", version=6, nonce=""))
    assert (made := cache.pods.of(run)) is not None
    assert made.uid == "made"


def test_whoever_takes_the_place_of_a_pod_that_is_gone_does_not_speak_for_it() -> None:
    cache, run = world(podUID="own")
    cache.observe_pod("ADDED", pod())
    cache.observe_pod(DELETED, pod(version=6))
    cache.observe_pod("ADDED", pod("next", version=7))
    found = cache.pods.of(run)
    assert found is not None
    assert (found.uid, found.raw["gone"]) == ("own", True), "what it said last still tells how the attempt ended"
    assert [stranger.uid for _, stranger in cache.strangers] == ["next"]
    assert [each.uid for each in cache.pods.present()] == ["next"]


def test_a_pod_of_an_earlier_attempt_is_no_stranger() -> None:
    cache, run = world(number=2, pod=pod_name("run", UID, 2), podUID="second")
    cache.observe_pod("ADDED", pod("first"))
    assert cache.pods.of(run) is None
    assert not cache.strangers


def test_of_one_place_a_bounded_number_is_kept_and_the_one_that_is_there_among_them() -> None:
    cache, run = world(podUID="own")
    for number in range(50):
        cache.observe_pod("ADDED", pod(f"other-{number}", version=10 + 2 * number))
        cache.observe_pod(DELETED, pod(f"other-{number}", version=11 + 2 * number))
    cache.observe_pod("ADDED", pod(version=500))
    assert len(cache.pods.left_by(UID)) <= SAME_PLACE_MAX
    assert cache.pods.of(run) is not None
    cache.drop_pods(UID)
    assert UID not in cache.pods
    assert not cache.pods.left_by(UID)


def test_pods_of_other_namespaces_that_name_a_run_are_dropped_with_it_and_take_no_place() -> None:
    cache, run = world(podUID="own")
    for number in range(20):
        cache.observe_pod("ADDED", pod(f"other-{number}", namespace=f"n-{number}"))
    cache.observe_pod("ADDED", pod())
    assert (found := cache.pods.of(run)) is not None
    assert found.namespace == "team"
    cache.drop_pods(UID)
    assert not list(cache.pods.present())
