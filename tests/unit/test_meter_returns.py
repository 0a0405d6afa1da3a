"""What a meter does about a return whose answer did not come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from almoner_runner.meter.books import Books
from almoner_runner.meter.ledger import LedgerClient, LedgerUnreachableError, Secret
from almoner_runner.meter.spool import Recovered, Spool


class LateLedger(LedgerClient):
    """Holds 100 for the meter. While `late`, what it is told comes to nothing yet, and nobody hears of it."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "a", Secret(None), None)  # type: ignore[arg-type]
        self.held = 100
        self.late = False
        self.on_the_way: list[dict[str, Any]] = []
        self.done: dict[str, dict[str, Any]] = {}

    async def exchange(self, method: str, verb: str, body: Any = None, **_: Any) -> dict[str, Any]:
        if self.late:
            self.on_the_way.append({"verb": verb, **body})
            raise LedgerUnreachableError("no answer")
        return self.decide({"verb": verb, **(body or {})})

    def decide(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["operation_id"] in self.done:
            return self.done[body["operation_id"]]
        more: dict[str, Any] = {}
        if body["verb"] == "return":
            self.held -= body["amounts"].get("usd", 0)
        if body["verb"] == "extend":
            more["granted"] = body["need"]
            self.held += body["need"].get("usd", 0)
        if body["verb"] == "activate":
            more = {"limited": ["usd"], "lease_seconds": 60, "next_sequence": 1, "settled": {}, "activation": 7}
        answer = {"held": {"usd": self.held}, **more}
        self.done[body["operation_id"]] = answer
        return answer


async def test_a_return_without_an_answer_is_settled_before_anything_else(tmp_path: Path) -> None:
    """Found by the simulation: it was done late, after `held` had said that nothing was returned: spent twice."""
    ledger = LateLedger()
    spool = Spool(tmp_path, "a")
    spool.open()
    books = Books(ledger, spool)
    await books.activate(Recovered())
    ledger.late = True
    with pytest.raises(LedgerUnreachableError):
        await books.give_back()
    ledger.late = False
    hold = await books.cover({"usd": 30}, "provider", comfort=False)
    assert hold is not None
    for message in ledger.on_the_way:
        assert message["activation"] == 7
        ledger.decide(message)
    assert books.allotment.held["usd"] == ledger.held == 30
    spool.close()
