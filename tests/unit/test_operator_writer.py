"""Statuses reach the API server whatever happens to their records in between."""

import asyncio
from typing import Any, cast

from almoner_operator.cache import Cache
from almoner_operator.context import target_of
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
