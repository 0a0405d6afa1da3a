"""What was admitted is what counts: the cache, the scheduler and timeouts, whatever becomes of Agent and quotas."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from almoner_core.api.execution import AttemptOutcome, ExecutionStatus
from almoner_operator import outcome
from almoner_operator.admitted import Admitted
from almoner_operator.attempts import AttemptEnd
from almoner_operator.cache import Cache
from almoner_operator.lifecycle import Lifecycle
from almoner_operator.news import DELETED
from almoner_operator.records import Run
from almoner_operator.scheduling.decide import decide
from almoner_operator.scheduling.model import EXECUTION, Decisions, Requests, WorkloadState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
METER = Requests(cpu=50, memory=100)
Json = dict[str, Any]


def meta(name: str, version: int = 1, **more: Any) -> Json:
    return {
        "name": name,
        "namespace": "ns",
        "uid": f"uid-{name}",
        "resourceVersion": str(version),
        "generation": version,
        "creationTimestamp": "2026-01-02T03:00:00Z",
        **more,
    }


def execution(name: str, status: Json | None = None, **spec: Any) -> Json:
    full = {"agentRef": {"name": "agent"}, "input": {"text": "hi"}, "limits": {"maxCost": "1.00"}, **spec}
    return {"metadata": meta(name), "spec": full, "status": status or {}}


def agent(version: int = 1, *, labels: Json | None = None, cpu: str = "1", timeout: int | None = None) -> Json:
    limits = {} if timeout is None else {"timeoutSeconds": timeout}
    return {
        "metadata": meta("agent", version, labels={"tier": "gold"} if labels is None else labels),
        "spec": {
            "type": "Simulation",
            "model": {"provider": "local", "name": "small"},
            "runner": {"resources": {"requests": {"cpu": cpu}}},
            "limits": limits,
        },
    }


def quota(name: str, version: int = 1, *, tier: str = "gold", **hard: Any) -> Json:
    return {"metadata": meta(name, version), "spec": {"scope": {"agentSelector": {"tier": tier}}, "hard": hard}}


class World:
    """A cache as an operator fills it, with the agent and the quotas judged."""

    def __init__(self, *quotas: Json) -> None:
        self.cache = Cache(meter=METER, wake=lambda: None)
        self.cache.set_ledger_ready(True)
        for raw in quotas:
            self.quota(raw)
        self.agent(agent())

    def quota(self, raw: Json) -> None:
        self.cache.observe_quota("MODIFIED", raw)
        record = self.cache.spaces["ns"].quotas[raw["metadata"]["name"]]
        record.acknowledged = record.generation

    def agent(self, raw: Json) -> None:
        self.cache.observe_agent("MODIFIED", raw)
        self.cache.spaces["ns"].agents["agent"].judged = True

    def decide(self) -> Decisions:
        return decide(self.cache.snapshot(), NOW)

    def admit(self, name: str) -> Run:
        """Decide, and carry out what the operator does for the one that is named, up to its status."""
        (admission,) = [each for each in self.decide().admit if each.workload.key.name == name]
        run = self.cache.runs[f"uid-{name}"]
        run.admitted = Admitted.assumed(admission).completed(
            grace_seconds=35, timeout_seconds=60, first_need={"usd": 5, "tokens": 0}
        )
        attempt = {"number": 1, "pod": "p", "allotment": "a", "admission": run.admitted.to_status().to_wire()}
        made = ExecutionStatus.model_validate({"attempts": [attempt]}).attempts[0]
        run.status = outcome.admitted(run, made, None, admission.quotas, NOW)
        self.cache.touch(run)
        return run

    def restarted(self) -> World:
        """Another operator, which reads what the first one wrote."""
        other = World()
        for space in self.cache.spaces.values():
            other.cache.spaces["ns"].quotas = space.quotas
            other.cache.spaces["ns"].agents = space.agents
        for run in self.cache.runs.values():
            spec = run.spec.to_wire() if run.spec is not None else {}
            raw = {"metadata": meta(run.key.name), "spec": spec, "status": run.status.to_wire()}
            other.cache.observe_run(EXECUTION, None, raw)
        return other


def changes(world: World, change: str) -> None:
    if change == "relabelled":
        world.agent(agent(2, labels={"tier": "iron"}))
    elif change == "more cpu":
        world.agent(agent(2, cpu="7"))
    elif change == "agent deleted":
        world.cache.observe_agent(DELETED, agent())
    elif change == "scope":
        world.quota(quota("team", 2, tier="iron", cpu="1500m"))
    elif change == "quota restored":
        world.quota(quota("team", 2, tier="iron", cpu="1500m"))
        world.quota(quota("team", 3, cpu="1500m"))


CHANGES = ["nothing", "relabelled", "more cpu", "agent deleted", "scope", "quota restored"]


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("change", CHANGES)
def test_the_admissions_quota_counts_what_it_admitted(change: str, restart: bool) -> None:
    world = World(quota("team", cpu="1500m"))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    world.admit("one")
    changes(world, change)
    world = world.restarted() if restart else world
    decisions = world.decide()
    (use,) = decisions.namespaces["ns"].use["team"]
    assert (use.executions, use.cpu, use.memory) == (1, 1050, 100)
    (workload,) = world.cache.snapshot().namespaces["ns"].workloads
    assert workload.state is WorkloadState.RESERVED
    assert workload.quotas == ("team",)


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_relabelling_an_agent_never_over_admits(restart: bool) -> None:
    """Its quota had no room while the first one ran; without the admission's quotas it forgot that one."""
    world = World(quota("team", executions=1))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    world.admit("one")
    world.cache.observe_agent(None, {**agent(), "metadata": meta("other", labels={"tier": "gold"})})
    world.cache.spaces["ns"].agents["other"].judged = True
    world.agent(agent(2, labels={"tier": "iron"}))
    world = world.restarted() if restart else world
    world.cache.observe_run(EXECUTION, None, execution("two", agentRef={"name": "other"}))
    decisions = world.decide()
    assert [each.workload.key.name for each in decisions.admit] == []
    assert "1 of 1" in dict(decisions.waiting)[world.cache.runs["uid-two"].key].message


