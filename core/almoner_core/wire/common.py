"""What all messages share: bounds, dimensions, errors by name, keys of accounts."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
    INSECURE = "insecure"  # 403: keys are handed over by TLS, or within one machine; connect so
    INSUFFICIENT = "insufficient"  # 409: an account has no room: Refusal says which, and when to try again
    LEASED = "leased"  # 409: the attempt may still be spending; retry when its lease and longest call are over
    UNAVAILABLE = "unavailable"  # 503: retry with backoff


WHOLE_CLUSTER = "*"
"""Stands for the namespace where a key speaks of a cluster-scoped object."""


class AccountKind(StrEnum):
    """Whose limits the operator hands over: a ResourceQuota's, or a ModelProvider's (rates alone)."""

    QUOTA = "quota"
    PROVIDER = "provider"


class AccountKey(WireModel):
    """An account: (quota namespace and name, subject); its dimensions and windows are the ledger's business.

    `quota` is the name of the ResourceQuota, or of the ModelProvider where `kind` says so; of a ClusterModelProvider
    where the namespace is WHOLE_CLUSTER besides. `subject` is the owner where the quota opens one account an owner,
    else empty.
    """

    kind: AccountKind = AccountKind.QUOTA
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
    rate_seconds: int | None = Field(
        default=None,
        description="Where a rate refused: the seconds it counts over; `limit` is the bucket's capacity, `spent` what "
        "is missing from it.",
    )
    retry_after_ms: int | None = Field(
        default=None,
        description="Where a rate refused: when the bucket will hold enough; None: never, it is too small.",
    )


class Error(WireModel):
    """What went wrong, for a program (`code`) and for a person (`message`)."""

    code: ErrorCode
    message: str
    field: str | None = None
    refusal: Refusal | None = None
    retry_after_seconds: int | None = Field(
        default=None, description="Of `leased`: seconds until the attempt can surely spend no more."
    )


class ErrorAnswer(WireModel):
    """Body of every answer that is not a success."""

    error: Error


class AllotmentState(StrEnum):
    """Life of an allotment."""

    OFFERED = "offered"
    ACTIVE = "active"
    VOID = "void"
    CLOSED = "closed"


class UsageTotals(WireModel):
    """Totals of an execution, an attempt or an agent. Money in nano-dollars; `unpriced`: records of unknown cost.

    Machine time is what pods requested, integrated over time: millicores, mebibytes and thousandths of a GPU,
    each times seconds.
    """

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


class PaidSpan(WireModel):
    """What machine time is held for, by the ledger's clock, which may jump: Unix milliseconds.

    As long as `since` (until when it is charged) stays what it was, a later end means that more is held, and no more
    than that.
    """

    since_unix_ms: int
    until_unix_ms: int
