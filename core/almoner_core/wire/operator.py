"""Between operator and ledger: epochs, limits, the life of allotments, what changed."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from almoner_core.api.resource_quota import BudgetPeriod
from almoner_core.environment import TERMINATION_MESSAGE_BYTES_MAX
from almoner_core.last_word import WordTotals
from almoner_core.usage import UsageRecord
from almoner_core.wire.common import (
    BATCH_ITEMS_MAX,
    BIGINT_MAX,
    AccountKey,
    AllotmentState,
    Amounts,
    Dimension,
    Error,
    Id,
    Name,
    PaidSpan,
    UsageTotals,
    WireModel,
)
from almoner_core.wire.meter import KEYS_MAX


class TakeEpoch(WireModel):
    """A new leader asks for an epoch; every lower one is refused from then on."""

    operation_id: Id
    holder: Annotated[str, Field(min_length=1, max_length=253)]


class Epoch(WireModel):
    """The leader's epoch."""

    epoch: int = Field(ge=1)


class RateLimit(WireModel):
    """A token bucket: `amount` every `per_seconds`, at most `capacity` at once; it begins full."""

    dimension: Dimension
    amount: int = Field(ge=1, le=10**12)
    per_seconds: int = Field(ge=1, le=86_400)
    capacity: int = Field(ge=1, le=10**12)


class FiredAlert(WireModel):
    """A threshold that the spent part of a window reached: once per window, whatever happens to the limit later."""

    percent: int = Field(ge=1, le=100)
    fired_unix_ms: int


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
    rates: Annotated[list[RateLimit], Field(max_length=8)] = []
    alert_thresholds_percent: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(max_length=10)] = []


