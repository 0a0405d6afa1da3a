"""Many objects, one of them bad: it is told of by name, and its neighbours are served. And: no change is lost."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from almoner_core import wire
from almoner_operator import apart, metrics, observe, sync, tool_providers
from almoner_operator.accounts import Accounts
from almoner_operator.agents import AgentVerdict, SecretFacts, agent_verdict
from almoner_operator.cache import Cache
from almoner_operator.errors import LeadershipLostError
from almoner_operator.kubernetes import AGENTS, Resource
from almoner_operator.observe import Observer
from almoner_operator.rates import RateBook
from almoner_operator.scheduling.decide import AGAIN, decide
from almoner_operator.scheduling.model import EXECUTION, Requests
from almoner_operator.settle import Settler

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Json = dict[str, Any]
MODEL = {"provider": "local", "name": "small"}
KEY = {"name": "keys", "key": "key"}
PROVIDER = {
    "type": "OpenAICompatible",
    "baseURL": "http://one/v1",
    "credentials": KEY,
    "models": [{"name": "small", "contextWindow": 2048}],
    "prices": [{"model": "small", "inputPerMillion": "1.00", "outputPerMillion": "2.00"}],
}
TOOLS = {"type": "Serper", "credentials": KEY, "prices": [{"tool": "web_search", "perCall": "0.01"}]}
ENV = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "own", "key": "key"}}}]
AGENT = {"type": "Simulation", "model": MODEL, "runner": {"env": ENV}}


def raw(name: str, spec: Json, version: int = 1, generation: int = 1, namespace: str = "team") -> Json:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"}
    return {
        "metadata": {**metadata, "resourceVersion": str(version), "generation": generation},
        "spec": spec,
        "status": {},
    }


class Site:
    """An observer on a cache, whose looks at Secrets wait until they are let through."""

    def __init__(self) -> None:
        self.cache = Cache(meter=Requests(), wake=lambda: None)
        self.let, self.looking = asyncio.Event(), asyncio.Event()
        self.let.set()
        self.told: list[tuple[str, ...]] = []
        context: Any = SimpleNamespace(
            cache=self.cache,
            secrets=self,
            writer=SimpleNamespace(mark=lambda *_, **__: None),
            events=SimpleNamespace(tell=lambda *where, **_: self.told.append(where[:3])),
        )
        self.observer = Observer(context)
        self.cache.observe_provider("ADDED", raw("local", PROVIDER))

    async def facts(self, _namespace: str, names: Sequence[str]) -> dict[str, SecretFacts]:
        self.looking.set()
        await self.let.wait()
        return {name: SecretFacts(agent_readable=True) for name in names}

    async def meanwhile(self) -> asyncio.Task[None]:
        """Begin to judge, and stop where it waits for a Secret."""
        self.let.clear()
        self.looking.clear()
        judging = asyncio.create_task(self.observer.judge())
        await self.looking.wait()
        return judging

    async def settle(self, judging: asyncio.Task[None]) -> None:
        """Let it go on, and judge whatever is marked then."""
        self.let.set()
        await judging
        for _ in range(5):
            await self.observer.judge()


@pytest.fixture
async def site() -> Site:
    return Site()


# --- a change while something is judged -------------------------------------------------------------------------------


async def test_an_agent_that_changes_while_it_is_judged_is_judged_again(site: Site) -> None:
    await site.observer.judge()
    site.cache.observe_agent("ADDED", raw("agent", {**AGENT, "model": {**MODEL, "provider": "none"}}))
    judging = await site.meanwhile()
    site.cache.observe_agent("MODIFIED", raw("agent", AGENT, 2, 2))
    await site.settle(judging)
    agent = site.cache.space("team").agents["agent"]
    assert (agent.reason, agent.judged, agent.status.observed_generation) == ("Ready", True, 2)
    assert not site.cache.agents_changed, "what was judged does not mark itself for ever"


async def test_a_good_agent_that_turns_bad_while_it_is_judged_does_not_stand_as_ready(site: Site) -> None:
    await site.observer.judge()
    site.cache.observe_agent("ADDED", raw("agent", AGENT))
    judging = await site.meanwhile()
    site.cache.observe_agent("MODIFIED", raw("agent", {**AGENT, "model": {**MODEL, "provider": "none"}}, 2, 2))
    await site.settle(judging)
    assert site.cache.space("team").agents["agent"].reason == "ProviderNotFound"


async def test_a_provider_that_goes_while_an_agent_is_judged_is_noticed(site: Site) -> None:
    await site.observer.judge()
    site.cache.observe_agent("ADDED", raw("agent", AGENT))
    judging = await site.meanwhile()
    site.cache.observe_provider("DELETED", raw("local", PROVIDER, 2))
    await site.settle(judging)
    assert site.cache.space("team").agents["agent"].reason == "ProviderNotFound"


async def test_a_model_provider_that_changes_while_it_is_judged_is_judged_again(site: Site) -> None:
    judging = await site.meanwhile()
    without = {name: value for name, value in PROVIDER.items() if name != "credentials"}
    site.cache.observe_provider("MODIFIED", raw("local", {**without, "type": "OpenAI"}, 2, 2))
    await site.settle(judging)
    provider = site.cache.space("team").providers["local"]
    assert (provider.reason, provider.status.observed_generation) == ("CredentialsMissing", 2)


async def test_a_tool_provider_that_changes_while_it_is_judged_is_judged_again(site: Site) -> None:
    await site.observer.judge()
    tool_providers.observe(site.cache, "ADDED", raw("serper", TOOLS))
    judging = await site.meanwhile()
    tool_providers.observe(site.cache, "MODIFIED", raw("serper", {**TOOLS, "type": "Nothing"}, 2, 2))
    await site.settle(judging)
    source = site.cache.space("team").tool_providers["serper"]
    assert (source.reason, source.status.observed_generation) == ("InvalidSpec", 2)


# --- one bad object ---------------------------------------------------------------------------------------------------


async def test_an_agent_that_cannot_be_judged_says_so_and_its_neighbours_are_ready(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = agent_verdict

    def verdict(spec: Any, facts: Any) -> AgentVerdict:
        if spec.instructions == "poison":
            raise RecursionError("maximum recursion depth exceeded")
        return real(spec, facts)

    monkeypatch.setattr(observe, "agent_verdict", verdict)
    for name in ("a", "poison", "z"):
        site.cache.observe_agent("ADDED", raw(name, {**AGENT, "instructions": name}))
    await site.observer.judge()
    agents = site.cache.space("team").agents
    assert {name: str(agent.reason) for name, agent in agents.items()} == {
        "a": "Ready",
        "poison": "InvalidSpec",
        "z": "Ready",
    }
    (ready,) = [each for each in agents["poison"].status.conditions if each.type == "Ready"]
    assert (ready.status, "RecursionError" in ready.message) == ("False", True)


@pytest.mark.parametrize("kind", ["ModelProvider", "ToolProvider"])
async def test_a_provider_that_cannot_be_judged_says_so(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def verdict(*_: Any) -> Any:
        raise KeyError("poison")

    monkeypatch.setattr(observe, "provider_verdict", verdict)
    monkeypatch.setattr(tool_providers, "verdict", verdict)
    tool_providers.observe(site.cache, "ADDED", raw("serper", TOOLS))
    await site.observer.judge()
    space = site.cache.space("team")
    record = space.providers["local"] if kind == "ModelProvider" else space.tool_providers["serper"]
    assert record.reason == "InvalidSpec"
    assert "KeyError" in record.message


class Lists:
    """A client that lists agents, page by page."""

    def __init__(self, pages: list[list[Json]]) -> None:
        self.listed = pages

    async def pages(self, resource: Resource, **_: Any) -> AsyncIterator[list[Json]]:
        if resource is AGENTS:
            for page in self.listed:
                yield page


async def test_the_first_listing_goes_on_past_what_cannot_be_taken_in(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    broken = raw("broken", AGENT)
    del broken["metadata"]["uid"]
    client = Lists([[raw("a", AGENT), broken, raw("odd", {"type": 5})], [raw("z", AGENT)]])
    context: Any = SimpleNamespace(cache=cache, client=client, settings=SimpleNamespace(namespaces=()))
    before = metrics.FAULTS.labels("taking in")._value.get()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await sync.fill(context)
    agents = cache.space("team").agents
    assert sorted(agents) == ["a", "odd", "z"]
    assert "spec.type" in agents["odd"].invalid
    assert metrics.FAULTS.labels("taking in")._value.get() == before + 3
    assert len([each for each in caplog.records if "taking in of Agent team/broken" in each.message]) == 1, "said once"


def test_the_metric_of_known_objects_is_what_the_cache_has_now() -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    sync.count_live(cache)

    def known(kind: str) -> float:
        samples = {each.labels["kind"]: each.value for each in next(iter(metrics.KNOWN.collect())).samples}
        return samples[kind]

    spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}}
    cache.observe_agent("ADDED", raw("agent", AGENT))
    cache.observe_run(EXECUTION, "ADDED", raw("runs", spec))
    cache.observe_run(EXECUTION, "ADDED", {**raw("done", spec), "status": {"phase": "Succeeded"}})
    assert (known("Agent"), known("Execution"), known("TrainingJob")) == (1, 2, 0)
    cache.observe_run(EXECUTION, "DELETED", raw("done", spec, 2))
    cache.observe_agent("DELETED", raw("agent", AGENT, 2))
    assert (known("Agent"), known("Execution")) == (0, 1)


def test_a_namespace_that_cannot_be_decided_on_says_so_and_the_others_are_decided(cache_of_two: Cache) -> None:
    snapshot = cache_of_two.snapshot()
    bad = snapshot.namespaces["bad"]
    poisoned = dataclasses.replace(
        bad, workloads=tuple(dataclasses.replace(each, owner=cast("str", [])) for each in bad.workloads)
    )
    snapshot = dataclasses.replace(snapshot, namespaces={**snapshot.namespaces, "bad": poisoned})
    decisions = decide(snapshot, NOW)
    bad_wait = decisions.wait_of(bad.workloads[0].key)
    assert bad_wait is not None
    assert "cannot be decided on: TypeError" in bad_wait.message
    assert decisions.namespaces["bad"].valid_until == NOW + AGAIN
    good = decisions.wait_of(snapshot.namespaces["good"].workloads[0].key)
    assert good is not None
    assert good.reason == "AgentNotFound", "looked at as ever"


@pytest.fixture
def cache_of_two() -> Cache:
    cache = Cache(meter=Requests(), wake=lambda: None)
    cache.set_ledger_ready(True)
    spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}}
    for namespace in ("bad", "good"):
        cache.observe_run(EXECUTION, "ADDED", raw("run", spec, namespace=namespace))
    return cache


def test_a_run_that_cannot_be_reckoned_is_left_out_and_its_neighbours_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    real = cache._workload

    def workload(space: Any, run: Any) -> Any:
        if run.key.name.startswith("poison"):
            raise ValueError("such a number")
        return real(space, run)

    monkeypatch.setattr(cache, "_workload", workload)
    spec = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}}
    for name in ("a", "poison", "z"):
        cache.observe_run(EXECUTION, "ADDED", raw(name, spec))
    assert {each.key.name for each in cache.snapshot().namespaces["team"].workloads} == {"a", "z"}
    run = cache.runs["uid-team-poison"]
    assert "such a number" in run.problem
    assert run.key.uid in cache.review, "so that its status says why"


async def test_the_ledgers_feed_goes_on_past_what_cannot_be_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    context: Any = SimpleNamespace(cache=cache, rates=None)
    settler = Settler(context, cast("Any", None))
    seen: list[str] = []

    def take(totals: wire.ExecutionTotals) -> None:
        if totals.name == "poison":
            raise OverflowError("too much")
        seen.append(totals.name)

    monkeypatch.setattr(settler, "_take_totals", take)
    executions = [
        wire.ExecutionTotals(
            kind="Execution", namespace="team", name=name, uid=name, totals=wire.UsageTotals(), attempts={}, states={}
        )
        for name in ("a", "poison", "z")
    ]
    settler.take(wire.Changes(after=7, executions=executions))
    assert (seen, settler.cursor) == (["a", "z"], 7)


async def test_a_quota_whose_limits_cannot_be_worked_out_says_so_and_the_others_are_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Cache(meter=Requests(), wake=lambda: None)
    for name in ("a", "poison", "z"):
        cache.observe_quota("ADDED", raw(name, {"budget": {"amount": "1.00"}}))
    handed: list[str] = []

    async def update_accounts(limits: Sequence[wire.AccountLimits], **_: Any) -> wire.AccountsAnswer:
        handed.extend(each.key.quota for each in limits)
        return wire.AccountsAnswer(accounts=[])

    nothing = SimpleNamespace(mark=lambda *_, **__: None, tell=lambda *_, **__: None)
    context: Any = SimpleNamespace(
        cache=cache,
        ledger=SimpleNamespace(epoch=1, update_accounts=update_accounts),
        writer=nothing,
        events=nothing,
        rates=RateBook(),
    )
    accounts = Accounts(context)
    real_updates, real_status = accounts._updates, accounts.write_status

    def updates(space: Any, name: str) -> Any:
        if name == "poison":
            raise RecursionError("too deep")
        return real_updates(space, name)

    def write_status(record: Any) -> None:
        if record.name == "a":
            raise OverflowError("too much")
        real_status(record)

    monkeypatch.setattr(accounts, "_updates", updates)
    monkeypatch.setattr(accounts, "write_status", write_status)
    await accounts.sync()
    assert handed == ["a", "z"]
    quotas = cache.space("team").quotas
    assert {name: str(each.reason) for name, each in quotas.items()} == {
        "a": "InForce",
        "poison": "InvalidSpec",
        "z": "InForce",
    }
    assert "RecursionError: too deep" in quotas["poison"].message
    assert quotas["z"].status.conditions, "though its neighbour's could not be said"


def test_lost_leadership_is_nobodys_fault_and_ends_the_process() -> None:
    def lost() -> None:
        raise LeadershipLostError("gone")

    with pytest.raises(LeadershipLostError):
        apart.each("doing", "it", lost)
    told: Mapping[str, str] = {"why": apart.each("doing", "it", lambda: 1 // 0)}
    assert told["why"].startswith("ZeroDivisionError")
    assert not apart.each("doing", "it", lambda: 1)
