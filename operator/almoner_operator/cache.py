"""Observed plus assumed state, fed by kopf's events, read as an immutable Snapshot.

Role: one place that knows every object. An event costs little: it is parsed once, compared by resourceVersion, and
marks what depends on it; a namespace of the snapshot is built again only where something in it changed. What the
operator decided and has not yet seen (an admission under way) counts as if it were seen.

Boundary: no I/O and no waiting; it calls `wake` when there is something to do, and never raises on what an object
holds.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from almoner_core.api.agent import AgentReason, AgentSpec, AgentType, key_of
from almoner_core.api.execution import ExecutionPhase, WaitReason
from almoner_core.wire import AccountState, Dimension
from almoner_operator import apart, clocks, demand, news
from almoner_operator.additions import Additions, passed, plus
from almoner_operator.alerts import account_of
from almoner_operator.cluster_providers import Seen
from almoner_operator.configuration_recorder import Recorder
from almoner_operator.copies import copy_marks, stamp_of, why_restored
from almoner_operator.counts import Counts
from almoner_operator.news import DELETED
from almoner_operator.outcome import backoff_of, resumed
from almoner_operator.records import (
    AgentRecord,
    Finished,
    Pod,
    ProviderRecord,
    QuotaRecord,
    Run,
    RunStatus,
    cost_mark,
    finished_of,
    generation_of,
    observed_of,
    parse_agent,
    parse_pod,
    parse_provider,
    parse_quota,
    parse_run,
    version_of,
)
from almoner_operator.runner_pods import RunnerPods, is_stranger
from almoner_operator.scheduling.model import (
    Account,
    Agent,
    Hold,
    Namespace,
    Quota,
    Requests,
    Snapshot,
    Workload,
    WorkloadKey,
    WorkloadState,
)
from almoner_operator.tool_records import ToolProviderRecord

log = logging.getLogger(__name__)

LAST_WORDS_MAX: Final = 256
_SAME_MOMENT: Final = timedelta(seconds=3)


@dataclass(slots=True)
class Space:
    """One namespace."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)
    agents: dict[str, AgentRecord] = field(default_factory=dict)
    quotas: dict[str, QuotaRecord] = field(default_factory=dict)
    providers: dict[str, ProviderRecord] = field(default_factory=dict)
    tool_providers: dict[str, ToolProviderRecord] = field(default_factory=dict)
    accounts: dict[tuple[str, str, Dimension], Account] = field(default_factory=dict)
    workloads: dict[str, Workload] = field(default_factory=dict)
    by_agent: dict[str, set[str]] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    """uids of runs whose Workload is to be built again."""
    stale: bool = True
    built: Namespace | None = None


