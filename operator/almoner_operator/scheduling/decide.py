"""Decide: a snapshot and a moment in, decisions out. Pure: the same input gives the same output, in the same order.

Each namespace is decided on its own, and a decision is kept for as long as neither the namespace nor the clock can have
changed it, so the cost of an event is that of its namespace, not of all that waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from almoner_core.api.execution import FailureReason, WaitReason
from almoner_core.api.resource_quota import OnLimitAction, StopPolicy
from almoner_operator.scheduling.admission import (
    Book,
    Group,
    Line,
    Shortfall,
    Vector,
    add,
    ask_of,
    money_gate,
    own_money,
    queue_full,
    shortfall_of,
)
from almoner_operator.scheduling.model import (
    Admission,
    Decisions,
    Hold,
    Namespace,
    NamespaceDecisions,
    Rejection,
    Settings,
    Snapshot,
    Stop,
    StopCause,
    SubjectUse,
    Wait,
    Workload,
    WorkloadKey,
    WorkloadState,
)
from almoner_operator.scheduling.ordering import in_order
from almoner_operator.scheduling.preemption import victims_for
from almoner_operator.scheduling.selection import account_key

POSITION_EXACT_MAX: Final = 100
NEVER_SECONDS: Final = 5
"""So long after it was queued, or its quota changed, one that can never start is ended: of manifests that are applied
together, some are seen later than others."""
_NOT_IN_QUEUE: Final = (WaitReason.RESTORED, WaitReason.SUSPENDED, WaitReason.BACKOFF)
_BUCKET: Final = 100
AGAIN: Final = timedelta(seconds=30)
"""So much later a namespace is decided on again that could not be."""
_DEFAULT: Final = Settings()


def decide(
    snapshot: Snapshot, now: datetime, settings: Settings = _DEFAULT, previous: Decisions | None = None
) -> Decisions:
    """Decide what is admitted, rejected, stopped, and why the rest waits.

    `previous` saves the work for namespaces that are the same object as then and whose decisions still hold, and lets
    those for whom others are being preempted keep their turn: when a victim is gone its owner's share is less, and
    another of the same priority would come first, and need other victims.
    """
    before: Mapping[str, NamespaceDecisions] = {} if previous is None else previous.namespaces
    reusable: Mapping[str, NamespaceDecisions] = {}
    if previous is not None and previous.settings == settings and previous.ledger_ready == snapshot.ledger_ready:
        reusable = before
    decided: dict[str, NamespaceDecisions] = {}
    changed: list[str] = []
    order: list[tuple[int, int, str, Admission]] = []
    next_change: datetime | None = None
    for name, namespace in snapshot.namespaces.items():
        old = reusable.get(name)
        if old is None or old.source is not namespace or (old.valid_until is not None and old.valid_until <= now):
            first = before[name].making_room if name in before else frozenset()
            try:
                old = _Decision(namespace, now, settings, first, ledger_ready=snapshot.ledger_ready).run()
            except Exception as error:  # noqa: BLE001 - whatever one namespace holds, the others are decided on
                old = _undecided(namespace, now, f"{type(error).__name__}: {error}"[:200])
            changed.append(name)
        decided[name] = old
        # Namespaces share nothing but the operator's own pace: they take turns within a priority.
        for turn, admission in enumerate(old.admit):
            order.append((-admission.workload.priority, turn, name, admission))
        next_change = _sooner(next_change, old.valid_until)
    order.sort(key=_turn)
    return Decisions(
        namespaces=decided,
        changed=frozenset(changed),
        admit=tuple(item[3] for item in order),
        ledger_ready=snapshot.ledger_ready,
        settings=settings,
        next_change=next_change,
    )


def _undecided(namespace: Namespace, now: datetime, problem: str) -> NamespaceDecisions:
    """Let everything in a namespace go on as it is, and say why; it is decided on again after a while."""
    text = f"this namespace cannot be decided on: {problem}"
    again = now + AGAIN
    return NamespaceDecisions(
        source=namespace,
        waiting={
            each.key: Wait(WaitReason.QUEUED, text, next_change=again)
            for each in namespace.workloads
            if each.state is WorkloadState.WAITING
        },
        valid_until=again,
        problem=problem,
    )


def _turn(item: tuple[int, int, str, Admission]) -> tuple[int, int, str]:
    return item[:3]


def _sooner(first: datetime | None, second: datetime | None) -> datetime | None:
    if first is None or second is None:
        return first or second
    return min(first, second)


class _Decision:
    """One namespace's decision while it is being made."""

    def __init__(
        self, namespace: Namespace, now: datetime, settings: Settings, first: frozenset[str], *, ledger_ready: bool
    ) -> None:
        self._namespace = namespace
        self._now = now
        self._settings = settings
        self._ledger_ready = ledger_ready
        self._book = Book(namespace)
        self._admit: list[Admission] = []
        self._waiting: dict[WorkloadKey, Wait] = {}
        self._reject: list[Rejection] = []
        self._stop: list[Stop] = []
        self._cancel: list[WorkloadKey] = []
        self._valid_until: datetime | None = None
        self._taken: set[str] = set()
        self._first = first
        self._making_room: set[str] = set()
        self._preemptions = settings.preemptions_max
        self._room_to_make = False  # whether anything could be, or is being, preempted: only then does priority matter
        # What did not fit, by shape: use only grows within a decision, so it still does not.
        self._known: dict[tuple[object, ...], Shortfall] = {}

    def run(self) -> NamespaceDecisions:
        """Count what is held, then look at what waits, in order."""
        waiting: list[Workload] = []
        timed: list[Workload] = []
        running: dict[str, int] = {}
        quotas: dict[WorkloadKey, tuple[str, ...]] = {}
        queued: dict[Line, int] = {}
        group_of = self._book.group_of
        for workload in self._namespace.workloads:
            group = group_of(workload)
            quotas[workload.key] = group.names
            if workload.state is WorkloadState.RESERVED:
                running[workload.owner] = running.get(workload.owner, 0) + 1
                self._hold_quota(workload)
                continue
            if workload.queue_timeout is not None:
                timed.append(workload)
            if self._may_be_looked_at(workload, group):
                waiting.append(workload)
            if not (workload.suspend or workload.cancel):
                for line in group.lines:
                    queued[line] = queued.get(line, 0) + 1
        use: dict[str, list[SubjectUse]] = {}
        for line in self._book.lines():
            entry = line.use()._replace(pending=queued.get(line, 0))
            use.setdefault(line.quota.name, []).append(entry)
        shares, ageing = self._namespace.shares, self._settings.ageing_seconds
        for workload in in_order(waiting, running, shares, ageing, self._first):
            self._look_at(workload, group_of(workload))
        for workload in timed:
            self._check_queue_timeout(workload)
        return NamespaceDecisions(
            source=self._namespace,
            admit=tuple(self._admit),
            waiting=self._waiting,
            reject=tuple(self._reject),
            stop=tuple(self._stop),
            cancel=tuple(self._cancel),
            use={name: tuple(sorted(entries)) for name, entries in use.items()},
            quotas=quotas,
            valid_until=self._valid_until,
            making_room=frozenset(self._making_room),
        )

    # --- what holds quota ---------------------------------------------------------------------------------------------

    def _hold_quota(self, workload: Workload) -> None:
        """Count a reserved workload in every line, and stop it where it is not to go on."""
        lines = self._book.held_lines(workload)
        ask = ask_of(workload)
        stop = None if workload.stopping is not None else self._reason_to_stop(workload, lines)
        if stop is not None:
            self._stop.append(stop)
        going = stop is not None or workload.stopping is not None
        for line in lines:
            add(line.used, ask)
            if going:
                add(line.freeing, ask)
                line.preempting |= workload.stopping is StopCause.PREEMPTED
            elif workload.preemptible:
                line.preemptible.append(workload)
            self._room_to_make |= line.preempting or workload.preemptible

    @staticmethod
    def _reason_to_stop(workload: Workload, lines: tuple[Line, ...]) -> Stop | None:
        if workload.cancel:
            return Stop(workload.key, StopCause.CANCELLED, "cancelled by spec.cancel")
        if workload.suspend:
            return Stop(workload.key, StopCause.SUSPENDED, "suspended by spec.suspend")
        for line in lines:
            if line.enforced and line.quota.stop_policy is StopPolicy.HOLD_AND_DRAIN:
                text = f"ResourceQuota {line.quota.name} is being drained (stopPolicy HoldAndDrain)"
                return Stop(workload.key, StopCause.DRAINED, text)
        return None

    # --- what waits ---------------------------------------------------------------------------------------------------

    def _may_be_looked_at(self, workload: Workload, group: Group) -> bool:
        """Whether it stands in the queue; says why where it does not."""
        if workload.cancel:
            self._cancel.append(workload.key)
            return False
        wait = self._gate(workload, group)
        if not workload.suspend and (wait is None or wait.reason is WaitReason.BACKOFF):
            own = self._own_limits(workload, group)
            if own is not None and own.next_change is None:
                return False
            wait = own or wait
        if wait is None:
            return True
        self._waiting[workload.key] = wait
        if wait.next_change is not None:
            self._valid_until = _sooner(self._valid_until, wait.next_change)
        return False

    def _own_limits(self, workload: Workload, group: Group) -> Wait | None:
        """See whether what one execution may spend has room for another attempt; ends it where it has none.

        None where it has; a wait without `next_change` where it was ended.
        """
        found = own_money(group, workload)
        text, quota = (workload.used_up, "") if workload.used_up else found or ("", "")
        if not text:
            return None
        reason = FailureReason.BUDGET_EXHAUSTED if workload.spent or workload.used_up else FailureReason.REJECTED
        at = self._ends_at(workload, group.enforced)
        if at > self._now and not workload.spent:
            return Wait(WaitReason.BUDGET_EXHAUSTED, text, next_change=at, quota=quota or None)
        self._reject.append(Rejection(workload.key, text, quota, reason))
        return Wait(WaitReason.BUDGET_EXHAUSTED, text)

    @staticmethod
    def _ends_at(workload: Workload, lines: tuple[Line, ...]) -> datetime:
        """When one that can never start is ended: not while the edit that lets it start may be on its way to us."""
        return max([workload.since, *_changes(lines)]) + timedelta(seconds=NEVER_SECONDS)

    def _check_queue_timeout(self, workload: Workload) -> None:
        """End one that has waited longer in the queue than it wanted to, whatever for."""
        wait = self._waiting.get(workload.key)
        if wait is None or workload.queue_timeout is None or wait.reason in _NOT_IN_QUEUE:
            return
        at = workload.queued_since + timedelta(seconds=workload.queue_timeout)
        changes = _changes(self._book.group_of(workload).enforced)
        if changes:  # Not before a quota that changed, or that an operator has just got to know, can let it in.
            at = max(at, *(change + timedelta(seconds=NEVER_SECONDS) for change in changes))
        if at > self._now:
            self._valid_until = _sooner(self._valid_until, at)
            self._waiting[workload.key] = wait._replace(next_change=_sooner(wait.next_change, at))
            return
        del self._waiting[workload.key]
        text = f"it waited {workload.queue_timeout} s in the queue (queueTimeoutSeconds): {wait.reason}: {wait.message}"
        self._reject.append(Rejection(workload.key, text, wait.quota or "", FailureReason.QUEUE_TIMEOUT))

    def _gate(self, workload: Workload, group: Group) -> Wait | None:
        if workload.suspend:
            return Wait(WaitReason.SUSPENDED, "suspended by spec.suspend")
        if group.gate is not None:
            return group.gate
        hold = workload.hold
        if hold is not None and hold.quota not in group.names and self._holds(hold):
            return Wait(hold.reason, hold.message, next_change=hold.until)
        backoff = workload.backoff_until
        if backoff is not None and backoff > self._now:
            return Wait(WaitReason.BACKOFF, "waits before the next attempt", next_change=backoff)
        if not self._ledger_ready:
            return Wait(WaitReason.LEDGER_UNAVAILABLE, "the ledger does not answer, so nothing may be spent")
        return money_gate(group, workload, self._settings.require_budget)

    def _holds(self, hold: Hold) -> bool:
        return hold.until is None or hold.until > self._now

    def _look_at(self, workload: Workload, group: Group) -> None:
        """Admit the next in order, or say why it waits."""
        if group.pending:
            full = queue_full(group)
            if full is not None:
                self._keep_out(workload, group, full)
                return
        hold = workload.hold
        if hold is not None and self._holds(hold):
            self._keep_out(workload, group, _held(hold, group))
            return
        rank = workload.priority if self._room_to_make else 0
        shape = (group.number, workload.requests, workload.key.kind, rank, workload.need)
        short = self._known.get(shape)
        if short is None:
            ask = ask_of(workload)
            short = shortfall_of(group, ask, workload.need)
            if short is None:
                self._let_in(workload, group, ask)
                return
            if short.machine and not short.hopeless and self._make_room(workload, group, short, ask):
                return
            self._known[shape] = short
        self._keep_out(workload, group, short)

    def _let_in(self, workload: Workload, group: Group, ask: Vector) -> None:
        for line in group.lines:
            add(line.used, ask)
            line.promised += workload.need
        namespace, owner = self._namespace.name, workload.owner
        accounts = tuple(account_key(namespace, line.quota, owner) for line in group.lines)
        self._admit.append(Admission(workload, group.names, accounts))

    def _make_room(self, workload: Workload, group: Group, short: Shortfall, ask: Vector) -> bool:
        """Wait for those that are being preempted, or preempt; False where that would not help."""
        lines = short.lines
        if self._preemptions <= 0 or not self._room_to_make:
            return False
        victims = victims_for(workload, lines, self._book.held_lines, self._taken)
        if victims is None or (not victims and not any(line.preempting for line in lines)):
            return False
        self._preemptions -= 1
        self._making_room.add(workload.key.uid)
        for victim in victims:
            self._taken.add(victim.key.uid)
            text = f"makes room for {workload.key.name} (priority {workload.priority} over {victim.priority})"
            self._stop.append(Stop(victim.key, StopCause.PREEMPTED, text, workload.key))
            freed = ask_of(victim)
            for line in self._book.held_lines(victim):
                add(line.freeing, freed)
                line.preempting = True
        self._keep_room(workload, group, ask)
        place = self._stand(group, short.line)
        stopped = f"stopping {len(victims)} less important" if victims else "less important work is being stopped"
        text = f"{short.message}; {stopped}"
        self._waiting[workload.key] = Wait(WaitReason.WAITING_FOR_PREEMPTION, text, place, None, short.line.quota.name)
        self._block(lines, workload)
        return True

    @staticmethod
    def _keep_room(workload: Workload, group: Group, ask: Vector) -> None:
        for line in group.lines:
            add(line.kept, ask)
            line.keeper = workload.key.name

    @staticmethod
    def _block(lines: tuple[Line, ...], workload: Workload) -> None:
        for line in lines:
            if line.strict and line.head is None:
                line.head = workload.key.name

    @staticmethod
    def _stand(group: Group, line: Line) -> int:
        """Join the queue; gives the position in the line that keeps it out."""
        for other in group.pending:
            other.waiting += 1
        line.rank += 1
        rank = line.rank
        return rank if rank <= POSITION_EXACT_MAX else -(-rank // _BUCKET) * _BUCKET

    def _keep_out(self, workload: Workload, group: Group, short: Shortfall) -> None:
        """Reject it, or let it stand in the queue of the line that keeps it out."""
        line = short.line
        if self._rejected(workload, short):
            return
        place = self._stand(group, line)
        next_change = short.next_change
        if short.never:
            next_change = self._ends_at(workload, short.lines)
        for other in short.lines:
            timeout = other.quota.wait_timeout_seconds
            if timeout is not None:
                next_change = _sooner(next_change, workload.queued_since + timedelta(seconds=timeout))
        if next_change is not None:
            self._valid_until = _sooner(self._valid_until, next_change)
        self._waiting[workload.key] = Wait(short.reason, short.message, place, next_change, line.quota.name)
        if short.hopeless:
            return  # it can never run: it must not stop those that can
        self._block(short.lines, workload)
        if short.machine and not line.sought:
            line.sought = True
            if not line.strict:
                # Also behind one that room is being made for: once that is in, this one is first, and keeps its room.
                self._reserve_after_long(workload, group)

    def _rejected(self, workload: Workload, short: Shortfall) -> bool:
        for line in short.lines:
            quota = line.quota
            timeout = quota.wait_timeout_seconds
            if quota.on_limit is OnLimitAction.REJECT:
                text = f"{short.message}; ResourceQuota {quota.name} rejects what does not fit"
            elif short.never and self._ends_at(workload, short.lines) <= self._now:
                text = f"it can never start: {short.message}"
            elif timeout is not None and workload.queued_since + timedelta(seconds=timeout) <= self._now:
                text = f"{short.message}; it waited longer than ResourceQuota {quota.name} allows ({timeout} s)"
            else:
                continue
            self._reject.append(Rejection(workload.key, text, quota.name))
            return True
        return False

    def _reserve_after_long(self, workload: Workload, group: Group) -> None:
        """After a while the head of a BestEffort queue keeps room for itself, so that large work does not starve."""
        at = workload.since + timedelta(seconds=self._settings.reserve_after_seconds)
        if at <= self._now:
            self._keep_room(workload, group, ask_of(workload))
        else:
            self._valid_until = _sooner(self._valid_until, at)


def _changes(lines: tuple[Line, ...]) -> list[datetime]:
    return [line.quota.changed for line in lines if line.quota.changed is not None]


def _held(hold: Hold, group: Group) -> Shortfall:
    """Turn what the ledger refused into a place in that quota's queue."""
    chosen = tuple(line for line in group.lines if line.quota.name == hold.quota)
    return Shortfall(hold.reason, hold.message, chosen[0], chosen[:1], next_change=hold.until)
