"""Statuses reach the API server whatever happens to their records in between."""

import asyncio
import copy
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import pytest

from almoner_core.api.execution import Attempt, AttemptOutcome, ExecutionPhase
from almoner_operator import news
from almoner_operator.cache import Cache
from almoner_operator.context import run_target, target_of
from almoner_operator.errors import ApiError, ConflictError, ForbiddenError, InvalidError, LeadershipLostError
from almoner_operator.kubernetes import QUOTAS, KubernetesClient
from almoner_operator.limiter import Rank
from almoner_operator.records import QuotaRecord, Run
from almoner_operator.scheduling.model import Requests
from almoner_operator.writer import CONFLICTS_MAX, StatusWriter, Target
from tests.support.polling import until_async


class Server:
    """What the API server has of one object; each patch waits until it is let through, and must know the newest."""

    def __init__(self, **metadata: Any) -> None:
        self.metadata: dict[str, Any] = {"resourceVersion": "1", **metadata}
        self.spec: dict[str, Any] = {}
        self.status: dict[str, Any] = {}
        self.arrived = asyncio.Event()
        self.let = asyncio.Event()
        self.gone: list[Target] = []
        self.patches: list[dict[str, Any]] = []
        self.annotated: list[tuple[dict[str, str], dict[str, Any]]] = []
        """Annotations that were asked for, and the status that the object had then."""
        self.refuses: ApiError | None = None
        self.reads = 0
        self.meddle: Callable[[], object] = lambda: None
        """What somebody else does after each read."""

    @property
    def version(self) -> int:
        return int(self.metadata["resourceVersion"])

    @property
    def raw(self) -> dict[str, Any]:
        return copy.deepcopy({"metadata": self.metadata, "spec": self.spec, "status": self.status})

    def holds(self, raw: dict[str, Any]) -> Self:
        """Have an object."""
        self.metadata, self.spec = dict(raw["metadata"]), raw.get("spec") or {}
        self.status = copy.deepcopy(raw.get("status") or {})
        return self

    def changed(self, status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
        """Somebody else changes the object; gives it."""
        if status is not None:
            self.status = status
        self.metadata |= {"resourceVersion": str(self.version + 1), **metadata}
        return self.raw

    async def patch_status(
        self, *_where: Any, status: dict[str, Any], resource_version: str | None = None, **_how: Any
    ) -> str:
        self.arrived.set()
        await self.let.wait()
        self.patches.append(status)
        if resource_version != self.metadata["resourceVersion"]:
            raise ConflictError(409, "Conflict", "the object has been modified")
        self.changed({name: value for name, value in {**self.status, **status}.items() if value is not None})
        return str(self.version)

    async def annotate(
        self, *_where: Any, annotations: dict[str, str], resource_version: str | None = None, **_how: Any
    ) -> str:
        self.annotated.append((dict(annotations), copy.deepcopy(self.status)))
        if self.refuses is not None:
            raise self.refuses
        if resource_version != self.metadata["resourceVersion"]:
            raise ConflictError(409, "Conflict", "the object has been modified")
        self.changed(annotations=annotations)
        return str(self.version)

    async def get(self, *_where: Any, **_how: Any) -> dict[str, Any]:
        self.reads += 1
        found = self.raw
        self.meddle()
        return found


def writing_to(server: Server, cache: Cache | None = None, **how: Any) -> StatusWriter:
    """A writer whose cache sees what is read again, as the operator's does."""

    def seen(target: Target, raw: Mapping[str, Any]) -> None:
        if cache is not None:
            (cache.observe_quota if target.resource is QUOTAS else run_of)("MODIFIED", raw)
        news.believe(target.record, raw)

    def run_of(event: str, raw: Mapping[str, Any]) -> None:
        assert cache is not None
        cache.observe_run("Execution", event, raw)

    return StatusWriter(cast("KubernetesClient", server), gone=server.gone.append, seen=seen, **how)


def quota(generation: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "money",
            "namespace": "team",
            "uid": "u",
            "generation": generation,
            "resourceVersion": str(generation),
        },
        "spec": {"budget": {"amount": str(generation)}},
    }


def say(record: QuotaRecord, remaining: str) -> None:
    record.status = record.status.model_copy(update={"remaining": remaining})


async def settle(server: Server, writer: StatusWriter, wanted: str | None) -> None:
    async def written() -> bool:
        return not writer.pending and server.status.get("remaining") == wanted

    server.let.set()
    await until_async(written, 10, f"{wanted} to be written")


def team(server: Server) -> tuple[Cache, StatusWriter, QuotaRecord]:
    """A quota that the cache has as the server has it."""
    cache = Cache(meter=Requests(), wake=lambda: None)
    cache.observe_quota("ADDED", server.holds(quota(1)).raw)
    return cache, writing_to(server, cache), cache.space("team").quotas["money"]


def money(cache: Cache) -> QuotaRecord:
    return cache.space("team").quotas["money"]


