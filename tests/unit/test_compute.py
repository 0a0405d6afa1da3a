"""Machine time: units, costs and holds, by the arithmetic of a reader and by properties."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.compute import NOT_BILLED, SPLITS, ComputePrices, ComputeResource, Machine

CPU, MEMORY, GPU = ComputeResource.CPU, ComputeResource.MEMORY, ComputeResource.GPU
GIB = 1024**3

prices = st.builds(
    ComputePrices,
    cpu_hour=st.none() | st.integers(0, 10**12),
    memory_gib_hour=st.none() | st.integers(0, 10**12),
    gpu_hour=st.none() | st.integers(0, 10**12),
)
machines = st.builds(Machine, cpu=st.integers(0, 10**6), memory=st.integers(0, 2**44), gpu=st.integers(0, 64))
stretches = st.integers(0, 10**6)


def by_resource(rates: ComputePrices, machine: Machine, seconds: int) -> dict[ComputeResource, int]:
    return {each.resource: each.cost_nanos for each in rates.use(machine, seconds)}


def test_an_hour_costs_its_price() -> None:
    rates = ComputePrices.parse("0.031", "0.004", "2.50")
    used = rates.use(Machine(cpu=2000, memory=4 * GIB, gpu=1), 3600)
    assert [(each.resource, each.units, each.cost_nanos) for each in used] == [
        (CPU, 7_200_000, 62_000_000),
        (MEMORY, 4096 * 3600, 16_000_000),
        (GPU, 3_600_000, 2_500_000_000),
    ]
    assert [each.price_version for each in used] == [
        "compute/cpu-hour/0.031",
        "compute/memory-hour/0.004",
        "compute/gpu-hour/2.50",
    ]


def test_a_second_is_rounded_up_once() -> None:
    (used,) = ComputePrices.parse("0.01", None, None).use(Machine(cpu=100), 1)
    assert used.cost_nanos == 278  # 277.77...


def test_a_started_mebibyte_counts_whole() -> None:
    (used,) = ComputePrices().use(Machine(memory=1), 10)
    assert used.units == 10


def test_what_has_no_price_is_used_and_costs_nothing() -> None:
    rates = ComputePrices.parse("0.031", "", None)
    cpu, memory = rates.use(Machine(cpu=100, memory=GIB), 60)
    assert cpu.cost_nanos > 0
    assert (memory.cost_nanos, memory.price_version) == (0, NOT_BILLED)
    assert rates.billed
    assert not ComputePrices.parse(None, None, None).billed
    assert not ComputePrices.parse("0", None, None).billed
    assert ComputePrices.parse("0", None, None).version(CPU) == "compute/cpu-hour/0.00"


@pytest.mark.parametrize("text", ["-1", "1e3", "free", "0.0000000001", "1,5"])
def test_a_price_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="US dollars"):
        ComputePrices.parse(text, None, None)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="negative"):
        Machine(cpu=1).units(CPU, -1)


@given(rates=prices, machine=machines, first=stretches, second=stretches)
def test_splitting_never_charges_less_and_at_most_a_nano_more(
    rates: ComputePrices, machine: Machine, first: int, second: int
) -> None:
    whole = by_resource(rates, machine, first + second)
    one, two = by_resource(rates, machine, first), by_resource(rates, machine, second)
    for resource, cost in whole.items():
        parts = one.get(resource, 0) + two.get(resource, 0)
        assert cost <= parts <= cost + 1


@given(rates=prices, machine=machines, seconds=stretches)
def test_a_cost_is_the_exact_product_rounded_up(rates: ComputePrices, machine: Machine, seconds: int) -> None:
    exact = {
        CPU: Fraction(machine.cpu * seconds, 1000 * 3600) * (rates.cpu_hour or 0),
        MEMORY: Fraction(-(-machine.memory // 2**20) * seconds, 1024 * 3600) * (rates.memory_gib_hour or 0),
        GPU: Fraction(machine.gpu * seconds, 3600) * (rates.gpu_hour or 0),
    }
    for resource, cost in by_resource(rates, machine, seconds).items():
        assert 0 <= cost - exact[resource] < 1


@given(
    rates=prices, machine=machines, cuts=st.lists(st.integers(0, 10**5), min_size=1, max_size=SPLITS), spare=stretches
)
def test_a_hold_covers_all_that_is_used_of_it_in_parts(
    rates: ComputePrices, machine: Machine, cuts: list[int], spare: int
) -> None:
    used = sum(sum(by_resource(rates, machine, cut).values()) for cut in cuts)
    assert used <= rates.hold(machine, sum(cuts) + spare)
