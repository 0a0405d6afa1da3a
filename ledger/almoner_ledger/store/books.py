"""The part of the books that one transaction works on: loaded and locked first, changed in memory, written at the end.

Role: one load and one flush per group of commands keep the number of statements small and their order fixed, so that
replicas do not deadlock: epoch, executions by uid, allotments by id, accounts by id (an account's lock covers its
windows), sums by key, and last the counters of changes and of entries, whose row locks are held until COMMIT: numbers
become visible in their order, so that neither the feed nor the sealer skips what commits late. Boundary: decides
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.engine import Connection

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.wire import Dimension, ErrorCode
from almoner_ledger.errors import LedgerError
from almoner_ledger.leasing import LeasePolicy
from almoner_ledger.store.commands import Command
from almoner_ledger.store.entries import StoredEntry
from almoner_ledger.store.state import Account, Allotment, BucketKey, BucketRow, Hold, Usage, Window, WindowKey
from almoner_ledger.windows import Span, span_at

RollupKey = tuple[int, str, str, str, str, str, str, str, str]
AgentKey = tuple[str, str]

LARGEST_SUM = 2**62
"""No balance goes beyond it, so that BIGINT never overflows, whatever is reported."""


@dataclass(slots=True)
class StoredOperation:
    """An operation that was done, with its answer as JSON."""

    verb: str
    digest: str
    answer: str


@dataclass(slots=True)
class StoredRecord:
    """What tells a duplicate from a conflict."""

    allotment_id: str
    digest: str


@dataclass(slots=True)
class Rollup:
    """What to add to one row of the sums by day and dimension."""

    records: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass
class Books:
    """Everything in hand. Maps hold what was loaded; what is absent does not exist in the database."""

    connection: Connection
    now_ms: int
    lease: LeasePolicy = field(default_factory=LeasePolicy)
    epoch: int = 0
    epoch_holder: str = ""
    epoch_dirty: bool = False
    operations: dict[str, StoredOperation] = field(default_factory=dict)
    executions: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    allotments: dict[str, Allotment] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    windows: dict[WindowKey, Window] = field(default_factory=dict)
    buckets: dict[BucketKey, BucketRow] = field(default_factory=dict)
    records: dict[str, StoredRecord] = field(default_factory=dict)
    entries: dict[str, StoredEntry] = field(default_factory=dict)
    # The last specs of objects of the configuration: rows.
    configured: dict[str, dict[str, Any]] = field(default_factory=dict)
    # To be written.
    new_operations: list[dict[str, object]] = field(default_factory=list)
    new_executions: list[dict[str, object]] = field(default_factory=list)
    new_records: list[dict[str, object]] = field(default_factory=list)
    configured_dirty: set[str] = field(default_factory=set)
    new_configuration: list[dict[str, object]] = field(default_factory=list)
    outputs: dict[str, dict[str, object]] = field(default_factory=dict)
    last_outputs: dict[str, dict[str, object]] = field(default_factory=dict)  # only where there is none
    rollups: dict[RollupKey, Rollup] = field(default_factory=dict)
    agents: dict[AgentKey, Usage] = field(default_factory=dict)
    changed: set[tuple[str, str]] = field(default_factory=set)
    # Spent and limit of each window as it was loaded: see alerts.
    alert_marks: dict[WindowKey, tuple[int, int | None]] = field(default_factory=dict)
    # When what is being settled counts (Unix seconds); None: now.
    moment: int | None = None
    # Counts what commands changed: a command that refuses after it changed something poisons its group.
    mutations: int = 0
    # Set by loading: how to find the current window where the account's newest one was not loaded.
    newest_start: Callable[[Account, Dimension], int | None] = lambda _account, _dimension: None
    # The current windows that were asked for: every command of a group asks for the same few.
    _current: dict[tuple[str, Dimension, BudgetPeriod, str], Window] = field(default_factory=dict)

    @property
    def now(self) -> int:
        """The database's clock in Unix seconds."""
        return self.now_ms // 1000

    def allotment(self, command: Command) -> Allotment:
        """The allotment that a command is about. Raises LedgerError where there is none."""
        found = self.allotments.get(command.allotment or "")
        if found is None:
            raise LedgerError(
                ErrorCode.NOT_FOUND, f"allotment: no allotment {command.allotment!r:.60} is known", field="allotment"
            )
        return found

    def of_execution(self, uid: str) -> list[Allotment]:
        """All allotments of an execution, if it was loaded for an open."""
        return [each for each in self.allotments.values() if each.execution.uid == uid]

    def current_window(self, account: Account, dimension: Dimension) -> Window:
        """The window of an account that holds now, opened with the account's limit if it is new.

        Never earlier than one that was open before, even if the database's clock went back.
        """
        asked = (account.id, dimension, account.period, account.time_zone)
        window = self._current.get(asked)
        if window is None:
            window = self._current[asked] = self._opened(account, dimension)
        return window

    def _opened(self, account: Account, dimension: Dimension) -> Window:
        span = self._span(account, dimension)
        key = (account.id, dimension, account.period, span.starts_at)
        window = self.windows.get(key)
        if window is None:
            window = Window(
                *key, span.ends_at, enforced=account.enforced, limit=account.limits.get(dimension), new=True
            )
            self.windows[key] = window
        return window

    def _span(self, account: Account, dimension: Dimension) -> Span:
        newest = self.newest_start(account, dimension)
        span = span_at(account.period, account.time_zone, self.now)
        if newest is not None and newest > span.starts_at:
            return span_at(account.period, account.time_zone, newest)
        return span

    def carry(self, window: Window, amount: int) -> None:
        """Count what is settled in a window of an earlier calendar in the current one too, where that holds it."""
        current = self.current_window(self.accounts[window.account_id], window.dimension)
        second = self.now if self.moment is None else self.moment
        if current.starts_at <= second and (current.ends_at is None or second < current.ends_at):
            current.carry(amount)

    def forget(self, account: Account) -> None:
        """Drop an account that was made for a command which then refused; one that is stored stays."""
        if account.new and not account.holders:
            self.accounts.pop(account.id, None)
            for key in [key for key in self.windows if key[0] == account.id]:
                del self.windows[key]
            self._current.clear()

    def hold(self, allotment: Allotment, window: Window) -> Hold:
        """The allotment's hold in a window, made empty where there is none."""
        hold = allotment.holds.get(window.key)
        if hold is None:
            hold = allotment.holds[window.key] = Hold(allotment.id, window, new=True)
            window.dirty = True
        return hold

    def touch(self, allotment: Allotment) -> None:
        """Mark an allotment as changed. What of it people and the operator can see shows in the feed by itself."""
        self.mutations += 1
        allotment.dirty = True

    def add_usage(self, allotment: Allotment, key: RollupKey, usage: Usage, *, records: int = 1) -> None:
        """Add usage to the allotment, its agent, and the sums by day."""
        allotment.usage.add(usage)
        agent = (allotment.execution.namespace, allotment.execution.agent)
        self.agents.setdefault(agent, Usage()).add(usage)
        self.changed.add(("agent", "/".join(agent)))
        rollup = self.rollups.setdefault(key, Rollup())
        rollup.records += records
        rollup.usage.add(usage)
        self.touch(allotment)

    def dirty_holds(self) -> Iterable[Hold]:
        """Holds to be written."""
        return (
            hold
            for allotment in self.allotments.values()
            for hold in allotment.holds.values()
            if hold.new or hold.dirty
        )