class Cache:
    """Everything that the operator knows. For one event loop; `wake` is called after every change that may matter."""

    def __init__(
        self,
        *,
        meter: Requests,
        wake: Callable[[], None],
        ahead: Callable[[Run, AgentSpec | None, Requests], int] | None = None,
    ) -> None:
        self._meter, self._ahead = meter, ahead
        self.wake = wake
        self.spaces: dict[str, Space] = {}
        self.cluster = Space("")
        """What is the cluster's and no namespace's: providers."""
        self.runs: dict[str, Run] = {}
        self.finished: dict[str, Finished] = {}
        self.pods = RunnerPods()
        self.additions = Additions()
        self.strangers: list[tuple[Run, Pod]] = []
        """Pods that say they are a run's and are not: one for each run, to be told of."""
        self.gone: list[Run] = []
        """Runs that were deleted and whose allotments may still be open."""
        self.counts = Counts()
        self.configuration = Recorder()
        self.ledger_ready = False
        self.synced = False
        # What others are to look at; they take the whole set and leave an empty one.
        self.review: set[str] = set()
        self.agents_changed: set[tuple[str, str]] = set()
        self.quotas_changed: set[tuple[str, str]] = set()
        self.providers_changed: set[tuple[str, str]] = set()
        self.tool_providers_changed: set[tuple[str, str]] = set()
        self.finished_changed: set[str] = set()
        self.overwritten: set[str] = set()
        """Runs that have ended and whose status says so no longer."""
        self.unobserved: set[str] = set()
        """Runs that have ended and whose spec was changed since: their statuses speak of an earlier one."""
        self.last_words: OrderedDict[str, RunStatus] = OrderedDict()
        """The last statuses that were written of the newest runs that have ended, in case somebody overwrites them."""

    # -- events --------------------------------------------------------------------------------------

    def observe_run(self, kind: str, event: str | None, raw: Mapping[str, Any]) -> None:
        """Take in an Execution or TrainingJob."""
        uid = str(raw["metadata"]["uid"])
        if event == DELETED:
            self.forget_run(uid)
            return
        known = self.runs.get(uid)
        if known is not None:
            if news.is_news(known, event, raw):
                self._update_run(known, kind, raw)
            return
        done = self.finished.get(uid)
        if done is not None:
            version = version_of(raw)
            if version > done.version or (event is None and version != done.version):
                self._update_finished(done, raw)
            return
        self._meet_run(kind, uid, raw)

    def _meet_run(self, kind: str, uid: str, raw: Mapping[str, Any]) -> None:
        parsed = parse_run(kind, raw)
        if isinstance(parsed, Finished):
            self.finished[uid] = parsed
            self._count(parsed.key, parsed.agent, parsed.phase, parsed.created)
            self.finished_changed.add(uid)
            self._check_observed(parsed)
            return
        parsed.backoff_until = backoff_of(parsed)
        if parsed.restored:
            parsed.hold = Hold(reason=WaitReason.RESTORED, message=why_restored(parsed.marks))
        parsed.status = resumed(parsed, datetime.now(UTC))
        space = self.space(parsed.key.namespace)
        self.runs[uid] = space.runs[uid] = parsed
        if parsed.agent_name:
            space.by_agent.setdefault(parsed.agent_name, set()).add(uid)
        self.count_run(parsed)
        self.touch(parsed, review=True)

    def _update_run(self, known: Run, kind: str, raw: Mapping[str, Any]) -> None:
        if news.take_status(known, raw):
            known.overwritten = True
            self.review.add(known.key.uid)
            self.wake()
        fresh = parse_run(kind, {**raw, "status": {}}) if generation_of(raw) != known.generation else None
        was, known.marks = known.marks, copy_marks(raw["metadata"])
        known.stamp = stamp_of(raw["metadata"])
        if known.restored and self._may_start(known, fresh):
            known.restored, known.hold, known.status = False, None, resumed(known, datetime.now(UTC))
            self.touch(known)
        elif known.restored and known.marks != was:
            self.hold(known, WaitReason.RESTORED, why_restored(known.marks), seconds=None)
        if isinstance(fresh, Run):
            known.generation = fresh.generation
            known.spec, known.invalid, known.tracked = fresh.spec, fresh.invalid, fresh.tracked
            known.status = resumed(known, datetime.now(UTC))
            self.touch(known, review=True)

    @staticmethod
    def _may_start(known: Run, fresh: Run | Finished | None) -> bool:
        """Whether somebody says that a restored run is to run: its marks are gone, or it is no longer suspended."""
        if not known.marks:
            return True
        if known.spec is None or not isinstance(fresh, Run) or fresh.spec is None:
            return False
        return known.spec.suspend and not fresh.spec.suspend

    def _update_finished(self, done: Finished, raw: Mapping[str, Any]) -> None:
        done.version = version_of(raw)
        status = raw.get("status") or {}
        if status.get("phase") != done.phase:
            # What has ended has ended, whatever somebody writes over it.
            self.overwritten.add(done.key.uid)
            self.wake()
            return
        done.cost = cost_mark(status)
        if generation_of(raw) != done.generation:
            done.generation, done.observed = generation_of(raw), observed_of(status)
            self._check_observed(done)

    def _check_observed(self, done: Finished) -> None:
        """Note one that has ended and whose status speaks of an earlier generation."""
        if done.observed != done.generation:
            self.unobserved.add(done.key.uid)
            self.wake()

    def forget_run(self, uid: str) -> None:
        """Drop a run that was deleted; whoever reconciles allotments learns of it."""
        run = self.runs.pop(uid, None)
        done = self.finished.pop(uid, None)
        self.last_words.pop(uid, None)
        key = run.key if run is not None else done.key if done is not None else None
        if key is None:
            return
        self.agents_changed |= self.counts.forget(uid)
        space = self.space(key.namespace)
        if run is not None:
            space.runs.pop(uid, None)
            space.workloads.pop(uid, None)
            space.dirty.discard(uid)
            space.stale = True
            if run.agent_name:
                space.by_agent.get(run.agent_name, set()).discard(uid)
            if run.status.attempts or run.admitting:
                self.gone.append(run)
        self.wake()

    def observe_agent(self, event: str | None, raw: Mapping[str, Any]) -> None:
        """Take in an Agent."""
        space, name = self.space(raw["metadata"]["namespace"]), str(raw["metadata"]["name"])
        known = space.agents.get(name)
        if not news.observe(space.agents, event, raw, parse_agent, labels=True):
            return
        record = space.agents.get(name)
        if known is not None and record is not None and known.successor is record:
            record.reason, record.message = known.reason, known.message
            record.revision_known = known.revision_known and known.hash == record.hash
            record.judged = known.judged and known.generation == record.generation
        self.agent_touched(space.name, name)

    def agent_touched(self, namespace: str, name: str, *, judged: bool = False) -> None:
        """Note that an Agent, or whether it can be used, changed: what waits for it is looked at again.

        `judged`: by whoever judges it, so it need not be judged itself.
        """
        space = self.space(namespace)
        space.dirty |= space.by_agent.get(name, set())
        space.stale = True
        if not judged:
            self.agents_changed.add((namespace, name))
        self.wake()

    def observe_quota(self, event: str | None, raw: Mapping[str, Any]) -> None:
        """Take in a ResourceQuota (resourcequotas.almoner.dev)."""
        space = self.space(raw["metadata"]["namespace"])
        self.configuration.take("ResourceQuota", event, raw)
        if news.observe(space.quotas, event, raw, _seen_quota):
            space.stale = True
            self.quotas_changed.add((space.name, str(raw["metadata"]["name"])))
            self.wake()

    def observe_provider(self, event: str | None, raw: Mapping[str, Any]) -> None:
        """Take in a ModelProvider or ClusterModelProvider."""
        space = self.space(raw["metadata"].get("namespace") or "")
        self.configuration.take("ModelProvider" if space.name else "ClusterModelProvider", event, raw)
        if news.observe(space.providers, event, raw, parse_provider):
            self._provider_touched(space, str(raw["metadata"]["name"]))

    def _provider_touched(self, space: Space, name: str, *, judged: bool = False) -> None:
        if not judged:
            self.providers_changed.add((space.name, name))
        if space is self.cluster and not judged:
            self.free_refused()
        key = key_of(name, cluster=space is self.cluster)
        for each in self.spaces.values() if space is self.cluster else (space,):
            self.agents_changed.update((each.name, agent.name) for agent in each.agents.values() if _uses(agent, key))
        self.wake()

    def free_refused(self) -> None:
        """Let those try again that a cluster-scoped provider did not allow: one of them changed."""
        for run in self.runs.values():
            if run.hold is not None and run.hold.reason is WaitReason.PROVIDER_NOT_ALLOWED:
                run.hold = None
                self.touch(run)

    def provider_touched(self, namespace: str, name: str, *, judged: bool = False) -> None:
        """Note that whether a provider can be used changed; `judged` by whoever judges it."""
        self._provider_touched(self.space(namespace), name, judged=judged)

    def observe_pod(self, event: str | None, raw: Mapping[str, Any], moment: datetime | None = None) -> None:
        """Take in a runner pod, seen at `moment` (now)."""
        pod = parse_pod(raw)
        if pod is None:
            return
        known = self.pods.at((pod.namespace, pod.name), pod.uid)
        seen = known.times if known is not None else None
        pod.raw["status"], pod.times = clocks.correct(pod.raw, seen, moment or datetime.now(UTC))
        run = self.runs.get(pod.run_uid)
        if run is not None and not run.warned and is_stranger(pod, run):
            run.warned = True
            self.strangers.append((run, pod))
            self.wake()
        if self.pods.observe(pod, event):
            self.review.add(pod.run_uid)
            self.wake()

    def drop_pods(self, uid: str) -> None:
        """Forget the pods of a run that needs them no more."""
        self.pods.drop(uid)

    # -- what others tell ----------------------------------------------------------------------------

    def space(self, namespace: str) -> Space:
        """Give a namespace, made at first sight; the cluster where the name is empty."""
        if not namespace:
            return self.cluster
        found = self.spaces.get(namespace)
        if found is None:
            found = self.spaces[namespace] = Space(namespace)
        return found

    def providers_for(self, space: Space) -> Seen[ProviderRecord]:
        """Give what agents of a namespace may name as providers of models, by key."""
        return Seen(space.providers, self.cluster.providers)

    def tool_providers_for(self, space: Space) -> Seen[ToolProviderRecord]:
        """Give what agents of a namespace may name as providers of tools, by key."""
        return Seen(space.tool_providers, self.cluster.tool_providers)

    def touch(self, run: Run, *, review: bool = False) -> None:
        """Note that a run changed, so that its part of the snapshot is built again."""
        space = self.space(run.key.namespace)
        space.dirty.add(run.key.uid)
        space.stale = True
        if review:
            self.review.add(run.key.uid)
        self.wake()

    def take_account(self, state: AccountState, now: datetime) -> None:
        """Take in what the ledger tells of an account."""
        space = self.space(state.key.namespace)
        resets = None
        if state.resets_in_seconds is not None:
            resets = now + timedelta(seconds=state.resets_in_seconds)
            known = space.accounts.get((state.key.quota, state.key.subject, state.dimension))
            if known is not None and known.resets_at is not None and abs(known.resets_at - resets) < _SAME_MOMENT:
                resets = known.resets_at
        space.accounts[state.key.quota, state.key.subject, state.dimension] = account_of(state, resets)
        space.stale = True
        self.quotas_changed.add((space.name, state.key.quota))
        if state.dimension is Dimension.USD and state.limit is not None:
            self._free_holds(space, state.key.quota, state.limit - state.spent - state.reserved)
        self.wake()

    def _free_holds(self, space: Space, quota: str, left: int) -> None:
        """Let those try again whose allotment was refused for want of what is there now."""
        for run in space.runs.values():
            hold = run.hold
            if hold is not None and hold.reason is WaitReason.BUDGET_EXHAUSTED and hold.quota == quota:
                workload = space.workloads.get(run.key.uid)
                if workload is None or workload.need <= left:
                    run.hold = None
                    space.dirty.add(run.key.uid)

    def set_ledger_ready(self, ready: bool) -> None:
        """Note whether the ledger answers."""
        if ready != self.ledger_ready:
            self.ledger_ready = ready
            log.info("the ledger %s", "answers" if ready else "does not answer: nothing is admitted")
            self.wake()

    def finish(self, run: Run) -> None:
        """Keep only a few words of a run that has ended and whose status is written."""
        uid = run.key.uid
        if self.runs.pop(uid, None) is None:
            return
        space = self.space(run.key.namespace)
        space.runs.pop(uid, None)
        space.workloads.pop(uid, None)
        space.dirty.discard(uid)
        space.stale = True
        if run.agent_name:
            space.by_agent.get(run.agent_name, set()).discard(uid)
        done = self.finished[uid] = finished_of(run)
        self._check_observed(done)
        self.last_words[uid] = run.status
        if len(self.last_words) > LAST_WORDS_MAX:
            self.last_words.popitem(last=False)
        self.finished_changed.add(uid)
        self.drop_pods(uid)
        self.wake()

    def count_run(self, run: Run) -> None:
        """Count a run under its present phase, for its agent's status."""
        self._count(run.key, run.agent_name, str(run.status.phase or ExecutionPhase.PENDING), run.created)

    def _count(self, key: WorkloadKey, agent: str | None, phase: str, created: datetime) -> None:
        self.agents_changed |= self.counts.count(key, agent, phase, created)

    # -- the snapshot --------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Give everything that decides, immutable; what did not change is the same object as before."""
        built: dict[str, Namespace] = {}
        for name, space in self.spaces.items():
            if space.stale or space.built is None:
                space.built = self._build(space)
                space.stale = False
            built[name] = space.built
        return Snapshot(built, self.ledger_ready)

    def _build(self, space: Space) -> Namespace:
        for uid in space.dirty:
            run = space.runs.get(uid)
            if run is None:
                space.workloads.pop(uid, None)
            else:
                self._reckon(space, run)
        space.dirty.clear()
        return Namespace(
            name=space.name,
            workloads=tuple(space.workloads.values()),
            quotas=tuple(self._quotas(space)),
            agents={record.name: _agent(record) for record in space.agents.values()},
            shares={},
        )

    def _reckon(self, space: Space, run: Run) -> None:
        """Work out what the scheduler sees of a run. Where that fails, what waits is left out, and what runs stays."""
        was, name = run.problem, f"{run.key.namespace}/{run.key.name}"
        run.problem = apart.each("reckoning", name, self._place, space, run)
        if run.problem and run.attempt is None and not run.admitting:
            space.workloads.pop(run.key.uid, None)
        if run.problem and run.problem != was:
            self.review.add(run.key.uid)

    def _place(self, space: Space, run: Run) -> None:
        workload = self._workload(space, run)
        if workload is None:
            space.workloads.pop(run.key.uid, None)
        else:
            space.workloads[run.key.uid] = workload

    def _workload(self, space: Space, run: Run) -> Workload | None:
        """Give what the scheduler sees of a run; None while it neither waits nor holds anything."""
        if run.spec is None or run.end is not None or run.settling:
            return None
        attempt = run.attempt
        reserved = attempt is not None or run.admitting
        agent = self._agent_spec(space, run)
        if not reserved:
            added = self.additions.of(run)
            ahead = self._ahead(run, agent, added) if self._ahead is not None else 0
            asked = demand.demand_of(run, agent, self.providers_for(space), plus(self._meter, added), ahead)
            requests, need = asked.requests, asked.need
        elif run.admitted is not None:
            requests, need = run.admitted.requests, 0
        else:  # Admitted by a version that did not write down with what.
            requests, need = demand.requests(run, agent, self._meter), 0
        return Workload(
            key=run.key,
            owner=run.owner,
            agent=run.agent_name,
            created=run.created,
            since=run.status.queue.since if run.status.queue and run.status.queue.since else run.created,
            priority=run.spec.priority,
            preemptible=run.spec.preemptible,
            requests=requests,
            max_cost=demand.max_cost(run, agent),
            need=need,
            state=WorkloadState.RESERVED if reserved else WorkloadState.WAITING,
            suspend=run.spec.suspend,
            cancel=run.spec.cancel,
            backoff_until=run.backoff_until,
            hold=run.hold,
            admitted=attempt.admitted_time if attempt is not None else None,
            stopping=run.stop,
            quotas=_quotas_held(run) if reserved else (),
            spent=0 if reserved else run.status.usage.cost.nanos,
            used_up="" if reserved else demand.used_up(run, agent, need),
            queue_timeout=run.spec.queue_timeout_seconds,
            queued=_queued(run),
        )

    @staticmethod
    def _agent_spec(space: Space, run: Run) -> AgentSpec | None:
        """What the next attempt runs: the pinned spec where there is one, else the Agent as it is now."""
        if run.pinned is not None:
            return run.pinned
        record = space.agents.get(run.agent_name or "")
        return record.spec if record is not None else None

    def _quotas(self, space: Space) -> Iterator[Quota]:
        by_quota: dict[str, dict[tuple[str, Dimension], Account]] = {}
        for (name, subject, dimension), account in space.accounts.items():
            by_quota.setdefault(name, {})[subject, dimension] = account
        for record in space.quotas.values():
            if record.spec is None:
                # Its limits are not known, so whatever it may select waits: limits fail closed.
                yield Quota(name=record.name, ready=False, message=record.message or record.invalid)
                continue
            try:
                yield Quota.of(
                    record.name,
                    record.spec,
                    accounts=by_quota.get(record.name),
                    ready=record.acknowledged == record.generation,
                    message=record.message,
                    changed=record.seen,
                )
            except ValueError as error:
                yield Quota(name=record.name, ready=False, message=str(error))

    def learn_addition(self, run: Run, actual: Requests) -> None:
        """Note what a run's pod asks for with what the cluster added: the next of its kind are counted with that."""
        plain = demand.requests(run, self._agent_spec(self.space(run.key.namespace), run), self._meter)
        if self.additions.learn(run, plain, actual, time.monotonic()):
            self._count_again(run.key.namespace)

    def forget_additions(self) -> None:
        """Forget what no pod confirmed for long."""
        for namespace in self.additions.forget(time.monotonic()):
            self._count_again(namespace)

    def _count_again(self, namespace: str) -> None:
        for run in self.space(namespace).runs.values():
            self.touch(run)

    def passed_quota(self, run: Run) -> str | None:
        """Say which quota a run under way passes with what it was admitted with; None where it fits."""
        space = self.space(run.key.namespace)
        others = [
            (other, other.admitted.requests)
            for other in space.runs.values()
            if other is not run and other.admitted is not None and (other.attempt is not None or other.admitting)
            if other.end is None
        ]
        return passed(run, self._quotas(space), others)

    def holds_expired(self, now: datetime) -> None:
        """Take away holds whose time is over."""
        for space in self.spaces.values():
            for run in space.runs.values():
                if run.hold is not None and run.hold.until is not None and run.hold.until <= now:
                    run.hold = None
                    space.dirty.add(run.key.uid)
                    space.stale = True
                if run.backoff_until is not None and run.backoff_until <= now:
                    run.backoff_until = None
                    space.dirty.add(run.key.uid)
                    space.stale = True

    def hold(
        self, run: Run, reason: WaitReason, message: str, *, seconds: float | None, quota: str | None = None
    ) -> None:
        """Keep a waiting run back for a while, with the reason that people read."""
        until = datetime.now(UTC) + timedelta(seconds=seconds) if seconds is not None else None
        run.hold = Hold(reason=reason, message=message, until=until, quota=quota)
        self.touch(run)


