"""A person's word, or a new price list's, on what was spent after all. Run on the database, not served over HTTP."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from almoner_core.wire.common import RECORDS_PER_POST_MAX, Id, WireModel

Amount = Annotated[int, Field(ge=0, le=10**18)]
Reason = Annotated[str, Field(min_length=1, max_length=256)]


class NewCost(WireModel):
    """What an entry of usage costs from now on, its earlier corrections included."""

    record: Id
    cost_nanos: Amount
    revision: int | None = Field(
        default=None, ge=0, description="How often it was corrected when somebody looked; `record_conflict` otherwise."
    )


class CorrectEntries(WireModel):
    """Correct entries of one allotment: all of them, or none. Each difference becomes a new entry."""

    operation_id: Id
    corrections: Annotated[list[NewCost], Field(min_length=1, max_length=RECORDS_PER_POST_MAX)]
    reason: Reason
    price_version: Annotated[str, Field(max_length=128)] | None = Field(
        default=None, description="The price version that the new costs are rated with."
    )


class CorrectedEntry(WireModel):
    """What an entry cost before (None: unknown) and costs now; `entry` is the correction, None where none was due."""

    record: Id
    entry: Id | None
    before: int | None
    after: int


class Corrected(WireModel):
    """What was corrected, in the order asked."""

    corrected: list[CorrectedEntry]


class SettleCharge(WireModel):
    """What an attempt that vanished really spent. The rest of its charge is given back.

    Of a dimension of which nothing is said, the charge stays.
    """

    operation_id: Id
    cost_nanos: Amount
    tokens: Amount | None = None
    requests: Amount | None = None
    tool_calls: Amount | None = None
    reason: Reason


class ChargeSettled(WireModel):
    """What had been charged without a record, and what it is settled at; `entry` names the correction."""

    allotment: Id
    entry: Id
    charged_nanos: int
    cost_nanos: int
