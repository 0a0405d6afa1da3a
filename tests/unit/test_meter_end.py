"""A meter's end must come, whatever comes together with it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from almoner_runner.meter.books import Books
from almoner_runner.meter.ledger import LedgerClient, LedgerUnreachableError, Secret
from almoner_runner.meter.spool import Spool


class Nobody(LedgerClient):
    """A ledger that does not answer."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1", "a", Secret(None), None)  # type: ignore[arg-type]  # no session: nobody asks it

    async def exchange(self, *_: Any, **__: Any) -> dict[str, Any]:
        raise LedgerUnreachableError("nobody answers")


@pytest.mark.parametrize("turns", range(6))
async def test_a_settlement_that_comes_with_the_end_does_not_hold_it_up(tmp_path: Path, turns: int) -> None:
    """Found by the simulation: the background task forgot its cancellation, so that no last return was ever given."""
    spool = Spool(tmp_path, "a")
    spool.open()
    books = Books(Nobody(), spool)
    running = asyncio.create_task(books.run())
    for _ in range(10):
        await asyncio.sleep(0)
    books._tight = True
    books.settled()
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait((running,), timeout=5)
    assert done
    spool.close()
