"""What a meter does about answers of the ledger that do not come, or come when they are true no more."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from almoner_runner.meter.app import ROUTES_COUNTED_MAX, Counters
from almoner_runner.meter.books import Books
from almoner_runner.meter.ledger import LedgerClient, LedgerUnreachableError, Secret
from almoner_runner.meter.spool import Recovered, Spool


def free() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


class LateLedger(LedgerClient):
    """Holds 100 for the meter. An exchange waits for the gate of its verb.

    Nobody hears of the verbs in `late` and `unheard`: the first are on the way still, the others are done.
    """

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "a", Secret(None), None)  # type: ignore[arg-type]  # no session: nobody asks it
        self.held = 100
        self.late: set[str] = set()
        self.unheard: set[str] = set()
        self.gates: dict[str, asyncio.Event] = defaultdict(free)
        self.on_the_way: list[dict[str, Any]] = []
        self.done: dict[str, dict[str, Any]] = {}

    async def exchange(self, method: str, verb: str, body: Any = None, **_: Any) -> dict[str, Any]:
        await self.gates[verb].wait()
        if verb in self.late:
            self.on_the_way.append({"verb": verb, **body})
            raise LedgerUnreachableError("no answer")
        answer = self.decide({"verb": verb, **(body or {})})
        if verb in self.unheard:
            raise LedgerUnreachableError("no answer")
        return answer

    def decide(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["operation_id"] in self.done:
            return self.done[body["operation_id"]]
        more: dict[str, Any] = {}
        if body["verb"] == "return":
            self.held -= body["amounts"].get("usd", 0)
        if body["verb"] == "records":
            self.held -= sum(record["cost_nanos"] for record in body["records"])
            more["last_sequence"] = body["records"][-1]["sequence"]
        if body["verb"] == "extend":
            more["granted"] = body["need"]
            self.held += body["need"].get("usd", 0)
        if body["verb"] == "activate":
            more = {"limited": ["usd"], "lease_seconds": 60, "next_sequence": 1, "settled": {}, "activation": 7}
        answer = {"held": {"usd": self.held}, **more}
        self.done[body["operation_id"]] = answer
        return answer


@pytest.fixture
def ledger() -> LateLedger:
    return LateLedger()


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path, "a")
    made.open()
    yield made
    made.close()


def use(books: Books, nanos: int) -> None:
    """Make a call that costs so much."""
    hold = books.hold({"usd": nanos}, "provider")
    assert hold is not None
    counts = dict.fromkeys(("input", "cached_input", "cache_write", "output", "reasoning"), 0)
    books.spool.settle({"id": str(nanos), "tokens": counts, "requests": 1, "tool_calls": 0, "cost_nanos": nanos})
    books.settle(hold, {"usd": nanos})


async def turns() -> None:
    """Let everybody do what they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_return_without_an_answer_is_settled_before_anything_else(ledger: LateLedger, spool: Spool) -> None:
    """Found by the simulation: it was done late, after `held` had said that nothing was returned: spent twice."""
    books = Books(ledger, spool)
    await books.activate(Recovered())
    ledger.late = {"return"}
    with pytest.raises(LedgerUnreachableError):
        await books.give_back()
    ledger.late = set()
    hold = await books.cover({"usd": 30}, "provider", comfort=False)
    assert hold is not None
    for message in ledger.on_the_way:
        assert message["activation"] == 7
        ledger.decide(message)
    assert books.allotment.held["usd"] == ledger.held == 30


async def test_an_answer_that_comes_after_others_is_not_believed(ledger: LateLedger, spool: Spool) -> None:
    """Found by the simulation: records were posted and the answer lost, what was idle returned, and the answer then
    given again: by it the meter held what it had returned, and spent it."""
    books = Books(ledger, spool)
    await books.activate(Recovered())
    use(books, 10)
    # Posting waits behind a call that waits for more; what is idle is to be returned after both.
    ledger.gates["records"] = asyncio.Event()
    ledger.gates["extend"] = asyncio.Event()
    returning = asyncio.create_task(books.give_back())
    await turns()
    covering = asyncio.create_task(books.cover({"usd": 120}, "provider", comfort=False))
    posting = asyncio.create_task(books.post_pending())
    await turns()
    ledger.gates["records"].set()
    await turns()
    use(books, 20)
    ledger.late, ledger.unheard = {"extend"}, {"records"}
    ledger.gates["extend"].set()
    with pytest.raises(LedgerUnreachableError):
        await covering
    with pytest.raises(LedgerUnreachableError):
        await posting
    await returning
    assert ledger.held == 0
    ledger.unheard = set()
    lease = books.lease_until
    await books.post_pending()
    assert spool.pending == {}
    assert books.allotment.held["usd"] == 0
    assert books.hold({"usd": 1}, "provider") is None
    assert books.lease_until == lease, "the ledger counts from when it was done"


def test_paths_that_an_agent_invents_are_counted_together_once_there_are_many() -> None:
    counters = Counters()
    for number in range(10 * ROUTES_COUNTED_MAX):
        counters.count(f"/invented/{number}", 404)
    assert len(counters.calls) == ROUTES_COUNTED_MAX + 1
    assert sum(counters.calls.values()) == 10 * ROUTES_COUNTED_MAX
