"""What is news of an object: versions that go back, lists, restored objects, and ends that were overwritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from almoner_core.api.execution import ExecutionPhase, WaitReason
from almoner_core.identity import allotment_id
from almoner_operator import outcome, tool_providers
from almoner_operator.cache import Cache
from almoner_operator.conditions import Standing, conditions_for
from almoner_operator.news import DELETED
from almoner_operator.records import Run
from almoner_operator.scheduling.model import EXECUTION, TRAINING_JOB, Requests, Wait, WorkloadState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Json = dict[str, Any]
BACKUP = {"velero.io/restore-name": "nightly"}


@pytest.fixture
def cache() -> Cache:
    return Cache(meter=Requests(cpu=50, memory=100), wake=lambda: None)


def raw(spec: Json, version: int, generation: int = 1, status: Json | None = None, **metadata: Any) -> Json:
    return {
        "metadata": {
            "name": "it",
            "namespace": "team",
            "uid": "u",
            "resourceVersion": str(version),
            "generation": generation,
            **metadata,
        },
        "spec": spec,
        "status": status or {},
    }


Observe = Callable[[Cache, str | None, Mapping[str, Any]], None]
MODEL = {"provider": "local", "name": "small"}
INPUT = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}}
RUNNER = {"image": "trainer", "command": ["train"]}
# Of each kind: who takes it in, a spec and another.
KINDS: dict[str, tuple[Observe, Json, Json]] = {
    "Execution": (
        lambda cache, event, it: cache.observe_run(EXECUTION, event, it),
        INPUT,
        {**INPUT, "cancel": True},
    ),
    "TrainingJob": (
        lambda cache, event, it: cache.observe_run(TRAINING_JOB, event, it),
        {"runner": RUNNER},
        {"runner": RUNNER, "cancel": True},
    ),
    "Agent": (
        lambda cache, event, it: cache.observe_agent(event, it),
        {"type": "Simulation", "model": MODEL},
        {"type": "Simulation", "model": {**MODEL, "name": "large"}},
    ),
    "ResourceQuota": (
        lambda cache, event, it: cache.observe_quota(event, it),
        {"hard": {"executions": 1}},
        {"hard": {"executions": 2}},
    ),
    "ModelProvider": (
        lambda cache, event, it: cache.observe_provider(event, it),
        {"type": "OpenAICompatible", "baseURL": "http://one/v1"},
        {"type": "OpenAICompatible", "baseURL": "http://two/v1"},
    ),
    "ToolProvider": (
        tool_providers.observe,
        {"type": "DuckDuckGo", "prices": [{"tool": "web_search", "perCall": "0.01"}]},
        {"type": "DuckDuckGo", "prices": [{"tool": "web_search", "perCall": "0.02"}]},
    ),
}
kinds = pytest.mark.parametrize(("observe", "first", "second"), KINDS.values(), ids=KINDS)


def record(cache: Cache) -> Any:
    """What the cache has of the one object."""
    space = cache.space("team")
    known = (cache.runs, space.agents, space.quotas, space.providers, space.tool_providers)
    (found,) = [each for records in known for each in records.values()]
    return found


@kinds
@pytest.mark.parametrize("event", ["MODIFIED", None], ids=["watched", "listed"])
def test_a_higher_generation_at_a_lower_version_is_believed_at_once(
    observe: Observe, first: Json, second: Json, event: str | None
) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    observe(cache, "ADDED", raw(first, 1200))
    before = record(cache).spec
    observe(cache, event, raw(second, 1001, 2))
    assert record(cache).generation == 2
    assert record(cache).spec != before
    observe(cache, "MODIFIED", raw(first, 1002, 3))
    assert record(cache).generation == 3, "and from there on versions count as before"
    assert record(cache).spec == before


@kinds
def test_what_a_list_says_is_believed_whatever_its_version(observe: Observe, first: Json, second: Json) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    observe(cache, "ADDED", raw(second, 1200, 2))
    later = record(cache).spec
    observe(cache, "MODIFIED", raw(first, 1001, 1))
    assert (record(cache).generation, record(cache).spec) == (2, later), "a late event"
    observe(cache, None, raw(first, 1001, 1))
    assert record(cache).generation == 1, "the snapshot is from before the change"
    assert record(cache).spec != later


@kinds
def test_a_status_from_before_a_restore_is_what_the_next_write_starts_from(
    observe: Observe, first: Json, second: Json
) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    observe(cache, "ADDED", raw(first, 1200, status={"observedGeneration": 1}))
    observe(cache, None, raw(second, 1001, 2))
    found = record(cache)
    assert (found.base, found.written.observed_generation, found.status.observed_generation) == (1001, None, 1)


def pod(version: int, phase: str) -> Json:
    from almoner_core.identity import pod_name

    found = raw({"containers": [{"name": "agent"}]}, version, status={"phase": phase}, name=pod_name("it", "run", 1))
    found["metadata"]["labels"] = {"almoner.dev/execution-uid": "run", "almoner.dev/attempt": "1"}
    found["metadata"]["ownerReferences"] = [{"name": "it", "uid": "run", "controller": True}]
    return found


def test_a_pod_that_a_restored_server_lists_is_as_it_says(cache: Cache) -> None:
    cache.observe_pod("ADDED", pod(1200, "Running"))
    cache.observe_pod("MODIFIED", pod(1100, "Pending"))
    assert cache.pods.left_by("run")[0].raw["status"]["phase"] == "Running", "a late event"
    cache.observe_pod(None, pod(1001, "Pending"))
    assert cache.pods.left_by("run")[0].raw["status"]["phase"] == "Pending"
    cache.observe_pod("MODIFIED", pod(1002, "Running"))
    assert cache.pods.left_by("run")[0].raw["status"]["phase"] == "Running"


# --- restored from a backup -------------------------------------------------------------------------------------------


def the_run(cache: Cache) -> Run:
    return cache.runs["u"]


def waits(cache: Cache) -> str | None:
    """Why the scheduler would not look at the run, if it is held."""
    (workload,) = cache.snapshot().namespaces["team"].workloads
    assert workload.state is WorkloadState.WAITING
    return str(workload.hold.reason) if workload.hold is not None else None


@pytest.mark.parametrize("label", ["velero.io/restore-name", "velero.io/backup-name"])
@pytest.mark.parametrize(("kind", "spec"), [(EXECUTION, INPUT), (TRAINING_JOB, {"runner": RUNNER})])
def test_what_a_backup_brings_back_without_a_status_waits_and_says_why(
    cache: Cache, kind: str, spec: Json, label: str
) -> None:
    cache.observe_run(kind, None, raw(spec, 1, labels={label: "nightly"}))
    assert waits(cache) == "Restored"
    run = the_run(cache)
    assert run.hold is not None
    status = outcome.waiting(run, Wait(run.hold.reason, run.hold.message), (), NOW)
    said = {each.type: each for each in status.conditions}
    assert (said["Suspended"].status, said["Suspended"].reason) == ("True", "Restored")
    assert (said["Ready"].reason, said["Reconciling"].status) == ("Restored", "False")
    assert "spec.suspend" in said["Ready"].message


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        ([({}, {}, 1)], True),
        ([({}, {"unrelated": "label"}, 1)], True),
        ([({"suspend": True}, BACKUP, 2)], False),
        ([({"suspend": True}, BACKUP, 2), ({"suspend": False}, BACKUP, 3)], True),
        ([({"priority": 9}, BACKUP, 2)], False),
        ([({}, {**BACKUP, "velero.io/backup-name": "b"}, 1)], False),
    ],
    ids=["label removed", "labels replaced", "suspended", "suspended and resumed", "another change", "more labels"],
)
def test_a_restored_run_starts_when_a_person_says_so(
    cache: Cache, steps: list[tuple[Json, Json, int]], starts: bool
) -> None:
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, labels=BACKUP))
    for version, (spec, labels, generation) in enumerate(steps, start=2):
        cache.observe_run(EXECUTION, "MODIFIED", raw({**INPUT, **spec}, version, generation, labels=labels))
    assert (waits(cache) is None) == starts


COPY = {"almoner.dev/uid": "another"}


@pytest.mark.parametrize(("kind", "spec"), [(EXECUTION, INPUT), (TRAINING_JOB, {"runner": RUNNER})])
def test_what_says_that_it_is_another_objects_order_waits_and_says_how_it_runs(
    cache: Cache, kind: str, spec: Json
) -> None:
    cache.observe_run(kind, None, raw(spec, 1, annotations=COPY))
    assert waits(cache) == "Restored"
    hold = the_run(cache).hold
    assert hold is not None
    assert hold.message == (
        "a copy of another object, with another uid, so it may have run already: to run it, set spec.suspend to true "
        "and back to false, or remove the annotation almoner.dev/uid, from where it is applied too"
    )


@pytest.mark.parametrize("annotations", [{}, {"almoner.dev/uid": "u"}, {"almoner.dev/uid": ""}, {"other": "another"}])
def test_what_is_no_copy_does_not_wait(cache: Cache, annotations: Json) -> None:
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, annotations=annotations))
    assert waits(cache) is None


@pytest.mark.parametrize(
    ("steps", "starts"),
    [
        ([({}, {}, {}, 1)], True),
        ([({}, {}, {"almoner.dev/uid": "u"}, 1)], True),
        ([({"suspend": True}, {}, COPY, 2), ({"suspend": False}, {}, COPY, 3)], True),
        ([({"priority": 9}, {}, COPY, 2)], False),
        ([({}, {}, {"almoner.dev/uid": "a third"}, 1)], False),
        ([({}, BACKUP, COPY, 1), ({}, {}, COPY, 1)], False),
        ([({}, BACKUP, COPY, 1), ({}, BACKUP, {}, 1)], False),
        ([({}, BACKUP, COPY, 1), ({}, BACKUP, {}, 1), ({}, {}, {}, 1)], True),
    ],
    ids=["removed", "made its own", "resumed", "another change", "a third", "label gone", "a label left", "all gone"],
)
def test_a_copy_starts_when_a_person_says_so(
    cache: Cache, steps: list[tuple[Json, Json, Json, int]], starts: bool
) -> None:
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, annotations=COPY))
    for version, (spec, labels, notes, generation) in enumerate(steps, start=2):
        changed = raw({**INPUT, **spec}, version, generation, labels=labels, annotations=notes)
        cache.observe_run(EXECUTION, "MODIFIED", changed)
    assert (waits(cache) is None) == starts
    marks = the_run(cache).marks
    hold = the_run(cache).hold
    assert starts or (hold is not None and all(mark in hold.message for mark in marks)), "it names what is left"


@pytest.mark.parametrize("phase", ["Queued", "Running"])
def test_a_copy_that_comes_with_the_other_objects_status_waits(cache: Cache, phase: str) -> None:
    former = {**attempt("Running"), "allotment": allotment_id("another", 1), "podUID": "gone"}
    status = {"phase": phase, "attempts": [former]}
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status=status, annotations=COPY))
    assert waits(cache) == "Restored"


@pytest.mark.parametrize("marks", [{"labels": BACKUP}, {"annotations": COPY}], ids=["backup", "copy"])
def test_what_waits_as_restored_is_not_said_to_be_its_own(cache: Cache, marks: Json) -> None:
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, **marks))
    assert the_run(cache).stamp_due == {}
    cache.observe_run(EXECUTION, "MODIFIED", raw(INPUT, 2))
    assert the_run(cache).stamp_due == {"almoner.dev/uid": "u"}


def test_one_that_was_backed_up_suspended_starts_when_it_is_resumed(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, raw({**INPUT, "suspend": True}, 1, labels=BACKUP))
    cache.observe_run(EXECUTION, "MODIFIED", raw({**INPUT, "suspend": False}, 2, 2, labels=BACKUP))
    assert waits(cache) is None


@pytest.mark.parametrize(
    ("reason", "held"),
    [("Restored", True), ("Suspended", True), ("WaitingForQuota", False)],
)
def test_consent_survives_a_restart_of_the_operator(cache: Cache, reason: str, held: bool) -> None:
    standing = Standing(ExecutionPhase.QUEUED, wait=WaitReason(reason))
    conditions = conditions_for(standing, generation=1, previous=(), now=NOW)
    status = {"phase": "Queued", "conditions": [each.to_wire() for each in conditions]}
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status=status, labels=BACKUP))
    assert (waits(cache) == "Restored") == held


def test_one_that_comes_back_with_the_status_of_the_former_object_is_held_and_its_status_is_its_own(
    cache: Cache,
) -> None:
    former = {**attempt("Running"), "allotment": allotment_id("another-uid", 1), "podUID": "gone"}
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status={"phase": "Running", "attempts": [former]}, labels=BACKUP))
    assert waits(cache) == "Restored"
    run = the_run(cache)
    assert (run.attempt, run.next_attempt, len(run.written.attempts)) == (None, 1, 1), "the next write clears it"


def test_an_attempt_of_its_own_is_no_other_objects(cache: Cache) -> None:
    own = {**attempt("Running"), "allotment": allotment_id("u", 1)}
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status={"phase": "Running", "attempts": [own]}, labels=BACKUP))
    assert the_run(cache).attempt is not None
    assert not the_run(cache).restored


def test_what_was_admitted_is_not_held_by_a_backups_label(cache: Cache) -> None:
    attempts = [{"number": 1, "pod": "p", "outcome": "Preempted"}]
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status={"phase": "Queued", "attempts": attempts}, labels=BACKUP))
    assert waits(cache) is None


# --- ends that were overwritten ---------------------------------------------------------------------------------------


def attempt(outcome_: str, reason: str | None = None) -> Json:
    ended = {"finishTime": "2026-01-02T03:04:00Z"} if outcome_ != "Running" else {}
    return {"number": 1, "pod": "p", "outcome": outcome_, **({"reason": reason} if reason else {}), **ended}


@pytest.mark.parametrize(
    ("attempts", "spec", "phase"),
    [
        ([attempt("Succeeded")], {}, "Succeeded"),
        ([attempt("Cancelled")], {}, "Cancelled"),
        ([attempt("Failed", "AgentFailed")], {}, "Failed"),
        ([attempt("Failed", "AgentFailed")], {"retry": {"limit": 1}}, None),
        ([attempt("Failed", "GuardrailTripped")], {"retry": {"limit": 5}}, "Failed"),
        ([attempt("Failed", "StatusLost")], {"retry": {"limit": 5}}, "Failed"),
        ([attempt("Failed", "StartTimeout")], {}, "Failed"),
        ([attempt("Failed", "Unschedulable")], {}, None),
        ([attempt("Failed", "AgentFailed")], {"cancel": True}, None),
        ([attempt("Preempted")], {}, None),
        ([attempt("Running")], {}, None),
        ([], {}, None),
    ],
)
@pytest.mark.parametrize("said", ["Running", "Queued", None])
def test_a_run_whose_attempts_say_that_it_is_over_is_over_whatever_its_phase_says(
    cache: Cache, attempts: list[Json], spec: Json, phase: str | None, said: str | None
) -> None:
    status = {"attempts": attempts, **({"phase": said} if said else {})}
    cache.observe_run(EXECUTION, None, raw({**INPUT, **spec}, 1, status=status))
    over = outcome.over_already(the_run(cache), NOW)
    assert (str(over.phase) if over is not None else None) == phase
    if over is not None:
        assert over.completion_time is not None
        assert over.attempts[-1].number == 1


def test_the_end_of_a_run_latches(cache: Cache) -> None:
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status={"phase": "Succeeded"}))
    cache.observe_run(EXECUTION, "MODIFIED", raw(INPUT, 2, status={"phase": "Succeeded", "usage": {"requests": 1}}))
    assert not cache.overwritten
    cache.observe_run(EXECUTION, "MODIFIED", raw(INPUT, 3, status={"phase": "Running"}))
    assert cache.overwritten == {"u"}
    assert cache.finished["u"].phase == "Succeeded"
    assert not cache.runs
    cache.observe_run(EXECUTION, DELETED, raw(INPUT, 4))
    assert not cache.finished


def test_an_end_whose_spec_is_changed_is_to_be_said_of_the_new_generation(cache: Cache) -> None:
    ended = {"phase": "Succeeded", "observedGeneration": 1, "completionTime": "2026-01-02T03:00:00Z"}
    cache.observe_run(EXECUTION, None, raw(INPUT, 1, status=ended))
    assert not cache.unobserved
    cache.observe_run(EXECUTION, "MODIFIED", raw({**INPUT, "priority": 9}, 2, 2, status=ended))
    assert cache.unobserved == {"u"}
    done = cache.finished["u"]
    assert (done.generation, done.observed) == (2, 1)
    cache.unobserved.clear()
    again = raw(INPUT, 3, 2, status={**ended, "observedGeneration": 2})
    cache.observe_run(EXECUTION, "MODIFIED", again)
    assert not cache.unobserved


def test_an_end_is_written_again_with_what_is_left_of_the_status() -> None:
    from almoner_core.api.execution import ExecutionStatus
    from almoner_operator.records import Finished, parse_run

    done = parse_run(
        EXECUTION,
        raw(
            INPUT,
            1,
            status={
                "phase": "Failed",
                "completionTime": "2026-01-02T03:00:00Z",
                "conditions": [
                    {
                        "type": "Failed",
                        "status": "True",
                        "reason": "Timeout",
                        "lastTransitionTime": "2026-01-02T03:00:00Z",
                    }
                ],
            },
        ),
    )
    assert isinstance(done, Finished)
    found = ExecutionStatus.model_validate({"phase": "Running", "attempts": [attempt("Running")], "output": "half"})
    again = outcome.written_again(done, found, 1, NOW)
    assert (again.phase, again.attempts[0].outcome, again.attempts[0].reason) == ("Failed", "Failed", "Timeout")
    assert again.completion_time == done.completed
    assert again.output == "half"
    said = {each.type: (each.status, each.reason) for each in again.conditions}
    assert said["Failed"] == ("True", "Timeout")
