"""What keeps an attempt from going on is its own reason within seconds, and ends it where it lasts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from almoner_core.api.execution import AttemptOutcome, ExecutionReason, FailureReason
from almoner_core.identity import pod_name
from almoner_core.wire import ErrorCode
from almoner_operator import admit, outcome
from almoner_operator.attempts import STUCK_SECONDS, AttemptEnd, classify, trouble
from almoner_operator.cache import Cache
from almoner_operator.errors import ApiError, LedgerError, LedgerUnavailableError
from almoner_operator.lifecycle import MISSING_SECONDS, Lifecycle
from almoner_operator.records import Run
from almoner_operator.scheduling.model import EXECUTION, Requests
from almoner_operator.secret_facts import keys_of
from almoner_operator.settle import Settler

Json = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POD = pod_name("one", "u", 1)
IMAGE, CREATION = FailureReason.IMAGE_PULL_FAILED, FailureReason.CONTAINER_NOT_CREATED


def waiting(reason: str, message: str = "the kubelet's words", container: str = "agent") -> Json:
    return {"name": container, "state": {"waiting": {"reason": reason, "message": message}}}


def raw_pod(*containers: Json, version: int = 1, **status: Any) -> Json:
    return {
        "metadata": {
            "name": POD,
            "namespace": "ns",
            "uid": "pod-uid",
            "resourceVersion": str(version),
            "creationTimestamp": datetime.now(UTC).isoformat(),
            "labels": {"almoner.dev/execution-uid": "u", "almoner.dev/attempt": "1"},
            "ownerReferences": [{"kind": "Execution", "name": "one", "uid": "u", "controller": True}],
        },
        "spec": {"nodeName": "n", "containers": [{"name": "agent"}]},
        "status": {"phase": "Pending", "containerStatuses": list(containers), **status},
    }


# Each: why the container waits, the reason in the status, what it fails as, and after how many seconds.
STUCK = [
    ("ErrImagePull", ExecutionReason.IMAGE_PULL_FAILED, IMAGE, STUCK_SECONDS),
    ("ImagePullBackOff", ExecutionReason.IMAGE_PULL_FAILED, IMAGE, STUCK_SECONDS),
    ("ErrImageNeverPull", ExecutionReason.IMAGE_PULL_FAILED, IMAGE, STUCK_SECONDS),
    ("InvalidImageName", ExecutionReason.IMAGE_PULL_FAILED, IMAGE, 0),
    ("CreateContainerConfigError", ExecutionReason.CONTAINER_NOT_CREATED, CREATION, STUCK_SECONDS),
    ("CreateContainerError", ExecutionReason.CONTAINER_NOT_CREATED, CREATION, STUCK_SECONDS),
    ("RunContainerError", ExecutionReason.CONTAINER_NOT_CREATED, CREATION, STUCK_SECONDS),
]


@pytest.mark.parametrize(("why", "reason", "failure", "seconds"), STUCK)
@pytest.mark.parametrize("container", ["agent", "meter", "istio-proxy"])
def test_a_container_that_cannot_come_to_be_fails_within_a_minute_or_two(
    why: str, reason: ExecutionReason, failure: FailureReason, seconds: int, container: str
) -> None:
    pod = raw_pod(waiting(why, container=container))
    found = trouble(pod)
    assert found is not None
    assert (found.reason, found.failure, found.gives_up_after) == (reason, failure, seconds)
    assert found.message == f"{container}: {why}: the kubelet's words"
    if seconds:
        assert classify(pod, now=NOW, stuck_since=NOW - timedelta(seconds=seconds - 1)) is None
    end = classify(pod, now=NOW, stuck_since=NOW - timedelta(seconds=seconds))
    assert end is not None
    assert (end.outcome, end.reason) == (AttemptOutcome.FAILED, failure)
    assert "the kubelet's words" in end.message


@pytest.mark.parametrize("why", ["ContainerCreating", "PodInitializing"])
def test_one_that_is_on_its_way_is_in_no_trouble(why: str) -> None:
    assert trouble(raw_pod(waiting(why))) is None


class World:
    """One run with an attempt under way, its pod as the tests say, and what the lifecycle writes and deletes."""

    def __init__(self, **spec: Any) -> None:
        self.cache = Cache(meter=Requests(), wake=lambda: None)
        self.deleted: list[str] = []
        self.written: list[tuple[str, str]] = []
        attempt = {"number": 1, "pod": POD, "podUID": "pod-uid", "allotment": "a"}
        raw = {
            "metadata": {"name": "one", "namespace": "ns", "uid": "u", "resourceVersion": "1", "generation": 1},
            "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, **spec},
            "status": {"phase": "Admitted", "attempts": [attempt]},
        }
        self.cache.observe_run(EXECUTION, None, raw)
        self.run.bound = 1
        settings = SimpleNamespace(start_deadline_seconds=600, lost_seconds=60, runner=SimpleNamespace())
        context = SimpleNamespace(
            cache=self.cache,
            settings=settings,
            writer=SimpleNamespace(mark=lambda *_, **__: self.written.append(self.said)),
            events=SimpleNamespace(tell=lambda *_, **__: None),
            spawn=self.spawn,
        )
        self.context = cast("Any", context)
        self.nothing = cast("Any", SimpleNamespace())
        self.settled: list[AttemptEnd | None] = []
        settler: Any = SimpleNamespace(start=lambda run: self.settled.append(run.end))
        self.lifecycle = Lifecycle(self.context, self.nothing, settler, self.nothing)

    def spawn(self, work: Any, name: str) -> None:
        work.close()
        self.deleted.append(name)

    @property
    def run(self) -> Run:
        return self.cache.runs["u"]

    @property
    def said(self) -> tuple[str, str]:
        """Reason and message of Ready, which `kubectl get executions` prints."""
        ready = next(each for each in self.run.status.conditions if each.type == "Ready")
        return ready.reason, ready.message

    def see(self, raw: Json) -> None:
        self.cache.observe_pod("MODIFIED", raw)
        self.lifecycle.review(self.run)


def test_the_kubelets_words_are_in_the_status_at_once_and_written_once() -> None:
    world = World()
    world.see(raw_pod(waiting("ErrImagePull")))
    assert world.said == ("ImagePullFailed", "agent: ErrImagePull: the kubelet's words")
    assert world.run.status.phase == "Admitted"
    world.see(raw_pod(waiting("ErrImagePull"), version=2))
    assert len(world.written) == 1
    assert not world.deleted
    world.see(raw_pod(waiting("ContainerCreating"), version=3))
    assert world.said[0] == "Admitted", "it goes on"
    running = {"name": "agent", "state": {"running": {"startedAt": datetime.now(UTC).isoformat()}}}
    world.see(raw_pod(running, version=4, phase="Running"))
    assert world.said[0] == "Running"


def test_the_time_counts_over_the_kubelets_tries() -> None:
    """ErrImagePull and ImagePullBackOff take turns, and between them a pull is under way: it is one trouble."""
    world = World()
    world.see(raw_pod(waiting("ErrImagePull")))
    assert world.run.stuck is not None
    world.run.stuck = world.run.stuck._replace(since=datetime.now(UTC) - timedelta(seconds=STUCK_SECONDS))
    world.see(raw_pod(waiting("ContainerCreating"), version=2))
    assert not world.deleted, "now it may succeed"
    world.see(raw_pod(waiting("ImagePullBackOff"), version=3))
    assert world.deleted == [f"delete pod ns/{POD}"]
    assert world.run.early is not None
    assert world.run.early.reason is IMAGE


def test_an_image_name_that_is_none_fails_at_once() -> None:
    world = World()
    world.see(raw_pod(waiting("InvalidImageName")))
    assert world.deleted == [f"delete pod ns/{POD}"]


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize("reason", [IMAGE, CREATION, FailureReason.START_TIMEOUT])
def test_at_most_so_many_further_tries_as_the_limit_says(limit: int, reason: FailureReason) -> None:
    world = World(retry={"limit": limit})
    failed = world.run.status.attempts[-1].model_copy(
        update={"outcome": AttemptOutcome.FAILED, "reason": str(reason), "finish_time": NOW}
    )
    for tries in range(1, limit + 2):
        again = outcome.next_try(world.run, [failed] * tries, reason, NOW)
        assert (again is not None) == (tries <= limit)


def test_only_what_no_node_takes_is_tried_for_ever_and_counts_for_no_limit() -> None:
    world = World(retry={"limit": 1})
    homeless, crashed = (
        world.run.status.attempts[-1].model_copy(update={"outcome": AttemptOutcome.FAILED, "reason": str(reason)})
        for reason in (FailureReason.UNSCHEDULABLE, FailureReason.AGENT_FAILED)
    )
    waits = [
        (outcome.next_try(world.run, [homeless] * tries, FailureReason.UNSCHEDULABLE, NOW) or NOW) - NOW
        for tries in (1, 2, 3, 50)
    ]
    assert waits == sorted(waits)
    assert waits[0] >= timedelta(seconds=15)
    assert waits[-1] == timedelta(seconds=outcome.START_BACKOFF_SECONDS_MAX)
    assert outcome.next_try(world.run, [homeless] * 5 + [crashed], FailureReason.AGENT_FAILED, NOW) is not None
    assert outcome.next_try(world.run, [homeless, crashed, crashed], FailureReason.AGENT_FAILED, NOW) is None


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (ApiError(500, "InternalError", "failed calling webhook"), "PodNotCreated", "failed calling webhook"),
        (LedgerUnavailableError(ErrorCode.UNAVAILABLE, "no answer"), "PodNotBound", "no answer"),
    ],
)
def test_a_pod_that_is_not_there_yet_is_said_until_it_is(
    error: ApiError | LedgerError, reason: str, words: str
) -> None:
    world = World()
    admit.Admitter(world.context, world.nothing)._say_not_there(world.run, error)
    assert world.said[0] == reason
    assert words in world.said[1]
    world.see(raw_pod(waiting("ContainerCreating")))
    assert world.said[0] == "Admitted"


def test_running_without_a_pod_is_said_with_the_time_it_ends() -> None:
    world = World()
    world.lifecycle.review(world.run)
    assert world.run.pod_missing_since is not None
    assert not world.written, "a pod that was just made is not seen at once either"
    world.run.pod_missing_since = time.monotonic() - MISSING_SECONDS
    world.lifecycle.review(world.run)
    assert world.said[0] == "PodMissing"
    assert "it counts as lost at" in world.said[1]
    world.lifecycle.review(world.run)
    assert len(world.written) == 1


def running_pod(version: int = 1) -> Json:
    running = {"name": "agent", "state": {"running": {"startedAt": datetime.now(UTC).isoformat()}}}
    return raw_pod(running, version=version, phase="Running")


def test_a_pod_that_was_missing_and_is_there_after_all_is_missing_no_more() -> None:
    world = World()
    world.see(running_pod())
    known = world.cache.pods.of(world.run)
    assert known is not None
    world.cache.drop_pods("u")
    world.lifecycle.review(world.run)
    world.run.pod_missing_since = time.monotonic() - MISSING_SECONDS
    world.lifecycle.review(world.run)
    assert world.said[0] == "PodMissing"
    world.see(running_pod(version=2))
    assert world.said[0] == "Running"
    world.see(running_pod(version=3))
    assert [reason for reason, _ in world.written] == ["Running", "PodMissing", "Running"], "each once"


def test_a_pod_whose_time_is_over_is_told_again_where_the_api_server_did_not_hear_it() -> None:
    world = World()
    world.see(running_pod())
    assert not world.deleted
    world.run.timed_out = True
    world.see(running_pod(version=2))
    assert world.deleted == [f"delete pod ns/{POD}"]
    world.lifecycle._tried.clear()  # As where the deletion came to nothing.
    world.see(running_pod(version=3))
    assert len(world.deleted) == 2


def test_waiting_for_a_lease_is_said_with_the_time_it_is_over() -> None:
    world = World()
    settler = Settler(world.context, world.nothing)
    settler._say_leased(world.run, LedgerError(ErrorCode.LEASED, "may still be spending", retry_after_seconds=42))
    assert world.said[0] == "WaitingForLease"
    assert "UTC at the latest" in world.said[1]
    refused = admit._refused(LedgerError(ErrorCode.LEASED, "attempt 1 is active", retry_after_seconds=42))
    assert isinstance(refused, admit._NotAdmittedError)
    assert refused.reason == "WaitingForLease"


@pytest.mark.parametrize(
    ("metadata", "keys"),
    [
        ({}, None),
        ({"managedFields": [{}]}, None),
        ({"managedFields": [{"fieldsV1": {"f:type": {}}}]}, set()),
        ({"managedFields": [{"fieldsV1": {"f:data": {".": {}, "f:key": {}}}}, {"fieldsV1": {"f:type": {}}}]}, {"key"}),
        (
            {"managedFields": [{"fieldsV1": {"f:data": {"f:a.b": {}}}}, {"fieldsV1": {"f:stringData": {"f:c": {}}}}]},
            {"a.b", "c"},
        ),
    ],
)
def test_the_names_of_a_secrets_keys_come_from_its_metadata(metadata: Json, keys: set[str] | None) -> None:
    assert keys_of(metadata) == keys
