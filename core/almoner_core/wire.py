"""The ledger's wire protocol, version 1: HTTP and JSON, snake_case, integers only.

Amounts are maps from Dimension to an integer: `usd` in nano-dollars, the others in their own unit. A dimension that is
absent is not asked for or, in an answer, not limited. Every mutation carries `operation_id`: the same id with the same
content gets the stored answer again, with other content the error `operation_conflict`.

| call | by | body -> answer |
|---|---|---|
| POST /v1/epochs | operator | TakeEpoch -> Epoch |
| POST /v1/accounts:update | operator | UpdateAccounts -> AccountsAnswer |
| POST /v1/allotments:open | operator | OpenBatch -> OpenAnswers |
| POST /v1/allotments:bind | operator | BindBatch -> BatchAnswer |
| POST /v1/allotments:void | operator | CloseBatch -> BatchAnswer (offered only) |
| POST /v1/allotments:close | operator | CloseBatch -> BatchAnswer (charges off what did not come back) |
| GET /v1/allotments?state=open&after=ID&limit=N | operator | -> AllotmentPage |
| GET /v1/changes?after=N&timeout_seconds=S&limit=N | operator | -> Changes (long poll) |
| POST /v1/allotments/{id}/activate | meter | Activate -> Activated |
| POST /v1/allotments/{id}/extend | meter | Extend -> Extended |
| POST /v1/allotments/{id}/records | meter | PostRecords -> Posted |
| POST /v1/allotments/{id}/return | meter | Return -> Returned |
| PUT /v1/allotments/{id}/output | meter | PutOutput -> OK |
| POST /v1/allotments/{id}/progress | meter | PostProgress -> OK |
| GET /v1/allotments/{id}/signals?timeout_seconds=S | meter | -> Signals (long poll) |
| GET /v1/costs?by=agent&from=2026-01-01&to=2026-01-31&limit=N | people | -> Costs |
| GET /v1/executions/{uid}/output | people, operator | -> the output's bytes |
| GET /healthz /readyz /metrics /openapi.json | anyone | |

Every error is `{"error": Error}` with a fitting HTTP status.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.usage import UsageRecord

BATCH_ITEMS_MAX = 500
RECORDS_PER_POST_MAX = 200
BODY_BYTES_MAX = 2 * 1024 * 1024
BIGINT_MAX = 2**63 - 1

Id = Annotated[str, Field(min_length=36, max_length=36, pattern=r"^[0-9a-f-]{36}$")]
Name = Annotated[str, Field(min_length=1, max_length=253)]


class Dimension(StrEnum):
    """What an account counts."""

    USD = "usd"
    TOKENS = "tokens"
    TOOL_CALLS = "tool_calls"
    REQUESTS = "requests"


Amounts = Annotated[dict[Dimension, Annotated[int, Field(ge=0, le=10**18)]], Field(max_length=4)]


class WireModel(BaseModel):
    """Base of every message: unknown fields are refused, so that a misspelt one is not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorCode(StrEnum):
    """Errors by name; each says what the caller should do."""

    INVALID = "invalid"  # 400: correct the field named and send again
    TOO_LARGE = "too_large"  # 413: send less
    UNAUTHENTICATED = "unauthenticated"  # 401: present a fresh token
    FORBIDDEN = "forbidden"  # 403: this caller may not speak for that allotment
    NOT_FOUND = "not_found"  # 404
    OPERATION_CONFLICT = "operation_conflict"  # 409: that id was used with other content
    RECORD_CONFLICT = "record_conflict"  # 409: that record id was posted with other content
    STALE_EPOCH = "stale_epoch"  # 409: another operator leads; stop
    STALE_GENERATION = "stale_generation"  # 409: a newer limit is in force
    NOT_BOUND = "not_bound"  # 409: the operator has not bound the pod yet; retry soon
    WRONG_STATE = "wrong_state"  # 409: void, superseded, closed; stop
    INSUFFICIENT = "insufficient"  # 409: an account has no room: Refusal says which, and when to try again
    UNAVAILABLE = "unavailable"  # 503: retry with backoff


class AccountKey(WireModel):
    """An account: (quota namespace and name, subject); its dimensions and windows are the ledger's business.

    `subject` is the owner where the quota opens one account an owner, else empty.
    """

    namespace: Name
    quota: Name
    subject: Annotated[str, Field(max_length=253)] = ""


class Refusal(WireModel):
    """Why a grant was refused: which account, how much was left, when to try again."""

    account: str = Field(description="namespace/quota[/subject], or execution for the execution's own limit.")
    dimension: Dimension
    limit: int
    spent: int
    reserved: int
    needed: int
    retry_after_seconds: int | None = Field(
        default=None, description="Seconds to the window's end; None: waiting alone does not help (or only returns do)."
    )
    may_free_up: bool = Field(default=False, description="Whether others hold some of it and may return it.")


