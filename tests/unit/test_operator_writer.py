"""Statuses reach the API server whatever happens to their records in between."""

import asyncio
from typing import Any, cast

from almoner_operator.cache import Cache
from almoner_operator.context import run_target, target_of
from almoner_operator.kubernetes import KubernetesClient
from almoner_operator.limiter import Rank
from almoner_operator.records import QuotaRecord
from almoner_operator.scheduling.model import Requests
from almoner_operator.writer import StatusWriter
from tests.support.polling import until_async


class Server:
    """What the API server would have of one status; each patch waits until it is let through."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self.arrived = asyncio.Event()
        self.let = asyncio.Event()

    async def patch_status(self, *_where: Any, status: dict[str, Any], **_how: Any) -> str:
        self.arrived.set()
        await self.let.wait()
        self.status |= status
        return "7"


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


async def test_what_was_marked_before_the_spec_changed_is_written_as_it_is_after() -> None:
    cache, server = Cache(meter=Requests(), wake=lambda: None), Server()
    writer = StatusWriter(cast("KubernetesClient", server), gone=lambda _: None)
    cache.observe_quota("ADDED", quota(1))
    old = cache.space("team").quotas["money"]
    say(old, "1.00")
    writer.mark(target_of("ResourceQuota", old), Rank.STATUS, delay=0.01)
    cache.observe_quota("MODIFIED", quota(2))
    new = cache.space("team").quotas["money"]
    assert new is not old
    say(new, "2.00")
    writer.mark(target_of("ResourceQuota", new), Rank.STATUS, delay=5.0)  # The earlier mark wins.
    await settle(server, writer, "2.00")
    assert new.written == new.status


async def test_a_patch_under_way_while_the_spec_changes_does_not_hide_the_next() -> None:
    cache, server = Cache(meter=Requests(), wake=lambda: None), Server()
    writer = StatusWriter(cast("KubernetesClient", server), gone=lambda _: None)
    cache.observe_quota("ADDED", quota(1))
    old = cache.space("team").quotas["money"]
    say(old, "1.00")
    writing = asyncio.create_task(writer.flush(target_of("ResourceQuota", old)))
    await server.arrived.wait()
    cache.observe_quota("MODIFIED", quota(2))
    new = cache.space("team").quotas["money"]
    # Back to what the API server had before the patch: as seen from there, nothing would have changed.
    new.status = new.status.model_copy(update={"remaining": None})
    writer.mark(target_of("ResourceQuota", new), Rank.STATUS)
    server.let.set()
    assert await writing
    await settle(server, writer, None)
    assert new.written == new.status


async def test_a_change_that_came_just_before_our_own_write_is_seen() -> None:
    cache, server = Cache(meter=Requests(), wake=lambda: None), Server()
    writer = StatusWriter(cast("KubernetesClient", server), gone=lambda _: None)
    cache.observe_quota("ADDED", quota(1))
    known = cache.space("team").quotas["money"]
    say(known, "1.00")
    server.let.set()
    # Our write gets version 7; the user's change got version 6, and its event comes after our answer.
    assert await writer.flush(target_of("ResourceQuota", known))
    changed = quota(2)
    changed["metadata"]["resourceVersion"] = "6"
    cache.observe_quota("MODIFIED", changed)
    assert cache.space("team").quotas["money"].generation == 2


async def test_a_cancel_that_came_just_before_our_own_write_is_seen() -> None:
    cache, server = Cache(meter=Requests(), wake=lambda: None), Server()
    writer = StatusWriter(cast("KubernetesClient", server), gone=lambda _: None)
    raw: dict[str, Any] = {
        "metadata": {"name": "run", "namespace": "team", "uid": "r", "generation": 1, "resourceVersion": "1"},
        "spec": {"agentRef": {"name": "agent"}},
    }
    cache.observe_run("Execution", "ADDED", raw)
    run = cache.runs["r"]
    run.status = run.status.model_copy(update={"message": "it runs"})
    server.let.set()
    assert await writer.flush(run_target(run))
    raw["metadata"] |= {"generation": 2, "resourceVersion": "6"}
    cache.observe_run("Execution", "MODIFIED", raw | {"spec": {"agentRef": {"name": "agent"}, "cancel": True}})
    assert run.spec is not None
    assert run.spec.cancel
