"""What the store is asked to do, one mutation each, and what it answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from almoner_core import wire
from almoner_core.wire import WireModel


class Verb(StrEnum):
    """The mutations."""

    TAKE_EPOCH = "take_epoch"
    UPDATE_ACCOUNTS = "update_accounts"
    OPEN = "open"
    BIND = "bind"
    VOID = "void"
    CLOSE = "close"
    ACCRUE = "accrue"
    ACTIVATE = "activate"
    EXTEND = "extend"
    POST = "post"
    RETURN = "return"
    OUTPUT = "output"
    PROGRESS = "progress"
    CORRECT = "correct"
    SETTLE = "settle"
    EXPIRE = "expire"
    COVER = "cover"
    OBSERVE = "observe"


class Done(WireModel):
    """The answer to what only has to be done."""

    ok: bool = True


class Expire(WireModel):
    """The ledger's own: end an attempt that fell silent."""


class Cover(WireModel):
    """The ledger's own: hold more machine time for a pod whose operator is late."""


ANSWERS: Final[dict[Verb, type[WireModel]]] = {
    Verb.TAKE_EPOCH: wire.Epoch,
    Verb.UPDATE_ACCOUNTS: wire.AccountsAnswer,
    Verb.OPEN: wire.OpenAnswer,
    Verb.BIND: wire.ItemAnswer,
    Verb.VOID: wire.ItemAnswer,
    Verb.CLOSE: wire.ItemAnswer,
    Verb.ACCRUE: wire.ItemAnswer,
    Verb.ACTIVATE: wire.Activated,
    Verb.EXTEND: wire.Extended,
    Verb.POST: wire.Posted,
    Verb.RETURN: wire.Returned,
    Verb.OUTPUT: Done,
    Verb.PROGRESS: Done,
    Verb.CORRECT: wire.Corrected,
    Verb.SETTLE: wire.ChargeSettled,
    Verb.EXPIRE: wire.ItemAnswer,
    Verb.COVER: wire.ItemAnswer,
    Verb.OBSERVE: wire.Observed,
}

WITH_RECORDS: Final = frozenset({Verb.POST, Verb.ACCRUE})


@dataclass(frozen=True, slots=True)
class Command:
    """One mutation.

    `epoch` is the operator's; `pod_uid` the calling pod's (a meter speaks for the allotment bound to its pod alone).
    `digest` fingerprints the content, operation id and epoch apart: a retry under a newer epoch is still a retry.
    """

    verb: Verb
    body: Any
    allotment: str | None = None
    operation_id: str | None = None
    epoch: int | None = None
    pod_uid: str | None = None
    digest: str = field(default="", compare=False)

    @property
    def weight(self) -> int:
        """How much of a transaction it takes, in rows or so."""
        if self.verb is Verb.OBSERVE:
            return len(self.body.objects)
        return max(1, len(self.body.records)) if self.verb in WITH_RECORDS else 1


def command(
    verb: Verb, body: WireModel, *, allotment: str | None = None, epoch: int | None = None, pod_uid: str | None = None
) -> Command:
    """Make a command of a message; the operation id and the allotment come from the message where it has them."""
    content = body.model_dump(mode="json", exclude={"operation_id", "epoch"})
    named = allotment or content.get("allotment")
    text = json.dumps([verb, named, content], sort_keys=True, separators=(",", ":"))
    return Command(
        verb=verb,
        body=body,
        allotment=named,
        operation_id=getattr(body, "operation_id", None),
        epoch=epoch,
        pod_uid=pod_uid,
        digest=hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
    )
