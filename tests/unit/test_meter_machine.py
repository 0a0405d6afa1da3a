"""Machine time in the meter: until when it is paid, as the ledger tells it, and when the pod has to end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from almoner_core.environment import PAID_ALWAYS_SECONDS
from almoner_runner.meter.machine import FOREVER, MachineTime

END = 50


class Clock:
    """A monotonic clock that tests turn."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def machine(tmp_path: Path, clock: Clock) -> MachineTime:
    return MachineTime(END, tmp_path, clock)


def test_it_is_over_early_enough_for_the_pod_to_end_while_that_is_paid(machine: MachineTime, clock: Clock) -> None:
    machine.told(990.0, 100)  # asked for ten seconds ago
    clock.now = 990 + 100 - END - 0.1
    assert not machine.deny()
    clock.now += 0.1
    assert machine.deny()
    assert machine.left == END
    assert "no room in the budget" in machine.message
    machine.told(clock.now, 1000)
    assert machine.deny(), "once the kubelet was told it is for good"


def test_what_was_promised_is_not_taken_back_by_a_clock_that_jumped(machine: MachineTime, clock: Clock) -> None:
    machine.told(1000.0, 200)
    machine.told(1001.0, -600)
    clock.now = 1000 + 200 - END - 1
    assert not machine.over


def test_a_clock_that_went_back_pays_for_nothing_twice(machine: MachineTime, clock: Clock, tmp_path: Path) -> None:
    """By the ledger's clock an hour is left again, though nothing more is held; asked again and again."""
    held = {"since_unix_ms": 10**12, "until_unix_ms": 10**12 + 200_000}
    machine.told(1000.0, 200, held)
    for moment in range(1001, 1140, 10):
        clock.now = float(moment)
        machine.told(clock.now, 200, held)
        again = MachineTime(END, tmp_path, clock)
        again.recover()
        again.told(clock.now, 200, held)
        assert (machine.left, again.left) == (1200 - moment, 1200 - moment)
    clock.now = 1140.0
    # A minute more is held: that counts, and no more than that.
    machine.told(clock.now, 260, {**held, "until_unix_ms": held["until_unix_ms"] + 60_000})
    assert machine.left == 1260 - 1140
    # The operator has charged until two seconds ago, by the clock as it is now: what is held counts from there.
    machine.told(clock.now, 148, {"since_unix_ms": 10**12 - 3_600_000, "until_unix_ms": 10**12 - 3_450_000})
    assert machine.left == 148


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_clock_that_went_back_before_the_first_look_pays_from_when_the_meter_began(
    machine: MachineTime, clock: Clock, tmp_path: Path, restarts: int
) -> None:
    """It waited for the ledger, or for its binding; also one that was killed meanwhile and is started again."""
    machine.recover()
    clock.now += 70
    for _ in range(restarts):
        machine = MachineTime(END, tmp_path, clock)
        machine.recover()
    machine.told(clock.now, 200, {"since_unix_ms": 10**12, "until_unix_ms": 10**12 + 200_000})
    assert machine.left == 130


def test_one_that_waited_while_its_pod_was_charged_is_paid_from_the_last_charge(
    machine: MachineTime, clock: Clock
) -> None:
    machine.recover()
    clock.now += 500
    machine.told(clock.now, 190, {"since_unix_ms": 10**12, "until_unix_ms": 10**12 + 200_000})
    assert machine.left == 190


def test_a_clock_that_went_back_after_a_charge_pays_by_lengths(machine: MachineTime, clock: Clock) -> None:
    """A minute was charged and held anew; until the meter asks, half of that is over, and the clock says it is not."""
    machine.told(1000.0, 195, {"since_unix_ms": 10**12, "until_unix_ms": 10**12 + 200_000})
    clock.now += 90
    machine.told(clock.now, 200, {"since_unix_ms": 10**12 + 60_000, "until_unix_ms": 10**12 + 260_000})
    assert machine.left == 1000 + 195 + 60 - clock.now


def test_what_was_told_before_the_node_was_started_anew_is_nothing(
    machine: MachineTime, clock: Clock, tmp_path: Path
) -> None:
    machine.recover()
    machine.told(clock.now, 200)
    clock.now = 3.0
    again = MachineTime(END, tmp_path, clock)
    again.recover()
    assert again.over


def test_a_ledger_that_does_not_answer_is_named(machine: MachineTime, clock: Clock) -> None:
    machine.told(1000.0, 200)
    machine.unanswered()
    clock.now = 2000
    assert machine.over
    assert "the ledger does not answer" in machine.message


def test_nothing_said_is_not_paid(machine: MachineTime) -> None:
    machine.told(1000.0, None)
    assert machine.over


def test_what_nothing_limits_is_never_over_until_something_does(machine: MachineTime, clock: Clock) -> None:
    machine.told(1000.0, PAID_ALWAYS_SECONDS)
    clock.now = 10**8
    assert not machine.over
    machine.told(clock.now, 60)
    assert not machine.over
    clock.now += 10
    assert machine.over


def test_what_costs_nothing_is_never_over(tmp_path: Path, clock: Clock) -> None:
    free = MachineTime(None, tmp_path, clock)
    free.told(0.0, 0)
    assert not free.deny()
    assert free.left == free.look_seconds == FOREVER
    assert list(tmp_path.iterdir()) == []


def test_a_meter_that_is_started_again_knows_it_still(machine: MachineTime, tmp_path: Path, clock: Clock) -> None:
    machine.told(1000.0, 200)
    again = MachineTime(END, tmp_path, clock)
    again.recover()
    assert again.left == 200
    assert not again.over
    (tmp_path / "paid").write_text("soon")
    broken = MachineTime(END, tmp_path, clock)
    broken.recover()
    assert broken.over


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 300)), min_size=1, max_size=8))
def test_the_ledger_is_asked_a_few_times_before_it_is_over(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[int, int]]
) -> None:
    clock = Clock()
    machine = MachineTime(END, tmp_path_factory.mktemp("spool"), clock)
    for pause, seconds in told:
        clock.now += pause
        machine.told(clock.now, seconds)
        if not machine.over:
            assert clock.now + 3 * machine.look_seconds <= clock.now + machine.left - END + 1e-6
