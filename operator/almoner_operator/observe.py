"""Whether Agents, ModelProviders and ToolProviders can be used: facts, judged by agents.py, written as conditions.

Role: what only the operator can see (a missing provider, a Secret that agents may not read, a model without a price)
becomes a condition and an event. Secrets are not watched: their metadata is read when something that names them
changed, and again every half minute while one is missing or could not be looked at. Each object is judged by itself:
one that takes long, or that cannot be judged at all, keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from almoner_core.agent_checks import Checked, Problem, ProblemKind, first_problem
from almoner_core.api.agent import AgentReason, AgentSpec, ExecutionCounts
from almoner_core.api.base import LocalObjectReference
from almoner_core.api.execution import ExecutionPhase
from almoner_core.api.model_provider import ProviderReason
from almoner_core.api.tool_provider import ToolProviderReason
from almoner_operator import apart, demand, tool_providers
from almoner_operator.agents import (
    AgentFacts,
    ProviderFacts,
    SecretFacts,
    ToolProviderFacts,
    agent_verdict,
    provider_verdict,
)
from almoner_operator.cache import Space
from almoner_operator.conditions import agent_conditions, provider_conditions, tool_provider_conditions
from almoner_operator.context import Context, now, target_of
from almoner_operator.errors import LeadershipLostError
from almoner_operator.limiter import Rank
from almoner_operator.outcome import moment
from almoner_operator.records import AgentRecord, ProviderRecord
from almoner_operator.scheduling.model import Quota
from almoner_operator.secret_facts import secrets_of
from almoner_operator.tool_records import ToolProviderRecord

log = logging.getLogger(__name__)

AGAIN_SECONDS: Final = 30.0
COUNTS_SECONDS: Final = 0.8
CHECK_SECONDS: Final = 10.0
AT_ONCE_MAX: Final = 16
"""Objects judged at once: each may wait for the API server's word on a Secret."""
_PROVIDER_AGAIN: Final = frozenset(
    {
        ProviderReason.SECRET_NOT_FOUND,
        ProviderReason.SECRET_NOT_LABELLED,
        ProviderReason.SECRET_UNKNOWN,
        ProviderReason.SECRET_FORBIDDEN,
    }
)
_TOOL_PROVIDER_AGAIN: Final = frozenset(
    {
        ToolProviderReason.SECRET_NOT_FOUND,
        ToolProviderReason.SECRET_NOT_LABELLED,
        ToolProviderReason.SECRET_UNKNOWN,
        ToolProviderReason.SECRET_FORBIDDEN,
    }
)
_AGENT_AGAIN: Final = frozenset(
    {
        AgentReason.SECRET_NOT_FOUND,
        AgentReason.SECRET_NOT_READABLE,
        AgentReason.SECRET_UNKNOWN,
        AgentReason.SECRET_FORBIDDEN,
    }
)