class Error(WireModel):
    """What went wrong, for a program (`code`) and for a person (`message`)."""

    code: ErrorCode
    message: str
    field: str | None = None
    refusal: Refusal | None = None


class ErrorAnswer(WireModel):
    """Body of every answer that is not a success."""

    error: Error


# --- operator ---------------------------------------------------------------------------------------------------------


class TakeEpoch(WireModel):
    """A new leader asks for an epoch; every lower one is refused from then on."""

    operation_id: Id
    holder: Annotated[str, Field(min_length=1, max_length=253)]


class Epoch(WireModel):
    """The leader's epoch."""

    epoch: int = Field(ge=1)


class AccountLimits(WireModel):
    """Limits of one account as the quota's generation has them. A dimension absent from `limits` is not limited.

    `limits` may hold usd (per `period`); others count over the same window. Per-execution and per-request caps are
    applied by the ledger at open and handed to the meter at activation.
    """

    key: AccountKey
    generation: int = Field(ge=0)
    enforced: bool = True
    period: BudgetPeriod = BudgetPeriod.TOTAL
    time_zone: Annotated[str, Field(max_length=64)] = "UTC"
    limits: Amounts = {}
    max_per_execution: Amounts = {}
    max_per_request: Amounts = {}


class UpdateAccounts(WireModel):
    """Limits that changed. An account is created by its first update; deleting a quota sends empty limits."""

    epoch: int = Field(ge=1)
    operation_id: Id
    accounts: Annotated[list[AccountLimits], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class AccountsAnswer(WireModel):
    """State of the updated accounts, in the order asked."""

    accounts: list[AccountState]


class AccountState(WireModel):
    """One account's current window in one dimension. Money in nano-dollars."""

    key: AccountKey
    dimension: Dimension
    generation: int
    enforced: bool
    limit: int | None
    spent: int
    reserved: int
    excess: int = 0
    resets_in_seconds: int | None = None


class ExecutionRef(WireModel):
    """Whose allotment it is. `kind` is Execution or TrainingJob."""

    kind: Annotated[str, Field(max_length=32)] = "Execution"
    namespace: Name
    name: Name
    uid: Annotated[str, Field(min_length=1, max_length=64)]
    attempt: int = Field(ge=1)
    agent: Annotated[str, Field(max_length=253)]
    owner: Annotated[str, Field(max_length=253)]


class OpenAllotment(WireModel):
    """Ask for an allotment for one attempt, on every account that governs it, all or nothing.

    `limits` are the execution's own (its maxCost, maxTokens, maxToolCalls), over all its attempts: the ledger keeps
    them as an account too. `need` must be granted; `want` may be. A higher attempt supersedes lower ones that are only
    offered.
    """

    operation_id: Id
    allotment: Id
    execution: ExecutionRef
    pod: Name
    accounts: Annotated[list[AccountKey], Field(max_length=64)]
    limits: Amounts = {}
    need: Amounts = {}
    want: Amounts = {}


class OpenBatch(WireModel):
    """Allotments to open; each is decided on its own."""

    epoch: int = Field(ge=1)
    items: Annotated[list[OpenAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class OpenAnswer(WireModel):
    """The answer to one item: granted, or the error."""

    allotment: Id
    granted: Amounts | None = None
    error: Error | None = None


class OpenAnswers(WireModel):
    """Answers in the order asked."""

    answers: list[OpenAnswer]


class BindAllotment(WireModel):
    """The pod that was created for an allotment: only it may activate."""

    operation_id: Id
    allotment: Id
    pod_uid: Annotated[str, Field(min_length=1, max_length=64)]


class BindBatch(WireModel):
    """Bindings; each is decided on its own."""

    epoch: int = Field(ge=1)
    items: Annotated[list[BindAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class CloseAllotment(WireModel):
    """Void an offered allotment, or close an active one whose pod is gone."""

    operation_id: Id
    allotment: Id
    reason: Annotated[str, Field(max_length=128)] = ""


class CloseBatch(WireModel):
    """Allotments to void or to close; each is decided on its own.

    `allotments:close` on an active allotment: if the meter returned everything it is closed already; otherwise what
    the attempt could still have spent is charged off as one `unaccounted` entry. The operator calls it only once the
    pod has terminated, or lease + longest call + margin have passed.
    """

    epoch: int = Field(ge=1)
    items: Annotated[list[CloseAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class ItemAnswer(WireModel):
    """The answer to one item; `state` is the allotment's after it."""

    allotment: Id
    state: str | None = None
    error: Error | None = None


class BatchAnswer(WireModel):
    """Answers in the order asked."""

    answers: list[ItemAnswer]


class AllotmentState(StrEnum):
    """Life of an allotment."""

    OFFERED = "offered"
    ACTIVE = "active"
    VOID = "void"
    CLOSED = "closed"


class AllotmentView(WireModel):
    """One open allotment, for reconciling with pods after a restart."""

    allotment: Id
    state: AllotmentState
    execution: ExecutionRef
    pod: str
    pod_uid: str | None
    held: Amounts
    seconds_since_exchange: int


class AllotmentPage(WireModel):
    """Open allotments in order of id; `next` is the `after` of the next page."""

    allotments: list[AllotmentView]
    next: str | None = None


class UsageTotals(WireModel):
    """Totals of an execution, an attempt or an agent. Money in nano-dollars; `unpriced`: records of unknown cost."""

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


class ExecutionTotals(WireModel):
    """What changed about one execution: totals over all attempts and by attempt, progress, output."""

    kind: str
    namespace: str
    name: str
    uid: str
    totals: UsageTotals
    attempts: dict[int, UsageTotals]
    states: dict[int, AllotmentState]
    progress: dict[str, Any] | None = None
    output: str | None = Field(
        default=None, description="The first 4096 characters of the output of the newest attempt."
    )
    output_bytes: int | None = None
    output_attempt: int | None = None


class AgentTotals(WireModel):
    """Totals of an agent over all its executions, deleted ones included."""

    namespace: str
    agent: str
    totals: UsageTotals


class Changes(WireModel):
    """Everything that changed after the cursor; an empty answer after the timeout. `after` is the next cursor.

    The first call gives `after=0` and receives all that is open or changed lately, in pages of `limit`.
    """

    after: int
    executions: list[ExecutionTotals] = []
    agents: list[AgentTotals] = []
    accounts: list[AccountState] = []
    more: bool = False


# --- people -----------------------------------------------------------------------------------------------------------


class CostRow(WireModel):
    """One group's sums: `key` has a value for each of the table's columns."""

    key: list[str]
    totals: UsageTotals


class Costs(WireModel):
    """Sums by one dimension (`by`), the dearest first; `columns` names the parts of each row's key."""

    by: str
    columns: list[str]
    rows: list[CostRow]
    truncated: bool = False


# --- meter ------------------------------------------------------------------------------------------------------------


class Activate(WireModel):
    """The bound pod's meter takes its allotment. A restarted meter activates again and learns what is left."""

    operation_id: Id


class Activated(WireModel):
    """What the meter holds: `limited` dimensions are checked before a call, `held` is what it may use without asking.

    `max_per_request` bounds one call. `next_sequence` is where the records go on. `remaining` is what the tightest
    account still has beyond `held`, for planning.
    """

    limited: list[Dimension]
    held: Amounts
    remaining: Amounts
    max_per_request: Amounts = {}
    lease_seconds: int
    window_ends_in_seconds: int | None = None
    next_sequence: int
    settled: Amounts


class Extend(WireModel):
    """Ask for more: `need` for the next call, `want` for the ones after it. Both are above what is held now.

    Once `window_ends_in_seconds` has passed, what was held serves calls in flight alone: return what is idle (the
    ledger takes it from the oldest window) and extend, which holds in the new window.
    """

    operation_id: Id
    need: Amounts
    want: Amounts = {}


class Extended(WireModel):
    """What was granted on top, in every dimension asked; all or nothing as to `need`."""

    granted: Amounts
    held: Amounts
    window_ends_in_seconds: int | None = None


class PostRecords(WireModel):
    """Settled records. Each is idempotent by its own id; the batch by its operation id."""

    operation_id: Id
    records: Annotated[list[UsageRecord], Field(min_length=1, max_length=RECORDS_PER_POST_MAX)]


class Posted(WireModel):
    """How far the ledger has the records, and what is still held. `frozen`: excess was billed; start no call."""

    last_sequence: int
    held: Amounts
    frozen: bool = False


class Return(WireModel):
    """Give back what is not needed. `settled` is the total of all records up to `last_sequence`.

    `final`: nothing more will come; the allotment closes once the records up to `last_sequence` are there. Otherwise
    `amounts` go back and the rest stays held.
    """

    operation_id: Id
    last_sequence: int = Field(ge=0)
    settled: Amounts
    amounts: Amounts = {}
    final: bool = False


class Returned(WireModel):
    """The allotment's state after the return."""

    state: AllotmentState
    held: Amounts


class PutOutput(WireModel):
    """The agent's output. `content` is text (UTF-8, undecodable bytes replaced), at most 1 MiB."""

    operation_id: Id
    content: Annotated[str, Field(max_length=1_048_576)]
    truncated: bool = False


class PostProgress(WireModel):
    """What a trainer reports: see api.training_job.Progress; metric values are decimal strings."""

    step: int = Field(default=0, ge=0, le=10**15)
    total: int | None = Field(default=None, ge=1, le=10**15)
    message: Annotated[str, Field(max_length=256)] | None = None
    metrics: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=64)]],
        Field(max_length=32),
    ] = {}


class Signals(WireModel):
    """What the ledger wants of the meter: `recall` idle amounts back, or to stop (`cancel`)."""

    recall: bool = False
    cancel: bool = False


AccountsAnswer.model_rebuild()
