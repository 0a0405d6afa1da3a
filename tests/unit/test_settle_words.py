"""Closing an allotment hands the last word of its meter over, where its containers have ended, and never insists."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from almoner_core import wire
from almoner_operator.errors import LedgerError
from almoner_operator.settle import Settler

ALLOTMENT = "a" * 36
WORD = {
    "version": 1,
    "allotment": ALLOTMENT,
    "attempt": 1,
    "last_sequence": 1,
    "posted": 0,
    "final": False,
    "complete": True,
    "totals": {"cost_nanos": 60, "requests": 1},
}


class Ledger:
    """Takes what is closed; refuses words where it is told to."""

    def __init__(self, *, refuses_words: bool = False) -> None:
        self.refuses_words = refuses_words
        self.closed: list[wire.CloseAllotment] = []

    async def close(self, item: wire.CloseAllotment) -> wire.ItemAnswer:
        self.closed.append(item)
        if item.last_word is not None and self.refuses_words:
            raise LedgerError(wire.ErrorCode.INVALID, "last_word: no")
        return wire.ItemAnswer(allotment=item.allotment, state="closed")


def pod(*, ended: bool = True) -> Any:
    over = {"terminated": {"exitCode": 0, "message": json.dumps(WORD)}}
    status: dict[str, Any] = {
        "phase": "Succeeded" if ended else "Running",
        "initContainerStatuses": [{"name": "meter", "state": over if ended else {"running": {}}}],
        "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 0}}}],
    }
    spec = {"nodeName": "n", "initContainers": [{"name": "meter"}], "containers": [{"name": "agent"}]}
    return SimpleNamespace(raw={"metadata": {}, "spec": spec, "status": status})


async def close(ledger: Ledger, found: Any) -> wire.ItemAnswer:
    context: Any = SimpleNamespace(ledger=ledger)
    nothing: Any = SimpleNamespace()
    return await Settler(context, nothing).close(ALLOTMENT, "Succeeded", lambda: found)


async def test_the_word_goes_along_under_an_operation_of_its_own() -> None:
    ledger = Ledger()
    await close(ledger, pod())
    await close(ledger, pod())
    await close(ledger, pod(ended=False))
    first, again, without = ledger.closed
    assert first == again, "a retry is the same operation with the same content"
    assert first.terminated
    assert first.last_word is not None
    assert first.last_word.totals.cost_nanos == 60
    assert (without.terminated, without.last_word) == (False, None)
    assert without.operation_id != first.operation_id


async def test_a_word_that_the_ledger_refuses_does_not_keep_the_attempt_open() -> None:
    ledger = Ledger(refuses_words=True)
    assert (await close(ledger, pod())).state == "closed"
    assert [item.last_word is None for item in ledger.closed] == [False, True]