class UpdateAccounts(WireModel):
    """Limits that changed; each account's are decided on their own.

    An account is created by its first update; deleting a quota sends empty limits.
    """

    epoch: int = Field(ge=1)
    operation_id: Id
    accounts: Annotated[list[AccountLimits], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class RefusedAccount(WireModel):
    """An account whose limits were refused: what was in force for it stays so."""

    index: int = Field(ge=0, description="Its place in the update.")
    error: Error = Field(description="`field` names what to correct, within the account's limits.")


class AccountsAnswer(WireModel):
    """State of the accounts whose limits are in force, in the order asked, and those that were refused."""

    accounts: list[AccountState]
    refused: list[RefusedAccount] = []


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
    rate_seconds: int | None = Field(
        default=None,
        description="Of a rate: the seconds it counts over; `limit` is the bucket's capacity, `spent` what is missing "
        "from it, and `resets_in_seconds` when it is full again.",
    )
    alerts: list[FiredAlert] = []


class ExecutionRef(WireModel):
    """Whose allotment it is. `kind` is Execution or TrainingJob."""

    kind: Annotated[str, Field(max_length=32)] = "Execution"
    namespace: Name
    name: Name
    uid: Annotated[str, Field(min_length=1, max_length=64)]
    attempt: int = Field(ge=1)
    agent: Annotated[str, Field(max_length=253)]
    owner: Annotated[str, Field(max_length=253)]


class MachineTerms(WireModel):
    """What a pod's machine time costs, and how far ahead it is held: by these the ledger extends it by itself.

    It does so while the pod's meter is heard of, no operator came to charge in time, and there is room.
    """

    per_hour: int = Field(ge=1, le=BIGINT_MAX, description="Nano-dollars an hour.")
    ahead_seconds: int = Field(ge=1, le=10**7, description="Held from now on, whenever it is extended.")
    late_seconds: int = Field(ge=0, le=10**7, description="It is extended once no more than that is paid for.")


class KeyGrant(WireModel):
    """A provider's key that a meter may ask for: one key of a Secret of the ledger's own namespace."""

    provider: Name
    secret: Name
    key: Name


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
    compute: Amounts = Field(
        default={},
        description="What machine time needs held ahead, on the same accounts, all or nothing with `need`: opens the "
        "attempt's compute allotment (identity.compute_allotment_id) beside it, which the operator accrues on.",
    )
    machine: MachineTerms | None = None
    keys: Annotated[list[KeyGrant], Field(min_length=1, max_length=KEYS_MAX)] | None = Field(
        default=None,
        description="Keys of cluster-scoped providers that the attempt's meter may have; None: none. Left out where "
        "there are none, so that an older ledger takes the message.",
    )


class OpenBatch(WireModel):
    """Allotments to open; each is decided on its own."""

    epoch: int = Field(ge=1)
    items: Annotated[list[OpenAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class OpenAnswer(WireModel):
    """The answer to one item: granted, or the error."""

    allotment: Id
    granted: Amounts | None = None
    error: Error | None = None
    now_unix_ms: int | None = Field(default=None, description="The ledger's clock.")


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


class LastOutput(WireModel):
    """An output that the ledger never got from the meter: all of it, or its beginning. Never replaces what is there."""

    content: Annotated[str, Field(max_length=TERMINATION_MESSAGE_BYTES_MAX)]
    bytes: int = Field(ge=0, le=10**18, description="Of the whole output.")
    truncated: bool = False


class LastWord(WireModel):
    """What a meter said at its end where the kubelet picks it up: totals over all its records.

    What the records here do not sum to is entered as kind `last_word`, in the place of the charge for what the attempt
    could still have spent; records that come late take its place. A word that contradicts the records, or that has
    calls of unknown cost under a money limit, changes nothing: then the charge stands.
    """

    last_sequence: int = Field(ge=0, le=10**18)
    totals: WordTotals
    output: LastOutput | None = None


class CloseAllotment(WireModel):
    """Void an offered allotment, or close an active one whose pod is gone."""

    operation_id: Id
    allotment: Id
    reason: Annotated[str, Field(max_length=128)] = ""
    terminated: bool = Field(
        default=False,
        description="Whether the pod's containers are known to have ended, or never to have started. Otherwise an "
        "active allotment is closed only once lease, longest call and margin have passed since its meter was heard of "
        "(`leased` before that).",
    )
    last_word: LastWord | None = Field(
        default=None, description="Of an attempt whose containers have ended (`terminated`): its meter's last word."
    )


class CloseBatch(WireModel):
    """Allotments to void or to close; each is decided on its own.

    `allotments:close` on an active allotment: if the meter returned everything it is closed already; otherwise what
    the attempt could still have spent is charged off as one `unaccounted` entry, or, where its meter left a last word,
    what that says. The operator calls it only once the pod has terminated, or lease + longest call + margin have
    passed. Closing a closed one with a last word settles the charge that was made for it.
    """

    epoch: int = Field(ge=1)
    items: Annotated[list[CloseAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class AccrueAllotment(WireModel):
    """Machine time of an attempt: what was used (records of type compute), and what must be held for what comes.

    `allotment` is the attempt's compute allotment. The records are posted whatever the room; then the hold is raised to
    `hold`. Where an account refuses that, the answer has the state and the error `insufficient`: the pod must be
    stopped. `final`: nothing more will come; what is held goes back and the compute allotment closes.
    """

    operation_id: Id
    allotment: Id
    records: Annotated[list[UsageRecord], Field(max_length=16)] = []
    hold: Amounts = {}
    final: bool = False
    machine: MachineTerms | None = Field(default=None, description="In place of what was said before.")
    charged_unix_ms: int | None = Field(
        default=None,
        ge=0,
        le=BIGINT_MAX,
        description="By the ledger's own clock: until when machine time is charged, these records included, or when "
        "the pod started; rather too early than too late. None: as far as is known already.",
    )


class AccrueBatch(WireModel):
    """Machine time of running attempts; each is decided on its own."""

    epoch: int = Field(ge=1)
    items: Annotated[list[AccrueAllotment], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class ItemAnswer(WireModel):
    """The answer to one item; `state` is the allotment's after it."""

    allotment: Id
    state: str | None = None
    error: Error | None = None
    last_word: Amounts | None = Field(
        default=None, description="What was entered from the meter's last word, by dimension; absent: nothing was."
    )
    charged: Amounts | None = Field(
        default=None, description="What was charged for an attempt that left no usable last word; absent: nothing was."
    )
    now_unix_ms: int | None = Field(default=None, description="Of machine time: the ledger's clock.")
    paid_seconds: int | None = Field(
        default=None, description="Of machine time: for how long from now it is held, as meters are told it."
    )
    paid_span: PaidSpan | None = Field(default=None, description="Goes with `paid_seconds` where a limit bounds it.")


class BatchAnswer(WireModel):
    """Answers in the order asked."""

    answers: list[ItemAnswer]


class Purpose(StrEnum):
    """What an allotment pays for: a run's calls, or its machine time."""

    RUN = "run"
    COMPUTE = "compute"


class AllotmentView(WireModel):
    """One open allotment, for reconciling with pods after a restart."""

    allotment: Id
    purpose: Purpose = Purpose.RUN
    state: AllotmentState
    execution: ExecutionRef
    pod: str
    pod_uid: str | None
    held: Amounts
    seconds_since_exchange: int
    last_sequence: int = Field(default=0, description="The last record up to which all have come.")
    accrued_unix_ms: int | None = Field(
        default=None, description="Of a compute allotment: until when machine time was accrued; None: none yet."
    )
    paid_seconds: int | None = Field(default=None, description="Of a compute allotment: as in ItemAnswer.")
    paid_span: PaidSpan | None = None


class AllotmentPage(WireModel):
    """Open allotments in order of id; `next` is the `after` of the next page."""

    allotments: list[AllotmentView]
    next: str | None = None
    now_unix_ms: int = 0


class ExecutionTotals(WireModel):
    """What changed about one execution: totals over all attempts and by attempt, progress, output."""

    kind: str
    namespace: str
    name: str
    uid: str
    totals: UsageTotals
    attempts: dict[int, UsageTotals]
    states: dict[int, AllotmentState]
    compute_states: dict[int, AllotmentState] = Field(
        default={}, description="Of the attempts' compute allotments; `attempts` sums both of an attempt."
    )
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


AccountsAnswer.model_rebuild()