class Observer:
    """Judges Agents and ModelProviders whenever something about them changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = asyncio.Event()
        self._not_judged: set[tuple[str, str, str]] = set()

    def wake(self) -> None:
        """Look soon at what changed."""
        self._wake.set()

    async def run(self) -> None:
        """Judge what changed, for ever."""
        again = time.monotonic() + AGAIN_SECONDS
        while True:
            try:
                async with asyncio.timeout(max(0.1, again - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                again = time.monotonic() + AGAIN_SECONDS
                self._again()
            self._wake.clear()
            try:
                await self.judge()
            except Exception:
                log.exception("judging Agents and ModelProviders failed")
                await asyncio.sleep(1)

    def _again(self) -> None:
        """Look again at what misses a Secret, which nothing tells us of, and at what could not be judged."""
        cache = self._context.cache
        changed = {
            "ModelProvider": cache.providers_changed,
            "ToolProvider": cache.tool_providers_changed,
            "Agent": cache.agents_changed,
        }
        for kind, namespace, name in self._not_judged:
            changed[kind].add((namespace, name))
        self._not_judged.clear()
        for space in (cache.cluster, *cache.spaces.values()):
            for provider in space.providers.values():
                if provider.reason in _PROVIDER_AGAIN:
                    cache.providers_changed.add((space.name, provider.name))
            for source in space.tool_providers.values():
                if source.reason in _TOOL_PROVIDER_AGAIN:
                    cache.tool_providers_changed.add((space.name, source.name))
            for agent in space.agents.values():
                if agent.reason in _AGENT_AGAIN:
                    cache.agents_changed.add((space.name, agent.name))

    async def judge(self) -> None:
        """Judge everything that changed since the last time: providers first, since agents depend on them."""
        cache = self._context.cache
        providers, cache.providers_changed = cache.providers_changed, set()
        await self._each("ModelProvider", providers, self._judge_named_provider)
        sources, cache.tool_providers_changed = cache.tool_providers_changed, set()
        await self._each("ToolProvider", sources, self._judge_named_tool_provider)
        agents, cache.agents_changed = cache.agents_changed, set()
        await self._each("Agent", agents, self._judge_named_agent)

    async def _each(
        self, kind: str, names: set[tuple[str, str]], judge: Callable[[Space, str], Coroutine[Any, Any, None]]
    ) -> None:
        """Judge several objects, each by itself. One that raises is tried again with the next look."""
        slots = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(namespace: str, name: str) -> None:
            async with slots:
                try:
                    await judge(self._context.cache.space(namespace), name)
                except LeadershipLostError:
                    raise
                except Exception as error:
                    log.exception("%s %s/%s cannot be judged", kind, namespace, name)
                    self._not_judged.add((kind, namespace, name))
                    apart.each("saying why", f"{namespace}/{name}", self._give_up, kind, namespace, name, error)

        await asyncio.gather(*(one(namespace, name) for namespace, name in names))

    def _give_up(self, kind: str, namespace: str, name: str, error: Exception) -> None:
        """Say that an object cannot be used, since judging it failed; it is tried again with the next look."""
        space, context = self._context.cache.space(namespace), self._context
        text = f"it cannot be judged: {type(error).__name__}: {error}"[:500]
        moment = now().replace(microsecond=0)
        if kind == "Agent" and (agent := space.agents.get(name)) is not None:
            agent.reason, agent.message, agent.judged = AgentReason.INVALID_SPEC, text, True
            said = agent_conditions(
                agent.reason, text, generation=agent.generation, previous=agent.status.conditions, now=moment
            )
            agent.status = agent.status.model_copy(update={"observed_generation": agent.generation, "conditions": said})
            context.cache.agent_touched(namespace, name, judged=True)
            context.writer.mark(target_of(kind, agent))
        elif kind == "ModelProvider" and (provider := space.providers.get(name)) is not None:
            provider.reason, provider.message = ProviderReason.INVALID_SPEC, text
            said = provider_conditions(
                provider.reason,
                text,
                bypassable=False,
                generation=provider.generation,
                previous=provider.status.conditions,
                now=moment,
            )
            provider.status = provider.status.model_copy(
                update={"observed_generation": provider.generation, "conditions": said}
            )
            context.cache.provider_touched(namespace, name, judged=True)
            context.writer.mark(target_of(provider.kind, provider))
        elif (source := space.tool_providers.get(name)) is not None:
            source.reason, source.message = ToolProviderReason.INVALID_SPEC, text
            said = tool_provider_conditions(
                source.reason, text, generation=source.generation, previous=source.status.conditions, now=moment
            )
            source.status = source.status.model_copy(
                update={"observed_generation": source.generation, "conditions": said}
            )
            tool_providers.touched(context.cache, space, name, judged=True)
            context.writer.mark(target_of(source.kind, source))

    async def _judge_named_provider(self, space: Space, name: str) -> None:
        if (record := space.providers.get(name)) is not None:
            await self._judge_provider(record)

    async def _judge_named_tool_provider(self, space: Space, name: str) -> None:
        if (record := space.tool_providers.get(name)) is not None:
            await self._judge_tool_provider(record)

    async def _judge_named_agent(self, space: Space, name: str) -> None:
        if (record := space.agents.get(name)) is not None:
            await self._judge_agent(space, record)

    async def _judge_provider(self, record: ProviderRecord) -> None:
        context, before = self._context, (record.reason, record.message)
        if record.spec is None:
            record.reason, record.message, bypassable = ProviderReason.INVALID_SPEC, record.invalid, False
        else:
            names = [record.spec.credentials.name] if record.spec.credentials is not None else []
            place = record.namespace or context.settings.own_namespace
            secrets = await context.secrets.facts(place, names)
            if record.successor is not None:
                return  # It changed meanwhile, and is marked to be judged as it is now.
            record.reason, record.message, bypassable = provider_verdict(record.spec, secrets)
        conditions = provider_conditions(
            record.reason,
            record.message,
            bypassable=bypassable,
            generation=record.generation,
            previous=record.status.conditions,
            now=now().replace(microsecond=0),
        )
        record.status = record.status.model_copy(
            update={"observed_generation": record.generation, "conditions": conditions}
        )
        context.writer.mark(target_of(record.kind, record))
        if (record.reason, record.message) != before:
            self._tell(record.kind, record, good=record.reason is ProviderReason.READY)
            context.cache.provider_touched(record.namespace, record.name, judged=True)

    async def _judge_tool_provider(self, record: ToolProviderRecord) -> None:
        context, before = self._context, (record.reason, record.message)
        if record.spec is None:
            record.reason, record.message = ToolProviderReason.INVALID_SPEC, record.invalid
        else:
            names = [record.spec.credentials.name] if record.spec.credentials is not None else []
            place = record.namespace or context.settings.own_namespace
            secrets = await context.secrets.facts(place, names)
            if record.successor is not None:
                return
            record.reason, record.message = tool_providers.verdict(record.spec, secrets)
        conditions = tool_provider_conditions(
            record.reason,
            record.message,
            generation=record.generation,
            previous=record.status.conditions,
            now=now().replace(microsecond=0),
        )
        record.status = record.status.model_copy(
            update={"observed_generation": record.generation, "conditions": conditions}
        )
        context.writer.mark(target_of(record.kind, record))
        if (record.reason, record.message) != before:
            self._tell(record.kind, record, good=record.reason is ToolProviderReason.READY)
            tool_providers.touched(context.cache, context.cache.space(record.namespace), record.name, judged=True)

    async def _judge_agent(self, space: Space, record: AgentRecord) -> None:
        context, before = self._context, (record.reason, record.message)
        if record.spec is None:
            record.reason, record.message = AgentReason.INVALID_SPEC, record.invalid
        else:
            secrets = await self._context.secrets.facts(space.name, secrets_of(record.spec.runner))
            checked = await _checked(record, record.spec)
            if record.successor is not None:
                return
            # What else is known is looked at after the last wait: what changes from here on marks the Agent again.
            facts = self._agent_facts(space, record, secrets, checked)
            record.reason, record.message = agent_verdict(record.spec, facts)
        conditions = agent_conditions(
            record.reason,
            record.message,
            generation=record.generation,
            previous=record.status.conditions,
            now=now().replace(microsecond=0),
        )
        counts, newest = self._counts(record)
        record.status = record.status.model_copy(
            update={
                "observed_generation": record.generation,
                "conditions": conditions,
                "executions": counts,
                "last_execution": LocalObjectReference(name=newest[1]) if newest else None,
                "last_execution_time": newest[0] if newest else None,
            }
        )
        changed = not record.judged or (record.reason, record.message) != before
        record.judged = True
        context.writer.mark(
            target_of("Agent", record),
            Rank.STATUS if changed else Rank.BACKGROUND,
            delay=0.0 if changed else COUNTS_SECONDS,
        )
        if changed:
            self._tell("Agent", record, good=record.reason is AgentReason.READY)
            context.cache.agent_touched(record.namespace, record.name, judged=True)

    def _counts(self, record: AgentRecord) -> tuple[ExecutionCounts, tuple[object, str] | None]:
        counted = self._context.cache.counts
        by_phase = counted.of(record.namespace, record.name)

        def of(*phases: ExecutionPhase) -> int:
            return max(0, sum(by_phase.get(phase.value, 0) for phase in phases))

        counts = ExecutionCounts(
            pending=of(ExecutionPhase.PENDING),
            queued=of(ExecutionPhase.QUEUED),
            running=of(ExecutionPhase.ADMITTED, ExecutionPhase.RUNNING),
            succeeded=of(ExecutionPhase.SUCCEEDED),
            failed=of(ExecutionPhase.FAILED),
            cancelled=of(ExecutionPhase.CANCELLED),
        )
        newest = counted.newest(record.namespace, record.name)
        return counts, (moment(newest[0]), newest[1]) if newest is not None else None

    def _tell(self, kind: str, record: AgentRecord | ProviderRecord | ToolProviderRecord, *, good: bool) -> None:
        if not good:
            self._context.events.tell(
                kind,
                record.namespace,
                record.name,
                record.uid,
                reason=str(record.reason),
                note=record.message,
                warning=True,
            )

    def _agent_facts(
        self, space: Space, record: AgentRecord, secrets: Mapping[str, SecretFacts], checked: Checked
    ) -> AgentFacts:
        spec, cache = record.spec, self._context.cache
        assert spec is not None
        seen = cache.providers_for(space)
        return AgentFacts(
            providers={
                key: ProviderFacts(each.spec, each.reason is ProviderReason.READY, each.message)
                for key, each in seen.items()
                if each.spec is not None
            },
            tool_providers=_tool_facts(cache.tool_providers_for(space)),
            secrets=secrets,
            has_price=lambda provider, model: _has_price(seen, provider, model),
            budgeted=_budgeted(space, record, spec),
            checked=checked,
            namespace=space.name,
            name=record.name,
        )


async def _checked(record: AgentRecord, spec: AgentSpec) -> Checked:
    """Check a spec by itself, once, in a thread: nobody else waits for a large schema."""
    if record.checked is None:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                record.checked = Checked(await asyncio.to_thread(first_problem, spec))
        except TimeoutError:
            said = f"its schemas take longer than {CHECK_SECONDS:.0f} seconds to check: simplify them"
            record.checked = Checked(Problem(ProblemKind.INVALID, "output", said))
    return record.checked


def _tool_facts(seen: Mapping[str, ToolProviderRecord]) -> dict[str, ToolProviderFacts]:
    return {
        key: ToolProviderFacts(each.spec, each.reason is ToolProviderReason.READY, each.message)
        for key, each in seen.items()
        if each.spec is not None
    }


def _has_price(seen: Mapping[str, ProviderRecord], provider: str, model: str) -> bool:
    record = seen.get(provider)
    return record is not None and demand.card_for(record, model) is not None


def _budgeted(space: Space, record: AgentRecord, spec: AgentSpec) -> bool:
    """Whether a quota with an enforced budget can govern the agent, whoever owns its executions."""
    for quota in space.quotas.values():
        if quota.spec is None or quota.spec.budget is None:
            continue
        try:
            read = Quota.of(quota.name, quota.spec)
        except ValueError:
            continue
        labels = all(record.labels.get(key) == value for key, value in read.agent_selector)
        if read.enforced and not read.owners and labels and (not read.agent_types or spec.type in read.agent_types):
            return True
    return False