def test_what_is_assumed_counts_as_it_was_decided() -> None:
    world = World(quota("team", cpu="1500m"))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    (admission,) = world.decide().admit
    run = world.cache.runs["uid-one"]
    run.admitting, run.admitted = True, Admitted.assumed(admission)
    world.cache.touch(run)
    world.agent(agent(2, cpu="100m", labels={"tier": "iron"}))
    (use,) = world.decide().namespaces["ns"].use["team"]
    assert (use.executions, use.cpu) == (1, 1050)


def test_a_retry_asks_for_what_is_pinned_not_for_the_agent_as_it_is_now() -> None:
    world = World(quota("team", cpu="1500m"))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    run = world.cache.runs["uid-one"]
    run.pinned = world.cache.spaces["ns"].agents["agent"].spec
    world.agent(agent(2, cpu="7"))
    (admission,) = world.decide().admit
    assert admission.workload.requests.cpu == 1050


def test_an_admission_is_read_back_from_the_status_and_gone_after_the_end() -> None:
    world = World(quota("team", cpu="1500m"))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    run = world.admit("one")
    again = Admitted.of_status(run.status.attempts, run.status.quotas)
    assert again is not None
    assert again.requests == Requests(1050, 100, 0)
    assert (again.grace_seconds, again.timeout_seconds) == (35, 60)
    assert again.first_need == {"usd": 5}
    assert again.quotas == ("team",)
    ended = outcome.ended(run, AttemptEnd(AttemptOutcome.PREEMPTED), NOW)
    assert ended.attempts[-1].admission is None
    assert Admitted.of_status(ended.attempts, ended.quotas) is None


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("change", ["raised", "lowered", "deleted"])
def test_the_timeout_is_the_admissions(change: str, restart: bool) -> None:
    world = World()
    world.agent(agent(2, timeout=60))
    world.cache.observe_run(EXECUTION, None, execution("one"))
    world.admit("one")
    if change == "deleted":
        world.cache.observe_agent(DELETED, agent())
    else:
        world.agent(agent(3, timeout=3600 if change == "raised" else 1))
    world = world.restarted() if restart else world
    run = world.cache.runs["uid-one"]
    context: Any = SimpleNamespace(cache=world.cache)
    lifecycle = Lifecycle(context, *[SimpleNamespace()] * 3)  # type: ignore[arg-type]
    started = NOW - timedelta(seconds=30)
    assert not lifecycle._overdue(run, started, NOW)
    assert lifecycle._overdue(run, started, NOW + timedelta(seconds=31))
