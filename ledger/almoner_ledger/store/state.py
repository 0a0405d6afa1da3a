"""The rows that one transaction has in hand, as objects that keep the arithmetic of one row right.

Role: windows reserve, settle and release; holds mirror that for one allotment; allotments sum usage. No I/O: Books
loads and flushes them. Each knows whether it changed.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from almoner_core import wire
from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.rates import Bucket
from almoner_core.usage import ResourceType, UsageRecord
from almoner_core.wire import (
    AccountKey,
    AllotmentState,
    Dimension,
    ExecutionRef,
    KeyGrant,
    MachineTerms,
    Purpose,
    RateLimit,
    UsageTotals,
)
from almoner_ledger.schema import ACCOUNT_ID_LENGTH, COMPUTE_COLUMNS, USAGE_COLUMNS
from almoner_ledger.sequences import Sequences

AmountMap = Mapping[Dimension, int]
WindowKey = tuple[str, Dimension, BudgetPeriod, int]
BucketKey = tuple[str, Dimension, int]


class AccountKind(StrEnum):
    """Whose limits an account holds."""

    QUOTA = "quota"
    EXECUTION = "execution"
    PROVIDER = "provider"


def account_id(kind: AccountKind, namespace: str, name: str, subject: str = "") -> str:
    """Derive an account's id from what names it, so that nobody has to look it up."""
    text = f"{kind}\0{namespace}\0{name}\0{subject}"
    return hashlib.blake2b(text.encode(), digest_size=ACCOUNT_ID_LENGTH // 2).hexdigest()


def quota_account_id(key: AccountKey) -> str:
    """Derive the id of a quota's or a provider's account."""
    return account_id(AccountKind(key.kind.value), key.namespace, key.quota, key.subject)


def execution_account_id(ref: ExecutionRef) -> str:
    """Derive the id of an execution's own account, over all its attempts."""
    return account_id(AccountKind.EXECUTION, ref.namespace, ref.uid)


@dataclass(slots=True)
class Account:
    """Policy of an account."""

    id: str
    kind: AccountKind
    namespace: str
    name: str
    subject: str = ""
    generation: int = 0
    enforced: bool = True
    period: BudgetPeriod = BudgetPeriod.TOTAL
    time_zone: str = "UTC"
    limits: dict[Dimension, int] = field(default_factory=dict)
    max_per_execution: dict[Dimension, int] = field(default_factory=dict)
    max_per_request: dict[Dimension, int] = field(default_factory=dict)
    holders: int = 0
    rates: tuple[RateLimit, ...] = ()
    alert_thresholds: tuple[int, ...] = ()
    recall_ms: int = 0
    period_since: int = 0  # since when the calendar is what it is; 0: always
    new: bool = False
    dirty: bool = False

    @property
    def label(self) -> str:
        """What a refusal calls it."""
        if self.kind is AccountKind.EXECUTION:
            return "execution"
        if self.kind is AccountKind.PROVIDER:
            return f"provider {self.namespace}/{self.name}"
        return "/".join(part for part in (self.namespace, self.name, self.subject) if part)

    @property
    def key(self) -> AccountKey:
        """The key of a quota's or a provider's account."""
        return AccountKey(
            kind=wire.AccountKind(self.kind.value), namespace=self.namespace, quota=self.name, subject=self.subject
        )


@dataclass(slots=True)
class Window:
    """The balance of an account in one dimension and window. `limit` None: not limited."""

    account_id: str
    dimension: Dimension
    period: BudgetPeriod
    starts_at: int
    ends_at: int | None
    enforced: bool
    limit: int | None
    spent: int = 0
    reserved: int = 0
    excess: int = 0
    floor: int = 0
    carried: int = 0  # part of spent: from before a change of the calendar, see calendars
    new: bool = False
    dirty: bool = False
    # Of a window that is none of the account's calendar any more: what is spent in it counts elsewhere too.
    mirror: Callable[[Window, int], None] | None = None

    @property
    def key(self) -> WindowKey:
        """Primary key."""
        return (self.account_id, self.dimension, self.period, self.starts_at)

    @property
    def limiting(self) -> bool:
        """Whether it can refuse."""
        return self.enforced and self.limit is not None

    def set_limit(self, limit: int | None, *, enforced: bool) -> None:
        """Change the limit. Use beyond it at this moment becomes the floor, so that nothing granted is torn away."""
        if limit == self.limit and enforced == self.enforced:
            return
        self.limit, self.enforced, self.dirty = limit, enforced, True
        use = self.spent + self.reserved - self.excess
        self.floor = max(0, use) if self.limiting and limit is not None and use > limit else 0

    def spend(self, amount: int) -> None:
        """Count what a hold settles (below zero: takes back)."""
        self.spent += amount
        if self.mirror is not None:
            self.mirror(self, amount)

    def carry(self, amount: int) -> None:
        """Count what is spent in another window of the same time (below zero: takes back, at most what was carried).

        Beyond the limit it becomes the floor, as where a limit shrinks.
        """
        amount = max(amount, -self.carried)
        self.carried += amount
        self.spent += amount
        self.dirty = True
        use = self.spent + self.reserved - self.excess
        if self.limiting and self.limit is not None and use > self.limit:
            self.floor = max(self.floor, use)

    def settle_floor(self) -> None:
        """Lower the floor as the use under it falls."""
        if self.floor:
            self.floor = max(0, min(self.floor, self.spent + self.reserved - self.excess))


@dataclass(slots=True)
class Hold:
    """What one allotment has in one window. `granted` covers `used`; the remainder is reserved in the window."""

    allotment_id: str
    window: Window
    granted: int = 0
    used: int = 0
    charged: int = 0
    excess: int = 0
    excess_corrected: int = 0
    new: bool = False
    dirty: bool = False

    @property
    def remainder(self) -> int:
        """Granted and not used."""
        return self.granted - self.used

    def _touch(self) -> None:
        self.dirty = self.window.dirty = True

    def reserve(self, amount: int) -> None:
        """Grant more."""
        self.granted += amount
        self.window.reserved += amount
        self._touch()

    def release(self, amount: int) -> None:
        """Give back up to the remainder."""
        self.granted -= amount
        self.window.reserved -= amount
        self._touch()

    def use(self, amount: int) -> None:
        """Settle within the remainder."""
        self.used += amount
        self.window.reserved -= amount
        self.window.spend(amount)
        self._touch()

    def use_unheld(self, amount: int) -> bool:
        """Settle what was never held. Gives whether that is excess (the window limits)."""
        self.granted += amount
        self.used += amount
        self.window.spend(amount)
        self._touch()
        if self.window.limiting:
            self.excess += amount
            self.window.excess += amount
            return True
        return False

    def charge_off(self) -> int:
        """Take the whole remainder as spent, without a record. Gives the amount."""
        amount = self.remainder
        self.use(amount)
        self.charged += amount
        return amount

    def reverse_charge(self, amount: int, *, keep: bool) -> None:
        """Take back a charge: held again (`keep`, for a late record to use), or released for good."""
        self.charged -= amount
        self.used -= amount
        self.window.spend(-amount)
        if keep:
            self.window.reserved += amount
        else:
            self.granted -= amount
            # Where a person's word about it had gone above the limit, that part is gone with it.
            relief = min(amount, self.excess_corrected)
            self.excess -= relief
            self.excess_corrected -= relief
            self.window.excess -= relief
        self._touch()

    def correct_up(self, amount: int) -> None:
        """Post what an entry costs more after all, whatever the room: what goes above the limit is excess."""
        window = self.window
        if window.limiting and window.limit is not None:
            room = max(window.limit, window.floor) - (window.spent + window.reserved - window.excess)
            over = amount - max(0, min(amount, room))
            self.excess += over
            self.excess_corrected += over
            window.excess += over
        self.granted += amount
        self.used += amount
        window.spend(amount)
        self._touch()

    def correct_down(self, amount: int) -> int:
        """Take back what an entry costs less after all, excess first; gives the amount. At most what is used."""
        if not amount:
            return 0
        relief = min(amount, self.excess)
        self.excess -= relief
        self.excess_corrected = max(0, self.excess_corrected - relief)
        self.window.excess -= relief
        self.granted -= amount
        self.used -= amount
        self.window.spend(-amount)
        self._touch()
        return amount


@dataclass(slots=True)
class BucketRow:
    """A bucket in hand."""

    key: BucketKey
    bucket: Bucket
    new: bool = False
    dirty: bool = False

    @property
    def name(self) -> str:
        """What it is called in an allotment's debits, its dimension apart."""
        return f"{self.key[0]}/{self.key[2]}"


usage_values = operator.attrgetter(*USAGE_COLUMNS)
"""Gives the sums of a row or of a Usage, in the order of USAGE_COLUMNS."""


@dataclass(slots=True)
class Usage:
    """Sums of usage, column by column as UsageTotals has them."""

    cost_nanos: int = 0
    unaccounted_nanos: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0
    tool_calls: int = 0
    cpu_milli_seconds: int = 0
    memory_mebibyte_seconds: int = 0
    gpu_milli_seconds: int = 0

    def add(self, other: Usage) -> None:
        """Add another sum to this one."""
        for name in USAGE_COLUMNS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_row(self) -> dict[str, int]:
        """The columns and their values."""
        return dict(zip(USAGE_COLUMNS, usage_values(self), strict=True))

    def to_wire(self) -> UsageTotals:
        """The sums as the wire has them."""
        return UsageTotals(**self.to_row())

    @classmethod
    def of(cls, record: UsageRecord) -> Usage:
        """What one record adds. An unknown cost is counted, not summed."""
        tokens = record.tokens
        return cls(
            cost_nanos=record.cost_nanos or 0,
            unpriced=int(record.cost_nanos is None),
            input_tokens=tokens.input,
            cached_input_tokens=tokens.cached_input,
            cache_write_tokens=tokens.cache_write,
            output_tokens=tokens.output,
            reasoning_tokens=tokens.reasoning,
            requests=record.requests,
            tool_calls=record.tool_calls,
            **_machine_time(record),
        )


def _machine_time(record: UsageRecord) -> dict[str, int]:
    if record.resource_type is not ResourceType.COMPUTE or record.model not in COMPUTE_COLUMNS:
        return {}
    return {COMPUTE_COLUMNS[record.model]: record.units}


def usage_amounts(usage: Usage) -> dict[Dimension, int]:
    """What sums of records post to accounts, by dimension."""
    return {
        Dimension.USD: usage.cost_nanos,
        Dimension.TOKENS: usage.input_tokens + usage.output_tokens,
        Dimension.TOOL_CALLS: usage.tool_calls,
        Dimension.REQUESTS: usage.requests,
    }


def amounts_of(record: UsageRecord) -> dict[Dimension, int]:
    """What one record posts to accounts, by dimension."""
    return {
        Dimension.USD: record.cost_nanos or 0,
        Dimension.TOKENS: record.tokens.input + record.tokens.output,
        Dimension.TOOL_CALLS: record.tool_calls,
        Dimension.REQUESTS: record.requests,
    }


@dataclass(slots=True)
class Word:
    """What a meter's last word added to its attempt's sums and no record has replaced yet; entered as of `at_ms`."""

    at_ms: int
    usage: Usage = field(default_factory=Usage)

    def to_json(self) -> str:
        """The column's value."""
        sums = {name: value for name, value in self.usage.to_row().items() if value}
        return json.dumps({"at_ms": self.at_ms, **sums}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def of_json(cls, text: str) -> Word:
        """Read the column's value."""
        values = json.loads(text)
        return cls(values.pop("at_ms"), Usage(**values))

    def amounts(self) -> dict[Dimension, int]:
        """What it posts to accounts, by dimension."""
        return usage_amounts(self.usage)


@dataclass(slots=True)
class Allotment:
    """One attempt's allotment."""

    id: str
    execution: ExecutionRef
    pod: str
    state: AllotmentState
    tracked: dict[str, tuple[Dimension, ...]]
    opened_ms: int
    exchanged_ms: int
    pod_uid: str | None = None
    frozen: bool = False
    limited: tuple[Dimension, ...] = ()
    activated_ms: int | None = None
    closed_ms: int | None = None
    close_reason: str = ""
    sequences: Sequences = field(default_factory=Sequences)
    final_sequence: int | None = None
    final_settled: dict[Dimension, int] | None = None
    progress: str | None = None
    usage: Usage = field(default_factory=Usage)
    purpose: Purpose = Purpose.RUN
    debits: dict[str, dict[Dimension, int]] = field(default_factory=dict)  # by bucket: see rates
    word: Word | None = None  # what stands in for records that have not come; None: no last word was taken
    machine: MachineTerms | None = None
    charged_ms: int | None = None  # of machine time, by this clock: until when it is charged; None: since it was opened
    # Keys that its meter may ask for: written when it is opened, never changed, and so not loaded.
    keys: tuple[KeyGrant, ...] = ()
    corrected_nanos: int = 0  # what the corrections of its entries sum to: its meter knows nothing of them
    holds: dict[WindowKey, Hold] = field(default_factory=dict)
    # What the feed of changes told of it last: `shown` as it was loaded.
    stored: tuple[object, ...] = ()
    new: bool = False
    dirty: bool = False

    def shown(self) -> tuple[object, ...]:
        """What others see of it: state, progress and usage, in this order."""
        return (self.state, self.progress, *usage_values(self.usage))

    @property
    def open(self) -> bool:
        """Whether it still holds or may hold something."""
        return self.state in (AllotmentState.OFFERED, AllotmentState.ACTIVE)

    def holds_of(self, dimension: Dimension, account: str | None = None) -> list[Hold]:
        """Its holds in a dimension (of one account), the oldest window first."""
        found = [
            hold
            for hold in self.holds.values()
            if hold.window.dimension is dimension and (account is None or hold.window.account_id == account)
        ]
        return sorted(found, key=lambda hold: hold.window.starts_at)

    def dimensions(self) -> list[Dimension]:
        """The dimensions that any of its accounts counts, in a fixed order."""
        tracked = {dimension for dimensions in self.tracked.values() for dimension in dimensions}
        return [dimension for dimension in Dimension if dimension in tracked]

    def accounts_of(self, dimension: Dimension) -> list[str]:
        """The accounts that count a dimension for it."""
        return [account for account, dimensions in self.tracked.items() if dimension in dimensions]

    def held(self) -> dict[Dimension, int]:
        """What is granted and not used, by limited dimension: the least over its accounts."""
        held: dict[Dimension, int] = {}
        for dimension in self.limited:
            sums = [
                sum(hold.remainder for hold in self.holds_of(dimension, account))
                for account in self.accounts_of(dimension)
            ]
            held[dimension] = min(sums, default=0)
        return held

    def reported(self) -> Usage:
        """What its records sum to as its meter reported them: charges, corrections and its last word apart."""
        sums = Usage(*usage_values(self.usage))
        if self.word is not None:
            for name in USAGE_COLUMNS:
                setattr(sums, name, getattr(sums, name) - getattr(self.word.usage, name))
        sums.cost_nanos -= sums.unaccounted_nanos + self.corrected_nanos
        return sums

    def settled(self) -> dict[Dimension, int]:
        """What its records sum to as its meter reported them, by dimension."""
        return usage_amounts(self.reported())