async def test_what_was_marked_before_the_spec_changed_is_written_as_it_is_after() -> None:
    server = Server()
    cache, writer, old = team(server)
    say(old, "1.00")
    writer.mark(target_of("ResourceQuota", old), Rank.STATUS, delay=0.01)
    cache.observe_quota("MODIFIED", server.changed(generation=2))
    new = money(cache)
    assert new is not old
    say(new, "2.00")
    writer.mark(target_of("ResourceQuota", new), Rank.STATUS, delay=5.0)  # The earlier mark wins.
    await settle(server, writer, "2.00")
    assert new.written == new.status
    assert server.reads == 0, "the event told all"


async def test_a_patch_under_way_while_the_spec_changes_does_not_hide_the_next() -> None:
    server = Server()
    cache, writer, old = team(server)
    say(old, "1.00")
    writing = asyncio.create_task(writer.flush(target_of("ResourceQuota", old)))
    await server.arrived.wait()
    cache.observe_quota("MODIFIED", server.changed(generation=2))
    new = money(cache)
    # Back to what the API server had before the patch: as seen from there, nothing would have changed.
    new.status = new.status.model_copy(update={"remaining": None})
    writer.mark(target_of("ResourceQuota", new), Rank.STATUS)
    server.let.set()
    assert await writing
    await settle(server, writer, None)
    assert new.written == new.status


async def test_a_change_that_came_just_before_our_own_write_is_seen() -> None:
    server = Server()
    cache, writer, known = team(server)
    say(known, "1.00")
    event = server.changed(generation=2)
    server.let.set()
    assert await writer.flush(target_of("ResourceQuota", known))
    assert money(cache).generation == 2, "seen with the refusal already"
    cache.observe_quota("MODIFIED", event)
    assert money(cache).generation == 2
    assert server.status["remaining"] == "1.00"
    assert len(server.patches) == 2


async def test_a_cancel_that_came_just_before_our_own_write_is_seen() -> None:
    server = Server()
    _, writer, run = running(server)
    run.status = run.status.model_copy(update={"message": "it goes on"})
    server.spec["cancel"] = True
    server.changed(generation=2)
    server.let.set()
    assert await writer.flush(run_target(run))
    assert run.spec is not None
    assert run.spec.cancel
    assert server.status["message"] == "it goes on"


OWN = {"almoner.dev/uid": "r"}
OTHERS = {"almoner.dev/uid": "another"}


def running(
    server: Server, annotations: dict[str, str] = OWN, status: dict[str, Any] | None = None
) -> tuple[Cache, StatusWriter, Run]:
    """An Execution that the cache has as the server has it."""
    cache = Cache(meter=Requests(), wake=lambda: None)
    raw: dict[str, Any] = {
        "metadata": {
            "name": "run",
            "namespace": "team",
            "uid": "r",
            "generation": 1,
            "resourceVersion": "1",
            "annotations": annotations,
        },
        "spec": {"agentRef": {"name": "agent"}, "input": {"text": "hi"}},
        "status": {"phase": "Running", "message": "it runs"} if status is None else status,
    }
    cache.observe_run("Execution", "ADDED", server.holds(raw).raw)
    server.let.set()
    return cache, writing_to(server, cache), cache.runs["r"]


async def test_own_writes_follow_one_another_without_a_read_and_their_events_are_no_news() -> None:
    server = Server()
    cache, writer, run = running(server)
    cache.review.clear()
    for number in range(5):
        run.status = run.status.model_copy(update={"message": f"step {number}"})
        assert await writer.flush(run_target(run))
        if number % 2:
            cache.observe_run("Execution", "MODIFIED", server.raw)
    assert (server.reads, len(server.patches)) == (0, 5)
    assert not run.overwritten
    assert not cache.review


