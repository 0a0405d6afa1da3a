"""Room for bodies: by the container's memory, shared by all, waited for and given back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from almoner_runner.meter.body import read_body
from almoner_runner.meter.intake import BUDGET_BYTES, BUDGET_LEAST_BYTES, MIB, Budget, Claim, budget_bytes, weight
from almoner_runner.meter.refusals import RefusedError


@pytest.mark.parametrize(
    ("text", "times"),
    [("", 5), ("plain", 5), ("h\u00e4llo", 5), ("\u0100", 8), ("\u4e2d\u6587", 8), ("a\U0001f600", 14)],
)
def test_a_body_weighs_by_its_widest_character(text: str, times: int) -> None:
    content = text.encode()
    assert weight(content) == weight(bytearray(content)) == times * len(content)


@pytest.mark.parametrize(
    ("said", "budget"),
    [
        ("max", BUDGET_BYTES),
        ("671088640", 544 * MIB),
        ("268435456", 160 * MIB),
        ("1000", BUDGET_LEAST_BYTES),
        ("99999999999999", BUDGET_BYTES),
    ],
)
def test_the_budget_is_what_the_container_leaves(tmp_path: Path, said: str, budget: int) -> None:
    (tmp_path / "max").write_text(f"{said}\n")
    assert budget_bytes((str(tmp_path / "none"), str(tmp_path / "max"))) == budget


async def test_a_body_waits_for_room_and_goes_on_when_there_is_some() -> None:
    budget = Budget(100, wait_seconds=10)
    first, second = Claim(budget), Claim(budget)
    await first.at_least(80)
    waiting = asyncio.create_task(second.at_least(60))
    await asyncio.sleep(0)
    assert not waiting.done()
    first.to(40)  # its call is on its way
    await waiting
    assert (first.size, second.size, budget.left) == (40, 60, 0)
    for claim in (first, second):
        claim.to(0)
        claim.to(0)
    assert budget.left == 100


async def test_where_no_room_comes_the_refusal_is_a_passing_one() -> None:
    budget = Budget(100, wait_seconds=0.01)
    await Claim(budget).at_least(80)
    late = Claim(budget)
    with pytest.raises(RefusedError) as caught:
        await late.at_least(60)
    assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "meter_busy", 1)
    late.to(0)
    assert budget.left == 20


def test_a_call_on_its_way_says_so_once_its_text_is_let_go() -> None:
    said: list[str] = []
    body = read_body(b'{"model":"m"}')
    body.when_released = lambda: said.append("released")
    body.release()
    assert (said, body.content()) == (["released"], b'{"model":"m"}')
