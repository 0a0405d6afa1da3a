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
| POST /v1/allotments:accrue | operator | AccrueBatch -> BatchAnswer (machine time) |
| GET /v1/allotments?state=open&after=ID&limit=N | operator | -> AllotmentPage |
| GET /v1/changes?after=N&timeout_seconds=S&limit=N | operator | -> Changes (long poll) |
| POST /v1/allotments/{id}/activate | meter | Activate -> Activated |
| POST /v1/allotments/{id}/extend | meter | Extend -> Extended |
| POST /v1/allotments/{id}/records | meter | PostRecords -> Posted |
| POST /v1/allotments/{id}/return | meter | Return -> Returned |
| PUT /v1/allotments/{id}/output | meter | PutOutput -> OK |
| POST /v1/allotments/{id}/progress | meter | PostProgress -> OK |
| POST /v1/allotments/{id}/keys | meter | AskKeys -> HandedKeys (over TLS, or within one machine) |
| GET /v1/allotments/{id}/signals?timeout_seconds=S | meter | -> Signals (long poll) |
| GET /v1/usage?by=day,agent&from=2026-01-01&to=2026-01-31&limit=N&after=NEXT | people | -> UsagePage |
| GET /v1/executions?agent=NAME&limit=N&after=NEXT | people | -> ExecutionPage |
| GET /v1/records?execution=NAME&limit=N&after=NEXT | people | -> EntryPage |
| GET /v1/costs?by=agent&from=2026-01-01&to=2026-01-31&limit=N | people | -> Costs |
| GET /v1/executions/{uid}/output | people, operator | -> the output's bytes |
| POST /v1/configuration:observe | operator | ObserveObjects -> Observed |
| GET /v1/configuration?after=UID&limit=N | operator | -> KnownObjects |
| GET /v1/audit/changes?kind=ResourceQuota&namespace=NAME | people | -> ConfigurationChanges |
| GET /healthz /readyz /metrics /openapi.json | anyone | |

Every error is `{"error": Error}` with a fitting HTTP status. A message with many objects in it is answered object by
object: one that is malformed or refused has its error in its own place, and does not keep the others back.
"""

from __future__ import annotations

from almoner_core.wire.common import (
    BATCH_ITEMS_MAX,
    BIGINT_MAX,
    BODY_BYTES_MAX,
    RECORDS_PER_POST_MAX,
    WHOLE_CLUSTER,
    AccountKey,
    AccountKind,
    AllotmentState,
    Amounts,
    Dimension,
    Error,
    ErrorAnswer,
    ErrorCode,
    Id,
    Name,
    PaidSpan,
    Refusal,
    UsageTotals,
    WireModel,
)
from almoner_core.wire.configuration import (
    OBSERVED_MAX,
    ConfigurationChange,
    ConfigurationChanges,
    FieldChange,
    FieldManager,
    KnownObject,
    KnownObjects,
    ManagedSpec,
    Observed,
    ObservedObject,
    ObserveObjects,
    RefusedObject,
)
from almoner_core.wire.corrections import (
    ChargeSettled,
    Corrected,
    CorrectedEntry,
    CorrectEntries,
    NewCost,
    SettleCharge,
)
from almoner_core.wire.meter import (
    KEY_CHARS_MAX,
    KEYS_MAX,
    Activate,
    Activated,
    AskKeys,
    Extend,
    Extended,
    HandedKey,
    HandedKeys,
    Posted,
    PostProgress,
    PostRecords,
    PutOutput,
    RateInForce,
    Return,
    Returned,
    Signals,
)
from almoner_core.wire.operator import (
    AccountLimits,
    AccountsAnswer,
    AccountState,
    AccrueAllotment,
    AccrueBatch,
    AgentTotals,
    AllotmentPage,
    AllotmentView,
    BatchAnswer,
    BindAllotment,
    BindBatch,
    Changes,
    CloseAllotment,
    CloseBatch,
    Epoch,
    ExecutionRef,
    ExecutionTotals,
    FiredAlert,
    ItemAnswer,
    KeyGrant,
    LastOutput,
    LastWord,
    MachineTerms,
    OpenAllotment,
    OpenAnswer,
    OpenAnswers,
    OpenBatch,
    Purpose,
    RateLimit,
    RefusedAccount,
    TakeEpoch,
    UpdateAccounts,
)
from almoner_core.wire.people import (
    PAGE_ITEMS_MAX,
    USAGE_BY_MAX,
    CostRow,
    Costs,
    Entry,
    EntryPage,
    ExecutionHistory,
    ExecutionPage,
    UsageBy,
    UsagePage,
    UsageSource,
)

__all__ = [
    "BATCH_ITEMS_MAX",
    "BIGINT_MAX",
    "BODY_BYTES_MAX",
    "KEYS_MAX",
    "KEY_CHARS_MAX",
    "OBSERVED_MAX",
    "PAGE_ITEMS_MAX",
    "RECORDS_PER_POST_MAX",
    "USAGE_BY_MAX",
    "WHOLE_CLUSTER",
    "AccountKey",
    "AccountKind",
    "AccountLimits",
    "AccountState",
    "AccountsAnswer",
    "AccrueAllotment",
    "AccrueBatch",
    "Activate",
    "Activated",
    "AgentTotals",
    "AllotmentPage",
    "AllotmentState",
    "AllotmentView",
    "Amounts",
    "AskKeys",
    "BatchAnswer",
    "BindAllotment",
    "BindBatch",
    "Changes",
    "ChargeSettled",
    "CloseAllotment",
    "CloseBatch",
    "ConfigurationChange",
    "ConfigurationChanges",
    "CorrectEntries",
    "Corrected",
    "CorrectedEntry",
    "CostRow",
    "Costs",
    "Dimension",
    "Entry",
    "EntryPage",
    "Epoch",
    "Error",
    "ErrorAnswer",
    "ErrorCode",
    "ExecutionHistory",
    "ExecutionPage",
    "ExecutionRef",
    "ExecutionTotals",
    "Extend",
    "Extended",
    "FieldChange",
    "FieldManager",
    "FiredAlert",
    "HandedKey",
    "HandedKeys",
    "Id",
    "ItemAnswer",
    "KeyGrant",
    "KnownObject",
    "KnownObjects",
    "LastOutput",
    "LastWord",
    "MachineTerms",
    "ManagedSpec",
    "Name",
    "NewCost",
    "ObserveObjects",
    "Observed",
    "ObservedObject",
    "OpenAllotment",
    "OpenAnswer",
    "OpenAnswers",
    "OpenBatch",
    "PaidSpan",
    "PostProgress",
    "PostRecords",
    "Posted",
    "Purpose",
    "PutOutput",
    "RateInForce",
    "RateLimit",
    "Refusal",
    "RefusedAccount",
    "RefusedObject",
    "Return",
    "Returned",
    "SettleCharge",
    "Signals",
    "TakeEpoch",
    "UpdateAccounts",
    "UsageBy",
    "UsagePage",
    "UsageSource",
    "UsageTotals",
    "WireModel",
]