def _queued(run: Run) -> datetime | None:
    """When the wait of one with a queue timeout began to count, where that was after a backoff."""
    if run.spec is None or run.spec.queue_timeout_seconds is None or run.attempt is not None:
        return None
    return backoff_of(run)


def _quotas_held(run: Run) -> tuple[str, ...]:
    """Names of the quotas that govern the attempt under way: those of its admission, whatever selects it now."""
    return run.admitted.quotas if run.admitted is not None else tuple(run.status.quotas)


def _seen_quota(raw: Mapping[str, Any]) -> QuotaRecord:
    """Read a ResourceQuota, and note when its spec was seen."""
    record = parse_quota(raw)
    record.seen = datetime.now(UTC)
    return record


def _uses(agent: AgentRecord, provider: str) -> bool:
    if agent.spec is None:
        return False
    model = agent.spec.model
    return any(choice.provider_key == provider for choice in (model, *model.fallbacks))


def _agent(record: AgentRecord) -> Agent:
    if record.spec is None:
        return Agent(
            name=record.name,
            type=AgentType.SIMULATION,
            labels=record.labels,
            ready=False,
            reason=AgentReason.INVALID_SPEC,
            message=record.invalid,
        )
    return Agent(
        name=record.name,
        type=record.spec.type,
        labels=record.labels,
        ready=record.judged and record.reason is AgentReason.READY,
        reason=record.reason,
        message=record.message if record.judged else "it was not looked at yet",
    )