async def test_what_somebody_else_wrote_over_a_status_is_put_right_and_other_controllers_conditions_stay() -> None:
    server = Server()
    cache, writer, run = running(server)
    others = {
        "type": "Audited",
        "status": "True",
        "reason": "Fine",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    cache.observe_run("Execution", "MODIFIED", server.changed({"phase": "Succeeded", "conditions": [others]}))
    assert run.overwritten
    assert await writer.flush(run_target(run))
    assert (server.status["phase"], server.status["message"]) == ("Running", "it runs")
    assert [each["type"] for each in server.status["conditions"]] == ["Audited"]
    assert (server.reads, len(server.patches)) == (0, 1)


async def test_a_write_that_was_computed_from_what_is_no_more_is_judged_anew() -> None:
    server = Server()
    _, writer, run = running(server)
    run.status = run.status.model_copy(update={"message": "it goes on"})
    server.changed({})  # All of it wiped, and the event is still on its way.
    assert await writer.flush(run_target(run))
    assert (server.status["phase"], server.status["message"]) == ("Running", "it goes on")
    assert (server.reads, len(server.patches)) == (1, 2)


async def test_a_lost_answer_to_an_own_write_is_no_overwriting() -> None:
    server = Server()
    _, writer, run = running(server)
    run.status = run.status.model_copy(update={"message": "it goes on"})
    server.changed({"phase": "Running", "message": "it goes on"})  # As our patch left it, before it was sent again.
    assert await writer.flush(run_target(run))
    assert (server.reads, len(server.patches)) == (1, 1)


async def test_a_fight_over_a_status_has_a_bound() -> None:
    server = Server()
    _, writer, run = running(server)
    run.status = run.status.model_copy(update={"message": "it goes on"})
    server.meddle = lambda: server.changed({"message": "no"})
    server.changed({"message": "no"})
    with pytest.raises(ConflictError):
        await writer.flush(run_target(run))
    assert len(server.patches) == CONFLICTS_MAX + 1


async def test_a_change_while_a_patch_is_under_way_is_looked_at_after_it() -> None:
    server = Server()
    cache, writer, run = running(server)
    server.let.clear()
    run.status = run.status.model_copy(update={"message": "it goes on"})
    writing = asyncio.create_task(writer.flush(run_target(run)))
    await server.arrived.wait()
    # As if the patch had come first, and somebody wiped all of it before its answer was here.
    late = copy.deepcopy(server.raw)
    late["metadata"]["resourceVersion"] = "3"
    late["status"] = {}
    cache.observe_run("Execution", "MODIFIED", late)
    server.meddle = lambda: None
    server.let.set()
    assert await writing
    assert server.reads == 1
    assert server.status["message"] == "it goes on"


async def test_who_no_longer_leads_writes_nothing() -> None:
    server = Server()
    _, _, run = running(server)
    run.status = run.status.model_copy(update={"message": "late"})
    writer = writing_to(server, leads=lambda: False)
    with pytest.raises(LeadershipLostError):
        await writer.flush(run_target(run))
    assert not server.patches


async def test_another_object_of_the_name_is_not_written_to() -> None:
    server = Server()
    _, writer, run = running(server)
    run.status = run.status.model_copy(update={"message": "late"})
    server.changed({"message": "mine"}, uid="another")
    assert not await writer.flush(run_target(run))
    assert server.status == {"message": "mine"}
    assert len(server.gone) == 1


# --- the annotation by which a copy is known --------------------------------------------------------------------------


def begun() -> Attempt:
    """An attempt whose pod is about to be created."""
    return Attempt(number=1, pod="p", allotment="a", outcome=AttemptOutcome.RUNNING)


def say_more(run: Run, **changes: Any) -> None:
    run.status = run.status.model_copy(update={"message": "another", **changes})


async def test_an_object_says_whose_order_it_is_before_its_first_status_and_once() -> None:
    server = Server()
    _, writer, run = running(server, {}, {})
    say_more(run)
    assert await writer.flush(run_target(run))
    assert server.annotated == [(OWN, {})], "nothing was said of it before"
    assert server.metadata["annotations"] == OWN
    assert server.status["message"] == "another"
    assert (server.reads, len(server.patches)) == (0, 1), "the status is written to the version that it made"
    say_more(run, message="more")
    assert await writer.flush(run_target(run))
    assert len(server.annotated) == 1


async def test_one_that_changed_before_it_was_annotated_is_read_again() -> None:
    server = Server()
    cache, writer, run = running(server, {}, {})
    say_more(run)
    server.changed(generation=2)
    assert await writer.flush(run_target(run))
    assert (server.metadata["annotations"], server.reads, cache.runs["r"].generation) == (OWN, 1, 2)


@pytest.mark.parametrize(
    ("annotations", "status"),
    [(OTHERS, {}), (OTHERS, {"phase": "Queued"}), ({}, {"phase": "Failed"})],
    ids=["a copy", "a copy that was resumed", "one that never runs"],
)
async def test_what_is_not_annotated(annotations: dict[str, str], status: dict[str, Any]) -> None:
    server = Server()
    _, writer, run = running(server, annotations, {} if status.get("phase") == "Failed" else status)
    say_more(run, **({"phase": ExecutionPhase.FAILED} if status.get("phase") == "Failed" else {}))
    assert await writer.flush(run_target(run))
    assert server.annotated == []
    assert server.status["message"] == "another"


@pytest.mark.parametrize(
    "refusal", [InvalidError(422, "Invalid", "spec.x: no"), ForbiddenError(403, "Forbidden", "cannot patch")]
)
async def test_no_pod_is_created_for_one_that_cannot_be_annotated_and_its_status_is_written(refusal: ApiError) -> None:
    server = Server()
    server.refuses = refusal
    _, writer, run = running(server, {}, {})
    say_more(run)
    assert await writer.flush(run_target(run))
    assert server.status["message"] == "another"
    say_more(run, message="more")
    assert await writer.flush(run_target(run))
    assert len(server.annotated) == 1, "asked once, where nothing depends on it"
    say_more(run, attempts=[begun()])
    with pytest.raises(type(refusal)):
        await writer.flush(run_target(run))
    assert "attempts" not in server.status
    server.refuses = None
    assert await writer.flush(run_target(run))
    assert server.metadata["annotations"] == OWN
    assert server.status["attempts"][0]["number"] == 1
