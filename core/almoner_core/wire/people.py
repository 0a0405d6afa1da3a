"""For people: sums of what was used, the history of executions, and entries.

Instants are Unix milliseconds, money is in nano-dollars. A page's `next` is what the next call gives as `after`; None:
there is no more.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from almoner_core.wire.common import AllotmentState, UsageTotals, WireModel

USAGE_BY_MAX = 3
PAGE_ITEMS_MAX = 1000


class UsageBy(StrEnum):
    """What usage is grouped by. Times are UTC; weeks begin on Monday."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    NAMESPACE = "namespace"
    AGENT = "agent"
    OWNER = "owner"
    PROVIDER = "provider"
    MODEL = "model"
    RESOURCE_TYPE = "resource_type"
    OPERATION = "operation"
    OUTCOME = "outcome"
    EXECUTION = "execution"


class UsageSource(StrEnum):
    """What sums were made of. Their totals are the same; they differ in how long the answer takes.

    rollups: sums by day, kept as records are posted. attempts: the sums of each attempt, and records only where an
    attempt reaches across an end of the asked time. records: every entry asked for was read.
    """

    ROLLUPS = "rollups"
    ATTEMPTS = "attempts"
    RECORDS = "records"


class CostRow(WireModel):
    """One group's sums: `key` has a value for each of the table's columns."""

    key: list[str]
    totals: UsageTotals


class Costs(WireModel):
    """Sums by one dimension (`by`), the dearest first; `columns` names the parts of each row's key."""

    by: str
    columns: list[str]
    rows: list[CostRow]
    totals: UsageTotals = Field(default=UsageTotals(), description="Of all groups, those that are left out included.")
    truncated: bool = False


class UsagePage(WireModel):
    """Sums by up to three dimensions; `columns` names the parts of each row's key."""

    by: list[UsageBy]
    columns: list[str]
    rows: list[CostRow]
    source: UsageSource
    totals: UsageTotals = Field(default=UsageTotals(), description="Of all groups, those of other pages included.")
    next: str | None = None


class ExecutionHistory(WireModel):
    """An execution that the ledger knows, whether or not its custom resource still exists.

    Agent, owner and state are those of its newest attempt; totals are those of all attempts and of its machine time.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    agent: str
    owner: str
    created_unix_ms: int
    attempts: int
    state: AllotmentState
    ended_unix_ms: int | None = None
    close_reason: str = ""
    totals: UsageTotals


class ExecutionPage(WireModel):
    """Executions, the newest first."""

    executions: list[ExecutionHistory]
    next: str | None = None


class Entry(WireModel):
    """An entry of the books, without content. `cost_nanos` None: unknown.

    `kind`: usage (a meter's record), unaccounted (charged for an attempt that vanished, or that charge taken back),
    last_word (what a meter summed up at its end and the ledger got no records of, or that taken back), or correction (a
    difference to the cost of the entry that `corrects` names). `counted_unix_ms` is the moment by which sums count it:
    when it started, within the life of its allotment as the ledger's clock has it. Cached input and cache writes are
    part of input; reasoning is part of output.
    """

    number: int
    id: str
    kind: str
    corrects: str | None
    execution_kind: str
    namespace: str
    name: str
    execution_uid: str
    attempt: int
    agent: str
    owner: str
    sequence: int | None
    resource_type: str
    provider: str
    model: str
    operation: str
    outcome: str
    error: str | None
    cost_nanos: int | None
    price_version: str | None
    input_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int
    requests: int
    tool_calls: int
    units: int
    counted_unix_ms: int
    started_unix_ms: int
    posted_unix_ms: int
    duration_ms: int


class EntryPage(WireModel):
    """Entries, the newest first: in the order in which they were committed."""

    records: list[Entry]
    next: str | None = None
