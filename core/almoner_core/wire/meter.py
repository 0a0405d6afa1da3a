"""Between meter and ledger: grants, records, output, progress, signals."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from almoner_core.usage import UsageRecord
from almoner_core.wire.common import (
    RECORDS_PER_POST_MAX,
    AllotmentState,
    Amounts,
    Dimension,
    Error,
    Id,
    Name,
    PaidSpan,
    WireModel,
)

UNSETTLED_MAX: Final = 512
KEYS_MAX: Final = 16
"""Keys of providers that one attempt may have."""
KEY_CHARS_MAX: Final = 16_384
PAID = (
    "For how long the pod's machine time is paid for, from when this was asked (PAID_ALWAYS_SECONDS: nothing limits "
    "it): the pod must have ended by then. None: nothing is said."
)


class RateInForce(WireModel):
    """A rate that calls must be debited from before they are made.

    `provider` is the ModelProvider whose calls it counts; empty: all calls. No call above `capacity` is let through.
    """

    dimension: Dimension
    provider: Annotated[str, Field(max_length=253)] = ""
    amount: int
    per_seconds: int
    capacity: int


class Activate(WireModel):
    """The bound pod's meter takes its allotment. A restarted meter activates again and learns what is left."""

    operation_id: Id
    unsettled: Annotated[list[Id], Field(max_length=UNSETTLED_MAX)] = Field(
        default=[], description="Records whose settlement is not in the spool of a restarted meter."
    )


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
    rates: list[RateInForce] = []
    activation: int = Field(default=0, description="The number of this activation; returns name it.")
    known: list[Id] = Field(
        default=[], description="Of `unsettled`, what the ledger has: posted before the spool could be written."
    )
    paid_seconds: int | None = Field(default=None, description=PAID)
    paid_span: PaidSpan | None = Field(default=None, description="Goes with `paid_seconds` where a limit bounds it.")


class Extend(WireModel):
    """Ask for more: `need` for the next call, `want` for the ones after it. Both are above what is held now.

    Once `window_ends_in_seconds` has passed, what was held serves calls in flight alone: return what is idle (the
    ledger takes it from the oldest window) and extend, which holds in the new window.
    """

    operation_id: Id
    need: Amounts
    want: Amounts = {}
    debit: Amounts = Field(
        default={}, description="The next call's bound, to be debited from every rate that counts it: all or nothing."
    )
    provider: Annotated[str, Field(max_length=253)] = Field(
        default="", description="The ModelProvider that the call goes to, for `debit`."
    )


class Extended(WireModel):
    """What was granted on top, in every dimension asked; all or nothing as to `need`."""

    granted: Amounts
    held: Amounts
    window_ends_in_seconds: int | None = None
    debited: Amounts = Field(
        default={},
        description="At least `debit`. More is a slice for further calls to the same provider, good for `slice_ms` "
        "from when it was asked for, and never refunded.",
    )
    slice_ms: int = 0
    rates: list[RateInForce] | None = Field(default=None, description="Where they changed since the meter was told.")


class PostRecords(WireModel):
    """Settled records. Each is idempotent by its own id; the batch by its operation id."""

    operation_id: Id
    records: Annotated[list[UsageRecord], Field(min_length=1, max_length=RECORDS_PER_POST_MAX)]
    refunds: Annotated[dict[Annotated[str, Field(max_length=253)], Amounts], Field(max_length=16)] = Field(
        default={},
        description="By provider (empty: none): what was debited for these calls and not used. Never above what was.",
    )


class Posted(WireModel):
    """How far the ledger has the records, and what is still held.

    `frozen`: excess was billed, or the allotment is over; start no call.
    """

    last_sequence: int
    held: Amounts
    frozen: bool = False
    rates: list[RateInForce] | None = Field(default=None, description="The rates in force, where there are any.")


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
    activation: int = Field(
        default=0,
        ge=0,
        description="The activation that it counts from. One of an earlier activation that comes late takes nothing.",
    )


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


class AskKeys(WireModel):
    """The bound pod's meter asks for keys of providers, by name, while its allotment is active."""

    providers: Annotated[list[Name], Field(min_length=1, max_length=KEYS_MAX)]


class HandedKey(WireModel):
    """One provider's key, or why it is not handed over. Never shown, logged, or written to a disk."""

    provider: Name
    key: Annotated[str, Field(max_length=KEY_CHARS_MAX)] | None = Field(default=None, repr=False)
    error: Error | None = None


class HandedKeys(WireModel):
    """Answers in the order asked."""

    keys: list[HandedKey]


class Signals(WireModel):
    """What the ledger wants of the meter: `recall` idle amounts back, or to stop (`cancel`)."""

    recall: bool = False
    cancel: bool = False
    lease_seconds: int | None = Field(
        default=None, description="How long the lease lasts from when this was asked, as the ledger has it."
    )
    paid_seconds: int | None = Field(default=None, description=PAID + " Told where it is asked for.")
    paid_span: PaidSpan | None = Field(default=None, description="Goes with `paid_seconds` where a limit bounds it.")
