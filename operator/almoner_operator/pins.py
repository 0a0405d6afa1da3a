"""Agents as they were at admission: kept as ControllerRevisions, so that a retry runs what was pinned.

Role: one apps/v1 ControllerRevision for each hash of an Agent's spec that was ever admitted, owned by the Agent, as
Deployments and StatefulSets keep theirs. Written once for a hash; a status names agent, generation and hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import Final

from pydantic import ValidationError

from almoner_core.api.agent import AgentSpec
from almoner_core.api.base import API_VERSION
from almoner_core.api.execution import PinnedAgent
from almoner_core.contract import LABEL_AGENT, LABEL_MANAGED_BY
from almoner_operator.errors import AlreadyExistsError, NotFoundError
from almoner_operator.kubernetes import REVISIONS, KubernetesClient
from almoner_operator.limiter import Rank
from almoner_operator.pods import label_value
from almoner_operator.records import AgentRecord, explain

log = logging.getLogger(__name__)

REMEMBERED_MAX: Final = 1024
PREFIX_CHARS_MAX: Final = 200


class PinLostError(Exception):
    """The pinned spec cannot be had any more: the Agent, and with it what it owned, was deleted."""


class Pins:
    """Writes and reads pinned specs, and remembers them."""

    def __init__(self, client: KubernetesClient) -> None:
        self._client = client
        self._specs: OrderedDict[str, AgentSpec] = OrderedDict()
        # Many executions of one Agent are admitted at once: one of them writes, the others wait for it.
        self._writing: dict[str, asyncio.Lock] = {}

    async def pin(self, agent: AgentRecord) -> PinnedAgent:
        """Keep the agent's present spec and give the reference to it. Raises ApiError."""
        assert agent.spec is not None
        if not agent.revision_known:
            name = revision_name(agent.name, agent.uid, agent.hash)
            lock = self._writing.setdefault(f"{agent.namespace}/{name}", asyncio.Lock())
            async with lock:
                if not agent.revision_known:
                    await self._write(agent, name)
                    agent.revision_known = True
            self._writing.pop(f"{agent.namespace}/{name}", None)
        self._remember(agent.hash, agent.spec)
        return PinnedAgent(name=agent.name, uid=agent.uid, generation=agent.generation, hash=agent.hash)

    async def _write(self, agent: AgentRecord, name: str) -> None:
        assert agent.spec is not None
        owner = {
            "apiVersion": API_VERSION,
            "kind": "Agent",
            "name": agent.name,
            "uid": agent.uid,
            "controller": True,
        }
        body = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": name,
                "namespace": agent.namespace,
                "labels": {LABEL_MANAGED_BY: "almoner", LABEL_AGENT: label_value(agent.name)},
                "ownerReferences": [owner],
            },
            "revision": agent.generation,
            "data": agent.spec.to_wire(),
        }
        try:
            await self._client.create(REVISIONS, agent.namespace, body)
        except AlreadyExistsError:
            log.debug("the revision of %s/%s is there already", agent.namespace, agent.name)

    async def read(self, namespace: str, pinned: PinnedAgent) -> AgentSpec:
        """Give a pinned spec. Raises PinLostError where it is gone, ApiError otherwise."""
        known = self._specs.get(pinned.hash)
        if known is not None:
            return known
        name = revision_name(pinned.name, pinned.uid, pinned.hash)
        try:
            found = await self._client.get(REVISIONS, namespace, name, rank=Rank.ADMIT)
        except NotFoundError:
            raise PinLostError(f"Agent {pinned.name} as it was pinned is gone: it was deleted") from None
        try:
            spec = AgentSpec.model_validate(found.get("data") or {})
        except ValidationError as error:
            raise PinLostError(f"Agent {pinned.name} as it was pinned cannot be read: {explain(error)}") from error
        self._remember(pinned.hash, spec)
        return spec

    def _remember(self, key: str, spec: AgentSpec) -> None:
        self._specs[key] = spec
        self._specs.move_to_end(key)
        if len(self._specs) > REMEMBERED_MAX:
            self._specs.popitem(last=False)


def revision_name(agent: str, uid: str, spec_hash: str) -> str:
    """Give the ControllerRevision's name for an agent's uid and the hash of its spec.

    The uid is in it because the revision dies with its Agent: one of the same name and spec that is created again must
    not lean on a revision that is about to be collected.
    """
    digest = hashlib.sha256(f"{uid}/{spec_hash}".encode()).hexdigest()[:16]
    return f"{agent[:PREFIX_CHARS_MAX].rstrip('-.')}-{digest}"
